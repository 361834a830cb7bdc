# SPDX-License-Identifier: MIT OR Apache-2.0
# What the lab's scripts share.
failures=0
guest=/usr/share/xen-tdf/guest
cd /tmp || exit 1

check() { # DESCRIPTION CONDITION…: what fails stands in the log of events as well
    what=$1
    shift
    if "$@"; then echo "ok      $what"; else echo "FAILED  $what" | tee /dev/hvc0; failures=$((failures + 1)); fi
}
config() { # NAME LINE…: an ordinary xl configuration with more lines
    name=$1
    shift
    {
        echo "name = \"$name\""
        echo 'type = "pv"'
        echo "kernel = \"$guest\""
        echo 'memory = 16'
        echo 'on_poweroff = "destroy"'
        for line in "$@"; do echo "$line"; done
    } >"$name.cfg"
}
domains() { xl list | tail -n +3 | wc -l; }
none_left() { [ "$(domains)" -eq 0 ]; }
says() { grep -q -- "$1" out || { sed 's/^/        /' out; return 1; }; }
refused() { # DESCRIPTION TEXT: the last command failed, said TEXT, and left no domain
    check "$1: exit code 1" [ "$code" -eq 1 ]
    check "$1: says '$2'" says "$2"
    check "$1: no domain is left" none_left
}
number() { # DOMAIN KEY: of tdf get --json
    tdf get "$1" --json | sed "s/.*\"$2\":\"\?\([-0-9/]*\).*/\1/"
}
run() { "$@" >out 2>&1; code=$?; }
await() { # COMMAND…: until it succeeds, for a minute
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || return 1
        usleep 100000
    done
}
