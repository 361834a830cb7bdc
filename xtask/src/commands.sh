# SPDX-License-Identifier: MIT OR Apache-2.0
# `tdf` as a user types it in dom0, on the stock toolstack. Every check prints one line; the script
# fails if one of them does.
failures=0
guest=/usr/share/xen-tdf/guest
cd /tmp || exit 1

check() { # DESCRIPTION CONDITION…
    what=$1
    shift
    if "$@"; then echo "ok      $what"; else echo "FAILED  $what"; failures=$((failures + 1)); fi
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
run() { "$@" >out 2>&1; code=$?; }

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
xl destroy slow
check 'nothing is left at the end' none_left
exit "$failures"
