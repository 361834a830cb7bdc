#!/bin/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The lab's dom0: starts the stock toolstack, lets `tdf run` do the work, and switches off.
# Results leave by the second serial port, so that the first one is the log of events.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /var/lock /var/log/xen /var/lib/xen /var/run /etc/xen /sbin
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /var/run/xen /var/run/xenstored /var/lib/xenstored /run/xen /run/xenstored
mount -t devpts none /dev/pts
for module in /modules/*.ko; do insmod "$module"; done
mount -t xenfs none /proc/xen

argument() { sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }

if [ -n "$(argument tdf.network)" ]; then
    for module in /modules/net/*.ko; do insmod "$module"; done
fi

xenstored --pid-file /var/run/xenstored.pid
# xenstored answers as soon as its socket is there.
tries=0
until xenstore-ls / >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 250 ] || { echo "lab: xenstored does not answer"; poweroff -f; }
    usleep 20000
done
xen-init-dom0
xenconsoled --pid-file=/var/run/xenconsoled.pid

if [ -n "$(argument tdf.interactive)" ]; then
    echo "The lab's dom0: try 'xl list', 'tdf list', 'tdf create /etc/xen/guest.cfg'; 'poweroff -f' ends it."
    setsid cttyhack sh
    poweroff -f
fi

set -- tdf run "$(argument tdf.scenario)" --seed "$(argument tdf.seed)" --json /run/result.json
tdf=$(argument tdf.tdf)
[ -z "$tdf" ] || set -- "$@" --tdf "$tdf"
changes=$(argument tdf.changes)
[ -z "$changes" ] || set -- "$@" --changes "$changes"
# For scripts.
TDF_SEED=$(argument tdf.seed)
TDF_CALLS=$(argument tdf.calls)
TDF_FACTOR=$tdf
export TDF_SEED TDF_CALLS TDF_FACTOR
script=$(argument tdf.script)
[ -z "$script" ] || set -- sh "/usr/share/xen-tdf/$script"
echo "lab: $*"
"$@" >/run/table.txt
code=$?
echo "lab: ended with code $code"
stty -F /dev/ttyS1 raw -echo
{
    echo "=== table"
    cat /run/table.txt
    echo "=== json"
    cat /run/result.json 2>/dev/null
    echo
    echo "=== end $code"
} >/dev/ttyS1
poweroff -f
