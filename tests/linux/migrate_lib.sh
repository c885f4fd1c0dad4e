# Two users' stores on one host, between which VMs move. Sourced by tests that move the VM "box".
. "$(dirname "$0")/lib.sh"

mkdir "$work/here" "$work/there" "$work/here.run" "$work/there.run"
on() { # SIDE ARGUMENTS...
    side=$1
    shift
    XDG_DATA_HOME="$work/$side" XDG_RUNTIME_DIR="$work/$side.run" timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"
}
trap 'on here rm -f box >/dev/null 2>&1 || true; on there rm -f box >/dev/null 2>&1 || true; cleanup' EXIT
"$LODGE" image path >/dev/null 2>&1 # its assembly says a line, which no error is to be mixed with

listen() { # SIDE ADDRESS [OPTIONS...]: a receiver, once it listens; its process is $listener
    side=$1 address=$2
    shift 2
    : >"$work/$side.log"
    XDG_DATA_HOME="$work/$side" XDG_RUNTIME_DIR="$work/$side.run" "$LODGE" receive "$@" "$address" \
        >"$work/$side.out" 2>"$work/$side.log" &
    listener=$!
    children="$children $listener"
    until grep -q listening "$work/$side.log"; do
        kill -0 "$listener" 2>/dev/null || { fail "no receiver: $(cat "$work/$side.log")"; finish; }
        sleep 0.02
    done
}
ready() { # SIDE: its agent answers
    for _ in $(seq 600); do
        ! on "$1" exec box true >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "no agent answers $1"
}
