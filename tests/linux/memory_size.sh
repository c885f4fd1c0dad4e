#!/bin/sh
# What a guest frees goes back to the host; its memory becomes less and more while it runs; what it
# says of itself; and everybody's mistakes.
. "$(dirname "$0")/lib.sh"
export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$XDG_RUNTIME_DIR"

# The guest does what lines of standard input say, and tells that it is through.
mkfifo "$work/go"
"$LODGE" run --engine "$ENGINE" --name size -m 512M,max=1G --cpus 2 -- \
    sh -c 'echo "end 0"; while read -r line; do eval "$line"; echo "end $?"; done' \
    <"$work/go" >"$work/guest" 2>"$work/guest-err" &
monitor=$!
children="$children $monitor"
exec 3>"$work/go"
ends=0

await() { # WHAT COMMAND...: until it succeeds
    what=$1 tries=0
    shift
    until "$@"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ] || ! kill -0 "$monitor" 2>/dev/null; then
            fail "$what"
            "$LODGE" memory size || true
            tail -n 15 "$work/guest" "$work/guest-err"
            finish
        fi
        sleep 0.1
    done
    echo "ok: $what"
}

is_through() {
    [ "$(grep -c '^end' "$work/guest")" -ge "$ends" ]
}

guest() { # COMMAND: in the guest; its output into $work/answer
    before=$(wc -c <"$work/guest")
    ends=$((ends + 1))
    [ -z "$1" ] || echo "$1" >&3
    await "guest: ${1:-boots}" is_through
    tail -c "+$((before + 1))" "$work/guest" >"$work/answer"
}

memory() { # [OPTIONS] MEMBER: of query-memory, in MiB if it is an amount
    "$LODGE" memory -o json size | python3 -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."):
    value = value[name]
print(int(value) >> 20 if not isinstance(value, bool) else value)' "$1"
}

meminfo() { # NAME: of the guest, in kB
    guest "grep '^$1:' /proc/meminfo"
    answer=$(sed -n "s/^$1: *\([0-9]*\) kB/\1/p" "$work/answer")
}

resident_below() {
    [ "$(memory resident)" -lt "$1" ]
}

is_at_most() { # VALUE LIMIT WHAT
    if [ "$1" -le "$2" ]; then
        echo "ok: $3 ($1)"
    else
        fail "$3: $1 is more than $2"
    fi
}

guest ""
expect_same "$(memory size) $(memory max)" "512 1024" "what it was started with"
meminfo MemTotal
total=$answer
expect_same "$(memory statistics.total)" $((total >> 10)) "the guest's statistics are told"

# ---- What is freed goes back ----
at_first=$(memory resident)
guest "mkdir -p /m && mount -t tmpfs -o size=900M t /m && dd if=/dev/zero of=/m/file bs=1M count=256 2>&1"
is_at_most $((at_first + 200)) "$(memory resident)" "a file of 256 MiB is in the host's memory"
guest "rm /m/file"
await "what was freed has gone back to the host" resident_below $((at_first + 48))
is_at_most 200 "$(memory returned)" "and was reported"

# ---- Less ----
meminfo MemAvailable
available=$answer
expect_exit 0 "half of it" "$LODGE" memory size 256M
expect_same "$(memory size) $(memory ballooned) $(memory target)" "256 256 256" "the balloon has it"
meminfo MemAvailable
is_at_most "$answer" $((available - 200 * 1024)) "the guest has less"
expect_exit 0 "and back" "$LODGE" memory size 512M
meminfo MemAvailable
is_at_most $((available - 32 * 1024)) "$answer" "the guest has it again"
expect_exit 1 "more than it can give up" "$LODGE" memory -t 1 size 16M
expect_one_line_error "more than it can give up"
expect_text "$work/err" "it uses what it has" "and the reason"
expect_exit 0 "the guest lives, and takes it back" "$LODGE" memory size 512M

# ---- More ----
expect_exit 0 "as much again" "$LODGE" memory size 1G
expect_same "$(memory size) $(memory plugged)" "1024 512" "memory was plugged in"
meminfo MemTotal
expect_same "$answer" $((total + 512 * 1024)) "the guest has twice as much"
guest "dd if=/dev/urandom of=/m/0 bs=1M count=8 2>&1; for i in \$(seq 75); do cp /m/0 /m/\$i; done; ls /m | wc -l"
guest "md5sum /m/* | cut -c1-32 | sort -u | wc -l"
expect_same "$(head -n 1 "$work/answer")" 1 "600 MiB of a pattern keep what was written"
is_at_most 600 "$(memory resident)" "and are in the host's memory"
guest "rm /m/*"
expect_exit 0 "unplugged again" "$LODGE" memory -t 60 size 512M
expect_same "$(memory size) $(memory plugged)" "512 0" "nothing is plugged in"
meminfo MemTotal
expect_same "$answer" "$total" "the guest has what it had"
await "the host has it back" resident_below $((at_first + 64))

# ---- Mistakes ----
expect_exit 1 "more than there is room for" "$LODGE" memory size 2G
expect_one_line_error "more than there is room for"
expect_exit 1 "next to nothing" "$LODGE" memory size 1M
expect_one_line_error "next to nothing"
expect_exit 2 "no size" "$LODGE" memory size much
expect_one_line_error "no size"
expect_exit 1 "no such VM" "$LODGE" memory nobody
expect_one_line_error "no such VM"
guest "rmmod virtio_balloon virtio_mem"
expect_exit 1 "less without a driver" "$LODGE" memory size 256M
expect_text "$work/err" "virtio_balloon" "the driver's name"
expect_exit 1 "more without a driver" "$LODGE" memory size 600M
expect_text "$work/err" "virtio_mem" "the driver's name"
expect_exit 0 "shown without a driver" "$LODGE" memory size
exec 3>&-
wait "$monitor" || fail "the guest ended badly"

for wrong in 512M,max=256M 512M,most=1G ,max=1G 512M,max= 512M,max=900T; do
    expect_exit 125 "--memory $wrong" "$LODGE" run -m "$wrong" -- true
    expect_one_line_error "--memory $wrong"
done
if [ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages 2>/dev/null)" = 0 ]; then
    expect_exit 125 "--hugepages without any" "$LODGE" run --engine soft --hugepages -- true
    expect_text "$work/err" "vm.nr_hugepages" "what to do about it"
fi
finish
