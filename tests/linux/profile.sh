#!/bin/sh
# lodge ps and lodge profile on a running guest, perf maps, and garbage on the control socket.
. "$(dirname "$0")/lib.sh"

export XDG_RUNTIME_DIR="$work/run"
mkdir "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"

# start NAME COMMAND...: in the background, until its agent has answered
start() {
    name=$1
    shift
    "$LODGE" run --engine "$ENGINE" --name "$name" -m 256M -- "$@" </dev/null >"$work/$name.out" 2>&1 &
    monitor=$!
    children="$children $monitor"
    wait_status "$name" agent True
}

status() { # NAME MEMBER
    "$LODGE" ps -o json | python3 -c '
import json, sys
for vm in json.load(sys.stdin):
    if vm["name"] == sys.argv[1]:
        print(vm.get(sys.argv[2]))' "$1" "$2"
}

wait_status() { # NAME MEMBER VALUE
    tries=0
    until [ "$(status "$1" "$2")" = "$3" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || { fail "$1: $2 does not become $3"; finish; }
        sleep 0.2
    done
}

# Nothing runs yet: no directory, and that is no error.
expect_exit 0 "ps without any VM" "$LODGE" ps -o json
expect_same "$(cat "$work/out")" "[]" "an empty list"
expect_exit 1 "profile of no VM" "$LODGE" profile nobody
expect_one_line_error "no VM of that name"
expect_exit 2 "profile of nothing" "$LODGE" profile
expect_one_line_error "which VM"
expect_exit 2 "a bad number" "$LODGE" profile --seconds 0 burn
expect_exit 1 "a name that is a path" "$LODGE" profile ../burn
expect_exit 125 "run with a bad name" "$LODGE" run --name a/b -- true
expect_one_line_error "a bad name"

# The kernel's random numbers: nearly all of the time in one function of it.
start burn sh -c 'while :; do dd if=/dev/urandom of=/dev/null bs=1M count=64 2>/dev/null; done'

expect_exit 0 "ps" "$LODGE" ps
expect_text "$work/out" burn "it lists the VM"
expect_same "$(status burn status)" running "which is running"
expect_same "$(status burn pid)" "$monitor" "as the process that it is"
expect_same "$(stat -c %a "$XDG_RUNTIME_DIR/lodge/burn.sock")" 600 "the socket is the user's alone"
expect_exit 125 "a name in use" lodge_run --name burn -- true
expect_one_line_error "the name is in use"

if [ "$ENGINE" = soft ]; then
    expect_exit 0 "profile" "$LODGE" profile burn --seconds 3 --top 8
    expect_text "$work/out" chacha "the guest's function by name"
    expect_exit 0 "profile as JSON" "$LODGE" profile -o json --seconds 3 --perf-map burn
    cat >"$work/check.py" <<'END'
import json, sys
r = json.load(open(sys.argv[1]))
for member in "seconds cpu-seconds samples lost time functions processes instructions lodge counters".split():
    assert member in r, member
assert r["symbols"] and r["samples"] > 0
kinds = {t["kind"]: t["share"] for t in r["time"]}
for kind in "guest-user guest-kernel interpreter call-outs memory switch translation devices idle waiting".split():
    assert 0 <= kinds[kind] <= 1.5, kind
total = sum(kinds.values())
assert 0.7 < total < 1.3, total
first = [f["name"] for f in r["functions"][:3]]
assert any("chacha" in name for name in first), first
assert r["processes"][0]["name"] == "dd", r["processes"]
assert r["counters"]["interrupts"] > 0
print("good")
END
    expect_same "$(python3 "$work/check.py" "$work/out" 2>&1)" good "its members, and the function at the top"
    map=/tmp/perf-$monitor.map
    wait_for_map() { # names are there once the guest has told its symbols
        tries=0
        until grep -q 'guest:chacha' "$map"; do
            tries=$((tries + 1))
            [ "$tries" -lt 300 ] || return 1
            sleep 0.2
        done
    }
    expect_exit 0 "the perf map names translated code" wait_for_map
    grep -vqE '^[0-9a-f]+ [0-9a-f]+ guest:' "$map" && fail "lines that perf cannot read"
    rm -f "$map"

    # A profile ends with whoever asked for it, however that ends.
    "$LODGE" profile burn --seconds 600 >/dev/null 2>&1 &
    profiler=$!
    children="$children $profiler"
    wait_status burn profiling True
    kill -9 "$profiler"
    wait_status burn profiling False
    echo "ok: the profile ends with its client"

    # Ctrl-C ends it early, with a report.
    "$LODGE" profile burn --seconds 600 >"$work/early" 2>&1 &
    profiler=$!
    children="$children $profiler"
    wait_status burn profiling True
    kill -INT "$profiler"
    wait "$profiler" || fail "Ctrl-C ends a profile with an error"
    expect_text "$work/early" "samples" "Ctrl-C ends it with a report"
fi

# Garbage: each gets its answer, and the VM goes on.
cat >"$work/garbage.py" <<'END'
import json, os, socket, sys
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(sys.argv[1])
    f = s.makefile("rwb")
    assert json.loads(f.readline())["lodge"]["protocol"] == 1
    return s, f
def ask(f, line):
    f.write(line + b"\n")
    f.flush()
    return json.loads(f.readline())
s, f = connect()
for line, name in ((b"\xff\x00\x01garbage", "BadJson"), (b"{", "BadJson"), (b"[" * 5000, "BadJson"),
                   (b"42", "BadJson"), (b"[]", "BadRequest"), (b'{"execute": "no"}', "CommandNotFound"),
                   (b'{"execute": "profile-start", "arguments": {"interval-us": 1}}', "BadArgument"),
                   (b'{"execute": "profile-start", "arguments": {"interval-us": "x"}}', "BadArgument"),
                   (b'{"execute": "profile-stop"}', "NotActive")):
    assert ask(f, line)["error"]["class"] == name, (line, name)
r = ask(f, b'{"execute": "query-status", "id": {"any": 1}}')
assert r["return"]["running"] is True and r["id"] == {"any": 1}, r
assert "exits" in ask(f, b'{"execute": "query-counters"}')["return"]["counters"]
s2, f2 = connect()
try:
    f2.write(b"x" * 1000000)
    f2.flush()
except OSError:
    pass # it need not take all of it
assert json.loads(f2.readline())["error"]["class"] == "LineTooLong"
many = [connect() for i in range(14)]
s3, f3 = connect()
s4, f4 = connect()
assert json.loads(f4.readline())["error"]["class"] == "TooManyClients"
s5 = socket.socket(socket.AF_UNIX)
s5.connect(sys.argv[1])
try:
    s5.send(os.urandom(100))
except OSError:
    pass # it may have been sent away before
s5.close()
assert ask(f, b'{"execute": "query-version"}')["return"]["protocol"] == 1
print("good")
END
expect_same "$(python3 "$work/garbage.py" "$XDG_RUNTIME_DIR/lodge/burn.sock" 2>&1)" good "answers to garbage"

# Its clients hear of the end; a killed monitor leaves a socket that counts for nothing.
kill -TERM "$monitor"
wait "$monitor" || true
[ ! -e "$XDG_RUNTIME_DIR/lodge/burn.sock" ] || fail "the socket stays behind"
start burn sleep 1000
kill -9 "$monitor"
wait "$monitor" 2>/dev/null || true
[ -e "$XDG_RUNTIME_DIR/lodge/burn.sock" ] || fail "who removed the socket?"
expect_same "$(status burn pid)" "" "ps does not list a killed VM"
expect_exit 3 "the name can be used again" lodge_run --name burn -- sh -c 'exit 3'
finish
