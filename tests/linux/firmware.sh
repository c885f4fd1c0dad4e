#!/bin/sh
# Disks booted by SeaBIOS and OVMF: GRUB, Debian's kernel; UEFI variables that last; reboots; what cannot be booted.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bootdisk.sh"

# ---- SeaBIOS: the disk's boot loader is for it; the guest reboots once ----

mkdir "$work/root"
cat >"$work/root/twice" <<'END'
mount -t devtmpfs d /dev; mount -t proc p /proc
for m in virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do modprobe $m; done
echo boot number
if grep -q mark /dev/vdb; then poweroff -f; else echo mark >/dev/vdb; sync; reboot -f; fi
END
with_files "$work/initrd"
bios_disk "$work/bios.img" "$work/initrd" "quiet rdinit=/bin/busybox -- sh /twice"
truncate -s 1M "$work/mark"
expect_exit 0 "a disk with a BIOS loader boots, twice" \
    lodge_run -v --cpus 2 --net none --disk "$work/bios.img" --disk "$work/mark" </dev/null
expect_text "$work/err" "seabios/bios-256k.bin" "by SeaBIOS, without being asked for"
expect_text "$work/out" "SeaBIOS (version" "whose screen is the serial port"
expect_same "$(grep -c "boot number" "$work/out")" 2 "two boots"

# ---- OVMF: the agent answers as it does after a direct boot; variables last ----

add_efibootmgr
with_files "$work/initrd"
efi_disk "$work/efi.img" "$work/initrd" quiet
efi() { lodge_run --cpus 2 --firmware ovmf --firmware-vars "$work/vars" --disk "$work/efi.img" "$@"; }
expect_exit 0 "OVMF, GRUB, kernel, agent; a boot entry made" efi -- sh -c '
    modprobe efivarfs && mount -t efivarfs e /sys/firmware/efi/efivars &&
    efibootmgr -q -c -d /dev/vda -p 1 -L lodge-test -l "\EFI\BOOT\BOOTX64.EFI" && cat /proc/interrupts &&
    dmesg | grep -i "ACPI.*\(BIOS Error\|mismatch\)"; true'
expect_text "$work/out" "PCI-MSI" "interrupts by MSI"
expect_same "$(grep -ci 'bios error' "$work/out")" 0 "no complaints about ACPI"
expect_exit 0 "the entry is there after a boot" efi -- sh -c '
    modprobe efivarfs; mount -t efivarfs e /sys/firmware/efi/efivars; efibootmgr'
expect_text "$work/out" "lodge-test" "in the variables' file"
expect_same "$(stat -c %s "$work/vars")" 540672 "of the store's size"

expect_exit 0 "without a file variables begin afresh" lodge_run --firmware ovmf --disk "$work/efi.img" -- sh -c '
    modprobe efivarfs; mount -t efivarfs e /sys/firmware/efi/efivars; efibootmgr'
expect_same "$(grep -c lodge-test "$work/out")" 0 "no entry"

# ---- A VM that lasts, with a firmware of its own ----

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
# Paths are kept as they were meant, not as they were written.
expect_exit 0 "create" sh -c "cd '$work' && '$LODGE' create --engine '$ENGINE' --name efi --console agent \
    --firmware ovmf --firmware-vars new-vars --disk efi.img"
expect_exit 0 "start: up when the disk's agent answers" timeout 240 "$LODGE" start efi
expect_exit 0 "exec" "$LODGE" exec efi sh -c 'ls /sys/firmware/efi'
[ -s "$work/new-vars" ] || fail "the variables are not where they were to be"
expect_exit 0 "stop" "$LODGE" stop efi
"$LODGE" logs efi >"$work/out"
expect_text "$work/out" "UEFI" "its log has the firmware's words"
expect_exit 0 "rm" "$LODGE" rm -f efi
[ -f "$work/efi.img" ] || fail "rm has taken the disk away"
unset XDG_DATA_HOME XDG_RUNTIME_DIR

# ---- What it does with bad input ----

expect_exit 0 "a command goes to the default guest, whatever the disk" lodge_run -v --disk "$work/efi.img" -- true
expect_text "$work/err" "lodge: kernel " "without firmware"

refused() { # WHAT TEXT OPTIONS...
    what=$1 text=$2
    shift 2
    expect_exit 125 "$what" lodge_run "$@"
    expect_one_line_error "$what"
    expect_text "$work/err" "$text" "$what: says why"
}
head -c 540672 /dev/zero >"$work/zero"
head -c 8192 "$work/vars" >"$work/short"
cp "$work/vars" "$work/damaged"
printf 'x' | dd of="$work/damaged" bs=1 seek=20 conv=notrunc status=none
refused "no firmware there" "No such file" --firmware "$work/none"
refused "no firmware file" "no firmware file" --firmware "$0"
refused "a store of zeros" "no store of UEFI variables" --firmware ovmf --firmware-vars "$work/zero"
refused "a short store" "another size" --firmware ovmf --firmware-vars "$work/short"
refused "a damaged store" "no store of UEFI variables" --firmware ovmf --firmware-vars "$work/damaged"
refused "variables for a BIOS" "keeps no UEFI variables" --firmware seabios --firmware-vars "$work/vars"
refused "variables without firmware" "needs a firmware" --firmware-vars "$work/vars" -- true
refused "firmware and a kernel" "leave out --kernel" --firmware ovmf --kernel "$kernel"
finish
