#!/bin/sh
# A debug build's guest has attacker's code run on the monitor's threads: nothing comes of it.
. "$(dirname "$0")/lib.sh"

cc -O2 -Wall -Werror -static -o "$work/takeover" "$SOURCE/tests/linux/programs/takeover.c"
# attack on|off NUMBER...
attack() {
    sandbox=$1
    shift
    lodge_run --sandbox "$sandbox" --net none -- \
        sh -c 'cat >/takeover; chmod +x /takeover; exec /takeover "$@"' x "$@" <"$work/takeover"
}

expect_exit 0 "code on a vCPU's, an I/O and another thread" attack on 1 2 3
expect_text "$work/out" "still here" "the guest goes on"
for thread in vcpu io other; do
    expect_text "$work/err" "takeover: $thread: end" "everything was tried on $thread"
done

# Sanitizers' run time is let do more on other threads; Landlock is not there yet.
grep -E '^takeover: (vcpu|io): .*: DONE' "$work/err" >"$work/done" || true
expect_same "$(cat "$work/done")" "" "nothing was done by vCPU and I/O threads"
for thread in vcpu io; do
    expect_same "$(grep -c "^takeover: $thread: .*: refused" "$work/err")" 19 "each was refused to $thread"
done
for what in "internet socket" "packet socket" execve execveat "writable code" "own code writable" \
    "another handler of refusals" mount unshare bpf TIOCSTI; do
    expect_text "$work/err" "takeover: other: $what: refused" "to the other: $what"
done

expect_exit 159 "a program from a vCPU's thread" attack on 4
expect_text "$work/err" "the thread 'vcpu 0' made the system call execve" "it is told"

# It gets as far as becoming /bin/true.
expect_exit 0 "without the sandbox" attack off 1
expect_text "$work/err" "takeover: vcpu: internet socket: DONE" "the code does what it says"

finish
