#!/bin/sh
# Disks booted by SeaBIOS and OVMF: GRUB, Debian's kernel; UEFI variables that last; reboots; what cannot be booted.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bootdisk.sh"

# ---- SeaBIOS: the disk's boot loader is for it; the guest reboots once ----

mkdir "$work/root"
cat >"$work/root/twice" <<'END'
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
for m in virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do modprobe $m; done
echo boot number
echo "processors: $(nproc) of $(cat /sys/devices/system/cpu/possible)"
until [ -e /sys/devices/system/cpu/cpu2/online ]; do usleep 100000; done
if grep -q mark /dev/vdb; then poweroff -f; else echo mark >/dev/vdb; sync; reboot -f; fi
END
with_files "$work/initrd"
bios_disk "$work/bios.img" "$work/initrd" "quiet rdinit=/bin/busybox -- sh /twice"
truncate -s 1M "$work/mark"
export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$work/run"
# It goes on when it has a third processor, which is there when it starts anew.
lodge_run -v --name bios --cpus 2,max=3 --net none --disk "$work/bios.img" --disk "$work/mark" \
    </dev/null >"$work/bios-out" 2>"$work/bios-err" &
children=$!
until [ -S "$work/run/lodge/bios.sock" ]; do kill -0 "$children" || break; sleep 0.1; done
until "$LODGE" cpus bios 3 2>"$work/err"; do
    kill -0 "$children" && grep -q "when it is up" "$work/err" || { fail "a third processor: $(cat "$work/err")"; break; }
    sleep 0.1
done
wait "$children" || fail "a disk with a BIOS loader boots, twice"
children=
cp "$work/bios-out" "$work/out"; cp "$work/bios-err" "$work/err"
expect_text "$work/err" "seabios/bios-256k.bin" "by SeaBIOS, without being asked for"
expect_text "$work/out" "SeaBIOS (version" "whose screen is the serial port"
expect_same "$(sed -n 's/.*\(processors: [-0-9 of]*\).*/\1/p' "$work/out" | tr '\n' ' ')" "processors: 2 of 0-2 processors: 3 of 0-2 " \
    "two boots, a processor plugged in before the second"

# ---- OVMF: the agent answers as it does after a direct boot; variables last ----

add_efibootmgr
with_files "$work/initrd"
efi_disk "$work/efi.img" "$work/initrd" quiet
efi() { lodge_run --cpus 2 --firmware ovmf --firmware-vars "$work/vars" --disk "$work/efi.img" "$@"; }
expect_exit 0 "OVMF, GRUB, kernel, agent; a boot entry made" efi -- sh -c '
    modprobe efivarfs && mount -t efivarfs e /sys/firmware/efi/efivars &&
    efibootmgr -q -c -d /dev/vda -p 1 -L lodge-test -l "\EFI\BOOT\BOOTX64.EFI" && cat /proc/interrupts &&
    dmesg | grep -i "ACPI.*\(BIOS Error\|mismatch\)\|bogus alignment\|t claim"; true'
expect_text "$work/out" "PCI-MSI" "interrupts by MSI"
expect_same "$(grep -ci 'bios error\|bogus alignment\|t claim' "$work/out")" 0 "no complaints about ACPI, and bridges' windows"
expect_exit 0 "the entry is there after a boot" efi -- sh -c '
    modprobe efivarfs; mount -t efivarfs e /sys/firmware/efi/efivars; efibootmgr'
expect_text "$work/out" "lodge-test" "in the variables' file"
expect_same "$(stat -c %s "$work/vars")" 540672 "of the store's size"

expect_exit 0 "without a file variables begin afresh" lodge_run --firmware ovmf --disk "$work/efi.img" -- sh -c '
    modprobe efivarfs; mount -t efivarfs e /sys/firmware/efi/efivars; efibootmgr'
expect_same "$(grep -c lodge-test "$work/out")" 0 "no entry"

# ---- A VM that lasts, with a firmware of its own ----

export XDG_DATA_HOME="$work/data"
mkdir "$work/data"
# Paths are kept as they were meant, not as they were written.
expect_exit 0 "create" sh -c "cd '$work' && '$LODGE' create --engine '$ENGINE' --name efi --console agent \
    --cpus 2,max=4 --firmware ovmf --firmware-vars new-vars --disk efi.img"
expect_exit 0 "start: up when the disk's agent answers" timeout 240 "$LODGE" start efi
expect_exit 0 "exec" "$LODGE" exec efi sh -c 'ls /sys/firmware/efi'
expect_exit 0 "two more processors" "$LODGE" cpus efi 4
expect_exit 0 "found by the guest" timeout 120 "$LODGE" exec efi sh -c 'cd /sys/devices/system/cpu
    nproc; until [ -e cpu2/online ] && [ -e cpu3/online ]; do usleep 100000; done; echo 1 >cpu2/online; echo 1 >cpu3/online
    taskset -c 3 nproc; cat possible; od -An -tu1 -j 35 -N 3 /sys/firmware/dmi/entries/4-0/raw'
expect_same "$(tr -s ' \n' ' ' <"$work/out")" "2 1 0-3 4 2 4 " "and used; SMBIOS tells of room for four cores, two enabled"
[ -s "$work/new-vars" ] || fail "the variables are not where they were to be"
monitors() { # how many processes of lodge's this test has running
    count=0
    for process in /proc/[0-9]*; do
        if [ "$(cat "$process/comm" 2>/dev/null)" = lodge ] && grep -qs "$work/data" "$process/environ"; then
            count=$((count + 1))
        fi
    done
    echo "$count"
}
expect_same "$(monitors)" 1 "one process while it runs"
expect_exit 0 "stop" "$LODGE" stop efi

# What cannot start leaves nothing behind.
fails_to_start() { # WHAT TEXT
    expect_exit 125 "start: $1" "$LODGE" start efi
    expect_one_line_error "start: $1"
    expect_text "$work/err" "$2" "start: $1: says why"
    expect_same "$(monitors) $("$LODGE" ps | tail -n +2)" "0 " "start: $1: no process is left, and none is listed"
}
mv "$work/efi.img" "$work/away.img"
fails_to_start "a disk that is not there" "cannot open disk"
mv "$work/away.img" "$work/efi.img"
mv "$work/new-vars" "$work/kept-vars"; mkdir "$work/new-vars"
fails_to_start "variables that are a directory" "Is a directory"
rmdir "$work/new-vars"; mv "$work/kept-vars" "$work/new-vars"

"$LODGE" logs efi >"$work/out"
expect_text "$work/out" "UEFI" "its log has the firmware's words"
expect_exit 0 "rm" "$LODGE" rm -f efi
[ -f "$work/efi.img" ] || fail "rm has taken the disk away"
unset XDG_DATA_HOME

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
refused "a directory for firmware" "no firmware file" --firmware "$work"
# Root may read everything: as somebody else, where that one can run lodge.
cp /usr/share/seabios/bios-256k.bin "$work/secret"
chmod 000 "$work/secret"
chmod 711 "$work"
as_nobody=
[ "$(id -u)" != 0 ] || as_nobody="setpriv --reuid 65534 --regid 65534 --clear-groups"
if $as_nobody "$LODGE" --version >/dev/null 2>&1; then
    expect_exit 125 "firmware that may not be read" timeout 60 $as_nobody env XDG_RUNTIME_DIR="$work/none" \
        "$LODGE" run --engine "$ENGINE" --firmware "$work/secret"
    expect_one_line_error "firmware that may not be read"
    expect_text "$work/err" "Permission denied" "firmware that may not be read: says why"
fi
refused "a store of zeros" "no store of UEFI variables" --firmware ovmf --firmware-vars "$work/zero"
refused "a short store" "another size" --firmware ovmf --firmware-vars "$work/short"
refused "a damaged store" "no store of UEFI variables" --firmware ovmf --firmware-vars "$work/damaged"
refused "variables for a BIOS" "keeps no UEFI variables" --firmware seabios --firmware-vars "$work/vars"
refused "variables without firmware" "needs a firmware" --firmware-vars "$work/vars" -- true
refused "firmware and a kernel" "leave out --kernel" --firmware ovmf --kernel "$kernel"
finish
