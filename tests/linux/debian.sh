#!/bin/sh
# A full Debian: built, booted over OVMF and SeaBIOS, reached by ssh, given a package, rebooted; cloud-init; images.
. "$(dirname "$0")/lib.sh"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
lodge() { timeout --foreground -k 10 "${LIMIT:-1200}" "$LODGE" "$@"; }
export LODGE_AGENT_TIMEOUT=600
trap '"$LODGE" rm -f fw-1 fw-2 web plain deb >/dev/null 2>&1 || true; cleanup' EXIT

refused() { # CODE WHAT TEXT ARGUMENTS...
    code_wanted=$1 label=$2 text=$3
    shift 3
    expect_exit "$code_wanted" "$label" lodge "$@"
    expect_one_line_error "$label"
    expect_text "$work/err" "$text" "$label, its text"
}

# ---- The image ----

if ! lodge image build debian >"$work/out" 2>"$work/err"; then
    if grep -q "looked up" "$work/err"; then skip "$(tail -n 1 "$work/err")"; fi
    cat "$work/err"
    fail "no image"
    finish
fi
lodge image ls -o json >"$work/out"
disk=$(python3 -c 'import json, sys; print(next(i["disk"] for i in json.load(sys.stdin) if i["name"] == "debian"))' <"$work/out")
made=$(stat -c '%i %Y' "$disk")
expect_exit 0 "build with nothing new" lodge image build debian
expect_same "$(stat -c '%i %Y' "$disk")" "$made" "it leaves the image alone"

# A cache of its own from here on, with the same image under another name.
mkdir -p "$work/cache/images/broken" "$work/cache/images/mine"
ln -s "$(dirname "$disk")"/* "$work/cache/images/mine"
echo '{"format": 1}' >"$work/cache/images/broken/image.json"
export LODGE_CACHE="$work/cache"

# ---- What is wrong is said, and leaves nothing ----

expect_exit 1 "build without its programs" env PATH=/nowhere "$LODGE" image build debian
expect_one_line_error "build without its programs"
expect_text "$work/err" "mmdebstrap fakeroot" "and what to do"
refused 2 "build with no package's name" "no name of a Debian package" image build debian --include 'a;b'
refused 2 "build with a bad suite" "no name of a Debian suite" image build debian --suite ../x
refused 2 "build of a small disk" "1024" image build debian --size 10M
refused 2 "build of something else" "usage: lodge image build debian" image build gentoo
refused 2 "build's option elsewhere" "lodge image build" image ls --size 2G
refused 1 "rm of no image" "no image named" image rm none
refused 120 "run of no image" "no image named" run none
refused 120 "run of a broken image" "not as lodge makes it" run broken -- true
refused 125 "an image and a kernel" "kernel of its own" run --kernel /dev/null mine
expect_exit 1 "build from a mirror that is not there" lodge image build debian --mirror http://127.0.0.1:1/debian
expect_text "$work/err" "check network and mirror" "and told why"
expect_same "$(cd "$work/cache/images" && echo *)" "broken mine" "nothing is left of them"
expect_same "$(ls -d "$work/cache/images/.work" 2>/dev/null)" "" "no work, either"

mkdir "$work/other" "$work/tmp"
LODGE_CACHE="$work/other" TMPDIR="$work/tmp" "$LODGE" image build debian >"$work/out" 2>"$work/err" &
builder=$!
children="$children $builder"
while kill -0 "$builder" 2>/dev/null && ! grep -q "running apt-get" "$work/err"; do sleep 0.1; done
kill -INT "$builder"
code=0
wait "$builder" || code=$?
expect_same "$code" 130 "an interrupted build says so"
expect_same "$(ls -A "$work/other/images" "$work/tmp" | grep -v '^/' | xargs)" ".apt" "and leaves lists of packages alone"

seed() { printf "$1" >"$work/user-data"; }
seed '' && refused 125 "cloud-init: empty" "it is empty" run --cloud-init "$work/user-data" mine -- true
seed 'users: []\n' && refused 125 "cloud-init: of no kind" "first line" run --cloud-init "$work/user-data" mine -- true
seed '#cloud-config\nusers:\n  - name: [a\n' &&
    refused 125 "cloud-init: a mistake" "line 4" run --cloud-init "$work/user-data" mine -- true
seed '#cloud-config\n- a\n' && refused 125 "cloud-init: a list" "key: value" run --cloud-init "$work/user-data" mine -- true
refused 125 "cloud-init: not there" "No such file" run --cloud-init "$work/none" mine -- true
seed '#cloud-config\na: b: c\n' &&
    refused 2 "create with a mistake for cloud-init" "line 2" create --name deb --cloud-init "$work/user-data" mine
refused 1 "create from no image" "no image named" create --name deb none
expect_same "$(ls -A "$XDG_DATA_HOME/lodge/vms" 2>/dev/null)" "" "no VM is left of them"

# ---- OVMF: a VM that lasts ----

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
cat >"$work/user-data" <<END
#cloud-config
users:
  - name: tester
    ssh_authorized_keys: ["$(cat "$work/key.pub")"]
    sudo: ALL=(ALL) NOPASSWD:ALL
END
ssh_port=$(port)
expect_exit 0 "create" lodge create --engine "$ENGINE" --name deb --memory 1G --cpus 2,max=3 --publish "$ssh_port:22" \
    --cloud-init "$work/user-data" mine
refused 1 "create under a name in use" "there already" create --name deb mine
expect_exit 0 "create, without firmware" lodge create --engine "$ENGINE" --name plain --memory 512M --firmware none mine
expect_exit 0 "its image can be removed" lodge image rm mine
expect_exit 0 "start" lodge start deb
running() { # WHAT
    expect_exit 0 "$1: systemctl is-system-running" lodge exec deb systemctl is-system-running --wait
    expect_same "$(cat "$work/out")" running "$1: running"
    [ "$(cat "$work/out")" = running ] || lodge exec deb systemctl --failed --no-pager
}
running "over OVMF"
expect_exit 0 "two processors, UEFI" lodge exec deb sh -c 'test "$(nproc)" = 2 && test -d /sys/firmware/efi'
expect_exit 0 "nothing of how its packages were installed is left" lodge exec deb test ! -e /etc/dpkg/dpkg.cfg.d/99mmdebstrap
in_guest() {
    ssh -q -i "$work/key" -p "$ssh_port" -o BatchMode=yes -o StrictHostKeyChecking=no -o "UserKnownHostsFile=$work/known" \
        tester@127.0.0.1 "$@"
}
expect_exit 0 "ssh, with cloud-init's key" in_guest 'echo "$(id -un) on $(hostname)"'
expect_same "$(cat "$work/out")" "tester on deb" "ssh: user and host as cloud-init made them"
expect_exit 0 "cloud-init has done its work, and finds no mistake in the image's settings or the user's" in_guest '
    sudo cloud-init status --long && sudo cloud-init schema --system && ! sudo grep WARN /var/log/cloud-init.log'
expect_text "$work/out" "status: done" "cloud-init: status"

# ---- A package from a repository on the host ----

mkdir -p "$work/package/DEBIAN" "$work/package/usr/share/lodge-test" "$work/repository"
printf 'Package: lodge-test\nVersion: 1.0\nArchitecture: all\nMaintainer: lodge\nDescription: from the test\n' \
    >"$work/package/DEBIAN/control"
echo "from a package" >"$work/package/usr/share/lodge-test/file"
dpkg-deb --root-owner-group -b "$work/package" "$work/repository/lodge-test.deb" >/dev/null
(cd "$work/repository" && dpkg-scanpackages . >Packages 2>/dev/null)
python3 - "$work" 2>/dev/null <<'END' &
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1] + "/repository")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
open(sys.argv[1] + "/http", "w").write(f"{server.server_port}\n")
server.serve_forever()
END
children="$children $!"
until [ -s "$work/http" ]; do sleep 0.1; done
in_guest "echo 'deb [trusted=yes] http://10.0.2.2:$(cat "$work/http") ./' | sudo tee /etc/apt/sources.list" >/dev/null
expect_exit 0 "apt-get update and install" in_guest 'sudo apt-get -qq update && sudo apt-get -qq -y install lodge-test'
[ "$failures" = 0 ] || cat "$work/out" "$work/err"

expect_exit 0 "a third processor" lodge cpus deb 3
expect_exit 0 "used by Linux, which nobody told to" timeout 60 "$LODGE" exec deb sh -c \
    'until [ "$(nproc)" != 2 ]; do sleep 0.1; done; nproc'
expect_same "$(cat "$work/out")" 3 "both and the third"

# ---- Back to a snapshot: memory, disks and the firmware's variables ----

variable=/sys/firmware/efi/efivars/LodgeTest-5d1d9a5e-8a2f-4b70-9d6e-3f0c2b7a1e44
lodge exec deb sh -c "printf '\\007\\000\\000\\000kept' >/run/variable && cat /run/variable >$variable" || fail "a UEFI variable is set"
expect_exit 0 "a snapshot" lodge snapshot create deb now
lodge exec deb sh -c "chattr -i $variable && rm $variable /run/variable && echo >/root/later && sync" || fail "it is removed"
expect_exit 0 "back to it" lodge snapshot restore deb now
expect_exit 0 "the guest has its variable again, and goes on" lodge exec deb sh -c "tail -c 4 $variable; cmp $variable /run/variable && test ! -e /root/later"
expect_same "$(cat "$work/out")" kept "as it was"

# ---- Reboot ----

before=$(lodge exec deb cat /proc/sys/kernel/random/boot_id)
in_guest sudo systemctl reboot || true
for _ in $(seq 6000); do
    after=$(lodge exec deb cat /proc/sys/kernel/random/boot_id 2>/dev/null || true)
    [ -n "$after" ] && [ "$after" != "$before" ] && break
    sleep 0.1
done
[ -n "$after" ] && [ "$after" != "$before" ] || fail "it did not reboot"
running "after a reboot"
expect_exit 0 "after a reboot: processors" lodge exec deb nproc
expect_same "$(cat "$work/out")" 3 "the third is there from the start"
expect_exit 0 "after a reboot: the firmware has kept its variable" lodge exec deb tail -c 4 "$variable"
expect_same "$(cat "$work/out")" kept "as it was"
expect_exit 0 "after a reboot: ssh" in_guest cat /usr/share/lodge-test/file
expect_same "$(cat "$work/out")" "from a package" "the package's file is there"
expect_exit 0 "stop" lodge stop -t 60 deb
lodge logs deb >"$work/out"
expect_text "$work/out" "Power down" "by the guest's own shut-down"

# ---- Clones ----

two_ports() { python3 -c '
import socket
while True:
    with socket.socket() as one, socket.socket() as two:
        try:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", one.getsockname()[1] + 1))
        except (OSError, OverflowError):
            continue
        print(one.getsockname()[1])
        break
'; }
first_port=$(two_ports)
expect_exit 0 "two clones of a VM with firmware" lodge clone -n 2 --publish "$first_port:22" --name fw deb@now
own='cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /sys/class/net/e*/address; head -c 16 /dev/urandom | od -An -tx1'
for n in 1 2; do
    lodge exec "fw-$n" sh -c "$own" >"$work/fw-$n"
    expect_exit 0 "clone $n has an address by DHCP again" lodge exec "fw-$n" \
        /lib/systemd/systemd-networkd-wait-online --any --ipv4 --timeout=120
    ssh_port=$((first_port + n - 1))
    for _ in $(seq 600); do # its sshd begins anew, with its keys
        in_guest true && break
        sleep 0.1
    done
    expect_exit 0 "ssh to clone $n, by its port" in_guest 'hostname; cat /sys/firmware/efi/fw_platform_size'
    expect_same "$(cat "$work/out")" "fw-$n
64" "clone $n, with its firmware"
done
cat "$work/fw-1" "$work/fw-2"
expect_same "$(grep -cxFf "$work/fw-1" "$work/fw-2")" 0 "nothing of who they are is the same, nor what is random"
expect_same "$(wc -l <"$work/fw-2")" 4 "machine id, key, address, randomness"
lodge rm -f fw-1 fw-2 >/dev/null

# ---- To another host, which does not have the image ----

there() { XDG_DATA_HOME="$work/there" XDG_RUNTIME_DIR="$work/there.run" LODGE_CACHE="$work/there.cache" lodge "$@"; }
mkdir "$work/there" "$work/there.run" "$work/there.cache"
XDG_DATA_HOME="$work/there" XDG_RUNTIME_DIR="$work/there.run" LODGE_CACHE="$work/there.cache" \
    "$LODGE" receive "unix:$work/there.socket" >"$work/there.log" 2>&1 &
listener=$!
children="$children $listener"
until [ -S "$work/there.socket" ] || ! kill -0 "$listener" 2>/dev/null; do sleep 0.05; done
expect_exit 0 "a clone that is to move" lodge clone --name far deb@now
lodge exec far sh -c 'echo moved >/root/far && sync; cat /proc/sys/kernel/random/boot_id' >"$work/boot-id"
expect_exit 0 "a snapshot that is to move with it" lodge snapshot create far kept
lodge exec far sh -c 'rm /root/far && sync'
mv "$work/user-data" "$work/user-data.here" # the other host has no such file
expect_exit 0 "it moves, with its firmware, its disk and the image below that" lodge migrate far "unix:$work/there.socket"
mv "$work/user-data.here" "$work/user-data"
expect_exit 0 "it is there, without what was removed" there exec far test ! -e /root/far
expect_exit 0 "cloud-init's disk is there" there exec far sh -c 'mount -o ro LABEL=CIDATA /mnt && cat /mnt/user-data && umount /mnt'
expect_same "$(cat "$work/out")" "$(cat "$work/user-data")" "with its user-data"
expect_exit 0 "back to its snapshot there" there snapshot restore --check far kept
expect_exit 0 "it goes on" there exec far sh -c 'cat /proc/sys/kernel/random/boot_id; echo 3 >/proc/sys/vm/drop_caches; cat /root/far; md5sum /usr/bin/perl >/dev/null; ls -d /sys/firmware/efi'
expect_same "$(cat "$work/out")" "$(cat "$work/boot-id")
moved
/sys/firmware/efi" "the same boot, its file, its firmware"
there rm -f far >/dev/null
kill "$listener"
wait "$listener" || true
expect_exit 0 "rm" lodge rm deb


expect_exit 0 "start, without firmware" lodge start plain
expect_exit 0 "its SSH keys are made" lodge exec plain systemctl start ssh
expect_exit 0 "a clone" lodge clone --name web plain
who='hostname; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /sys/class/net/e*/address; grep 127.0.1.1 /etc/hosts'
lodge exec plain sh -c "$who" >"$work/plain"
lodge exec web sh -c "$who" >"$work/web"
cat "$work/plain" "$work/web"
expect_same "$(grep -cxFf "$work/plain" "$work/web")" 0 "nothing of who it is is the same"
expect_text "$work/web" "127.0.1.1	web" "its name in /etc/hosts"
expect_exit 0 "its network has an address by DHCP again" lodge exec web \
    /lib/systemd/systemd-networkd-wait-online --any --ipv4 --timeout=120
expect_exit 0 "its sshd shows its key" lodge exec web sh -c '
    ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep -qF "$(cut -d" " -f2 /etc/ssh/ssh_host_ed25519_key.pub)"'
expect_exit 0 "a command in a clone of the clone's snapshot" lodge snapshot create web now
expect_exit 3 "with a disk of its own" lodge run --from web@now -- sh -c 'touch /root/file && sync && exit 3'
lodge rm -f web plain >/dev/null

# ---- SeaBIOS: for one run ----

LODGE_CACHE=${disk%/images/*}
expect_exit 0 "over SeaBIOS, with a volume: systemctl is-system-running" lodge_run --memory 1G --cpus 2 --firmware seabios \
    --volume "$work/package:/mnt/host:ro" debian -- \
    sh -c 'systemctl is-system-running --wait; test ! -e /sys/firmware/efi && cat /mnt/host/usr/share/lodge-test/file'
expect_same "$(cat "$work/out")" "running
from a package" "over SeaBIOS: running, and has its volume"
expect_same "$(stat -c '%i %Y' "$disk")" "$made" "the image is as it was"
expect_same "$(ls -A "$(dirname "$disk")/.." | grep -c '^.run')" 0 "no disk of the run is left"
finish
