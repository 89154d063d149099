#!/bin/bash
# The Debian package in a fresh system: built, installed, run as its own user on a read-only root without
# capabilities, started by systemd as its unit says, where systemd can be had, and purged.
#   bash tests/packaging/deb.sh        (root; needs debootstrap and a Debian mirror; some minutes)
# ROOT=dir keeps and reuses the base system there. SUITE and MIRROR choose another.
set -euo pipefail

cd "$(dirname "$0")/../.."
suite=${SUITE:-bookworm} mirror=${MIRROR:-http://deb.debian.org/debian} components=main
# shellcheck source=tests/packaging/root.sh
. tests/packaging/root.sh
# shellcheck source=tests/packaging/systemd.sh
. tests/packaging/systemd.sh
pid=

finish() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    halt
    leave
}
trap finish EXIT

# Every path outside of what apt and dpkg keep about all packages.
paths() { find "$root" -xdev \( -path "$root/var/lib/dpkg" -o -path "$root/var/lib/apt" -o -path "$root/var/cache" -o -path "$root/var/log" \) -prune -o -print | sort; }

make --no-print-directory deb
deb=$(echo "${BUILD:-build}"/tiercel_*.deb)
make_root
inside dpkg --purge tiercel >/dev/null 2>&1 || true # of a run that failed
# What it depends on is there before, so that a purge of it alone must leave no difference.
inside apt-get -qq install -y --no-install-recommends redis-tools adduser systemd >/dev/null 2>&1 || fail "apt-get install"
cp "$deb" "$root/tmp/tiercel.deb"
depends=$(dpkg-deb -f "$deb" Depends | sed 's/([^)]*)//g; s/,/ /g')
# shellcheck disable=SC2086
inside apt-get -qq install -y --no-install-recommends $depends >/dev/null 2>&1 || fail "its dependencies: $depends"
paths >"$work/before"
cp "$root/etc/passwd" "$work/passwd"

inside apt-get -qq install -y --no-install-recommends /tmp/tiercel.deb >"$work/install.log" 2>&1 || fail "$(cat "$work/install.log")"
inside id tiercel
[ "$(stat -c '%U %a' "$root/etc/tiercel/tiercel.conf")" = "root 640" ] || fail "rights of tiercel.conf"
[ "$(inside stat -c '%U %G %a' /var/lib/tiercel)" = "tiercel tiercel 700" ] || fail "rights of /var/lib/tiercel"

# Everything that the unit asks for, done by systemd.
ctl() { in_system systemctl "$@" tiercel || fail "systemctl $*: $(in_system systemctl status --no-pager -n 20 tiercel)"; }
with_systemd() {
    local main
    ctl start
    [ "$(in_system redis-cli set greeting hello)" = OK ] || fail "set, under systemd"
    main=$(in_system systemctl show -P MainPID tiercel)
    [ "$(in_system stat -c %U "/proc/$main")" = tiercel ] || fail "it runs as root"
    in_system grep -q '^CapBnd:.*0000000000000000$' "/proc/$main/status" || fail "it has capabilities"
    in_system grep -q '^Seccomp:.*2$' "/proc/$main/status" || fail "no system call is forbidden to it"
    ctl reload
    ctl restart
    [ "$(in_system redis-cli get greeting)" = hello ] || fail "the value is gone after a restart by systemd"
    ctl kill -s KILL
    for _ in $(seq 100); do
        [ "$(in_system redis-cli ping 2>/dev/null)" != PONG ] || break
        sleep 0.1
    done
    [ "$(in_system redis-cli get greeting)" = hello ] || fail "it was not started again after a kill"
    ctl stop
    [ "$(in_system systemctl show -P Result tiercel)" = success ] || fail "it did not stop in order"
    halt
}

# By hand, as the unit has it: own user, nothing but its state directory writable, no capabilities, no new privileges.
port=$((20000 + RANDOM % 10000))
start() {
    unshare --mount bash -c '
        mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" &&
        mount --bind "$1/var/lib/tiercel" "$1/var/lib/tiercel" && mount -o remount,rw,bind "$1/var/lib/tiercel" &&
        mount -t tmpfs tmpfs "$1/tmp" &&
        exec chroot "$1" setpriv --reuid tiercel --regid tiercel --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \
            /usr/bin/tiercel /etc/tiercel/tiercel.conf --port "$2" --http-port 0' start "$root" "$port" >"$work/log" 2>&1 &
    pid=$!
    for _ in $(seq 100); do
        [ "$(ask ping 2>/dev/null)" = PONG ] && return
        sleep 0.1
    done
    fail "it does not answer: $(cat "$work/log")"
}
ask() { inside redis-cli -p "$port" "$@"; }
stop() {
    kill -TERM "$pid"
    wait "$pid" || fail "exit code $?: $(cat "$work/log")"
    pid=
}
by_hand() {
    start
    [ "$(stat -c %U "/proc/$pid")" != root ] || fail "it runs as root"
    grep -q '^CapEff:.*0000000000000000$' "/proc/$pid/status" || fail "it has capabilities"
    [ "$(ask set greeting hello)" = OK ] || fail set
    stop
    start
    [ "$(ask get greeting)" = hello ] || fail "the value is gone after a restart"
    stop
}

by_hand
how="run by hand"
if boot; then
    with_systemd
    how="$how and by systemd"
fi

inside apt-get -qq purge -y tiercel >/dev/null 2>&1 || fail purge
paths >"$work/after"
diff "$work/before" "$work/after" || fail "purge left that, or took it"
diff "$work/passwd" "$root/etc/passwd" || fail "purge left its user"
echo "$deb: installed, $how, purged"
