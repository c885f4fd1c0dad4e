#!/bin/sh
# --console serial: any kernel and initramfs, no agent; the run ends with the guest.
. "$(dirname "$0")/lib.sh"

set -- $("$LODGE" image path)
kernel=$1 initrd=$2

serial() { # OPTIONS... SCRIPT(last)
    script=
    for script; do :; done
    count=$(($# - 1))
    i=0
    for option; do
        [ "$i" = 0 ] && set --
        i=$((i + 1))
        [ "$i" -gt "$count" ] || set -- "$@" "$option"
    done
    lodge_run --console serial --kernel "$kernel" --initrd "$initrd" --net none "$@" \
        --append "console=ttyS0 quiet panic=-1 reboot=t mitigations=off rdinit=/bin/busybox -- sh -c \"$script\"" </dev/null
}
mounts='mount -t devtmpfs d /dev; mount -t proc p /proc'

expect_exit 0 "power-off" serial "echo from-serial; poweroff -f"
expect_text "$work/out" from-serial "the serial port is standard output"

expect_exit 0 "reboot with --on-reboot stop" serial --on-reboot stop "echo once; reboot -f"
expect_same "$(grep -c once "$work/out")" 1 "one boot"

# The guest marks the disk on its first boot and powers off on its second.
truncate -s 1M "$work/disk"
twice="$mounts; for m in virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do modprobe \$m; done; echo boot; \
if grep -q mark /dev/vda; then poweroff -f; else echo mark >/dev/vda; sync; reboot -f; fi"
expect_exit 0 "reboot restarts by default" serial --disk "$work/disk" "$twice"
expect_same "$(grep -c '^boot' "$work/out")" 2 "two boots"

echo_back() {
    printf 'typed line\n' | lodge_run --console serial --kernel "$kernel" --initrd "$initrd" --net none \
        --append 'console=ttyS0 quiet rdinit=/bin/busybox -- sh -c "mount -t devtmpfs d /dev; read l </dev/ttyS0; echo got $l; poweroff -f"'
}
expect_exit 0 "serial input" echo_back
expect_text "$work/out" "got typed line" "what was typed arrived"

expect_exit 123 "panic with --on-panic stop" serial --on-panic stop "$mounts; echo c >/proc/sysrq-trigger"
expect_text "$work/out" "sysrq" "the panic's text was printed"

# bzImage as its own decompressor boots it, and the other entry points.
for boot in bzimage pvh elf; do
    expect_exit 0 "--boot $boot" serial --boot $boot "echo by-$boot; poweroff -f"
    expect_text "$work/out" "by-$boot" "booted by $boot"
done
finish
