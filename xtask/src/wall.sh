# SPDX-License-Identifier: MIT OR Apache-2.0
# dom0's wall clock is set again and again, as by an NTP that has gone mad, while dilated guests read
# theirs, which must not notice. A domain that was never dilated must: else nothing was tested.
. /usr/share/xen-tdf/common.sh

began=$(date +%s)
steps() { # Until there is a file `over`: an hour on, and back.
    while [ ! -e over ]; do
        date -s "@$((began + 3600))"
        usleep 100000
        date -s "@$began"
        usleep 100000
    done
}
seconds() { # DOMAIN: its wall clock, since 1970
    tdf get "$1" --json | sed 's/.*"wall_ns":\([0-9]*\)[0-9]\{9\}}.*/\1/'
}

config plain
run tdf create plain.cfg -p
date -s "@$((began + 3600))" >/dev/null
check "a domain that was never dilated follows dom0's wall clock" [ "$(seconds plain)" -ge "$((began + 3600))" ]
date -s "@$began" >/dev/null
check 'and back' [ "$(seconds plain)" -lt "$((began + 3600))" ]
xl destroy plain

steps >/dev/null &
tdf run wall --seed "${TDF_SEED:-1}" >table
code=$?
touch over
cat table
check 'the wall clocks of dilated domains do not' [ "$code" -eq 0 ]
check 'nothing is left at the end' none_left
exit "$failures"
