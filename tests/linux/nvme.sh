#!/bin/sh
# NVMe with Linux's own driver: a file system, fio with verify, resets under load, nvme-cli, several namespaces;
# firmware; classes of service.
. "$(dirname "$0")/lib.sh"

image=$("$SOURCE/tests/linux/storage-image") || { fail "image with fio and nvme-cli"; finish; }
truncate -s 256M "$work/disk"
truncate -s 16M "$work/second"

# In a chroot of the programs' disk; the second disk is readonly and shares the first one's controller.
in_storage() { # SCRIPT
    lodge_run --cpus 2 --append iomem=relaxed --disk "$image,readonly" --disk "$work/disk,device=nvme,controller=a" \
        --disk "$work/second,readonly,device=nvme,controller=a" -- sh -c "
        mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
        mount -t devtmpfs d /t/dev && mount -t tmpfs t /t/tmp && mkdir /t/tmp/m && cat >/t/tmp/go &&
        exec chroot /t /bin/sh -c 'cd /tmp && . ./go'" <"$1"
}

cat >"$work/load" <<'EOF'
set -e
n=/dev/nvme0n1
/sbin/mke2fs -q -t ext4 $n
mount -t ext4 -o discard $n m
fio --name=fs --directory=m --size=24M --rw=randrw --bsrange=512-256k --ioengine=libaio --iodepth=16 --direct=1 \
    --verify=crc32c --verify_fatal=1 --fsync=32 --randseed=1 --thread >fio.1 || { cat fio.1; exit 4; }
rm m/fs*
fstrim m
umount m
/sbin/e2fsck -fn $n >e2fsck 2>&1 || { cat e2fsck; exit 5; }
fio --name=raw --filename=$n --size=24M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 --direct=1 \
    --verify=crc32c --verify_fatal=1 --randseed=2 --thread --numjobs=2 --offset_increment=64M >fio.2 &
fio=$!
for i in 1 2 3 4 5; do nvme reset /dev/nvme0; sleep 0.2; done
wait $fio || { cat fio.2; exit 6; }
grep nvme /proc/interrupts
! dmesg | grep -i 'nvme.*\(error\|timeout\|abort\)'
EOF
expect_exit 0 "a file system, fio with verify, resets under load" in_storage "$work/load"
expect_text "$work/out" "nvme0q2" "by a queue for each processor"

cat >"$work/cli" <<'EOF'
n=/dev/nvme0
run() { echo "== nvme $*"; nvme "$@" || echo "!! exit $?: nvme $*"; }
for c in list list-subsys "id-ctrl $n" "id-ns ${n}n1" "id-ns ${n}n2" "smart-log $n" "error-log $n" "fw-log $n" \
    "effects-log -H $n" "changed-ns-list-log $n" "ns-descs ${n}n2" "list-ns $n" "list-ctrl $n" "show-regs -H $n" \
    "get-ns-id ${n}n1" "flush ${n}n1" "verify ${n}n1 -s 0 -c 127" "write-zeroes ${n}n1 -s 8 -c 7" \
    "dsm ${n}n1 -d -s 0 -b 8"; do
    run $c
done
for f in 1 2 4 5 6 7 8 9 0xa 0xb 0xe; do run get-feature $n -f $f -H; run get-feature $n -f $f -s 3; done
run set-feature $n -f 4 -v 340
head -c 8192 /dev/urandom >a
run write ${n}n1 -s 64 -c 15 -z 8192 -d a
run read ${n}n1 -s 64 -c 15 -z 8192 -d b
cmp a b && run compare ${n}n1 -s 64 -c 15 -z 8192 -d a
run format -f ${n}n1
run read ${n}n1 -s 64 -c 15 -z 8192 -d b
echo "left: $(tr -d '\0' <b | wc -c)"
exec 2>&1
echo "== refused"
nvme compare ${n}n1 -s 64 -c 15 -z 8192 -d a
nvme io-passthru ${n}n2 -o 1 -n 2 -w -l 512 -i a
nvme write-uncor ${n}n1 -s 0 -c 0
nvme resv-report ${n}n1
nvme resv-register ${n}n1 --nrkey 1
nvme read ${n}n1 -s 0xfffffff -c 0 -z 512 -d b
nvme error-log $n -e 1
exit 0
EOF
expect_exit 0 "nvme-cli" in_storage "$work/cli"
grep -v -e ': Success' -e '^lodge: assembling' "$work/err" >"$work/complaints" || true
expect_same "$(cat "$work/complaints")" "" "without a complaint"
expect_same "$(grep '^!!' "$work/out")" "" "each command succeeds"
expect_text "$work/out" "/dev/nvme0n2" "two namespaces"
expect_text "$work/out" "NVMe specification 1.4" "the version"
expect_text "$work/out" "left: 0" "format clears"
sed -n '/^== refused/,$p' "$work/out" >"$work/refused"
expect_text "$work/refused" "Compare Failure" "a comparison that fails"
expect_text "$work/refused" "Write Protected" "a namespace that is readonly"
expect_same "$(grep -c 'Invalid Command Opcode' "$work/refused")" 3 "reservations and bad blocks are refused"
expect_text "$work/refused" "LBA Out of Range" "blocks that are not there"
expect_text "$work/refused" "lba		: 0xfffffff" "which the error log tells"

# Firmware boots from it.
. "$(dirname "$0")/bootdisk.sh"
mkdir "$work/root"
cat >"$work/root/once" <<'EOF'
mount -t devtmpfs d /dev
for m in virtio_pci nvme; do modprobe $m 2>/dev/null; done
ls /dev/nvme*
poweroff -f
EOF
with_files "$work/initrd"
bios_disk "$work/bios.img" "$work/initrd" "quiet rdinit=/bin/busybox -- sh /once"
expect_exit 0 "SeaBIOS" lodge_run --firmware seabios --net none --disk "$work/bios.img,device=nvme" </dev/null
expect_text "$work/out" "/dev/nvme0n1p1" "boots from it"
efi_disk "$work/efi.img" "$work/initrd" quiet
expect_exit 0 "OVMF" lodge_run --firmware ovmf --disk "$work/efi.img,device=nvme" -- ls /dev/nvme0n1p1
expect_text "$work/out" "/dev/nvme0n1p1" "boots from it"

# Hot grow: both kinds of disk grow under a mounted file system that is written to.
grown() {
    lodge_run --name grows --disk "$image,readonly" --disk "$work/a" --disk "$work/b,device=nvme" -- sh -c '
        mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
        mount -t devtmpfs d /t/dev && mount -t tmpfs t /t/tmp && mkdir /t/tmp/vdb /t/tmp/nvme0n1 || exit 3
        for d in vdb nvme0n1; do
            chroot /t /sbin/mke2fs -q -t ext4 /dev/$d && mount -t ext4 /dev/$d /t/tmp/$d || exit 4
            chroot /t /usr/bin/fio --name=f --directory=/tmp/$d --size=16M --rw=randwrite --bs=4k --ioengine=libaio \
                --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 --loops=2 --thread >/t/tmp/$d.log 2>&1 &
        done
        echo mounted
        while [ "$(cat /sys/block/vdb/size)" = 131072 ] || [ "$(cat /sys/block/nvme0n1/size)" = 131072 ]; do
            sleep 0.1; done
        for d in vdb nvme0n1; do chroot /t /sbin/resize2fs /dev/$d 2>&1 || exit 5; done
        wait
        for d in vdb nvme0n1; do
            grep -q "err= 0" /t/tmp/$d.log || { cat /t/tmp/$d.log; exit 6; }
            df -m /t/tmp/$d | tail -n 1; umount /t/tmp/$d
            chroot /t /sbin/e2fsck -fn /dev/$d >/dev/null 2>&1 || exit 7
        done' >"$work/grown" 2>&1
}
truncate -s 64M "$work/a" "$work/b"
export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 "$work/run"
grown &
until grep -q mounted "$work/grown" 2>/dev/null || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
expect_exit 0 "virtio-blk grows" "$LODGE" disk resize grows disk1 256M
expect_exit 0 "NVMe grows" "$LODGE" disk resize grows disk2 +192M
expect_exit 1 "it cannot shrink" "$LODGE" disk resize grows disk2 1M
expect_one_line_error "shrinking"
expect_exit 1 "no such disk" "$LODGE" disk resize grows disk9 1G
expect_one_line_error "no such disk"
wait $! || { fail "file systems grow under load"; cat "$work/grown"; }
expect_same "$(awk '$1 ~ "^/dev/" && $2 > 200' "$work/grown" | wc -l)" 2 "both file systems grew"

# Classes of service: changed while the guest runs, which it does until its standard input ends.
mkfifo "$work/until"
lodge_run --name classes --disk "$work/disk,device=nvme,class=low" --disk "$work/second" -- \
    sh -c 'dd if=/dev/nvme0n1 of=/dev/null bs=1M iflag=direct; cat' <"$work/until" 2>"$work/dd" &
exec 5>"$work/until"
expect_exit 0 "qos set" sh -c "for i in \$(seq 100); do # until it runs
    $LODGE qos set classes disk1 urgent && exit; sleep 0.5; done 2>/dev/null; exit 1"
expect_exit 0 "qos show" "$LODGE" qos show classes
expect_same "$(awk 'NR > 1 { print $1, $2 }' "$work/out" | tr '\n' ' ')" "disk0 low disk1 urgent " "classes as set"
expect_exit 0 "limits are set" "$LODGE" qos set classes disk0 iops=5000 write-bps=20M burst=0.5
expect_exit 0 "qos show" "$LODGE" qos show -o json classes
expect_text "$work/out" '"write-bps": 20971520' "limits as set"
expect_exit 1 "a limit that is none" "$LODGE" qos set classes disk0 ips=5
expect_one_line_error "no such limit"
expect_exit 0 "limits are lifted" "$LODGE" qos set classes disk0 medium write-bps=0 iops=0
expect_exit 0 "and a class given back" "$LODGE" qos set classes disk0 low
expect_exit 1 "a disk that is not there" "$LODGE" qos set classes disk2 low
expect_one_line_error "no such disk"
expect_exit 1 "a class that is not there" "$LODGE" qos set classes disk1 best
expect_one_line_error "no such class"
exec 5>&-
wait $! || fail "reading in pieces"
expect_text "$work/dd" "256+0 records in" "the disk was read in pieces"
finish
