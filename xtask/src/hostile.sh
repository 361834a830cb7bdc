# SPDX-License-Identifier: MIT OR Apache-2.0
# Guests and dom0 ask Xen for anything that has to do with time, all at once: TDF_CALLS hypercalls of guests
# in all, and as many requests of dom0. Xen must stand it, answer each as it has to, and let no
# other domain feel it.
. /usr/share/xen-tdf/common.sh

calls=${TDF_CALLS:-100000}
seed=${TDF_SEED:-1}
factors='1000 10 1/2 1/1000'
# Each factor's share; the guest's is made by two vCPUs.
share=$((calls / 4))
sed "s/^calls = .*/calls = $((share / 2))/" /usr/share/xen-tdf/scenarios/hostile.toml >hostile.toml

# A lab that hangs says nothing more; this says where.
(
    sleep $((150 + calls / 1000))
    echo 'FAILED  this takes too long; what waits, and where:'
    for process in /proc/[0-9]*; do
        echo "$(tr '\0' ' ' <"$process/cmdline") $(cat "$process/wchan") $(cat "$process/syscall")"
    done
) >/dev/hvc0 2>&1 &
guard=$!

# What dom0's requests are made for: a guest that is hostile, too, and one that never ran.
config storm 'tdf = "10"' 'tdf_reveal = 1' 'vcpus = 2' \
    "extra = \"test=hostile calls=1000000000 seed=$seed\""
config still 'tdf = "5/2"'
run tdf create storm.cfg
check 'a hostile guest is made' [ "$code" -eq 0 ]
run tdf create still.cfg -p
check 'a guest that does not run is made' [ "$code" -eq 0 ]

for factor in $factors; do
    tdf run hostile.toml --tdf "$factor" --seed "$seed" >table &
    scenario=$!
    run tdf storm storm still --calls "$share" --seed "$seed"
    check "TDF $factor: dom0's requests are answered as they have to be" [ "$code" -eq 0 ]
    cat out
    wait "$scenario"
    code=$?
    check "TDF $factor: the guest's are, too, and the clocks beside it are right" [ "$code" -eq 0 ]
    cat table
    seed=$((seed + 1))
done

# r, b or - for running, blocked or ready.
state() { xl list | awk -v name="$1" '$1 == name { print $5 }'; }
check 'the hostile guest still runs' [ "$(state storm | tr -d 'rb-' | wc -c)" -eq 1 ]
run tdf get storm --json
check 'it has the factor that it had' says '"tdf":"10"'
kill "$guard"
xl dmesg >log
check 'Xen has nothing to complain of' [ "$(grep -c 'BUG\|WARN\|Assertion\|Call Trace\|call trace\|FATAL' log)" -eq 0 ]
xl destroy storm
xl destroy still
check 'nothing is left at the end' none_left
exit "$failures"
