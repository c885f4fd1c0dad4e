#!/bin/sh
# CDs: a data disc in the default guest's /dev/sr0, a hybrid one booted by both firmwares.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bootdisk.sh"

mkdir "$work/files"
head -c 3000000 /dev/urandom >"$work/files/noise"
xorriso -as mkisofs -quiet -r -V DATA -o "$work/data.iso" "$work/files" 2>"$work/log" || cat "$work/log"
expect_exit 0 "a data disc in the default guest" lodge_run --cdrom "$work/data.iso" -- sh -c '
    mount -t iso9660 /dev/sr0 /mnt && sha256sum </mnt/noise && ! touch /mnt/new 2>/dev/null &&
    ! dd if=/dev/zero of=/dev/sr0 bs=2k count=1 2>/dev/null && cat /sys/block/sr0/size'
expect_same "$(head -n 1 "$work/out")" "$(sha256sum <"$work/files/noise")" "its file"
expect_same "$(tail -n 1 "$work/out")" "$(($(stat -c %s "$work/data.iso") / 512))" "its size"

# A disc for BIOS and EFI, as installers are. It says where it was booted, and ends.
mkdir -p "$work/root" "$work/iso/boot/grub"
cat >"$work/root/say" <<'END'
mount -t sysfs s /sys; mount -t proc p /proc; mount -t devtmpfs d /dev
[ -d /sys/firmware/efi ] && echo by-EFI || echo by-BIOS
for m in virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_scsi sr_mod isofs; do modprobe $m; done
for i in 1 2 3 4 5 6 7 8 9 10; do mount -t iso9660 /dev/sr0 /mnt 2>/dev/null && break; sleep 1; done
ls /mnt/boot/grub; poweroff -f
END
with_files "$work/iso/initrd"
cp "$kernel" "$work/iso/vmlinuz"
printf 'linux /vmlinuz console=ttyS0 quiet panic=-1 mitigations=off rdinit=/bin/busybox -- sh /say\ninitrd /initrd\nboot\n' \
    >"$work/iso/boot/grub/grub.cfg"
grub-mkrescue -o "$work/boot.iso" "$work/iso" --locales= --themes= --fonts= \
    --install-modules="linux iso9660 normal part_gpt part_msdos search" >"$work/log" 2>&1 || cat "$work/log"
truncate -s 8M "$work/empty"

expect_exit 0 "an installer's disc beside an empty disk" \
    lodge_run -v --net none --disk "$work/empty" --cdrom "$work/boot.iso" </dev/null
expect_text "$work/out" "by-EFI" "is booted by OVMF"
expect_text "$work/out" "grub.cfg" "and mounted by its kernel"
expect_exit 0 "the same disc with SeaBIOS" \
    lodge_run --firmware seabios --net none --disk "$work/empty" --cdrom "$work/boot.iso" </dev/null
expect_text "$work/out" "by-BIOS" "is booted by it"
expect_text "$work/out" "grub.cfg" "and mounted by its kernel"

expect_exit 125 "no such disc" lodge_run --cdrom "$work/none" -- true
expect_one_line_error "no such disc"
printf x >"$work/short"
expect_exit 125 "a disc too short" lodge_run --cdrom "$work/short" -- true
expect_one_line_error "a disc too short"
finish
