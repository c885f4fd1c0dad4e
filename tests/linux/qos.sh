#!/bin/sh
# Four guests at four functions of one device, each with a class: what the device can do is shared as the classes say,
# while a guest discards. A limit is what the device can do, so that its scheduler decides and not the machine.
. "$(dirname "$0")/lib.sh"

classes="high medium low background"
s=$work/s
words=
for class in $classes; do
    truncate -s 64M "$work/$class"
    words="$words --socket $s.$class --disk $work/$class,class=$class"
done
# shellcheck disable=SC2086 # a list of words
"$LODGE" device nvme --limit bps=16M $words >"$work/said" 2>&1 &
server=$!
children="$children $server"
until [ -S "$s.background" ] || ! kill -0 $server 2>/dev/null; do sleep 0.05; done

# Each guest has megabytes waiting all the time, until its standard input ends.
mkfifo "$work/until"
LIMIT=900
guests=
for class in $classes; do
    lodge_run --memory 256M --net none --user-device "$s.$class" -- sh -c '
        for i in 1 2 3 4 5 6 7 8; do
            (while :; do dd if=/dev/nvme0n1 of=/dev/null bs=1M iflag=direct 2>/dev/null || exit; done) &
        done
        if [ '$class' = low ]; then (while :; do blkdiscard /dev/nvme0n1 || exit; done) & fi
        cat' <"$work/until" >"$work/guest.$class" 2>&1 &
    guests="$guests $!"
done
exec 5>"$work/until"

ask() { # FILE: what the disks have had so far
    before=$(wc -l <"$work/said")
    kill -USR1 $server
    until [ "$(wc -l <"$work/said")" -ge $((before + 4)) ] || ! kill -0 $server 2>/dev/null; do sleep 0.02; done
    tail -n 4 "$work/said" | tr '=' ' ' >"$1"
}
had() { # FILE CLASS: bytes
    awk -v class="$2" '$3 == class { print $7 }' "$1"
}

# From when all have begun. In a stretch that the host did not give some guest a processor it asked for less than its
# share: then another one counts.
alive() {
    for guest in $guests; do
        kill -0 "$guest" 2>/dev/null || return 1
    done
}
ask "$work/a"
until [ "$(awk '$7 > 1000000' "$work/a" | wc -l)" = 4 ] || ! alive; do
    sleep 0.1
    ask "$work/a"
done
verdict=none
for try in 1 2 3 4 5 6; do
    ask "$work/a"
    cp "$work/a" "$work/b"
    while [ $(($(had "$work/b" low) - $(had "$work/a" low))) -lt 4000000 ] && alive; do
        sleep 0.1
        ask "$work/b"
    done
    verdict=$(cat "$work/a" "$work/b" | awk '
        NR <= 4 { begin[$3] = $7 }
        NR > 4 { had[$3] = $7 - begin[$3]; all += had[$3] }
        function off(class, due) { return had[class] > 1.05 * all * due || had[class] < 0.95 * all * due }
        END {
            for (class in had) shares = shares sprintf("%s %d ", class, had[class])
            bad = off("high", 64 / 105) || off("medium", 32 / 105) || off("low", 8 / 105)
            bad = bad || had["background"] == 0 || had["background"] > 0.015 * all
            print (bad ? "wrong: " : "right: ") shares
        }')
    echo "$try: $verdict"
    case $verdict in right*) break ;; esac
done
expect_same "${verdict%%:*}" right "shares of four guests within 5 % of 64 : 32 : 8, and about 1 for the background"

exec 5>&-
for guest in $guests; do
    wait "$guest" || fail "a guest ended badly"
done
kill -TERM $server
wait $server || fail "the server's end"

expect_exit 2 "a limit that is none" "$LODGE" device nvme --limit speed=1 --socket "$s" --disk "$work/low"
expect_one_line_error "a limit that is none"
finish
