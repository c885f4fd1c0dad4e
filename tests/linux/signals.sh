#!/bin/sh
# Ctrl-C and SIGTERM at any moment: the guest is asked to shut down, a second signal ends it.
. "$(dirname "$0")/lib.sh"

# signal_after TEXT SIGNALS EXPECTED WHAT: starts a guest, waits for TEXT, sends the signals.
signal_after() {
    text=$1 signals=$2 expected=$3 what=$4
    : >"$work/guest" # not to find the text of the guest before
    "$LODGE" run --engine "$ENGINE" -- sh -c 'echo ready; sleep 100000' >"$work/guest" 2>"$work/guest.err" &
    pid=$!
    children="$children $pid"
    # Before its exec a signal would still be the test shell's, and be lost.
    until [ "$(readlink "/proc/$pid/exe")" = "$LODGE" ] || ! kill -0 "$pid" 2>/dev/null; do :; done
    tries=0
    until [ -z "$text" ] || grep -q "$text" "$work/guest"; do
        tries=$((tries + 1))
        [ "$tries" -lt 1800 ] && kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    for signal in $signals; do
        kill -"$signal" "$pid" 2>/dev/null || true
        sleep 0.2
    done
    code=0
    wait "$pid" || code=$?
    expect_same "$code" "$expected" "$what"
    expect_same "$(tail -c 300 "$work/guest.err" | grep -c -i 'sanitizer\|core dumped')" 0 "$what: ends cleanly"
}

signal_after ready TERM 143 "SIGTERM while a command runs"
signal_after ready INT 130 "Ctrl-C while a command runs"
signal_after ready "TERM TERM" 143 "a second signal ends it"
signal_after "" TERM 143 "SIGTERM at the start"
finish
