#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# What libxl runs when dom0's netback has made an interface, or takes it away: a minimal stand-in for
# the script of that name, which wants bash.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
case $1 in
online)
    mtu=$(xenstore-read "$XENBUS_PATH/mtu" 2>/dev/null) && ip link set "$vif" mtu "$mtu"
    brctl addif "$(xenstore-read "$XENBUS_PATH/bridge")" "$vif"
    ip link set "$vif" up
    xenstore-write "$XENBUS_PATH/hotplug-status" connected
    ;;
offline)
    # It is usually gone by now, and has left its bridge by that.
    ip link set "$vif" down 2>/dev/null
    ;;
esac
exit 0
