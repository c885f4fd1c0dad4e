#!/bin/sh
# Builds zstd from Debian's source package inside the guest, with Debian's gcc, and runs its own tests there.
# In CI the smallest program and the golden files; full: library, programs, and all of zstd's test programs.
#
# usage: tests/linux/build_zstd.sh BUILD [full]
. "$(dirname "$0")/lib.sh"

memory=2G
image=$("$SOURCE/tests/linux/zstd-image") || { fail "image with a compiler"; finish; }
in_build() { # COMMANDS: in a chroot of the image, with the sources in a file system in memory
    lodge_run --memory "$memory" --disk "$image,readonly" -- sh -c "
        mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t devtmpfs d /t/dev &&
        mkdir -p /t/dev/shm && mount -t tmpfs s /t/dev/shm && mount -t tmpfs -o size=1500M t /t/tmp &&
        cp -r /t/zstd /t/tmp && exec chroot /t /bin/bash -c 'set -e -o pipefail; cd /tmp/zstd; $1'"
}

# Only what zstd needs of itself: other formats would want other libraries.
plain="HAVE_ZLIB=0 HAVE_LZMA=0 HAVE_LZ4=0"
if [ "${2:-}" != full ]; then
    LIMIT=1200
    expect_exit 0 "zstd built and its golden files tested" in_build "
        make -C programs zstd-frugal CFLAGS=-O0 $plain
        make -C tests datagen CFLAGS=-O0
        cd tests
        zstd=../programs/zstd-frugal
        \$zstd -t -r golden-decompression
        \$zstd -c -r golden-compression | \$zstd -t
        dictionary=golden-dictionaries/http-dict-missing-symbols
        \$zstd -D \$dictionary golden-compression/http -c | \$zstd -D \$dictionary -t
        ./datagen -g500K -s7 >a
        for level in 1 6 --fast=3; do
            [ \$level = --fast=3 ] || level=-\$level
            \$zstd \$level -c a | \$zstd -d | cmp - a
        done
        ../programs/zstd-frugal --version
        sha256sum a"
    finish
fi

LIMIT=14400
memory=6G # zstreamtest's largest tables have 2 GiB
expect_exit 0 "zstd's library and programs" in_build "make -C lib lib; make zstd $plain; ./zstd --version"
expect_exit 0 "zstd's own tests of its program" in_build "make -C tests shortest $plain"
expect_exit 0 "zstd's fuzzers and test programs" in_build "
    cd tests
    make fuzzer zstreamtest decodecorpus poolTests invalidDictionaries legacy fullbench datagen
    ./fuzzer -v -s1 -i2000
    ./zstreamtest -v -s1 -i500
    ./zstreamtest -v --newapi -s2 -i500
    ./decodecorpus -t -s3 -n500
    ./poolTests
    ./invalidDictionaries
    ./legacy
    ./fullbench -i1 -P0
    ./fullbench -i1"
finish
