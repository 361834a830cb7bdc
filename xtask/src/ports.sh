# SPDX-License-Identifier: MIT OR Apache-2.0
# `tdf port` as a user types it in dom0: a switch, one stock Linux behind it, settings right and wrong.
# Every check prints one line; the script fails if one of them does.
. /usr/share/xen-tdf/common.sh
assets=/usr/share/xen-tdf

silent() { ! grep -q -- "$1" out; }
one_line() { [ "$(wc -l <out)" -eq 1 ]; }
settings() { tdf port show switch0 | grep 'gress: '; }

cat >switch0.cfg <<EOF
name = "switch0"
type = "pv"
kernel = "$assets/guest"
memory = 32
extra = "role=switch"
driver_domain = 1
tdf = "10"
on_reboot = "destroy"
EOF
cat >h1.cfg <<EOF
name = "h1"
type = "pv"
kernel = "$assets/vmlinuz"
ramdisk = "$assets/linux-host.cgz"
memory = 160
extra = "console=hvc0 quiet cryptomgr.notests clocksource=xen ipv6.disable=1 net.address=10.0.0.1/24 seed=$TDF_SEED"
vif = [ "mac=00:16:3e:00:00:01,backend=switch0" ]
tdf = "10"
on_reboot = "destroy"
EOF

run tdf create switch0.cfg
check 'the switch is made' [ "$code" -eq 0 ]
home=/local/domain/$(xl domid switch0)/data/switch
running() { [ "$(xenstore-read "$home/state" 2>/dev/null)" = running ]; }
await running || { echo 'FAILED  the switch never says that it runs'; xl list; exit 1; }
run tdf port show switch0
check 'it has no port that is attached' silent up
run tdf create h1.cfg
check 'a host is made' [ "$code" -eq 0 ]
attached() { tdf port show switch0 2>/dev/null | grep -q ' up '; }
await attached || { echo 'FAILED  its port never comes up'; tdf port show switch0; exit 1; }
run tdf port show switch0
check 'the port has its address' says '00:16:3e:00:00:01'
check 'the port is one of netback' says 'netback'

run tdf port set switch0 h1 'rate=10 Gbit/s' 'delay=50 us' 'loss=0.1 %' 'queue=256 KiB' framing=ethernet
check 'tdf port set' [ "$code" -eq 0 ]
run tdf port show switch0 h1
check 'the rate is shown' says '"rate":"10 Gbit/s"'
check 'the delay is shown' says '"delay":"50 us"'
run tdf port set switch0 0 'delay=1 ms' --ingress
check 'tdf port set --ingress, by number' [ "$code" -eq 0 ]
run tdf port set switch0 h1 'delay=70 us'
run tdf port show switch0
check 'what is not named stays' says '"rate":"10 Gbit/s"'
check 'what is named changes' says '"delay":"70 us"'
check 'the other direction stays' says 'ingress: {"delay":"1 ms"}'
settings >before
for wrong in rate=10 colour=red 'loss=200 %' delay 'queue=0 frames' 'rate=0 bit/s' framing=avian; do
    run tdf port set switch0 h1 "$wrong"
    check "tdf port set $wrong: exit code 1" [ "$code" -eq 1 ]
    check "tdf port set $wrong: one sentence" one_line
done
run tdf port set switch0 h1 'delay=1 s' rate=10
check 'one wrong setting of two: exit code 1' [ "$code" -eq 1 ]
# What tdf would not ask for the switch does not do either.
xenstore-write "$home/set/0" '4000000000 {"egress":{"delay":"1 lightyear"}}'
refused() { [ "$(xenstore-read "$home/ports/0/error" 2>/dev/null | cut -d' ' -f1)" = 4000000000 ]; }
check 'the switch itself refuses nonsense' await refused
settings >after
check 'a refused setting changes nothing' cmp -s before after
run tdf port set switch0 99 'delay=1 ms'
check 'a port that is not there is named' says '99'
run tdf port set switch0 nobody 'delay=1 ms'
check 'a host that is not there is named' says 'nobody'
run tdf port show h1
check 'a domain that is no switch is refused' says 'is no switch'
run tdf port set switch0 h1 rate=none delay=none loss=none queue=none framing=none
check 'all becomes ideal again' [ "$code" -eq 0 ]
run tdf port show switch0
check 'and shows nothing' silent 'egress: '
run tdf port show switch0 --json
check 'tdf port show --json is of its schema' says '"schema": *"tdf.ports/1"'

xl destroy h1
xl destroy switch0
exit "$failures"
