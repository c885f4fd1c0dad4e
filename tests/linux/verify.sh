#!/bin/sh
# A whole boot and a few programs with interpreter and translator in lock-step: nothing may differ.
# With LODGE_VERIFY_LONG=1 (make verify) more programs run, for some minutes.
. "$(dirname "$0")/lib.sh"
[ "$ENGINE" = soft ] || skip "lock-step is the soft engine's"
LIMIT=${LIMIT:-1200}

short='uname -r; for i in 1 2 3; do echo $((i * i)); done; echo lock-step | sha256sum; (exit 7)'
long='set -e; cd /tmp; i=0; while [ $i -lt 300 ]; do i=$((i + 1)); echo "line $i $((i * 7919))"; done >a
gzip -c a >b; gunzip -c b >c; cmp a c; sort -r a | uniq | wc -l; bzip2 -c a | bunzip2 | cmp - a
awk "{s += \$2 / 3} END {print s}" a; sed -n "s/line 1/LINE/p" a | md5sum; find /bin /etc | tail -n 2
for i in 1 2 3 4 5 6 7 8; do sh -c "sleep 0.01" & done; wait; dmesg | tail -n 3; exit 7'

program=$short
[ -z "${LODGE_VERIFY_LONG:-}" ] || program=$long
expect_exit 7 "a boot and programs in lock-step" lodge_run -v --verify --net none -- sh -c "$program"
[ -n "${LODGE_VERIFY_LONG:-}" ] || expect_text "$work/out" cloud-amd64 "the programs ran"
grep "lock-step:" "$work/err" || fail "no word about what was compared"
agreed=$(sed -n 's/.*lock-step: \([0-9]*\) units.*/\1/p' "$work/err")
[ "${agreed:-0}" -gt 10000000 ] || fail "only ${agreed:-0} units were compared"

expect_exit 125 "--verify is not for KVM" lodge_run --engine kvm --verify -- true
expect_one_line_error "--verify with KVM"
finish
