#!/bin/bash
# A fresh system of a distribution to try things in; sourced by deb.sh and port.sh, from the top of the sources.
# In: suite, mirror and components; ROOT=dir keeps and reuses the system there. Out: $root, $work (a directory that goes).
# Root and debootstrap are needed.
# shellcheck shell=bash

# In a mount namespace of its own: whatever happens, no mount is left behind, and none reaches the machine.
[ -n "${OWN_MOUNTS:-}" ] || OWN_MOUNTS=1 exec unshare --mount --propagation private bash "tests/packaging/$(basename "$0")" "$@"

work=$(mktemp -d)
root=${ROOT:-$work/root}
mounted=()

leave() {
    local at
    for at in "${mounted[@]}"; do umount -l "$at" 2>/dev/null || true; done
    rm -rf --one-file-system "$work"
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

inside() { chroot "$root" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

# Unmounted in the reverse order.
mount_there() {
    mount "$@" || fail "mount $*"
    mounted=("${!#}" "${mounted[@]}")
}

# The system, with its package lists; no service is started in it.
make_root() {
    local script=
    # A debootstrap that does not know a new suite of Ubuntu yet takes the script that all of them share.
    [ -e "/usr/share/debootstrap/scripts/$suite" ] || script=gutsy
    [ -x "$root/usr/bin/apt-get" ] ||
        debootstrap --variant=minbase --components="$components" "$suite" "$root" "$mirror" $script >"$work/debootstrap.log" 2>&1 ||
        fail "debootstrap: $(tail -3 "$work/debootstrap.log")"
    mount_there -t proc proc "$root/proc"
    echo 'exit 101' | install -m 755 /dev/stdin "$root/usr/sbin/policy-rc.d"
    inside apt-get -qq update
}
