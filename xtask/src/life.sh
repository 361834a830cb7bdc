# SPDX-License-Identifier: MIT OR Apache-2.0
# What becomes of a dilated Linux that is paused, saved, restored, rebooted, crashed or destroyed, or that
# loses a vCPU: its clocks stay right, or `tdf list` says that its factor is lost. `tdf verify` is used
# as a user does, also for a clock that is wrong.
. /usr/share/xen-tdf/common.sh

assets=/usr/share/xen-tdf
words=
# What the domains run at (--tdf), and what they are changed to.
tdf=${TDF_FACTOR:-5/2}
other=10
[ "$tdf" != "$other" ] || other=5/2
# The kernel's boot costs the lab more than anything else here.
linux() { # NAME LINE…: a Linux in which a probe waits to be asked; $words on its kernel's command line
    config "$@"
    sed -i "s|^kernel = .*|kernel = \"$assets/vmlinuz\"|; s|^memory = .*|memory = 112|" "$1.cfg"
    {
        echo "ramdisk = \"$assets/linux-probe.cgz\""
        echo "extra = \"console=hvc0 quiet cryptomgr.notests sysrq_always_enabled test=serve $words\""
        echo 'tdf_reveal = 1'
    } >>"$1.cfg"
}
# A condition that comes true within so many tries.
until_true() { # TRIES COMMAND…
    tries=$1
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 1
    done
}
verified() { tdf verify "$@" --ask --for 300ms >out 2>&1; }
has() { [ "$(number "$1" tdf)" = "$2" ]; }
lost() { # DOMAIN FACTOR NOW: tdf list says so
    tdf list >out 2>&1
    says "^$1: TDF $2 was lost, $3 holds"
}
not_lost() { tdf list >out 2>&1 && ! grep -q 'was lost' out; }
there() { xl domid "$1" >/dev/null 2>&1; }
gone() { ! there "$1"; }
new_id() { [ "$(xl domid "$1" 2>/dev/null || echo "$2")" != "$2" ]; }
online() { # DOMAIN COUNT: so many of its vCPUs are not offline
    [ "$(xl vcpu-list "$1" | awk 'NR > 1 && $5 !~ /p/' | wc -l)" -eq "$2" ]
}
stage() { echo "--      $(cut -d' ' -f1 /proc/uptime) s: $*"; }

stage 'tdf verify'
linux web "tdf = \"$tdf\"" 'vcpus = 2' 'tsc_mode = "always_emulate"'
run tdf create web.cfg
check 'a dilated Linux is made' [ "$code" -eq 0 ]
run tdf verify web --for 200ms
check 'tdf verify, without asking, passes and says what it did not see' says 'were not read'
check 'tdf verify --ask, once Linux is up' until_true 30 verified web
check 'its clocks have their rows' says 'CLOCK_MONOTONIC'
config small 'tdf = "10"'
run tdf create small.cfg -p
run tdf verify web small --for 300ms
check 'several domains at once, one of which is paused' [ "$code" -eq 0 ]
check 'each has its row' says '^small  *10  *xen '
run tdf verify web small --ask --for 300ms
check 'asking one that cannot answer fails' [ "$code" -eq 1 ]
check 'it says which, and why' says '^small: no probe answered'
run tdf verify web nobody
check 'a domain that is not there is named' says 'nobody'
run tdf verify web small --for 300ms --json
check 'its document is of its schema' says '"schema": *"tdf.verify/1"'
xl destroy small

stage 'a clock that is wrong'
words='clocksource=tsc tsc=reliable'
linux raw "tdf = \"$other\"" 'tsc_mode = "native"'
words=
run tdf create raw.cfg
check 'a Linux that reads time by a native TSC is right' until_true 30 verified raw
run tdf set raw "$tdf"
run tdf verify raw --ask --for 300ms
check 'until its factor changes: then tdf verify fails' [ "$code" -eq 1 ]
check 'it shows which clock is wrong' says '^raw .*CLOCK_MONOTONIC .* FAIL$'
check 'Xen says what is right' says '^raw .*xen:wall_clock .* ok$'
run tdf verify raw --ask --for 300ms --json
check 'its document says so, too' says '"pass": *false'
xl destroy raw

stage 'pause'
xl pause web
before=$(number web virtual_ns)
run tdf set web "$other"
check 'the factor of a paused domain changes' has web "$other"
sleep 1
check 'virtual time goes on' [ "$(number web virtual_ns)" -gt "$before" ]
xl unpause web
check 'after unpause its clocks are right' verified web

stage 'vCPUs'
xl vcpu-set web 1
check 'a vCPU goes' until_true 20 online web 1
run tdf set web "$tdf"
check 'the factor changes without it' has web "$tdf"
check 'the clocks of the other are right' verified web

stage 'save and restore'
run xl save web web.save
check 'xl save' [ "$code" -eq 0 ]
check 'it is gone' gone web
run xl restore -p web.save
check 'xl restore -p' [ "$code" -eq 0 ]
check 'tdf list says that the factor is lost' lost web "$tdf" 1
run tdf set web "$tdf"
xl unpause web
check 'set again before it runs, its clocks are right' until_true 5 verified web
check 'nothing is lost any more' not_lost
run xl save web web.save
run xl restore web.save
check 'restored without -p it runs undilated, and tdf list says so' lost web "$tdf" 1
rm -f web.save
run tdf set web "$tdf"
check 'set while it runs, its clocks are right' until_true 5 verified web

stage 'reboot'
id=$(xl domid web)
run xl reboot web
check 'xl reboot makes it anew' until_true 30 new_id web "$id"
check 'undilated, and tdf list says so' lost web "$tdf" 1
xl destroy web
check 'xl destroy' gone web

stage 'tdf create --watch'
linux kept "tdf = \"$tdf\"" 'on_crash = "restart"'
tdf create --watch kept.cfg >watch 2>&1 &
watch=$!
check 'it is made' until_true 20 there kept
check 'its clocks are right' until_true 30 verified kept
id=$(xl domid kept)
run xl reboot kept
check 'after a reboot it is there again' until_true 30 new_id kept "$id"
# Until it has that it is paused.
check 'with its factor' until_true 10 has kept "$tdf"
check 'its clocks are right' until_true 30 verified kept
id=$(xl domid kept)
run xl sysrq kept c
check 'after a crash it is there again' until_true 30 new_id kept "$id"
check 'with its factor' until_true 10 has kept "$tdf"
check 'its clocks are right' until_true 30 verified kept
check 'nothing is lost' not_lost
xl destroy kept
wait "$watch"
check 'destroyed it stays away, and the watch ends' gone kept
cat watch
check 'nothing is left at the end' none_left
exit "$failures"
