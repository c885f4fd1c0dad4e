# What the Linux tests share. Sourced by each; sets up $work (removed at the end) and $LODGE.
#
# usage of a test: tests/linux/NAME.sh BUILD
# LODGE_TEST_ENGINE chooses the engine (soft).

set -eu
BUILD=$(cd "$1" && pwd)
SOURCE=$(cd "$(dirname "$0")/../.." && pwd)
LODGE=$BUILD/lodge
ENGINE=${LODGE_TEST_ENGINE:-soft}
work=$(mktemp -d)
children=
failures=0

cleanup() {
    for pid in $children; do
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

lodge_run() { # lodge run on the engine under test; a hang is a failure, not a stuck suite
    timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" run --engine "$ENGINE" "$@"
}

fail() {
    echo "FAIL: $*"
    failures=$((failures + 1))
}

skip() {
    echo "skip: $*"
    exit 77
}

# expect_exit CODE WHAT COMMAND...: runs it with output in $work/out and $work/err
expect_exit() {
    wanted=$1 what=$2
    shift 2
    code=0
    "$@" >"$work/out" 2>"$work/err" || code=$?
    if [ "$code" != "$wanted" ]; then
        fail "$what: exit $code instead of $wanted"
        tail -n 15 "$work/out" "$work/err"
    else
        echo "ok: $what"
    fi
}

expect_text() { # FILE TEXT WHAT
    if grep -qF -- "$2" "$1"; then
        echo "ok: $3"
    else
        fail "$3: no '$2' in:"
        tail -n 15 "$1"
    fi
}

expect_same() { # A B WHAT
    if [ "$1" = "$2" ]; then
        echo "ok: $3"
    else
        fail "$3: '$1' is not '$2'"
    fi
}

# Exactly one line on standard error that begins "lodge: " and says what to do or why.
expect_one_line_error() { # WHAT
    lines=$(wc -l <"$work/err")
    if [ "$lines" = 1 ] && grep -q '^lodge: ' "$work/err"; then
        echo "ok: $1: $(cat "$work/err")"
    else
        fail "$1: not one line of error:"
        cat "$work/err"
    fi
}

# A server on loopback: GET sends a file of DIRECTORY, PUT stores one. Its port is in $port.
serve_http() { # DIRECTORY
    python3 "$SOURCE/tests/linux/http_server.py" "$1" >"$work/port" &
    children="$children $!"
    tries=0
    until [ -s "$work/port" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { fail "the HTTP server did not start"; finish; }
        sleep 0.1
    done
    port=$(cat "$work/port")
}

finish() {
    [ "$failures" = 0 ] || { echo "$failures failed"; exit 1; }
    exit 0
}
