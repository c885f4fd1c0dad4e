# What the makers of disk images share: Debian packages, fetched with apt and unpacked without running any of their
# scripts, into an ext4 image. No root needed. Sourced; sets $cache, which the tests' ignored cache is in.

here=$(cd "$(dirname "$0")" && pwd)
cache=${LODGE_TEST_CACHE:-$here/../../.cache/tests}
mkdir -p "$cache/packages" "$cache/empty-archives/partial"
cache=$(cd "$cache" && pwd)
PATH=$PATH:/sbin:/usr/sbin

# Tests run at the same time: one makes an image, the others wait for it.
exec 9>"$cache/lock"
flock 9

try() { # COMMAND...: quietly, unless it fails
    "$@" >"$cache/log" 2>&1 || {
        cat "$cache/log" >&2
        return 1
    }
}

# What an empty system would install: every dependency, whatever this machine has installed or downloaded
# (--print-uris leaves out what lies in the archive directory).
: >"$cache/empty-status"
apt_on_empty() {
    apt-get -qq -o Dir::State::status="$cache/empty-status" -o Debug::NoLocking=1 \
        -o Dir::Cache::archives="$cache/empty-archives/" \
        -o APT::Install-Recommends=false "$@"
}

packages_list() { # PACKAGES...: the names of the files of these packages and all that they depend on
    apt_on_empty --print-uris install -y "$@" 2>"$cache/log" | cut -d' ' -f2 | sort
}

packages_find() { # PACKAGES...: packages_list, with fresh lists when this machine has none
    packages_list "$@" || { [ "$(id -u)" = 0 ] && try apt-get -qq update && packages_list "$@"; } || {
        cat "$cache/log" >&2
        return 1
    }
}

packages_unpack() { # ROOT FILES...: fetches what is not there yet
    root=$1
    shift
    missing=
    for file in "$@"; do
        # apt names the files as PACKAGE_VERSION_ARCH.deb with %-escapes; ask for exactly those versions.
        [ -f "$cache/packages/$file" ] ||
            missing="$missing $(echo "$file" | sed 's/%3a/:/g; s/^\([^_]*\)_\(.*\)_[^_]*\.deb$/\1=\2/')"
    done
    # shellcheck disable=SC2086 # a list of words
    [ -z "$missing" ] || (cd "$cache/packages" && try apt-get -qq download $missing) || return
    for file in "$@"; do
        dpkg-deb -x "$cache/packages/$file" "$root" || return
    done
    mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
}

source_unpack() { # NAME DIRECTORY: Debian's source package, with its patches, as DIRECTORY; prints its version
    # Few machines have deb-src configured: the same archives, with package lists of our own.
    mkdir -p "$cache/source-lists/partial" "$cache/sources"
    apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 'Origin: Debian' | sort -u >"$cache/sources.list"
    set -- "$1" "$2" -qq -o Debug::NoLocking=1 -o APT::Sandbox::User= \
        -o Dir::Etc::sourcelist="$cache/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$cache/source-lists" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    name=$1 directory=$2
    shift 2
    [ "$(find "$cache/source-lists" -name '*_Sources*' -mmin -1440)" ] || try apt-get "$@" update || return
    # --print-uris leaves out what lies in the working directory.
    description=$(cd "$cache/source-lists" && apt-get "$@" source --print-uris "$name" |
        sed -n 's/.* \(.*\.dsc\) .*/\1/p')
    (cd "$cache/sources" && try apt-get "$@" source --download-only "$name") || return
    # apt has checked the sums that the signed lists name; the uploader's key need not be here.
    try dpkg-source --no-check -x "$cache/sources/$description" "$directory" && echo "$description"
}

image_write() { # ROOT LABEL SIZE FILE: complete or not there at all
    try mke2fs -q -t ext4 -O ^has_journal -d "$1" -L "$2" "$4.part" "$3" && mv "$4.part" "$4"
}
