# SPDX-License-Identifier: MIT OR Apache-2.0
# A network of three stock Linux hosts while a fourth party pulls plugs: a host is destroyed in the middle of
# a transfer and made again, and its interface is detached and attached again and again, TDF_CALLS times. The
# other two must not notice: no ping of theirs is lost and no frame at any port. Afterwards the switch and
# Xen own what they owned before, to the page. What passes is captured meanwhile, as a user does.
. /usr/share/xen-tdf/common.sh

assets=/usr/share/xen-tdf
times=${TDF_CALLS:-100}

stage() { # to the log of events as well
    echo "--      $(cut -d' ' -f1 /proc/uptime) s: $*" | tee /dev/hvc0
}

# Hosts, and what they are told to do on their consoles.
host() { # NAME NUMBER MIB: its configuration
    cat >"$1.cfg" <<END
name = "$1"
type = "pv"
kernel = "$assets/vmlinuz"
ramdisk = "$assets/linux-host.cgz"
memory = $3
extra = "console=hvc0 quiet cryptomgr.notests clocksource=xen ipv6.disable=1 net.address=10.0.0.$2/24 seed=$TDF_SEED"
vif = [ "mac=00:16:3e:00:00:0$2,backend=switch0" ]
tdf = "2"
on_reboot = "destroy"
END
}
ready() { grep -q '^tdf-host ready' "$1.log"; }
begin_make() { # NAME
    tdf create "$1.cfg" -p >>xl.log 2>&1 || { cat xl.log; return 1; }
    xenstore-read "/local/domain/$(xl domid "$1")/console/tty" >"$1.tty"
    stty -F "$(cat "$1.tty")" raw -echo
    : >"$1.log"
    cat "$(cat "$1.tty")" 2>/dev/null >>"$1.log" &
    xl unpause "$1"
}
make() { begin_make "$1" && await ready "$1"; } # NAME: made, and ready
begin() { # NAME COMMAND: starts it, as number $job
    job=$((job + 1))
    echo "tdf-do $job $2" >"$(cat "$1.tty")"
}
ended() { grep -q "^tdf-out $2 tdf-end" "$1.log"; }
end() { # NAME JOB: waits for it; what it said is in `out`
    await ended "$1" "$2" || { echo "        $1 does not come to an end with $2"; return 1; }
    tr -d '\r' <"$1.log" | sed -n "s/^tdf-out $2 //p" >out
    says '^tdf-end 0'
}
ask() { # NAME COMMAND
    begin "$1" "$2"
    end "$1" "$job"
}
job=0

# What h1 and h2 and the switch have counted.
answered() { # every request of h1's kernel, which counts replies that its ping may miss
    ask h1 'usleep 500000; grep ^Icmp: /proc/net/snmp' || return 1
    awk '/^Icmp:/ && !names { names = split($0, name); next }
         /^Icmp:/ { for (n = 2; n <= names; n++) count[name[n]] = $n }
         END { print "        " count["OutEchos"] + 0 " requests, " count["InEchoReps"] + 0 " replies"
               exit count["OutEchos"] < 20 || count["OutEchos"] != count["InEchoReps"] }' out
}
same_at_port() { # NAME NUMBER: of the port, from 1 on; no frame between them is missing
    ask "$1" 'grep eth0: /proc/net/dev' || return 1
    at_host=$(awk '/eth0:/ { print $11, $3 }' out)
    at_port=$(tdf port show switch0 --json | tr -d '\n ' | grep -o '"[rt]x_frames":[0-9]*' |
        awk -F: -v port="$2" 'NR == 2 * port - 1 { rx = $2 } NR == 2 * port { print rx, $2 }')
    [ -n "$at_host" ] && [ "$at_host" = "$at_port" ]
}
balanced() { # each frame has one end for each of its receivers, or is held
    tr -d '\n "' <json | sed 's/.*ledger:{\([^}]*\)}.*/\1/' | tr , '\n' >ledger
    echo "        $(tr '\n' ' ' <ledger)"
    awk -F: '{ count[$1] = $2 }
        END { exit count["arrived"] == 0 || count["arrived"] + count["copied"] != \
                count["delivered"] + count["dropped"] + count["gone"] + count["held"] }' ledger
}

# What the switch, Xen and xenstore hold.
backend() { echo "/local/domain/$switch/backend/vif/$(xl domid "$1")/0"; }
connected() { [ "$(xenstore-read "$1/state" 2>/dev/null)" = 4 ]; }
gone() { ! xenstore-exists "$1"; }
channels() { # of the switch, as Xen has them, those in use
    xl dmesg -c >/dev/null
    xl debug-keys e
    xl dmesg | awk -v id="$switch" '
        /Event channel information for domain/ { gsub("[^0-9]", " "); split($0, number, " ")
            here = number[1] == id || number[2] == id }
        here && / s=[1-9]/ { count++ }
        END { print count + 0 }'
}
state() { # everything that must be the same before and after
    tdf port show switch0 --json >json
    tr -d '\n ' <json | grep -o '"\(grants\|pool_free\|pool_total\|heap_free\)":[0-9]*'
    echo "event channels: $(channels)"
    echo "free memory: $(xl info free_memory) MiB"
    echo "nodes: $(xenstore-ls -f "/local/domain/$switch" | grep -vc '/data/switch/')"
}

# An interface of the switch itself, of which dom0 is the backend, comes and goes.
again_at_bridge() {
    run xl network-attach switch0 mac=00:16:3e:00:01:01 bridge=br0
    [ "$code" -eq 0 ] && await connected "/local/domain/$switch/device/vif/0" || return 1
    run xl network-detach switch0 00:16:3e:00:01:01
    [ "$code" -eq 0 ] && await gone "/local/domain/$switch/device/vif/0"
}

cat >switch0.cfg <<END
name = "switch0"
type = "pv"
kernel = "$assets/guest"
memory = 32
extra = "role=switch"
driver_domain = 1
tdf = "2"
on_reboot = "destroy"
END
host h1 1 128
host h2 2 128
# Linux 6.1 loses the 256 pages of its receive ring with each interface, whoever is the backend.
host h3 3 $((128 + times * 5 / 4))

ip link add name br0 type bridge
ip link set dev br0 up

stage 'a switch and two hosts'
run tdf create switch0.cfg
switch=$(xl domid switch0)
running() { [ "$(xenstore-read "/local/domain/$switch/data/switch/state" 2>/dev/null)" = running ]; }
await running || { echo 'FAILED  the switch never says that it runs'; exit 1; }
begin_make h1 && make h2 && await ready h1 || { echo 'FAILED  the hosts do not come up'; cat h?.log; exit 1; }
run tdf port set switch0 h2 'rate=20 Mbit/s' framing=ethernet 'delay=1 ms' 'queue=200 frames'
check 'a port is set' [ "$code" -eq 0 ]
check 'the hosts reach each other' ask h1 'ping -c 3 10.0.0.2'

# Once before anything is counted: what is made at the first time and kept.
stage 'a third host, once'
check 'it comes up' make h3
vif=$(backend h3)
xl destroy h3
check 'destroyed, its interface is gone' await gone "$vif"
again_at_bridge || cat out
run tdf port capture switch0 all -w all.pcap --snaplen 9018 --for 100ms
state >before
cat before

stage 'traffic that must not notice'
ask h1 'iperf3 -s -D'
ask h2 'iperf3 -s -D'
ask h1 'touch /tmp/go'
begin h1 'echo $$ >/tmp/ping; exec ping -i 0.05 10.0.0.2'
ping=$job
begin h1 'while [ -e /tmp/go ]; do iperf3 -c 10.0.0.2 -b 1M -l 4K -t 2 -i 0 -f k || exit 1; done'
flow=$job

stage 'a host is destroyed in the middle of a transfer'
check 'it comes up' make h3
vif=$(backend h3)
begin h3 'iperf3 -c 10.0.0.1 -b 500K -l 4K -t 1000 -i 0.1 -f k'
check 'it sends to one of the others' await grep -q "^tdf-out $job .*bits/sec" h3.log
begin h2 'echo $$ >/tmp/ping; exec ping -i 0.01 10.0.0.3'
pinging=$job
check 'and the other to it' await grep -q "^tdf-out $pinging .*time=" h2.log
run xl destroy h3
check 'xl destroy' [ "$code" -eq 0 ]
check 'its interface is gone' await gone "$vif"
ask h2 'kill -INT $(cat /tmp/ping)'

stage 'made again, and destroyed while it boots'
begin_make h3
vif=$(backend h3)
run xl destroy h3
check 'its interface is gone' await gone "$vif"

stage "made again, its interface detached and attached $times times"
check 'it comes up' make h3
vif=$(backend h3)
again() {
    run xl network-detach h3 0
    [ "$code" -eq 0 ] && await gone "$vif" || return 1
    # Linux lets go of its end later, and takes a new interface that is there by then for the old one.
    ask h3 'while [ -e /sys/class/net/eth0 ]; do usleep 10000; done' || return 1
    run xl network-attach h3 mac=00:16:3e:00:00:03 backend=switch0
    [ "$code" -eq 0 ] && await connected "$vif"
}
did=0
while [ "$did" -lt "$times" ] && again; do did=$((did + 1)); done
[ "$did" -eq "$times" ] || { cat out; tail h3.log; }
check "$did times" [ "$did" -eq "$times" ]
# Its new interface is as bare as the first one was.
check 'it reaches the first by its new interface' ask h3 \
    'ip link set eth0 up && ip address add 10.0.0.3/24 dev eth0 && ping -c 3 10.0.0.1'
check 'and the second' ask h3 'ping -c 3 10.0.0.2'
run xl destroy h3
check 'destroyed, its interface is gone' await gone "$vif"

stage "the switch is attached to a bridge of dom0, and detached, $times times"
did=0
while [ "$did" -lt "$times" ] && again_at_bridge; do did=$((did + 1)); done
[ "$did" -eq "$times" ] || cat out
check "$did times" [ "$did" -eq "$times" ]

stage 'what the others had of all that'
# busybox's ping has room for three replies. Xen makes domains on the processor that the hosts need, so that
# more may come at once: those it misses, and its socket counts them, but they were not lost on the way.
ask h1 'rm /tmp/go; cat /proc/net/raw; kill -INT $(cat /tmp/ping)'
missed=$(awk '/:0001 / { sum += $NF } END { print sum + 0 }' out)
check 'ping ends' end h1 "$ping"
grep 'transmitted\|round-trip' out
echo "        $missed replies had no room in the socket of ping"
check 'no ping of theirs was lost' answered
check 'TCP ends' end h1 "$flow"
sent=$(grep -c ' sender' out)
check 'TCP flowed all the time' [ "$sent" -ge 3 ]
# For the same reason TCP may take a frame for lost that is late.
echo "        $(grep ' sender' out | awk '{ sum += $(NF - 1) } END { print sum + 0 }') segments sent again"
check 'the first has sent and received what its port has' await same_at_port h1 1
check 'and so has the second' await same_at_port h2 2
tdf port show switch0 --json >json
lost=$(tr -d '\n ' <json | grep -o '"\(faults\|runt\|filtered\|no_host\|no_memory\|host_full\|failed\|refused\|size\|policed\|queue_full\|shared_full\|aqm\|loss\|no_slot\)":[1-9][0-9]*')
check "no port of theirs saw a broken rule or lost a frame $lost" [ -z "$lost" ]
check 'the switch accounts for every frame' balanced

stage 'what is owned'
state >after
check 'the switch, Xen and xenstore hold what they held before' cmp before after
diff before after

stage 'what passes is captured'
frames() { # that came in and went out at all ports so far
    tdf port show switch0 --json | tr -d '\n ' | grep -o '"[rt]x_frames":[0-9]*' |
        awk -F: '{ sum += $2 } END { print sum }'
}
asked() { # the second time
    [ "$(xenstore-read "/local/domain/$switch/data/switch/capture/ring" 2>/dev/null | cut -d' ' -f1)" = 2 ]
}
passed=$(frames)
tdf port capture switch0 all -w all.pcap --snaplen 9018 >captured 2>&1 &
capture=$!
check 'the switch lends a ring' await asked
check 'ping goes on' ask h1 'ping -c 20 -i 0.05 10.0.0.2'
# A reader that does not come costs frames in the file, and nothing else.
kill -STOP "$capture"
check 'TCP goes on, although nobody reads' ask h1 'iperf3 -c 10.0.0.2 -n 1M -i 0.1'
kill -CONT "$capture"
usleep 500000
kill -INT "$capture"
wait "$capture"
check 'the capture ends' [ "$?" -eq 0 ]
cat captured
passed=$(($(frames) - passed))
written=$(sed 's/.*: \([0-9]*\) frames.*/\1/' captured)
dropped=$(sed 's/.* \([0-9]*\) dropped.*/\1/' captured)
check "each of $passed frames is in the file or counted" [ "$((written + dropped))" -eq "$passed" ]
check 'some were dropped' [ "$dropped" -gt 0 ]
# It gives up root's rights, for those of a user.
echo 'tcpdump:x:0:0::/:/bin/sh' >/etc/passwd
run tcpdump -r all.pcap -n -tt --nano
check 'tcpdump reads the file' [ "$code" -eq 0 ]
[ "$code" -eq 0 ] || cat out
check 'all of it' [ "$(grep -c '^[0-9]*\.[0-9]\{9\} ' out)" -eq "$written" ]
grep 'ICMP echo request' out | sed 's/^[0-9]*\([0-9][0-9][0-9]\)\.\([0-9]*\) .*/\1\2/' >stamps
# Each request comes in once and goes out once. Between them is what the port's model takes, to the ns:
# 98 B and 12 B of check sequence and preamble at 20 Mbit/s, and 1 ms.
check 'each request is there twice' [ "$(wc -l <stamps)" -eq 40 ]
check 'and leaves 1 044 000 ns after it came, to the ns' awk '
    NR % 2 { came = $1; next } $1 - came != 1044000 { print "        " $1 - came; bad = 1 } END { exit bad }' stamps
# virtual_ns real_ns port direction bytes
check 'beside it stands real time, which goes twice as fast' awk '
    /^#/ { next } !base { base = substr($1, 1, length($1) - 12); }
    { virtual = substr($1, length($1) - 11); real = substr($2, length($2) - 12)
      if (first && (real - real0) != 2 * (virtual - virtual0)) bad++
      if (!first) { first = 1; real0 = real; virtual0 = virtual } }
    END { exit bad > 0 || !first }' all.pcap.real
check 'a line for each frame' [ "$(grep -vc '^#' all.pcap.real)" -eq "$written" ]
state >after
check 'and nothing is kept' cmp before after
diff before after

xl destroy h1
xl destroy h2
xl destroy switch0
check 'nothing is left at the end' none_left
exit "$failures"
