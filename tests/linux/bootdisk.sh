# Makes disks and CDs that firmware boots: GRUB, the default guest's kernel and its initramfs. No root needed.
# Sourced after lib.sh.

PATH=$PATH:/sbin:/usr/sbin
set -- $("$LODGE" image path)
kernel=$1 initrd=$2

# The default guest's initramfs with the files in $work/root behind it.
with_files() { # OUT
    cp "$initrd" "$1"
    (cd "$work/root" && find . -mindepth 1 | cpio -o -H newc --quiet) >>"$1"
}

add_efibootmgr() {
    for file in $(command -v efibootmgr) $(ldd "$(command -v efibootmgr)" | grep -o '/[^ ]*'); do
        mkdir -p "$work/root$(dirname "$file")"
        cp -L "$file" "$work/root$file"
    done
}

# GRUB without a menu: it finds the disk that it is on by a file, and boots with KERNEL-OPTIONS.
grub_config() { # KERNEL-OPTIONS
    printf 'search --set=root --file /vmlinuz\nlinux /vmlinuz console=ttyS0 panic=-1 mitigations=off %s\n' "$1"
    printf 'initrd /initrd\nboot\n'
}

grub_modules="part_gpt part_msdos fat iso9660 linux normal search search_fs_file boot"

grub_efi() { # OUT KERNEL-OPTIONS
    grub_config "$2" >"$work/grub.cfg"
    # shellcheck disable=SC2086 # a list of words
    grub-mkimage -O x86_64-efi -p /boot -c "$work/grub.cfg" -o "$1" $grub_modules
}

# With output to the serial port: then GRUB goes to real mode and back for the disk alone.
grub_bios() { # OUT KERNEL-OPTIONS
    { printf 'serial\nterminal_output serial\n' && grub_config "$2"; } >"$work/grub.cfg"
    # shellcheck disable=SC2086 # a list of words
    grub-mkimage -O i386-pc -p /boot -c "$work/grub.cfg" -o "$1" biosdisk serial terminal $grub_modules
}

# A FAT file system with kernel and initramfs, and for EFI a loader.
boot_partition() { # OUT INITRD [EFI-LOADER]
    truncate -s 40M "$1"
    mformat -i "$1" -F ::
    mcopy -i "$1" "$kernel" ::/vmlinuz
    mcopy -i "$1" "$2" ::/initrd
    [ $# -lt 3 ] || { mmd -i "$1" ::/EFI ::/EFI/BOOT && mcopy -i "$1" "$3" ::/EFI/BOOT/BOOTX64.EFI; }
}

efi_disk() { # OUT INITRD KERNEL-OPTIONS
    grub_efi "$work/grub.efi" "$3"
    boot_partition "$work/partition" "$2" "$work/grub.efi"
    truncate -s 42M "$1"
    printf 'label: gpt\nstart=2048, size=81920, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n' | sfdisk -q "$1"
    dd if="$work/partition" of="$1" bs=1M seek=1 conv=notrunc status=none
}

bios_disk() { # OUT INITRD KERNEL-OPTIONS
    grub_bios "$work/core.img" "$3"
    boot_partition "$work/partition" "$2"
    truncate -s 42M "$1"
    printf 'label: dos\nstart=2048, type=c, bootable\n' | sfdisk -q "$1"
    dd if="$work/partition" of="$1" bs=1M seek=1 conv=notrunc status=none
    dd if=/usr/lib/grub/i386-pc/boot.img of="$1" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$1" bs=512 seek=1 conv=notrunc status=none
}
