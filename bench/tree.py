"""The root tree that all machines run the workloads in: Debian packages, unpacked, and the programs
of bench/guest. Natively it is a chroot, for guests an initramfs of the same files."""
import glob
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys

import workloads

HERE = os.path.dirname(os.path.abspath(__file__))

PACKAGES = """dash coreutils gzip xz-utils zstd cpp-12 openssl python3-minimal python3.11-minimal
    libpython3.11-minimal sqlite3 libc6 libgcc-s1 libstdc++6 libgmp10 libisl23 libmpc3 libmpfr6
    zlib1g libzstd1 liblzma5 liblz4-1 libssl3 libsqlite3-0 libreadline8 libtinfo6 libacl1 libattr1
    libselinux1 libpcre2-8-0 libexpat1""".split()

# Of no use to the workloads, and the initramfs stays in memory.
UNWANTED = ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl*",
            "usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", "etc", "var"]


def run(*argv, **options):
    return subprocess.run(argv, check=True, **options)


# ---- Packages ----

def fetch(cache):
    """The packages' files, newest that apt knows, downloaded once."""
    debs = os.path.join(cache, "debs")
    os.makedirs(debs, exist_ok=True)
    apt = ["-oAPT::Sandbox::User=", "-oDebug::NoLocking=1", "-qq"]

    def uris(options):
        found = subprocess.run(["apt-get", *options, "--print-uris", "download", *PACKAGES],
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return re.findall(r"^'[^']*' (\S+\.deb) ", found.stdout, re.M) if found.returncode == 0 else []

    names = uris(apt)
    if len(names) != len(PACKAGES):
        lists = os.path.join(cache, "apt/lists/partial")
        os.makedirs(lists, exist_ok=True)
        apt += ["-oDir::State::lists=" + os.path.dirname(lists),
                "-oDir::Cache=" + os.path.join(cache, "apt")]
        print("bench: reading package lists", file=sys.stderr)
        run("apt-get", *apt, "update", stdout=subprocess.DEVNULL)
        names = uris(apt)
    if not all(os.path.exists(os.path.join(debs, name)) for name in names):
        print("bench: downloading %d packages" % len(names), file=sys.stderr)
        run("apt-get", *apt, "download", *PACKAGES, cwd=debs)
    return [os.path.join(debs, name) for name in sorted(names)]


def unpack(debs, tree):
    for deb in debs:
        run("dpkg-deb", "-x", deb, tree)
    for pattern in UNWANTED:
        for path in glob.glob(os.path.join(tree, pattern)):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


# ---- Our own programs and their input ----

def compile_programs(directory, tree):
    def gcc(name, *options):
        run("gcc", "-O2", "-o", os.path.join(directory, name),
            os.path.join(HERE, "guest", name + ".c"), *options)

    gcc("timer", "-static")
    gcc("true", "-static")
    gcc("system", "-static")
    gcc("kernel", "-static")
    gcc("compute", "-static", "-lm")
    gcc("crypto", os.path.join(tree, "usr/lib/x86_64-linux-gnu/libcrypto.so.3"))


def write(path, data):
    with open(path, "wb") as out:
        out.write(data)


def write_inputs(directory, tree):
    """Text and machine code, as compressors meet them."""
    with open(os.path.join(tree, "usr/lib/gcc/x86_64-linux-gnu/12/cc1"), "rb") as program:
        code = program.read(24 << 20)
    sql = workloads.insert_sql().encode()
    corpus = code[4 << 20:9 << 20] + sql[:2 << 20]
    write(os.path.join(directory, "corpus"), corpus)
    write(os.path.join(directory, "corpus-xz"), corpus[4 << 20:6 << 20])
    write(os.path.join(directory, "large"), code)
    write(os.path.join(directory, "insert.sql"), sql)
    write(os.path.join(directory, "empty"), b"")
    write(os.path.join(directory, "list"), workloads.listing().encode())
    for name in ("loop.sh", "pair.sh", "loop.py", "compile.c"):
        shutil.copy(os.path.join(HERE, "guest", name), directory)


# ---- As an archive ----

def archive(tree, out):
    """The tree as a newc archive, owned by root, with the one device node a kernel needs."""
    number = 0

    def member(name, mode, data, device=(0, 0)):
        nonlocal number
        number += 1
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + name + b"\0"
        out.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    root = os.fsencode(tree)
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            data = b""
            if stat.S_ISLNK(info.st_mode):
                data = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as source:
                    data = source.read()
            member(os.path.relpath(path, root), info.st_mode, data)
    member(b"dev", 0o040755, b"")
    member(b"dev/console", 0o020600, b"", (5, 1))
    member(b"TRAILER!!!", 0, b"")


# ---- All of it ----

def sources():
    files = [__file__, workloads.__file__] + glob.glob(os.path.join(HERE, "guest", "*"))
    digest = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb") as source:
            digest.update(os.path.basename(path).encode() + source.read())
    return digest


def make(cache):
    """(tree, archive) in the cache directory, made anew when packages or sources have changed."""
    debs = fetch(cache)
    digest = sources()
    digest.update(" ".join(os.path.basename(d) for d in debs).encode())
    key = digest.hexdigest()[:16]
    tree = os.path.join(cache, "tree-" + key)
    packed = tree + ".cpio"
    if os.path.isdir(tree) and os.path.exists(packed):
        return tree, packed
    for old in glob.glob(os.path.join(cache, "tree-*")):
        shutil.rmtree(old) if os.path.isdir(old) else os.unlink(old)
    print("bench: making the root tree", file=sys.stderr)
    new = tree + ".new"
    unpack(debs, new)
    # cc1 insists that there be a directory of headers.
    for folder in ("bench", "tmp", "proc", "usr/include"):
        os.makedirs(os.path.join(new, folder), exist_ok=True)
    compile_programs(os.path.join(new, "bench"), new)
    write_inputs(os.path.join(new, "bench"), new)
    with open(packed + ".new", "wb") as out:
        archive(new, out)
    os.rename(packed + ".new", packed)
    os.rename(new, tree)
    return tree, packed
