#!/bin/sh
# Bad input: one line that says what and why, a documented exit code, nothing left behind.
. "$(dirname "$0")/lib.sh"

set -- $("$LODGE" image path)
kernel=$1 initrd=$2
LIMIT=60

refused() { # CODE WHAT ARGUMENTS...
    code=$1 what=$2
    shift 2
    expect_exit "$code" "$what" lodge_run "$@"
    expect_one_line_error "$what"
}

: >"$work/empty"
head -c 100000 "$kernel" >"$work/truncated"
head -c 100000 /dev/urandom >"$work/noise"
truncate -s 600M "$work/huge"

refused 125 "missing kernel" --kernel "$work/none" -- true
refused 125 "empty kernel" --kernel "$work/empty" -- true
refused 125 "truncated kernel" --kernel "$work/truncated" -- true
refused 125 "no kernel" --kernel "$work/noise" -- true
refused 125 "a folder as kernel" --kernel "$work" -- true
refused 125 "missing initrd" --kernel "$kernel" --initrd "$work/none" -- true
refused 125 "initrd that does not fit" --kernel "$kernel" --initrd "$work/huge" --memory 512M -- true
refused 125 "memory 0" --memory 0 -- true
refused 125 "memory without sense" --memory lots -- true
refused 125 "negative memory" --memory -5M -- true
refused 125 "memory that overflows" --memory 99999999999999999999G -- true
refused 125 "1 MiB of memory" --memory 1M -- true
refused 125 "more memory than the host has" --memory 900T -- true
refused 125 "unknown option" --no-such-option -- true
refused 125 "unknown engine" --engine warp -- true
refused 125 "unknown console" --console tele -- true
refused 125 "unknown network" --net cable -- true
refused 125 "bad publish" --publish 80 -- true
refused 125 "port out of range" --publish 80:99999 -- true
refused 125 "missing disk" --disk "$work/none" -- true
refused 125 "unknown disk option" --disk "$work/empty,colour=red" -- true
refused 125 "option without value" --memory
refused 125 "command line too long" --append "$(head -c 100000 /dev/zero | tr '\0' x)" -- true

expect_exit 2 "unknown verb" "$LODGE" frobnicate
expect_one_line_error "unknown verb"
expect_exit 0 "help" "$LODGE" --help
expect_exit 0 "help of run" "$LODGE" run --help
expect_text "$work/out" "--memory" "help names the options"

# An initramfs without an agent: the last lines of its console are shown.
LIMIT=240
mkdir -p "$work/root/bin"
cp "$(command -v busybox)" "$work/root/bin/busybox"
printf '#!/bin/busybox sh\necho custom-init-runs\nexec /bin/busybox sleep 100000\n' >"$work/root/init"
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc 2>/dev/null) >"$work/no-agent"
expect_exit 124 "initramfs without agent" env LODGE_AGENT_TIMEOUT=20 "$LODGE" run --engine "$ENGINE" \
    --kernel "$kernel" --initrd "$work/no-agent" --append "console=ttyS0" -- true
expect_text "$work/err" custom-init-runs "the console's last lines are shown"

# A full host disk: the cache cannot be written.
if [ "$(id -u)" = 0 ] && mkdir "$work/small" && mount -t tmpfs -o size=1m none "$work/small" 2>/dev/null; then
    expect_exit 120 "cache on a full disk" env XDG_CACHE_HOME="$work/small" LODGE_CACHE="$work/small" \
        "$LODGE" run --engine "$ENGINE" -- true
    tail -n 1 "$work/err"
    expect_same "$(find "$work/small" -type f | wc -l)" 0 "nothing half-made is left"
    umount "$work/small"
fi
finish
