#!/bin/sh
# Directories of the host in the guest: files both ways, tar, git, fio, links that lead out, read-only, races and
# directories that vanish, VMs that last.
. "$(dirname "$0")/lib.sh"

tools=$("$SOURCE/tests/linux/tools-tree") || { fail "directory with fio, git and tar"; finish; }
share=$work/share
mkdir "$share" "$work/secret" "$work/ro" "$work/plain"
echo outside >"$work/secret/key"
echo fixed >"$work/ro/file"

# ---- What is wrong is said before anything starts ----

refused() { # WHAT TEXT VOLUMES...
    what=$1 text=$2
    shift 2
    expect_exit 125 "$what" lodge_run "$@" -- true
    expect_one_line_error "$what"
    expect_text "$work/err" "$text" "$what, its text"
}
refused "a volume without a place in the guest" "HOST:GUEST" --volume "$share"
refused "a relative path in the guest" "HOST:GUEST" --volume "$share:mnt"
refused "a word that is none" "HOST:GUEST" --volume "$share:/mnt:rx"
refused "dots in the guest's path" "plain path" --volume "$share:/mnt/../etc"
refused "the guest's root" "plain path" --volume "$share:/"
refused "a directory that is not there" "No such file" --volume "$work/none:/mnt"
refused "a file" "Not a directory" --volume "$work/secret/key:/mnt"
refused "/proc" "no files to share" --volume "/proc:/mnt"
refused "the same place twice" "two volumes at /mnt/a" --volume "$share:/mnt/a" --volume "$work/ro:/mnt//a/"
refused "one in the other" "overlap" --volume "$share:/mnt" --volume "$work/ro:/mnt/ro"
# shellcheck disable=SC2046 # words
refused "too many" "more than 8 volumes" $(for i in 1 2 3 4 5 6 7 8 9; do echo --volume "$share:/mnt$i"; done)

# ---- Files ----

dd if=/dev/urandom of="$share/from-host" bs=1M count=4 2>/dev/null
mkdir -p "$share/tree/a/b" "$share/tree/empty"
for i in $(seq 100); do echo "file $i" >"$share/tree/a/$i"; done
echo odd >"$share/tree/a/b/a name with blanks,
a line, and \"quotes\""
chmod 640 "$share/tree/a/7"
chmod 500 "$share/tree/a/8"
ln "$share/tree/a/9" "$share/tree/a/b/nine"
ln -s ../9 "$share/tree/a/b/link"
touch -d '2001-02-03 04:05:06' "$share/tree/a/10"
ln -s "$work/secret/key" "$share/key"
ln -s "$work/secret" "$share/away"
ln -s /etc/guest "$share/own"

cat >"$share/files.sh" <<'EOF'
set -e
refused() { # COMMAND...: it fails
    if "$@" >/tmp/out 2>/tmp/why; then echo "not refused: $*"; exit 9; fi
}
write_to() { echo spoilt >"$1"; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; exit 9; }; }
echo of the guest >/etc/guest
cd /share
same "$(sha256sum <from-host)" "$SUM"
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
cp /tmp/data from-guest
sha256sum </tmp/data >from-guest.sum
# Links are the guest's own business.
refused cat key
refused cat away/key
refused write_to away/key
same "$(cat own)" "of the guest"
ln -s /tmp/data into
cmp into from-guest
rm into
[ -f /tmp/data ]
# A file that is gone but open, one that is replaced, appends, holes.
echo first >f
exec 3<>f
rm f
echo second >&3
same "$(cat /proc/self/fd/3)" second
exec 3>&-
echo new >g.new
echo old >g
exec 3<g
mv g.new g
same "$(cat <&3)" old
same "$(cat g)" new
exec 3<&-
for i in 1 2 3; do echo $i >>appended; done
same "$(wc -c <appended)" 6
truncate -s 1M holes
echo end >>holes
same "$(stat -c %s holes)" 1048580
# FIFOs are for the guest's processes, devices and other owners are refused, set-user-id is not kept.
mkfifo fifo
echo through >fifo &
same "$(cat fifo)" through
rm fifo
refused mknod disk b 8 0
refused chown 1000 g
chown 0:0 g
chmod 4755 g
same "$(stat -c %a:%u:%g g)" 755:0:0
refused rmdir tree
same "$(find tree -type f -print0 | tr -dc '\0' | wc -c)" 102
# Read-only, however it is mounted.
refused touch /ro/new
refused rm /ro/file
grep -q Read-only /tmp/why
mount -o remount,rw /ro
refused touch /ro/new
grep -q Read-only /tmp/why
refused write_to /ro/file
same "$(cat /ro/file)" fixed
# By its tag, elsewhere, and again.
mkdir /elsewhere
mount -t virtiofs volume0 /elsewhere
cmp /elsewhere/from-guest from-guest
umount /elsewhere
mount -t proc p /tools/proc
mount -t devtmpfs d /tools/dev
mount -t tmpfs t /tools/tmp
mount --bind /share /tools/share
exec chroot /tools /bin/sh -e /share/tools.sh
EOF
cat >"$share/tools.sh" <<'EOF'
cd /share
# By their paths: this shell would take its own.
/bin/tar cf copy.tar --format=posix tree
mkdir copy
/bin/tar xpf copy.tar -C copy
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main repository
cp -r tree repository/
cd repository
git add .
git commit -qm all
git mv tree/a/1 tree/one
git commit -qm moved
git fsck --strict
[ -z "$(git status --porcelain)" ]
git log --oneline | wc -l >../commits
cd ..
load() { # NAME OPTIONS...
    fio --name="$@" --directory=. --thread --randseed=1 --rw=randrw --verify=crc32c --verify_fatal=1 --size=4M \
        --output=/tmp/fio || { cat /tmp/fio; exit 4; }
    rm "$1".*
}
load calls --ioengine=psync --bsrange=512-128k --numjobs=2 --fsync=64
load mapped --ioengine=mmap --bsrange=4k-64k
load direct --ioengine=psync --direct=1 --bsrange=4k-128k
if dmesg | grep -i 'fuse\|virtiofs' | grep -i 'error\|bug\|warn'; then exit 5; fi
EOF
sum=$(sha256sum <"$share/from-host")
in_guest() {
    lodge_run --cpus 2 --volume "$share:/share" --volume "$work/ro:/ro:ro" --volume "$tools:/tools:ro" -- \
        env SUM="$sum" sh /share/files.sh
}
expect_exit 0 "files, links, tar, git and fio with verify" in_guest
expect_same "$(sha256sum <"$share/from-guest")" "$(cat "$share/from-guest.sum")" "the host has what the guest wrote"
list() { (cd "$1" && find . -printf '%P %y %m %s %T@ %l %n\n' | sort | grep -v '^[^ ]* d '); }
expect_same "$(list "$share/copy/tree" | sha256sum)" "$(list "$share/tree" | sha256sum)" "tar keeps names, modes, times, links"
if diff -r "$share/tree" "$share/copy/tree" >"$work/out"; then echo "ok: and contents"; else fail "contents after tar"; cat "$work/out"; fi
expect_same "$(cat "$share/commits")" 2 "git's commits"
expect_same "$(cat "$work/secret/key"; ls "$work/secret")" "outside
key" "what is beside the directory is untouched"
expect_same "$(ls "$work/ro")" "file" "and what is read-only"

# ---- A host that changes the directory meanwhile ----

mkdir "$share/swap" "$work/gone"
echo inside >"$share/swap/key"
ln -s "$work/secret" "$share/link"
mkfifo "$work/in" "$work/said"
cat >"$share/race.sh" <<'EOF'
cd /share
echo ready
read -r go
i=0
while [ $i -lt 300 ]; do
    case $(cat swap/key 2>/dev/null) in inside | "") ;; *) echo LEAK ;; esac
    echo spoilt 2>/dev/null >swap/new
    i=$((i + 1))
done
echo raced
read -r changed
n=0
until [ "$(cat shared)" = "from the host, longer" ] || [ $n = 100 ]; do sleep 0.1; n=$((n + 1)); done
cat shared
cd /gone && echo vanishing
read -r vanished
echo x 2>/dev/null >/gone/file && echo WRITTEN
ls /gone/sub 2>&1 | grep -c 'No such file\|Stale'
cat /share/swap/key >/dev/null 2>&1
echo still here >/share/last
EOF
echo short >"$share/shared"
mkdir "$work/gone/sub"
(exec 9>&-; lodge_run --volume "$share:/share" --volume "$work/gone:/gone" -- sh /share/race.sh <"$work/in" >"$work/said" 2>"$work/err") &
guest=$!
children="$children $guest"
exec 8>"$work/in" 7<"$work/said"
said() { # TEXT: the guest's next line
    read -r line <&7 || line="(nothing)"
    expect_same "$line" "$1" "the guest says '$1'"
}
said ready
python3 - "$share/swap" "$share/link" <<'EOF' &
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
while os.getppid() != 1:
    libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2)
EOF
swapper=$!
children="$children $swapper"
echo go >&8
said raced
kill "$swapper"
wait "$swapper" 2>/dev/null || true
expect_same "$(cat "$work/secret/key"; ls "$work/secret")" "outside
key" "links that come and go lead nowhere"
echo "from the host, longer" >"$share/shared"
echo changed >&8
said "from the host, longer"
said vanishing
rm -r "$work/gone"
echo vanished >&8
said 1
exec 8>&-
code=0
wait "$guest" || code=$?
exec 7<&-
expect_same "$code" 0 "the guest goes on without a directory that has vanished"
expect_same "$(cat "$share/last")" "still here" "and with the other one"

# ---- VMs that last ----

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
trap '"$LODGE" rm -f kept >/dev/null 2>&1 || true; cleanup' EXIT
cd "$work"
expect_exit 1 "create with a directory that is not there" lodge create --name kept --volume none:/mnt
expect_exit 0 "create with a volume" lodge create --engine "$ENGINE" --name kept --volume plain:/mnt/plain --volume ro:/ro:ro
cd /
expect_exit 0 "start" lodge start kept
expect_exit 0 "exec" lodge exec kept sh -c 'touch /tmp/before && echo kept >/mnt/plain/file && cat /ro/file'
expect_same "$(cat "$work/out" "$work/plain/file")" "fixed
kept" "has its volumes"
expect_exit 0 "reset" lodge reset kept
again() { # until the agent of the guest that boots anew answers, who then has its volumes
    for _ in $(seq 300); do
        lodge exec kept sh -c '[ ! -e /tmp/before ] && cat /mnt/plain/file && echo again >/mnt/plain/second' && return
        sleep 0.1
    done
    return 1
}
expect_exit 0 "exec after a reset" again
expect_same "$(cat "$work/out" "$work/plain/second")" "kept
again" "which has its volumes again"
expect_exit 0 "stop" lodge stop kept
rm -r "$work/plain"
expect_exit 1 "start without the directory" lodge start kept
expect_text "$work/err" "No such file" "which is said"
finish
