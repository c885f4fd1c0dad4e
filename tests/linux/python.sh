#!/bin/sh
# Python's own test modules in the guest: arithmetic, formats, hashes, compression, threads. Not in CI: half an hour.
#
# usage: tests/linux/python.sh BUILD [MODULE...]
. "$(dirname "$0")/lib.sh"

shift
image=$("$SOURCE/tests/linux/python-image") || { fail "image with Python"; finish; }
modules=${*:-test_math test_cmath test_float test_int test_long test_struct test_re test_hashlib test_zlib
    test_bz2 test_lzma test_threading}
LIMIT=1800
for module in $modules; do
    expect_exit 0 "python: $module" lodge_run --memory 1G --disk "$image,readonly" -- sh -c "
        mkdir -p /t && mount -t ext4 -o ro /dev/vda /t && mount -t proc p /t/proc && mount -t devtmpfs d /t/dev &&
        mkdir -p /t/dev/shm && mount -t tmpfs s /t/dev/shm && mount -t tmpfs t /t/tmp &&
        exec chroot /t /bin/sh -c 'cd /tmp && exec python3 -m test $module'"
done
finish
