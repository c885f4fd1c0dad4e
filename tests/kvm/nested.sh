#!/bin/sh
# The KVM engine where KVM is the real kernel module: a guest of QEMU's own processor (TCG, -cpu max,
# which offers SVM) boots Debian's cloud kernel, loads its kvm-amd and runs lodge in it: the
# bare-metal programs, and a whole Linux guest with a command. Results come over the serial port.
#
# QEMU counts instructions (-icount) and each is 16 ns, so guests' time stands still while the host or TCG has other
# things to do, waiting costs nothing (sleep=off), and a run is repeatable (-seed; no clock of the host's). By the host's
# clock the kernel in QEMU met soft lockups, in which whole runs hung. What took it so long: TCG's store to a page with
# translated code goes through all of the page's translations, and hostile.elf leaves pages with very many of them, which
# the kernel then clears byte by byte for the next program. (20 s for one page when idle.) So that program is the last
# one, and the processor is one without ERMS, whose pages are cleared by eight bytes. An instruction of 32 ns is too
# slow: KVM's shortest timer period, 200 us, is over before its interrupt has been served. One of 8 ns makes loops that
# wait for another processor twice as long.
#
# Should QEMU hang all the same, then the kernel in it notices (softlockup_panic) or the silence is noticed here: the
# guest is booted again with another seed, for what has not been run. What hangs twice is a failure.
#
# NESTED_SAVED=yes: with a snapshot, and a clone of it, of KVM's guest. NESTED_ONLY=A,B: only those of what init runs.
#
# usage: tests/kvm/nested.sh BUILD
. "$(dirname "$0")/../linux/lib.sh"

[ -f /usr/share/seabios/bios-256k.bin ] || skip "SeaBIOS is not installed (apt-get install seabios)"
command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)"
command -v cpio >/dev/null || skip "cpio is not installed"
busybox=$(command -v busybox) || skip "busybox is not installed (apt-get install busybox-static)"

# The default guest's kernel, and the modules of the package that it came from.
"$LODGE" image path >/dev/null || skip "the default guest cannot be had"
. "$(dirname "$0")/../linux/bootdisk.sh" # sets $kernel and $initrd
package=$(ls "$(dirname "$kernel")"/../../debs/linux-image-*-cloud-amd64_*.deb 2>/dev/null | tail -n 1)
[ -n "$package" ] || skip "no kernel package beside $kernel"
dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work" --wildcards './lib/modules/*/kvm*.ko' './lib/modules/*/irqbypass.ko'

root=$work/root
mkdir -p "$root/bin" "$root/lib" "$root/lib64" "$root/modules" "$root/baremetal" "$root/guest" \
    "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
find "$work/lib" -name '*.ko' -exec cp {} "$root/modules" \;
cp "$busybox" "$root/bin/busybox"
cp "$(dirname "$0")/init" "$root/init"
chmod +x "$root/init"
cp "$BUILD/tests/guest/run_baremetal" "$BUILD/tests/guest/test_engine" "$LODGE" "$root/bin"
cp "$BUILD"/guest/baremetal/*.elf "$root/baremetal"
rm -f "$root/baremetal/garbage.elf" # QEMU ends at things that a processor would take
rm -f "$root/baremetal/sides.elf"   # on TCG it does not end; its SYSRET to a non-canonical address comes next, but why is not known
rm -f "$root/baremetal/tsc.elf"     # deadlines of a moved counter: an affair of the host's KVM
# Three processors that take turns on one: they do not end in the time that a program has; mp_start.elf does.
rm -f "$root/baremetal/mp_code.elf" "$root/baremetal/mp_memory.elf"
ldd "$root"/bin/lodge "$root"/bin/run_baremetal "$root"/bin/test_engine | grep -o '/[^ ]*\.so[^ ]*' | sort -u |
    while read -r library; do cp "$library" "$root/lib"; done
cp /lib64/ld-linux-x86-64.so.2 "$root/lib64"
strip "$root"/bin/lodge "$root"/bin/run_baremetal "$root"/bin/test_engine
strip -g "$root"/modules/*.ko
cp "$kernel" "$root/guest/kernel"
cp "$initrd" "$root/guest/initrd"
bios_disk "$root/guest/bios.img" "$initrd" quiet
mkdir -p "$root/usr/share/seabios"
cp /usr/share/seabios/bios-256k.bin "$root/usr/share/seabios"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initramfs"

cpu_seconds() { # PID: what it has used; nothing when it is gone
    awk -v ticks="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); if ($1 != "Z") print int(($12 + $13) / ticks) }' \
        "/proc/$1/stat" 2>/dev/null
}

# One boot; its console goes to $work/console. QEMU is ended after 60 seconds of its CPU time without a line, and when
# LIMIT seconds are over by the clock.
boot() { # SEED ARGUMENTS
    : >"$work/serial"
    qemu-system-x86_64 -accel tcg -icount shift=4,sleep=off -seed "$1" -rtc clock=vm -cpu max,-erms -m 1G \
        -nodefaults -display none -serial "file:$work/serial" -no-reboot -kernel "$kernel" -initrd "$work/initramfs" \
        -append "console=ttyS0 quiet panic=-1 softlockup_panic=1 $2" </dev/null 2>"$work/err" &
    qemu=$! children=$! heard=0 size=0
    while used=$(cpu_seconds $qemu) && [ -n "$used" ]; do
        now=$(stat -c %s "$work/serial")
        [ "$now" = "$size" ] || heard=$used
        size=$now left=$((left - 1))
        if [ "$used" -gt $((heard + 60)) ] || [ $left -le 0 ]; then
            echo "nothing heard for $((used - heard)) s of its CPU time, $left s were left" >>"$work/err"
            kill -9 $qemu
        fi
        sleep 1
    done
    wait $qemu || true
    children=
    tr -d '\r' <"$work/serial" >"$work/console"
}

: >"$work/out"
hung= left=${LIMIT:-800}
for seed in 1 2 3; do # boots
    boot $seed "${NESTED_ONLY:+lodge.only=$NESTED_ONLY }lodge.done=${NESTED_SAVED:-saved},$(sed -n 's/^status \([^ ]*\) .*/\1/p' "$work/out" | paste -sd,)"
    cat "$work/console" >>"$work/out"
    ! grep -q '^end$' "$work/console" || break
    name=$(sed -n 's/^begin //p' "$work/console" | tail -n 1)
    echo "QEMU or its kernel hung in boot $seed, in '$name':"
    grep -E 'soft lockup|RIP:|panic' "$work/console" || tail -n 3 "$work/console" "$work/err"
    case $hung in *"[$name]"*) fail "'$name' hung twice" && break ;; esac
    hung="$hung[$name]"
done

if grep -q '^end$' "$work/out"; then
    echo "ok: the guest came to its end"
else
    fail "the guest did not come to its end"
    tail -n 30 "$work/out" "$work/err"
fi
for program in "$root"/baremetal/*.elf; do
    grep -q "^status $(basename "$program") 0\$" "$work/out" || fail "$(basename "$program")"
done
for status in 'kvm-amd 0' 'contract 0' 'firmware 0' 'several 7'${NESTED_SAVED:+ 'saved 0'}; do
    if grep -q "^status $status\$" "$work/out"; then
        echo "ok: $status"
    else
        fail "no '$status'"
    fi
done
expect_text "$work/out" "$(basename "$package" | sed 's/^linux-image-\(.*\)_.*_.*$/\1/')" "uname -r of the guest's guest"
expect_text "$work/out" "standard input arrives" "standard input"
expect_same "$(grep '^processors: ' "$work/out" | paste -sd' ')" "processors: 2, 0-1 processors: 3, 0-2" \
    "two vCPUs and one plugged in"
expect_same "$(grep -c '^counted 1000$' "$work/out")" 3 "each counts"
expect_text "$work/out" "bios-256k.bin" "by SeaBIOS"
expect_text "$work/out" "only the soft engine can scale" "no scale"
if [ -n "${NESTED_SAVED:-}" ]; then
    expect_text "$work/out" "restored: kept, 3 processors" "back to a snapshot"
    expect_text "$work/out" "clone: another, kept" "a clone"
    gone=$(sed -n 's/^seconds in the guest: //p' "$work/out")
    if [ "${gone:--1}" -ge 0 ] && [ "$gone" -lt 25 ]; then
        echo "ok: the time since the snapshot is none of the guest's: $gone s"
    else
        fail "a guest of 30 s later has seen '$gone' s"
    fi
fi
inside=$(sed -n 's/^uptime: //p' "$work/out") outside=$(sed -n 's/^seconds outside: //p' "$work/out")
if grep -q '^paused for 100 s$' "$work/out" && [ $((${inside:-1000} + 90)) -lt "${outside:-0}" ]; then
    echo "ok: a pause is none of the guest's time: $inside of $outside s"
else
    fail "a pause of 100 s, yet the guest has seen ${inside:-no} of ${outside:-no} s"
fi
grep -E '^(status .*\.elf|lodge:) ' "$work/out" || true
[ "$failures" = 0 ] || grep -Ev '^(ok |.. RUN|.*OK )' "$work/out" || true
finish
