#!/bin/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# A Linux guest that measures its own clocks: the kernel is Debian's, `tdf probe` the only program.
/bin/busybox mkdir -p /proc /sys /dev /sbin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
# Newer kernels block all hypercalls from a guest's user space unless told otherwise; the probe needs
# one, to read Xen's time. Older ones ignore the parameter.
for module in /modules/*.ko; do insmod "$module" unrestricted=1; done
# A guest that is not PV has a local APIC, too: Linux takes its timer when it loses Xen's.
if grep -q 'tdf.timer=lapic' /proc/cmdline; then
    echo xen >/sys/devices/system/clockevents/clockevent0/unbind_device
    echo "timer: $(cat /sys/devices/system/clockevents/clockevent0/current_device)"
fi
tdf probe
poweroff -f
