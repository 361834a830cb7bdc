#!/bin/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# A Linux guest that is a host in a network: the kernel and its programs are Debian's. It brings its
# interface up, and then does what `tdf run` asks for on its console, one line for each command:
# `tdf-do ID COMMAND`. Each line of the answer begins with `tdf-out ID`; the last is `tdf-end CODE`.
/bin/busybox mkdir -p /proc /sys /dev /sbin /tmp /run
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
stty raw -echo
for module in /modules/*.ko; do insmod "$module"; done
# The line names the host and the run's seed: each host gets its own numbers, and the same in each run.
tdf seed-random "$(cat /proc/cmdline)"

argument() { sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }

ip link set lo up
until ip link set eth0 up 2>/dev/null && [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" = 1 ]; do
    usleep 10000
done
mtu=$(argument net.mtu)
[ -z "$mtu" ] || ip link set eth0 mtu "$mtu"
ip address add "$(argument net.address)" dev eth0
# Interfaces beside it that nobody uses: up, but silent, and answering nothing.
for other in /sys/class/net/eth[1-9]*; do
    [ ! -e "$other" ] || ip link set "${other##*/}" arp off up
done
echo tdf-host ready
while read -r word id line; do
    [ "$word" = tdf-do ] || continue
    {
        sh -c "$line" 2>&1
        printf '\ntdf-end %s\n' "$?"
    } </dev/null | sed "s/^/tdf-out $id /" &
done
