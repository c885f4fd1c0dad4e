#!/bin/sh
# VMs that last: create, start, stop, rm, ps, exec, console, logs, pause and resume; their races, and what kill -9 leaves.
. "$(dirname "$0")/lib.sh"

export XDG_DATA_HOME="$work/data" XDG_RUNTIME_DIR="$work/run"
mkdir "$work/data" "$work/run"
vms=$XDG_DATA_HOME/lodge/vms

lodge() { timeout --foreground -k 10 "${LIMIT:-240}" "$LODGE" "$@"; }
create() { lodge create --engine "$ENGINE" --memory 256M --name "$@"; }
status_of() { # NAME: as ps -a has it, "none" without
    lodge ps -a -o json | python3 -c '
import json, sys
print(next((vm["status"] for vm in json.load(sys.stdin) if vm["name"] == sys.argv[1]), "none"))' "$1"
}
pid_of() {
    lodge ps -o json | python3 -c '
import json, sys
print(next(vm["pid"] for vm in json.load(sys.stdin) if vm["name"] == sys.argv[1]))' "$1"
}
wait_status() { # NAME STATUS WHAT
    for _ in $(seq 300); do
        [ "$(status_of "$1")" = "$2" ] && { echo "ok: $3"; return; }
        sleep 0.1
    done
    fail "$3: $1 is $(status_of "$1"), not $2"
}
end_all() {
    for config in "$vms"/*/config.json; do
        [ ! -f "$config" ] || "$LODGE" rm -f "$(basename "$(dirname "$config")")" >/dev/null 2>&1 || true
    done
}
trap 'end_all; cleanup' EXIT

"$LODGE" image path >/dev/null 2>&1 # its assembly says a line, which no error is to be mixed with

# ---- What is wrong is said, and leaves nothing ----

refused() { # CODE WHAT TEXT ARGUMENTS...
    code_wanted=$1 label=$2 text=$3
    shift 3
    expect_exit "$code_wanted" "$label" lodge "$@"
    expect_one_line_error "$label"
    expect_text "$work/err" "$text" "$label, its text"
}
refused 2 "create without a name" "needs a name" create
refused 2 "create with a bad name" "no name for a VM" create --name ../x
refused 2 "create with an unknown option" "unknown option" create --name x --nonsense
refused 2 "create with options that do not go together" "--publish" create --name x --net none --publish 80:80
refused 2 "create with a command" "lodge exec" create --name x -- true
refused 1 "create with a disk that is not there" "No such file" create --name x --disk "$work/none"
refused 1 "start of no VM" "no VM named" start x
refused 1 "rm of no VM" "no VM named" rm x
refused 125 "exec in no VM" "no VM named" exec x true
refused 1 "logs of no VM" "no VM named" logs x
expect_same "$(ls -A "$XDG_DATA_HOME/lodge/vms" 2>/dev/null)" "" "nothing is left of them"

mkdir -p "$vms/odd" "$vms/new"
: >"$vms/odd/lock" && echo '{"format": 1, ' >"$vms/odd/config.json"
: >"$vms/new/lock" && echo '{"format": 99, "options": {}}' >"$vms/new/config.json"
refused 1 "start with a broken config" "config.json, line" start odd
refused 1 "start with a newer lodge's config" "newer lodge" start new
expect_exit 0 "both can be removed" lodge rm odd new

truncate -s 1M "$work/disk"
create lost --disk "$work/disk" >/dev/null
rm "$work/disk"
refused 125 "start with a disk that has vanished" "No such file" start lost
expect_same "$(status_of lost)" stopped "it is not running"
expect_exit 0 "it can be removed" lodge rm lost

# ---- Races of create ----

for i in 1 2 3 4 5 6; do
    (create one >"$work/race$i" 2>&1 && echo won >>"$work/race$i") &
done
wait
expect_same "$(cat "$work"/race? | grep -c '^won$')" 1 "of six who create a name, one succeeds"
expect_same "$(cat "$work"/race? | grep -c 'is there already')" 5 "and the others are told"
refused 125 "run with a kept VM's name" "lodge start one" run --name one -- true

# ---- Life ----

expect_same "$(status_of one)" stopped "a new VM is stopped"
refused 1 "stop of a stopped VM" "not running" stop one
refused 125 "exec in a stopped VM" "not running" exec one true
for i in 1 2 3 4; do
    (lodge start one >"$work/race$i" 2>&1 && echo won >>"$work/race$i") &
done
wait
expect_same "$(cat "$work/race1" "$work/race2" "$work/race3" "$work/race4" | grep -c '^won$')" 1 \
    "of four who start it, one succeeds"
expect_same "$(status_of one)" running "it runs"
refused 1 "start of a running VM" "running already" start one
refused 1 "rm of a running VM" "lodge stop one" rm one
refused 1 "create with a running VM's name" "there already" create --name one

# ---- exec ----

expect_exit 7 "exec: exit code" lodge exec one sh -c 'echo out; echo err >&2; exit 7'
expect_same "$(cat "$work/out")|$(cat "$work/err")" "out|err" "exec: separate streams"
expect_exit 0 "exec: user, directory, environment" lodge exec -u nobody:tty -w /tmp -e A=b -e 'C=d e' one \
    sh -c 'echo "$(id -un) $(id -gn) $(pwd) $A $C $HOME"'
expect_same "$(cat "$work/out")" "nobody tty /tmp b d e /" "exec: user, directory, environment: as told"
expect_exit 126 "exec: an unknown user" lodge exec -u nobodyelse one true
expect_exit 126 "exec: an unknown directory" lodge exec -w /none one true
expect_exit 127 "exec: an unknown program" lodge exec one nothing-of-that-name
expect_exit 137 "exec: ended by a signal" lodge exec one sh -c 'kill -9 $$'
expect_same "$(echo input | lodge exec one wc -c)" 0 "exec without -i has no input"
head -c 3000000 /dev/urandom >"$work/random"
expect_same "$(lodge exec -i one cat <"$work/random" | sha256sum)" "$(sha256sum <"$work/random")" \
    "exec: three megabytes there and back"
expect_exit 0 "exec: a reader that goes away" sh -c "'$LODGE' exec one yes | head -n 1"
for i in 1 2 3 4 5 6 7 8; do
    lodge exec one sh -c "sleep 0.2; echo \$(($i * $i)); exit $i" >"$work/many$i" || echo "code $?" >>"$work/many$i" &
done
wait
expect_same "$(cat "$work"/many? | tr '\n' ' ')" \
    "1 code 1 4 code 2 9 code 3 16 code 4 25 code 5 36 code 6 49 code 7 64 code 8 " "exec: eight at once"
python3 - "$LODGE" >"$work/out" 2>&1 <<'EOF' || fail "exec -it: see above"
import os, pty, sys, fcntl, termios, struct, select, time
pid, fd = pty.fork()
if pid == 0:
    os.environ["TERM"] = "vt100"
    os.execv(sys.argv[1], [sys.argv[1], "exec", "-it", "one", "sh", "-c",
             'tty; echo "term $TERM"; read line; stty size; echo "got $line"; exit 3'])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 43, 132, 0, 0))
text, sent, end = b"", False, time.time() + 60
while time.time() < end:
    if fd in select.select([fd], [], [], 1)[0]:
        try:
            more = os.read(fd, 4096)
        except OSError:
            break
        if not more:
            break
        text += more
    if b"term vt100" in text and not sent:
        os.write(fd, b"hello\n")
        sent = True
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(text, code)
assert b"/dev/pts/" in text and b"43 132" in text and b"got hello" in text and code == 3
EOF
expect_text "$work/out" "got hello" "exec -it: a terminal of the right size and kind"
"$LODGE" exec one sh -c 'echo $$ >/tmp/pid; exec sleep 1000' &
client=$!
for _ in $(seq 100); do
    lodge exec one test -s /tmp/pid && break
    sleep 0.1
done
kill -9 "$client"
wait "$client" 2>/dev/null || true
expect_exit 0 "exec: the program ends with its client" lodge exec one \
    sh -c 'for i in $(seq 100); do kill -0 $(cat /tmp/pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1'

# ---- cp ----

tree="$work/tree"
mkdir -p "$tree/deep/er" "$tree/empty"
head -c 700000 /dev/urandom >"$tree/deep/file"
echo text >"$tree/name with blanks"
echo long >"$tree/deep/er/$(printf '%0200d' 7)"
chmod 750 "$tree/name with blanks"
ln -s ../deep/file "$tree/empty/link"
expect_exit 0 "cp of a tree into the guest" lodge cp "$tree" one:/tmp
expect_exit 0 "cp under a new name" lodge cp "$tree/deep/file" one:/tmp/renamed
expect_same "$(lodge exec one sha256sum /tmp/renamed | cut -c1-64)" "$(sha256sum <"$tree/deep/file" | cut -c1-64)" \
    "cp: contents in the guest"
expect_exit 0 "cp of the tree back, under a new name" lodge cp one:/tmp/tree "$work/back"
diff -r --no-dereference "$tree" "$work/back" && [ "$(stat -c %a "$work/back/name with blanks")" = 750 ] ||
    fail "cp: the tree is another one"
mkdir "$work/into"
expect_exit 0 "cp into a directory" lodge cp one:/tmp/tree/deep "$work/into"
cmp "$tree/deep/file" "$work/into/deep/file" || fail "cp into a directory: contents"
expect_exit 0 "cp of what is in a directory" lodge cp one:/tmp/tree/deep/. "$work/into"
cmp "$tree/deep/file" "$work/into/file" || fail "cp of what is in a directory: contents"
tar c -C "$tree" deep | lodge cp - one:/root
lodge cp one:/root/deep - | tar t | sort >"$work/out"
expect_text "$work/out" "deep/file" "cp: tar streams both ways"
expect_exit 1 "cp of what is not there" lodge cp "$work/none" one:/tmp
expect_one_line_error "cp of what is not there"
expect_exit 1 "cp of what is not in the guest" lodge cp one:/none "$work/x"
expect_exit 2 "cp within the host" lodge cp "$work/a" "$work/b"
# A guest whose tar sends what it likes: out of the directory, or through a link that leads there.
hostile() { # NAME: a stream that the guest sends for /tmp/NAME
    lodge exec -i one sh -c "cat >/tmp/stream; mv /bin/tar /bin/tar.real 2>/dev/null; printf '#!/bin/sh\ncat /tmp/stream\n' >/bin/tar; chmod +x /bin/tar"
}
python3 - "$work" <<'EOF'
import io, sys, tarfile
def stream(name, *members):
    with tarfile.open(f"{sys.argv[1]}/{name}.tar", "w") as tar:
        for path, kind, link in members:
            info = tarfile.TarInfo(path)
            info.type, info.linkname, info.mode = kind, link, 0o4777
            data = b"hostile" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
R, S, H, D, C = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE
target = sys.argv[1] + "/trap"
stream("dots", ("x", D, ""), ("x/../../trap/file", R, ""))
stream("absolute", (target + "/file", R, ""))
stream("other", ("y", R, ""))
stream("link", ("x", D, ""), ("x/l", S, target), ("x/l/file", R, ""))
stream("hard", ("x", D, ""), ("x/h", H, "../trap/there"), ("x/h", R, ""))
stream("harddots", ("x", D, ""), ("x/h", H, "x/../../trap/there"), ("x/h", R, ""))
stream("hardabs", ("x", H, target + "/there"))
stream("cut", ("x", R, ""))
stream("good", ("x", D, ""), ("x/node", C, ""), ("x/set", R, ""))
EOF
head -c 515 "$work/cut.tar" >"$work/cut" && mv "$work/cut" "$work/cut.tar"
mkdir "$work/trap" "$work/catch"
echo mine >"$work/trap/there"
for trick in dots absolute other link hard harddots hardabs cut; do
    hostile <"$work/$trick.tar"
    rm -rf "$work/catch" && mkdir "$work/catch"
    expect_exit 1 "cp from a hostile guest: $trick" lodge cp one:/x "$work/catch"
    expect_one_line_error "cp from a hostile guest: $trick"
    expect_same "$(ls "$work/trap")$(cat "$work/trap/there")" "theremine" "cp from a hostile guest: $trick: nothing got out"
    [ "$(ls -A "$work/catch")" = "" ] || [ "$(ls -A "$work/catch")" = x ] || fail "$trick: left $(ls -A "$work/catch")"
done
hostile <"$work/good.tar"
rm -rf "$work/catch" && mkdir "$work/catch"
expect_exit 0 "cp leaves devices out" lodge cp one:/x "$work/catch"
expect_same "$(stat -c %a "$work/catch/x/set")|$(ls "$work/catch/x")" "777|set" "and rights that nobody gave"
lodge exec one mv /bin/tar.real /bin/tar

# ---- pause, resume, reset, logs ----

expect_exit 0 "pause" lodge pause one
expect_same "$(status_of one)" paused "a paused VM is called so"
refused 1 "pause of a paused VM" "paused already" pause one
lodge exec one true &
client=$!
expect_exit 0 "resume" lodge resume one
wait "$client" || fail "exec while paused is done after it"
refused 1 "resume of a running VM" "not paused" resume one
lodge logs -f one >"$work/follow" &
follower=$!
lodge exec one sh -c 'echo said to the console >/dev/console; echo gone >/tmp/flag'
expect_exit 0 "reset" lodge reset one
for _ in $(seq 300); do
    lodge exec one test ! -e /tmp/flag >/dev/null 2>&1 && break
    sleep 0.1
done
expect_exit 0 "after a reset the guest is a new one, in the same monitor" lodge exec one test ! -e /tmp/flag
expect_exit 0 "stop" lodge stop one
wait "$follower" || fail "logs -f ends with the VM"
expect_text "$work/follow" "said to the console" "logs -f"
lodge logs one >"$work/out"
expect_text "$work/out" "said to the console" "logs"
expect_same "$(status_of one)" stopped "it is stopped"

# ---- kill -9 of the monitor ----

lodge start one
kill -9 "$(pid_of one)"
expect_same "$(lodge ps -o json | tr -d ' \n')" "[]" "ps right after kill -9 of a monitor"
expect_same "$(status_of one)" stopped "ps -a then"
expect_exit 0 "it can be started again" lodge start -o json one
expect_exit 0 "rm -f of a running VM" lodge rm -f one
expect_same "$(status_of one)" none "it is gone"
expect_same "$(ls -A "$vms")" "" "with its directory"

# ---- The console ----

create serial --console serial >/dev/null
lodge start serial
lodge console --watch serial >"$work/watch1" </dev/null &
lodge console --watch serial >"$work/watch2" </dev/null &
mkfifo "$work/keys"
lodge console serial <"$work/keys" >"$work/writer" &
exec 8>"$work/keys"
for _ in $(seq 300); do
    grep -q '# ' "$work/writer" && break
    sleep 0.1
done
expect_exit 1 "a second writer is refused" sh -c "'$LODGE' console serial </dev/null"
expect_text "$work/err" "somebody else writes" "and told why"
echo 'echo sum $((40 + 2))' >&8
for _ in $(seq 300); do
    grep -q 'sum 42' "$work/watch1" && grep -q 'sum 42' "$work/watch2" && break
    sleep 0.1
done
for who in writer watch1 watch2; do
    expect_text "$work/$who" "sum 42" "console: seen by $who"
done
echo 'n=0; while [ $n -lt 45000 ]; do echo line $n of many that are to fill the log; n=$((n+1)); done; echo all $((1 + 1)) said' >&8
for _ in $(seq 600); do
    tail -c 200 "$vms/serial/console.log" | grep -q 'all 2 said' && break
    sleep 0.2
done
expect_text "$vms/serial/console.log" "all 2 said" "the log has the last line"
[ "$(cat "$vms/serial"/console.log* | wc -c)" -le 2097152 ] && [ -f "$vms/serial/console.log.1" ] ||
    fail "the log is not rotated: $(ls -l "$vms/serial")"
lodge logs serial | grep -o 'line [0-9]* of' | awk '$2 != last + 1 && NR > 1 { bad = 1 } { last = $2 } END { exit bad }' ||
    fail "the log has lost lines"
exec 8>&-
expect_exit 0 "stop without an agent" lodge stop -t 1 serial
wait
expect_exit 0 "rm" lodge rm serial

# ---- kill -9 of create, start and rm at each step ----

if command -v strace >/dev/null && strace -o "$work/trace" true 2>/dev/null; then
    killed() { # SYSCALL NUMBER ARGUMENTS...: ends lodge in the NUMBERth such call; false: there were fewer
        call=$1 number=$2
        shift 2
        code=0
        strace -f -qq -o "$work/trace" -e "trace=$call" -e "inject=$call:signal=SIGKILL:when=$number" \
            "$LODGE" "$@" >/dev/null 2>&1 || code=$?
        [ "$code" = 137 ]
    }
    whole() { # WHAT: each directory that is shown is whole
        for entry in "$vms"/*; do
            [ ! -e "$entry" ] || [ -s "$entry/config.json" ] && [ -e "$entry/lock" ] || [ ! -e "$entry" ] ||
                fail "$1 left half of a VM: $(ls -A "$entry")"
        done
    }
    kills=0
    for call in mkdir openat write fsync rename; do
        number=0
        while number=$((number + 1)) && killed "$call" "$number" create --memory 64M --name victim; do
            kills=$((kills + 1))
            whole "create, killed in $call $number"
            [ ! -e "$vms/victim" ] || lodge rm victim
        done
        lodge rm victim
    done
    for call in rename unlink rmdir; do
        number=0
        create victim >/dev/null
        while number=$((number + 1)) && killed "$call" "$number" rm victim; do
            kills=$((kills + 1))
            whole "rm, killed in $call $number"
            [ -e "$vms/victim" ] || create victim >/dev/null
        done
        [ ! -e "$vms/victim" ] || lodge rm victim
    done
    create last >/dev/null && lodge rm last
    expect_same "$(ls -A "$vms")" "" "$kills kills of create and rm leave nothing behind"
else
    echo "without strace: create and rm are not killed at each step"
fi

create victim >/dev/null
for delay in 0 0.02 0.05 0.1 0.2 0.4; do
    "$LODGE" start victim >/dev/null 2>&1 &
    starter=$!
    sleep "$delay"
    kill -9 "$starter" 2>/dev/null || true
    wait "$starter" 2>/dev/null || true
    # Either it was up in time, or the monitor has noticed.
    for _ in $(seq 300); do
        case $(status_of victim) in stopped | running) break ;; esac
        sleep 0.1
    done
    lodge stop -f victim >/dev/null 2>&1 || true
    wait_status victim stopped "start, killed after $delay s, leaves no monitor behind"
done
expect_exit 0 "and it still starts" lodge start victim
expect_exit 0 "rm -f" lodge rm -f victim
finish
