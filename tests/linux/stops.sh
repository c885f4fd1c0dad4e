#!/bin/sh
# Guests that stop in ways of their own: each ends with its exit code and one line that says why.
. "$(dirname "$0")/lib.sh"
command -v cc >/dev/null || skip "no C compiler"
LIMIT=120

program() { # NAME INSTRUCTIONS: an ELF file that lodge enters in 64-bit mode
    printf '.globl _start\n_start:\n%s\n1: hlt\njmp 1b\n' "$2" >"$work/$1.s"
    cc -nostdlib -static -no-pie -Wl,-Ttext=0x200000 -Wl,--build-id=none -o "$work/$1" "$work/$1.s"
}
run() { # NAME OPTIONS...
    name=$1
    shift
    lodge_run --kernel "$work/$name" --console serial --net none --memory 16M "$@" </dev/null
}
last_line() { tail -n 1 "$work/err"; }

program triple 'mov $0x12345678, %rbx
lidt empty
ud2
.balign 8
empty: .word 0x1f
.quad 0x300000'
program early 'ud2'
program deliberate 'lidt empty
int3
.balign 8
empty: .word 0
.quad 0'
program resets 'mov $0xcf9, %dx
mov $6, %al
out %al, %dx'
program powers_off 'mov $0x604, %dx
mov $0x3400, %ax
out %ax, %dx'
program panics 'mov $0x505, %dx
mov $1, %al
out %al, %dx'
program halts 'cli'

expect_exit 122 "triple fault" run triple
expect_text "$work/err" "12345678" "registers are shown"
expect_text "$work/err" "triple fault" "the reason is named: $(last_line)"
expect_exit 122 "triple fault with the processor as it started" run early
expect_exit 0 "an empty interrupt table is a reset" run deliberate --on-reboot stop
expect_exit 119 "a guest that resets itself in a loop" run resets
expect_text "$work/err" "again and again" "$(last_line)"
expect_exit 0 "the same with --on-reboot stop" run resets --on-reboot stop
expect_exit 0 "power-off" run powers_off
expect_exit 123 "pvpanic" run panics
expect_text "$work/err" "panicked" "$(last_line)"

# Held after a crash, or halted for ever: SIGTERM gets through (asks, then ends after a second one).
held() { # NAME TEXT OPTIONS...
    text=$2
    name=$1
    shift 2
    "$LODGE" run --engine "$ENGINE" --kernel "$work/$name" --console serial --net none \
        --memory 16M -v "$@" </dev/null >"$work/out" 2>"$work/err" &
    pid=$!
    children="$children $pid"
    tries=0
    until grep -q "$text" "$work/err" || [ "$tries" -ge 600 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -TERM "$pid"
    sleep 0.2
    kill -TERM "$pid" 2>/dev/null || true
    code=0
    wait "$pid" || code=$?
    return "$code"
}
expect_held() { # CODE WHAT ARGUMENTS...
    wanted=$1 what=$2 code=0
    shift 2
    held "$@" || code=$?
    expect_same "$code" "$wanted" "$what"
}
expect_held 143 "--on-panic hold" panics "is held" --on-panic hold
expect_held 143 "a guest that halts for ever" halts "kernel"

refused() { # CODE WHAT ARGUMENTS...
    code=$1 what=$2
    shift 2
    expect_exit "$code" "$what" lodge_run "$@"
    expect_one_line_error "$what"
}
refused 125 "too little memory for the kernel" --memory 16M -- true
refused 125 "too little memory for the initramfs" --memory 64M -- true
expect_exit 0 "memory above 4 GiB" lodge_run --memory 5G -- sh -c 'test $(awk "/MemTotal/{print \$2}" /proc/meminfo) -gt 4800000'
finish
