#!/bin/sh
# A guest's memory in a file: what it holds comes back unchanged, a TCP stream into buffers that are
# away arrives whole, a file that cannot be read is waited for, and the guest ends while much of it
# is out.
. "$(dirname "$0")/lib.sh"
[ "$ENGINE" = soft ] || skip "guests on KVM are not paged out"

export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$XDG_RUNTIME_DIR"

head -c 8000000 /dev/urandom >"$work/blob"
sum=$(sha256sum <"$work/blob" | cut -d' ' -f1)
serve_http "$work"

# Each step waits for a line on standard input, and says when it is done. The first download uses
# buffers, so that there is something in those of the second.
mkfifo "$work/go"
timeout --foreground -k 10 240 "$LODGE" run --engine "$ENGINE" --name paged -m 256M -- sh -c "
    mount -t tmpfs t /mnt && head -c 40000000 /dev/urandom >/mnt/data && sha256sum /mnt/data >/mnt/sum
    wget -q -O /dev/null http://10.0.2.2:$port/blob
    echo step ready; read x
    wget -q -O - http://10.0.2.2:$port/blob | sha256sum; echo step stream; read x
    sha256sum -c /mnt/sum; echo step check; read x" <"$work/go" >"$work/guest" 2>"$work/err" &
monitor=$!
children="$children $monitor"
exec 3>"$work/go"

wait_for() { # STEP
    tries=0
    until grep -q "step $1" "$work/guest"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ] || ! kill -0 "$monitor"; then
            fail "the guest does not come to $1"
            tail -n 15 "$work/guest" "$work/err"
            finish
        fi
        sleep 0.1
    done
}

member() { # NAME: of the last answer, in MiB
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]] >> 20)' "$work/out" "$1"
}

expect_between() { # LEAST VALUE MOST WHAT
    if [ "$2" -ge "$1" ] && [ "$2" -le "$3" ]; then
        echo "ok: $4: $2"
    else
        fail "$4: $2, not from $1 to $3"
    fi
}

wait_for ready
expect_exit 0 "paging out" "$LODGE" memory --page-out -o json paged
expect_between 40 "$(member away)" 256 "MiB in the file"
expect_between 0 "$(member resident)" 30 "MiB in memory"
expect_exit 0 "what there is" "$LODGE" memory paged
expect_text "$work/out" "paged out" "is told"
expect_exit 1 "paging out what does not exist" "$LODGE" memory --page-out nobody

echo >&3
wait_for stream
expect_text "$work/guest" "$sum" "a stream into memory that was away arrived unchanged"
expect_exit 0 "counters" python3 - "$XDG_RUNTIME_DIR/lodge/paged.sock" <<'END'
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
stream = connection.makefile("rw")
stream.readline()
stream.write('{"execute": "query-counters"}\n')
stream.flush()
counters = json.loads(stream.readline())["return"]["counters"]
print({name: value for name, value in counters.items() if name.startswith(("net.", "paging."))})
# Whether buffers are still away when a frame comes is chance: what is near to them may have been touched.
sys.exit(not (counters["net.backup-frames"] > 0 and counters["net.backup-dropped"] == 0 and
              counters["paging.supplied"] > 0))
END

expect_exit 0 "paging in" "$LODGE" memory --page-in -o json paged
expect_same "$(member away)" 0 "all is back"
expect_exit 0 "paging out again, in part" "$LODGE" memory --page-out --keep 60M -o json paged
expect_between 1 "$(member away)" 250 "MiB in the file"
expect_exit 0 "and all of it" "$LODGE" memory --page-out paged
echo >&3
wait_for check
expect_text "$work/guest" "/mnt/data: OK" "what it kept in memory is unchanged"

expect_exit 0 "and once more" "$LODGE" memory --page-out paged
# The file cannot be read for a while: the guest waits, and ends once it can.
pid=$("$LODGE" ps -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')
file=
for fd in "/proc/$pid/fd"/*; do
    case $(readlink "$fd") in /var/tmp/*) file=$fd ;; esac
done
cp --sparse=always "$file" "$work/kept"
truncate -s 0 "$file"
echo >&3
exec 3>&-
tries=0
until "$LODGE" ps | grep -q "cannot be read" || [ "$tries" -gt 600 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
expect_exit 1 "nobody pauses a guest that waits for its memory" "$LODGE" pause paged
expect_text "$work/err" "paged out to /var/tmp cannot be read" "says why"
cat "$work/kept" >"$file"
code=0
wait "$monitor" || code=$?
expect_same "$code" 0 "the guest ends while it is paged out"

for wrong in "--keep 5M paged" "--page-out --page-in paged" "--page-out paged 5M" "--page-out --keep x paged"; do
    # shellcheck disable=SC2086
    expect_exit 2 "refused: $wrong" "$LODGE" memory $wrong
done
finish
