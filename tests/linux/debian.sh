#!/bin/sh
# A full Debian: built, booted over OVMF and SeaBIOS, reached by ssh, given a package, rebooted; cloud-init; images.
. "$(dirname "$0")/lib.sh"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
lodge() { timeout --foreground -k 10 "${LIMIT:-1200}" "$LODGE" "$@"; }
export LODGE_AGENT_TIMEOUT=600
trap '"$LODGE" rm -f deb >/dev/null 2>&1 || true; cleanup' EXIT

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
expect_exit 0 "create" lodge create --engine "$ENGINE" --name deb --memory 1G --cpus 2 --publish "$ssh_port:22" \
    --cloud-init "$work/user-data" mine
refused 1 "create under a name in use" "there already" create --name deb mine
expect_exit 0 "its image can be removed" lodge image rm mine
expect_exit 0 "start" lodge start deb
running() { # WHAT
    expect_exit 0 "$1: systemctl is-system-running" lodge exec deb systemctl is-system-running --wait
    expect_same "$(cat "$work/out")" running "$1: running"
    [ "$(cat "$work/out")" = running ] || lodge exec deb systemctl --failed --no-pager
}
running "over OVMF"
expect_exit 0 "two processors, UEFI" lodge exec deb sh -c 'test "$(nproc)" = 2 && test -d /sys/firmware/efi'
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
expect_exit 0 "after a reboot: ssh" in_guest cat /usr/share/lodge-test/file
expect_same "$(cat "$work/out")" "from a package" "the package's file is there"
expect_exit 0 "stop" lodge stop -t 60 deb
lodge logs deb >"$work/out"
expect_text "$work/out" "Power down" "by the guest's own shut-down"
expect_exit 0 "rm" lodge rm deb

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
