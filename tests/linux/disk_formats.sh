#!/bin/sh
# lodge disk, and disks in lodge's format, qcow2 and over NBD under a guest: overlays, snapshots (of running guests, too), kill -9.
. "$(dirname "$0")/lib.sh"

"$LODGE" image path >"$work/out" # is there when the first line counts
cd "$work"
sum() { sha256sum | cut -d' ' -f1; }
disk() { "$LODGE" disk "$@"; }

# ---- The tool ----
expect_exit 0 "create" disk create a.lodge 256M
expect_exit 1 "not twice" disk create a.lodge 256M
expect_one_line_error "a disk that exists"
expect_exit 1 "2^63 bytes" disk create z.lodge 9223372036854775808
expect_one_line_error "2^63 bytes"
expect_same "$(ls z.lodge* 2>/dev/null)" "" "nothing is made"
expect_exit 1 "grown to that" disk resize a.lodge 9223372036854775808
expect_one_line_error "grown to 2^63 bytes"
expect_exit 0 "info" disk info a.lodge -o json
expect_text out '"bytes": 268435456' "its size"
expect_exit 2 "a command that is none" disk creat b.lodge 1M
expect_one_line_error "a wrong command"

# ---- qcow2 and back, against QEMU's own tools ----
head -c 3000000 /dev/urandom >content
truncate -s 64M content && head -c 700000 /dev/urandom >>content && truncate -s 67109888 content
cp --sparse=always content content.was
expect_exit 0 "raw to qcow2" disk convert content b.qcow2
expect_exit 0 "QEMU finds no error in it" qemu-img check -q b.qcow2
expect_exit 0 "and the same content" qemu-img compare -q -f raw -F qcow2 content b.qcow2
for compression in zlib zstd; do
    qemu-img convert -q -c -O qcow2 -o compression_type=$compression content "c-$compression.qcow2"
    expect_exit 0 "reads QEMU's $compression" disk diff content "c-$compression.qcow2"
done
expect_exit 0 "qcow2 to lodge" disk convert c-zstd.qcow2 d.lodge
expect_exit 0 "the same content" disk diff content d.lodge
expect_same "$(($(stat -c %b d.lodge) * 512 < 8000000))" 1 "no room for zeroes"
cp a.lodge looks-raw
expect_exit 125 "a raw file that looks like another format is refused" lodge_run --disk looks-raw -- true
expect_one_line_error "unclear format"
expect_exit 125 "qcow2 cannot be written" lodge_run --disk b.qcow2 -- true
expect_one_line_error "a qcow2 disk"
expect_text err "b.qcow2,temporary" "a qcow2 disk: what to do"
expect_exit 125 "readonly and temporary" lodge_run --disk b.qcow2,readonly,temporary -- true
expect_one_line_error "readonly and temporary"
expect_exit 125 "temporary, and not there" lodge_run --disk none.qcow2,temporary -- true
expect_one_line_error "temporary, and not there"

# ---- Hostile images: one line each, nothing made ----
hostile() { # FILE WHAT
    expect_exit 1 "$2: convert" disk convert -q "$1" "$1.raw"
    expect_one_line_error "$2"
    expect_exit 125 "$2: run" lodge_run --disk "$1,readonly" -- true
    expect_one_line_error "$2"
    expect_same "$(ls "$1".raw* 2>/dev/null)" "" "nothing is made"
}
patched() { # FILE OFFSET OCTAL...: a copy of b.qcow2 with these bytes there
    cp b.qcow2 "$1"
    printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
for n in 1 2; do qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 loop$n.qcow2; done
qemu-img rebase -u -b loop2.qcow2 -F qcow2 loop1.qcow2
qemu-img rebase -u -b loop1.qcow2 -F qcow2 loop2.qcow2
hostile loop1.qcow2 "images that stand on one another"
expect_text err "loop" "says so"
disk create loop3.lodge --backing b.qcow2
disk create loop4.lodge --backing loop3.lodge
mv loop4.lodge loop3.lodge
hostile loop3.lodge "a disk that stands on itself"
expect_text err "loop" "says so"
patched huge.qcow2 24 '\200\0\0\0\0\0\0\0'
hostile huge.qcow2 "2^63 bytes"
patched l1.qcow2 36 '\377\377\377\377'
hostile l1.qcow2 "a table of 2^32 entries"
patched far.qcow2 40 '\177\377\377\377\377\377\0\0'
hostile far.qcow2 "a table out of range"
cp a.lodge cut.lodge
truncate -s 8192 cut.lodge
hostile cut.lodge "a journal out of range"
cp a.lodge worn.lodge
printf 'x' | dd of=worn.lodge bs=1 seek=100 conv=notrunc 2>/dev/null
printf 'x' | dd of=worn.lodge bs=1 seek=4196 conv=notrunc 2>/dev/null
hostile worn.lodge "superblocks that are damaged"

# Ctrl-C leaves nothing half-made.
truncate -s 8G large
head -c 64M /dev/zero | tr '\0' x >>large
"$LODGE" disk convert -q large large.lodge &
pid=$!
children="$children $pid"
while ! ls large.lodge* >/dev/null 2>&1; do :; done
kill -INT $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
expect_same "$(find . -name '*.part-*' | wc -l)" 0 "a conversion that is stopped leaves nothing half-made"
rm -f large large.lodge

# ---- A guest on an overlay of a qcow2 image; snapshots ----
expect_exit 0 "an overlay" disk create e.lodge --backing b.qcow2
expect_exit 0 "snapshot" disk snapshot create e.lodge before
expect_exit 0 "a guest reads what shows through, writes over it, discards; two that keep nothing" lodge_run --disk e.lodge \
    --disk b.qcow2,temporary --disk content,temporary,device=nvme -- sh -c '
    head -c 3000000 /dev/vda | sha256sum
    head -c 5000000 /dev/urandom >/tmp/data
    dd if=/tmp/data of=/dev/vda bs=4k seek=100 conv=fsync 2>/dev/null
    dd if=/tmp/data of=/dev/vda bs=512 seek=70001 count=9 conv=fsync 2>/dev/null
    blkdiscard -o 0 -l 65536 /dev/vda
    head -c 65536 /dev/vda | tr -d "\0" | wc -c
    sha256sum </tmp/data
    dd if=/dev/vda bs=4k skip=100 2>/dev/null | head -c 5000000 | sha256sum
    echo 3 >/proc/sys/vm/drop_caches
    sha256sum </dev/vda
    for disk in /dev/vdb /dev/nvme0n1; do
        dd if=/tmp/data of=$disk bs=64k seek=9 conv=fsync 2>/dev/null
        dd if=$disk iflag=direct bs=64k skip=9 2>/dev/null | head -c 5000000 | sha256sum
    done'
expect_same "$(sed -n 1p out | cut -d' ' -f1)" "$(head -c 3000000 content | sum)" "the backing shows"
expect_same "$(sed -n 2p out)" 0 "discarded blocks read as zeroes, not as the backing"
expect_same "$(sed -n 3p out | cut -d' ' -f1)" "$(sed -n 4p out | cut -d' ' -f1)" "reads back what it wrote"
expect_same "$(sed -n 6,7p out | uniq)" "$(sed -n 3p out)" "so it does on a qcow2 image and a raw one that are temporary"
whole=$(sed -n 5p out | cut -d' ' -f1)
expect_exit 0 "which are as they were" qemu-img compare -q -f raw -F qcow2 content b.qcow2
expect_same "$(sha256sum <content)" "$(sha256sum <content.was)" "both of them"
expect_exit 0 "the overlay, by itself" disk convert e.lodge f.raw
expect_same "$(sum <f.raw)" "$whole" "has on the host what the guest saw"
expect_exit 0 "check" disk check e.lodge
expect_exit 1 "diff tells" disk diff content e.lodge
expect_exit 0 "the snapshot has what was before" disk diff content e.lodge,snapshot=before
expect_exit 0 "go back" disk snapshot apply e.lodge before
expect_exit 0 "and it is as it was" disk diff content e.lodge
expect_exit 0 "remove" disk snapshot rm e.lodge before
expect_exit 0 "check and give back" disk check e.lodge --repair

# ---- kill -9 of the monitor: what the guest had on stable storage is there ----
mkfifo pipe
lodge_run --disk a.lodge -- sh -c '
    head -c 8000000 /dev/urandom >/tmp/data; sha256sum </tmp/data
    dd if=/tmp/data of=/dev/vda bs=12k seek=7 conv=fsync 2>/dev/null; echo flushed
    while :; do dd if=/tmp/data of=/dev/vda bs=1M seek=64 2>/dev/null; done' >pipe 2>/dev/null &
guest=$!
children="$children $guest"
{
    read -r flushed _
    read -r word
    monitor=$(pgrep -f "^$LODGE run .*--disk a.lodge" | tail -n 1)
    expect_exit 1 "a disk in use is refused" disk check --repair a.lodge
    expect_text err "in use" "and says so"
    kill -9 "$monitor"
} <pipe
wait "$guest" 2>/dev/null || true # only then the lock is gone
expect_same "$word" flushed "the guest flushed"
expect_exit 0 "consistent after kill -9" disk check a.lodge
expect_exit 0 "readable" disk convert a.lodge g.raw
expect_same "$(dd if=g.raw bs=12k skip=7 2>/dev/null | head -c 8000000 | sum)" "$flushed" "what was flushed is there"

# ---- Snapshots of a running VM's disks, under fio with verify and a writer of pairs ----
# Of two classes, so that what the disks do by themselves is ordered, too.
# The writer has each number on stable storage at 0 before it goes to 32768: no snapshot may have them otherwise.
image=$("$SOURCE/tests/linux/storage-image") || { fail "image with fio"; finish; }
export XDG_RUNTIME_DIR="$work/run"
mkdir -m 700 run
disk create k.lodge 128M
disk create l.lodge --backing b.qcow2
mkfifo until
lodge_run --name keeps --cpus 2 --disk "$image,readonly" --disk k.lodge,device=nvme,class=low --disk l.lodge -- sh -c '
    mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t sysfs s /t/sys &&
    mount -t devtmpfs d /t/dev && mount -t tmpfs t /t/tmp || exit 3
    for d in nvme0n1 vdb; do
        chroot /t /usr/bin/fio --name=$d --filename=/dev/$d --offset=1M --size=24M --rw=randwrite --bsrange=512-64k \
            --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --fsync=64 --loops=2 --thread \
            --randseed=3 >/t/tmp/$d.log 2>&1 &
    done
    n=100000
    while [ ! -e /tmp/end ]; do
        n=$((n + 1))
        for at in 0 8; do printf %-4096s $n | dd of=/dev/nvme0n1 bs=4k seek=$at conv=fsync,notrunc 2>/dev/null; done
        [ $n != 100003 ] || echo loaded
    done &
    cat >/dev/null
    >/tmp/end
    wait
    for d in nvme0n1 vdb; do grep -q "err= 0" /t/tmp/$d.log || { cat /t/tmp/$d.log; exit 4; }; done' <until >guest 2>&1 &
guest=$!
children="$children $guest"
exec 5>until
until grep -q loaded guest || ! kill -0 $guest 2>/dev/null; do sleep 0.1; done
for n in 1 2 3 4; do
    expect_exit 0 "snapshot $n" disk snapshot create keeps disk1 s$n
    expect_exit 0 "of both" disk snapshot create keeps disk2 s$n
    expect_exit 0 "exported while the guest writes" disk convert -q k.lodge,snapshot=s$n s$n.raw
done
expect_exit 125 "a disk that another VM writes to" lodge_run --disk k.lodge -- true
expect_one_line_error "a disk in use"
# The image below is another VM's, too, and QEMU's, as long as nobody writes to it.
disk create n.lodge --backing b.qcow2
expect_exit 0 "a second VM on the same image" lodge_run --disk n.lodge -- sh -c 'head -c 3000000 /dev/vda | sha256sum'
expect_same "$(cut -d' ' -f1 out)" "$(head -c 3000000 content | sum)" "reads it"
expect_exit 0 "QEMU reads it" qemu-img compare -q -f raw -F qcow2 content b.qcow2
expect_exit 1 "and does not write to it" qemu-io -f qcow2 -c "write 0 4k" b.qcow2
expect_text err "lock" "for the lock"
expect_exit 1 "not twice" disk snapshot create keeps disk1 s1
expect_one_line_error "a snapshot that exists"
expect_exit 1 "of a lodge disk only" disk snapshot create keeps disk0 s1
expect_one_line_error "a raw disk"
expect_exit 1 "no way back under a running guest" disk snapshot apply keeps disk1 s1
expect_one_line_error "going back"
expect_exit 1 "two snapshots differ, and are read while the guest writes" disk diff k.lodge,snapshot=s1 k.lodge,snapshot=s4
expect_exit 0 "one goes" disk snapshot rm keeps disk1 s2
expect_exit 1 "once" disk snapshot rm keeps disk1 s2
expect_exit 0 "list" disk snapshot ls keeps disk1
expect_same "$(awk 'NR > 1 { print $1 }' out | tr '\n' ' ')" "s1 s3 s4 " "the others are there"
exec 5>&-
wait $guest || { fail "fio with verify under snapshots"; cat guest; }
for d in k l; do expect_exit 0 "in order" disk check $d.lodge; done
for n in 1 3 4; do
    expect_exit 0 "what was exported is what it has" disk diff k.lodge,snapshot=s$n s$n.raw
    first=$(dd if=s$n.raw bs=6 count=1 2>/dev/null) second=$(dd if=s$n.raw bs=6 count=1 iflag=skip_bytes skip=32768 2>/dev/null)
    expect_same "$((first - second == 0 || first - second == 1))" 1 "the order of writes: $first, $second"
done
expect_exit 0 "back to one" disk snapshot apply k.lodge s3
expect_exit 0 "which it is" disk diff k.lodge s3.raw
mkfifo qemu-asks
qemu-io -f qcow2 b.qcow2 <qemu-asks >qemu-says 2>&1 &
children="$children $!"
exec 5>qemu-asks
echo "read 0 512" >&5
until grep -q "read 512/512" qemu-says || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
expect_exit 1 "an image that QEMU writes to is not read" disk convert b.qcow2 o.raw
expect_text err "in use" "for its lock"
exec 5>&-
wait $!
for n in 1 3 4; do expect_exit 0 "all go" disk snapshot rm k.lodge s$n; done
expect_exit 0 "in order" disk check k.lodge
expect_exit 0 "the disk is as before" disk diff k.lodge s3.raw

# ---- NBD ----
nbdkit -U "$work/socket" -f --filter=delay memory 64M delay-write=1ms &
children="$children $!"
while [ ! -S socket ]; do kill -0 $!; done
expect_exit 0 "a disk on an NBD server" lodge_run --disk "nbd+unix:///?socket=$work/socket" -- sh -c '
    head -c 3000000 /dev/urandom >/tmp/data; sha256sum </tmp/data
    dd if=/tmp/data of=/dev/vda bs=4k seek=5 conv=fsync 2>/dev/null'
cp out nbd-sum
expect_exit 0 "read on the host" disk convert "nbd+unix:///?socket=$work/socket" h.raw
expect_same "$(dd if=h.raw bs=4k skip=5 2>/dev/null | head -c 3000000 | sum)" "$(cut -d" " -f1 nbd-sum)" "the server has what the guest wrote"
finish
