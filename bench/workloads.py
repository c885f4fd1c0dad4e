"""The workloads: what runs, how much of it. Sized to take 0.2 to 1 second natively and no more than
about 20 in QEMU's TCG on a machine of 2026."""
from collections import namedtuple

# title is what the table says; runs is how often in a row; input is its standard input.
Workload = namedtuple("Workload", "name title runs input argv")

COMPUTE = "/bench/compute"
SYSTEM = "/bench/system"
CRYPTO = "/bench/crypto"


def _all(table):
    for line in table.strip().splitlines():
        name, title, runs, source, argv = (field.strip() for field in line.split("|"))
        yield Workload(name, title, int(runs), source, argv.format(
            compute=COMPUTE, system=SYSTEM, crypto=CRYPTO).split())


_TABLE = """
shell   | shell loop (dash)             | 1  | /bench/empty      | /bin/dash /bench/loop.sh 100000
gzip    | gzip                          | 1  | /bench/corpus     | /bin/gzip -6 -n -c
xz      | xz                            | 1  | /bench/corpus-xz  | /usr/bin/xz -4 -T1 -c
zstd    | zstd                          | 1  | /bench/corpus     | /usr/bin/zstd -9 -q --single-thread -c
sha256  | sha256sum                     | 3  | /bench/large      | /usr/bin/sha256sum
loop    | plain integer loop            | 1  | /bench/empty      | {compute} loop 500000000
calls   | recursive calls               | 1  | /bench/empty      | {compute} calls 39
bodies  | n-body, double precision      | 1  | /bench/empty      | {compute} bodies 3000000
matrix  | 1024² matrix product, half of it | 1  | /bench/empty      | {compute} matrix 512
cc1     | `cc1 -O2` on a C file         | 1  | /bench/empty      | /usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -O2 /bench/compile.c -o -
static  | fork+exec, static program     | 1  | /bench/empty      | {system} spawn 800 /bench/true
dynamic | fork+exec, dynamic program    | 1  | /bench/empty      | {system} spawn 300 /bin/true
fork    | fork                          | 1  | /bench/empty      | {system} fork 3000
bytes   | 1-byte read and write         | 1  | /bench/empty      | {system} bytes 400000
getppid | getppid                       | 1  | /bench/empty      | {system} getppid 2000000
signals | signals                       | 1  | /bench/empty      | {system} signals 200000
touch   | touching 256 MiB              | 1  | /bench/empty      | {system} touch 2
mmap    | mmap cycles                   | 1  | /bench/empty      | {system} mmap 40000
chase   | pointer chase over 64 MiB     | 1  | /bench/empty      | {compute} chase 4000000
pipe    | pipe ping-pong                | 1  | /bench/empty      | {system} pipe 60000
aes     | OpenSSL AES-256-CBC           | 1  | /bench/empty      | {crypto} aes 400
sha     | OpenSSL SHA-256               | 1  | /bench/empty      | {crypto} sha 500
pystart | Python start                  | 20 | /bench/empty      | /usr/bin/python3 -S -c pass
pyloop  | Python loop                   | 1  | /bench/empty      | /usr/bin/python3 -S /bench/loop.py 200000
sqlite  | SQLite inserts                | 1  | /bench/insert.sql | /usr/bin/sqlite3 -batch :memory:
"""

# Only when asked for: what several processors are for.
_EXTRA = """
pair    | two integer loops at once     | 1  | /bench/empty      | /bin/dash /bench/pair.sh {compute} loop 500000000
"""

WORKLOADS = list(_all(_TABLE))
EXTRA = list(_all(_EXTRA))


def listing():
    """The list that bench/guest/timer.c reads."""
    return "".join("%s\t%d\t%s\t%s\n" % (w.name, w.runs, w.input, " ".join(w.argv))
                   for w in WORKLOADS + EXTRA)


def insert_sql(rows=60000):
    """A deterministic script of inserts with an index, and a result."""
    lines = ["CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, value REAL, tag INTEGER);",
             "CREATE INDEX by_tag ON t (tag, name);", "BEGIN;"]
    state = 12345
    for row in range(rows):
        state = (state * 1103515245 + 12345) & 0x7fffffff
        lines.append("INSERT INTO t VALUES (%d, 'name %d of row', %d.25, %d);" % (
            row, state % 100003, state % 977, state % 641))
    lines += ["COMMIT;", "SELECT count(*), sum(value), max(name), count(DISTINCT tag) FROM t;"]
    return "\n".join(lines) + "\n"
