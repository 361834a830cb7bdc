# SPDX-License-Identifier: MIT OR Apache-2.0
# What Xen's clocks and timers cost a guest. Nothing here needs time dilation, so that stock Xen runs
# it, too: our kernel measures by itself, and its console is read by hand.
cd /tmp || exit 1

measure() { # NAME LINE…: a domain with these lines in its configuration
    name=$1
    shift
    {
        echo "name = \"$name\""
        echo 'type = "pv"'
        echo 'kernel = "/usr/share/xen-tdf/guest"'
        echo 'memory = 16'
        echo 'extra = "test=cost"'
        for line in "$@"; do echo "$line"; done
    } >"$name.cfg"
    # Without a monitor (-e) a domain that shuts down stays until its last words are read.
    xl create -q -e -p "$name.cfg" || return 1
    tty=
    tries=0
    while [ -z "$tty" ] && [ "$tries" -lt 100 ]; do
        tty=$(xenstore-read "/local/domain/$(xl domid "$name")/console/tty" 2>/dev/null)
        tries=$((tries + 1))
        usleep 50000
    done
    stty -F "$tty" raw -echo || return 1
    cat "$tty" >"$name.out" &
    reader=$!
    xl unpause "$name"
    tries=0
    until grep -q 'Test result: ' "$name.out" || [ "$tries" -ge 300 ]; do
        tries=$((tries + 1))
        usleep 100000
    done
    kill "$reader"
    xl destroy "$name"
    tr -d '\r' <"$name.out" >"$name.lines"
    grep '^tdf-cost ' "$name.lines"
    # Whatever went wrong, the log of events is to say.
    grep -q '^Test result: SUCCESS' "$name.lines" || { cat "$name.lines" >&2; return 1; }
}

measure native 'vcpus = 2' 'tsc_mode = "native"' || exit 1
measure emulated 'tsc_mode = "always_emulate"' || exit 1
