#!/bin/sh
# What others made, unmodified: memtest86+, iPXE, Debian's installer, and a cloud image made by FAI that both firmwares boot.
# Not in CI: packages are fetched and installed, and a guest makes the image.
#
# usage: tests/linux/foreign.sh BUILD
. "$(dirname "$0")/lib.sh"

export XDG_RUNTIME_DIR="$work/run"
mkdir "$work/run"
until_says() { # TEXT WHAT OPTIONS...: a guest without end, ended once its console says so
    text=$1 what=$2
    shift 2
    mkfifo "$work/in"
    "$LODGE" run --engine "$ENGINE" "$@" <"$work/in" >"$work/out" 2>"$work/err" &
    guest=$!
    children="$children $guest"
    exec 8>"$work/in"
    for _ in $(seq 6000); do
        grep -qF "$text" "$work/out" && break
        kill -0 "$guest" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$guest" 2>/dev/null || true
    wait "$guest" 2>/dev/null || true
    exec 8>&-
    rm "$work/in"
    expect_text "$work/out" "$text" "$what"
}
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# ---- Media ----

media=$("$SOURCE/tests/linux/media-tree") || { fail "directory with media"; finish; }
until_says "[Moving inversions" "memtest86+, as its boot protocol wants it: a test with addresses" \
    --console serial --net none --memory 64M --kernel "$media/boot/memtest86+x64.bin" --append console=ttyS0,115200
expect_same "$(grep -c 'Errors: [1-9]' "$work/out")" 0 "and no errors"
until_says "net0: 10.0.2.15/255.255.255.0 gw 10.0.2.2" "ISOLINUX by SeaBIOS, and iPXE with a virtio driver of its own" \
    --console serial --memory 128M --firmware seabios --cdrom "$media/usr/lib/ipxe/ipxe.iso"

# The installer gets its instructions from a server on the host, and tells it what it found.
mkdir "$work/www"
http_port=$(port)
cat >"$work/www/preseed.cfg" <<END
d-i preseed/early_command string \\
    wget -q -O /dev/null "http://10.0.2.2:$http_port/found-\$(uname -r)-with-\$(grep -c ^processor /proc/cpuinfo)"; poweroff
END
python3 -m http.server --bind 127.0.0.1 --directory "$work/www" "$http_port" >"$work/requests" 2>&1 &
children="$children $!"
installer=$(echo "$media"/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64)
LIMIT=1200
expect_exit 0 "Debian's installer finds its network and takes instructions" \
    lodge_run --console serial --cpus 2 --memory 1G --kernel "$installer/linux" --initrd "$installer/initrd.gz" \
    --append "console=ttyS0 auto=true priority=critical url=http://10.0.2.2:$http_port/preseed.cfg hostname=di domain=" </dev/null
grep -q 'GET /found-.*-amd64-with-2 ' "$work/requests" || { fail "the installer's words"; cat "$work/requests"; }

# ---- A cloud image ----

cloud=$("$SOURCE/tests/linux/cloud-image" "$BUILD") || { fail "cloud image"; finish; }
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
cat >"$work/user-data" <<END
#cloud-config
locale: C.UTF-8
users:
  - name: tester
    ssh_authorized_keys: ["$(cat "$work/key.pub")"]
    sudo: ALL=(ALL) NOPASSWD:ALL
END
qemu-img convert -q -c -O qcow2 "$cloud" "$work/cloud.qcow2"
qemu-img create -q -f qcow2 -b cloud.qcow2 -F qcow2 "$work/top.qcow2" 4G
cp --sparse=always "$cloud" "$work/grown.img"
truncate -s 3G "$work/grown.img" # the table's second copy is not at its end any more

cloud_boots() { # WHAT OPTIONS...: comes up, has its user, shuts down by its power button
    boot=$1 ssh_port=$(port)
    shift
    "$LODGE" run --engine "$ENGINE" --console serial --name cloud --memory 1G --cpus 2 --publish "$ssh_port:22" \
        --cloud-init "$work/user-data" "$@" </dev/null >"$work/console" 2>&1 &
    guest=$!
    children="$children $guest"
    for _ in $(seq 600); do
        in_guest true 2>/dev/null && break
        kill -0 "$guest" 2>/dev/null || break
        sleep 1
    done
    expect_exit 0 "$boot: ssh, cloud-init done, system running" in_guest '
        set -e
        cloud-init status --wait >/dev/null; systemctl is-system-running --wait; id -un; hostname; nproc
        if sudo grep WARN /var/log/cloud-init.log; then exit 1; fi
        [ -d /sys/firmware/efi ] && echo UEFI || echo BIOS'
    expect_same "$(tr '\n' ' ' <"$work/out" | cut -d' ' -f1-4)" "running tester cloud 2" "$boot: as cloud-init was told"
    kill -TERM "$guest" 2>/dev/null
    code=0
    wait "$guest" || code=$?
    expect_same "$code" 143 "$boot: ended by the signal"
    expect_text "$work/console" "reboot: Power down" "$boot: by the guest's own shut-down"
}
in_guest() {
    ssh -q -i "$work/key" -p "$ssh_port" -o BatchMode=yes -o ConnectTimeout=20 -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null tester@127.0.0.1 "$@"
}
cloud_boots "a grown raw image, by itself" --disk "$work/grown.img"
expect_text "$work/out" UEFI "it has an EFI system partition: OVMF, shim, GRUB"
cloud_boots "qcow2 on qcow2, SeaBIOS" --firmware seabios --disk "$work/top.qcow2,temporary"
expect_text "$work/out" BIOS "by GRUB's other half"
cloud_boots "as NVMe, OVMF" --firmware ovmf --disk "$work/cloud.qcow2,temporary,device=nvme"
expect_text "$work/out" UEFI "by OVMF's driver"
expect_exit 0 "temporary images are as they were" qemu-img compare -q -f raw -F qcow2 "$cloud" "$work/cloud.qcow2"
finish
