#!/bin/sh
# A kernel with a driver for the VM generation id, Debian's 6.12 series for Debian 12: its random numbers are made anew by
# itself. Not in CI: the package is large.
#
# usage: tests/linux/generation.sh BUILD
. "$(dirname "$0")/lib.sh"

packages=${LODGE_CACHE:-$SOURCE/.cache/lodge}/generation
mkdir -p "$packages/debs"
export LODGE_CACHE="$packages" XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
trap '"$LODGE" rm -f box >/dev/null 2>&1 || true; cleanup' EXIT

kernel=$(apt-cache depends linux-image-6.12-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-6.*\)/\1/p' | head -n 1)
[ -n "$kernel" ] || skip "apt knows no linux-image-6.12-cloud-amd64 (its lists may be empty: apt-get update)"
if ! ls "$packages/debs/${kernel}_"*.deb >/dev/null 2>&1; then
    rm -f "$packages/debs"/*
    (cd "$packages/debs" && apt-get download "$kernel" busybox-static >/dev/null 2>"$work/err") || { fail "the packages"; cat "$work/err"; finish; }
fi

lodge create --name box --memory 256M --net none --engine "$ENGINE" >/dev/null
expect_exit 0 "Linux $kernel starts" lodge start box
lodge exec box sh -c 'uname -r; ls /sys/bus/acpi/drivers/vmgenid /sys/bus/platform/drivers/vmgenid 2>/dev/null; true' >"$work/out"
expect_text "$work/out" 6.12 "its release"
expect_text "$work/out" LODG0001 "its driver has the device"
expect_same "$(lodge exec box dmesg | grep -c 'virtual machine fork')" 0 "nothing has happened yet"
expect_exit 0 "a snapshot" lodge snapshot create box one
expect_exit 0 "back to it" lodge snapshot restore box one
expect_same "$(lodge exec box dmesg | grep -c 'crng reseeded due to virtual machine fork')" 1 "the kernel's random numbers are made anew"
expect_exit 0 "back to it again" lodge snapshot restore box one
expect_same "$(lodge exec box dmesg | grep -c 'crng reseeded due to virtual machine fork')" 1 "and once more, from the same state"
expect_exit 0 "a clone" lodge run --from box@one -- sh -c "dmesg | grep -c 'crng reseeded due to virtual machine fork'"
expect_same "$(cat "$work/out")" 1 "in it, too"
finish
