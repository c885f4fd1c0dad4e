#!/bin/sh
# The KVM engine where KVM is the real kernel module: a guest of QEMU's own processor (TCG, -cpu max,
# which offers SVM) boots Debian's cloud kernel, loads its kvm-amd and runs lodge in it: the
# bare-metal programs, and a whole Linux guest with a command. Results come over the serial port.
#
# usage: tests/kvm/nested.sh BUILD
. "$(dirname "$0")/../linux/lib.sh"

command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)"
command -v cpio >/dev/null || skip "cpio is not installed"
busybox=$(command -v busybox) || skip "busybox is not installed (apt-get install busybox-static)"

# The default guest's kernel, and the modules of the package that it came from.
paths=$("$LODGE" image path) || skip "the default guest cannot be had"
kernel=$(echo "$paths" | sed -n 1p)
initrd=$(echo "$paths" | sed -n 2p)
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
# Three processors on one of TCG: they do not end in the time that a program has; mp_start.elf does.
rm -f "$root/baremetal/mp_code.elf" "$root/baremetal/mp_memory.elf"
ldd "$root"/bin/lodge "$root"/bin/run_baremetal "$root"/bin/test_engine | grep -o '/[^ ]*\.so[^ ]*' | sort -u |
    while read -r library; do cp "$library" "$root/lib"; done
cp /lib64/ld-linux-x86-64.so.2 "$root/lib64"
strip "$root"/bin/lodge "$root"/bin/run_baremetal "$root"/bin/test_engine
strip -g "$root"/modules/*.ko
cp "$kernel" "$root/guest/kernel"
cp "$initrd" "$root/guest/initrd"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$work/initramfs"

timeout -k 10 "${LIMIT:-600}" qemu-system-x86_64 -accel tcg -cpu max -m 1G -nodefaults -display none \
    -serial stdio -no-reboot -kernel "$kernel" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet" </dev/null 2>"$work/err" | tr -d '\r' >"$work/out" || true

if grep -q '^status end 0$' "$work/out"; then
    echo "ok: the guest came to its end"
else
    fail "the guest did not come to its end"
    tail -n 30 "$work/out" "$work/err"
fi
[ "$(grep -c '^status .*\.elf' "$work/out")" = "$(ls "$root"/baremetal/*.elf | wc -l)" ] ||
    fail "not all bare-metal programs ran"
for status in 'kvm-amd 0' 'contract 0' 'command 0' 'exit-code 7'; do
    if grep -q "^status $status\$" "$work/out"; then
        echo "ok: $status"
    else
        fail "no '$status'"
    fi
done
grep '^status .*\.elf' "$work/out" | while read -r _ name code; do echo "$name: $code"; done
if grep -q '^status .*\.elf [^0]' "$work/out"; then
    fail "a bare-metal program failed"
fi
expect_text "$work/out" "$(basename "$package" | sed 's/^linux-image-\(.*\)_.*_.*$/\1/')" "uname -r of the guest's guest"
expect_text "$work/out" "standard input arrives" "standard input"
grep '^lodge: ' "$work/out" || true
[ "$failures" = 0 ] || grep -Ev '^(ok |.. RUN|.*OK )' "$work/out" || true
[ "$failures" = 0 ]
