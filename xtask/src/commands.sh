# SPDX-License-Identifier: MIT OR Apache-2.0
# `tdf` as a user types it in dom0, on the stock toolstack. Every check prints one line; the script
# fails if one of them does.
. /usr/share/xen-tdf/common.sh

for wrong in 'tdf = 0' 'tdf = 2.5' 'tdf = "10 s"' 'tdf = "abc"' 'tdf = [ "10" ]' 'tdf = "1/0"' 'tdf = 5000'; do
    config wrong "$wrong"
    run tdf create wrong.cfg
    refused "$wrong" 'wrong.cfg:6: '
done

config nokernel 'tdf = "10"'
sed -i 's/guest"/nothing"/' nokernel.cfg
run tdf create nokernel.cfg
refused 'a kernel that is not there' 'nothing'

run tdf create missing.cfg
refused 'a file that is not there' 'missing.cfg'

config slow 'tdf = "5/2"'
run tdf create slow.cfg
check 'tdf create' [ "$code" -eq 0 ]
run tdf get slow
check 'tdf get shows the factor' says '5/2'
run tdf get slow --json
check 'tdf get --json is of its schema' says '"schema": *"tdf.get/1"'
run tdf set slow 7/3
check 'tdf set' [ "$code" -eq 0 ]
run tdf list
check 'tdf list shows the new factor' says '7/3'
for wrong in 0 abc 1/0 5000 1e9; do
    run tdf set slow "$wrong"
    check "tdf set slow $wrong: exit code 2" [ "$code" -eq 2 ]
done
run tdf get slow
check 'a refused factor changes nothing' says '7/3'
run tdf set 0 10
check 'dom0 cannot be dilated: exit code 1' [ "$code" -eq 1 ]
run tdf set nobody 10
check 'an unknown domain: exit code 1' [ "$code" -eq 1 ]
check 'an unknown domain is named' says 'nobody'

for key in q s; do
    xl dmesg -c >/dev/null
    xl debug-keys "$key"
    xl dmesg >out
    check "Xen's key $key shows the factor" says 'TDF 7/3, [0-9]*ns of virtual time'
done

# The wall clock, as if the domain had run at 7/3 since real time 0; ns.
wall_at_0() {
    tdf get "$1" --json >"$1.json"
    wall=$(value "$1" wall_ns)
    echo $((wall - $(value "$1" real_ns) * 3 / 7))
}
value() { sed "s/.*\"$2\":\"\?\([-0-9]*\).*/\1/" "$1.json"; }
near() { [ $(($1 - $2)) -le 2 ] && [ $(($2 - $1)) -le 2 ]; }
config other 'tdf = "100"'
run tdf create other.cfg -p
sleep 1
check 'wall clocks of domains at other factors differ' eval '! near "$(wall_at_0 slow)" "$(wall_at_0 other)"'
run tdf set slow other 7/3 --wall
check 'tdf set of several domains, with --wall' [ "$code" -eq 0 ]
check 'from then on they agree on the time of day' near "$(wall_at_0 slow)" "$(wall_at_0 other)"
xl destroy slow
xl destroy other

run xenhypfs cat /params/tdf
check 'hypfs shows the default factor' says '^1/1$'
run xenhypfs write /params/tdf 2.5
check 'it can be changed' [ "$code" -eq 0 ]
for wrong in 0 abc 1/0 5000 -1; do
    run xenhypfs write /params/tdf "$wrong"
    check "not to $wrong" [ "$code" -ne 0 ]
done
run xenhypfs cat /params/tdf
check 'hypfs shows the new one, reduced' says '^5/2$'
config plain
run xl create -p plain.cfg
run tdf get plain
check 'a domain that plain xl makes has it' says '5/2'
run xenhypfs write /params/tdf 1
run tdf get plain
check 'and keeps it when the default changes' says '5/2'
xl destroy plain
check 'nothing is left at the end' none_left
exit "$failures"
