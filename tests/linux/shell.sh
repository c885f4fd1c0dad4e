#!/bin/sh
# A shell on a terminal, by expect; and one without a terminal, from a pipe.
. "$(dirname "$0")/lib.sh"

piped() { printf 'echo from-the-pipe\nexit 6\n' | lodge_run; }
expect_exit 6 "a script on standard input" piped
expect_same "$(cat "$work/out")" from-the-pipe "its output"

command -v expect >/dev/null || skip "expect is not installed"
expect "$SOURCE/tests/linux/shell.exp" "$LODGE" "$ENGINE" >"$work/log" || fail "on a terminal"
grep -a -e '^ok:' -e '^FAIL:' "$work/log"
[ "$failures" = 0 ] || tail -n 30 "$work/log"
finish
