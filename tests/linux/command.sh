#!/bin/sh
# Commands in the default guest: exit codes, separate streams, bulk data both ways.
. "$(dirname "$0")/lib.sh"

expect_exit 0 "uname -r" lodge_run -- uname -r
expect_text "$work/out" "cloud-amd64" "an unmodified Debian cloud kernel"

expect_exit 7 "exit code 7" lodge_run -- sh -c 'echo hi; exit 7'
expect_same "$(cat "$work/out")" hi "standard output, nothing else in it"
expect_same "$(cat "$work/err")" "" "nothing on standard error"

expect_exit 0 "streams" lodge_run -- sh -c 'echo to-out; echo to-err >&2'
expect_same "$(cat "$work/out")" to-out "standard output"
expect_same "$(cat "$work/err")" to-err "standard error"

expect_exit 127 "command not found" lodge_run -- /no/such/command
expect_exit 126 "not executable" lodge_run -- /etc
expect_exit 143 "killed by SIGTERM" lodge_run -- sh -c 'kill -TERM $$'
expect_exit 139 "killed by SIGSEGV" lodge_run -- sh -c 'kill -SEGV $$'

# Arguments arrive as they were given: spaces, quotes, empty ones, leading dashes.
expect_exit 0 "arguments" lodge_run -- sh -c 'for a; do echo "[$a]"; done' x 'a  b' '' "q'uote\"" -- --engine
expect_same "$(cat "$work/out")" "$(printf '[%s]\n' 'a  b' '' "q'uote\"" -- --engine)" "each argument unchanged"

# A few MiB through the guest and back, and its checksum as the guest sees it.
head -c 4000000 /dev/urandom >"$work/data"
sum=$(sha256sum <"$work/data" | cut -d' ' -f1)
in_guest() { lodge_run -- sh -c 'tee /tmp/data; sha256sum </tmp/data >&2' <"$work/data"; }
expect_exit 0 "4 MB through standard input and output" in_guest
expect_same "$(sha256sum <"$work/out" | cut -d' ' -f1)" "$sum" "they come back unchanged"
expect_same "$(cut -d' ' -f1 "$work/err")" "$sum" "the guest saw them unchanged"

no_input() { lodge_run -- cat </dev/null; }
expect_exit 0 "end of input is passed on" no_input

# The reader goes away: lodge ends instead of filling memory or hanging.
first_line() { lodge_run -- sh -c 'yes | head -c 100000000' | head -n 1; }
expect_exit 0 "closed standard output" first_line
expect_same "$(cat "$work/out")" y "and the line arrived"

expect_exit 0 "-v says what runs" lodge_run -v -- true
for word in engine memory boot; do
    grep -qi "$word" "$work/err" || fail "-v does not mention $word"
done

# Where KVM is far behind, that is measured once and not before each start; anywhere else no note is left.
auto() { XDG_RUNTIME_DIR=$work timeout --foreground -k 10 240 "$LODGE" run --engine auto -v -- true; }
note=$work/lodge/engine
expect_exit 0 "the engine is chosen" auto
if [ -e "$note" ]; then
    expect_exit 0 "and chosen again" auto
    expect_text "$work/err" "since the host booted" "by what was measured"
    sed -i 's/^[^ ]*/another-boot/' "$note"
    expect_exit 0 "after another boot" auto
    grep -q "since the host booted" "$work/err" && fail "an earlier boot's measurement was taken"
fi
finish
