# SPDX-License-Identifier: MIT OR Apache-2.0
# `tdf` as a user types it in dom0, on the stock toolstack. Every check prints one line; the script
# fails if one of them does.
. /usr/share/xen-tdf/common.sh

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
