#!/bin/sh
# Installs the packages that are missing, and says so:
#   deps/install.sh build    what `make` needs (the default)
#   deps/install.sh test     what `make test` needs beyond that
#   deps/install.sh bench    what `make bench` uses (Debian, Ubuntu)
#   deps/install.sh --list build|test|bench    prints what is missing, installs nothing
# Does nothing, not even refresh package lists, when nothing is missing.
set -eu

list_only=
if [ "${1:-}" = --list ]; then
    list_only=1
    shift
fi
what=${1:-build}
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "deps: $*"; }
die() { echo "deps: $*" >&2; exit 1; }

case $what in
build) suffix= ;;
test) suffix=-test ;;
bench) suffix=-bench ;;
*) die "usage: deps/install.sh [--list] build|test|bench" ;;
esac

if command -v apt-get >/dev/null 2>&1; then pm=apt
elif command -v dnf >/dev/null 2>&1; then pm=dnf
elif command -v apk >/dev/null 2>&1; then pm=apk
elif command -v brew >/dev/null 2>&1; then pm=brew
else
    die "no known package manager (apt, dnf, apk, brew); install by hand what deps/apt$suffix.txt names"
fi
list=$here/$pm$suffix.txt
[ -f "$list" ] || die "no list for $pm; install by hand what deps/apt$suffix.txt names"

is_installed() {
    # Node.js of NodeSource brings npm, and Debian's package of it would not go beside.
    if [ "$1" = npm ] && command -v npm >/dev/null 2>&1; then return 0; fi
    case $pm in
    apt) [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
    dnf) rpm -q --whatprovides "$1" >/dev/null 2>&1 ;;
    apk) apk info -e "$1" >/dev/null 2>&1 ;;
    brew) brew list --versions "$1" >/dev/null 2>&1 ;;
    esac
}

is_offered() {
    case $pm in
    apt) apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]' ;;
    dnf) dnf -q list --available "$1" >/dev/null 2>&1 ;;
    apk) [ -n "$(apk search -x "$1" 2>/dev/null)" ] ;;
    brew) brew info "$1" >/dev/null 2>&1 ;;
    esac
}

# Lines of the list: comments and blanks dropped, "a | b" written as "a|b".
lines() { sed -e 's/#.*//' -e 's/[[:space:]]//g' "$list" | grep -v '^$'; }

missing=
for line in $(lines); do
    found=
    for p in $(echo "$line" | tr '|' ' '); do
        if is_installed "$p"; then found=1; break; fi
    done
    [ -n "$found" ] || missing="$missing $line"
done

if [ -z "$missing" ]; then
    [ -n "$list_only" ] || say "everything needed to $what is installed"
    exit 0
fi
say "missing to $what:$missing"
[ -z "$list_only" ] || exit 0

as_root=
if [ "$pm" != brew ] && [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 ||
        die "not root and no sudo: as root, run  deps/install.sh $what"
    as_root=sudo
    say "installing with sudo"
fi

if [ "$pm" = apt ]; then
    say "apt-get update"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update ||
        say "apt-get update failed; going on with the lists at hand"
fi

chosen=
for line in $missing; do
    pick=
    for p in $(echo "$line" | tr '|' ' '); do
        if is_offered "$p"; then pick=$p; break; fi
    done
    [ -n "$pick" ] || die "no package of this system offers: $line  (see deps/README.md)"
    chosen="$chosen $pick"
done
say "installing:$chosen"

case $pm in
apt)
    # redis-server, memcached and Prometheus are wanted as programs. A service that a package would start now
    # must not sit on its port; policy-rc.d says so to the package's scripts. One that
    # ran before is left alone, and so is a policy that was there before.
    # Where systemd runs, the unit just installed would still start at the next boot:
    # it is disabled, if this run brought it.
    policy=/usr/sbin/policy-rc.d
    ours=
    services=
    for p in $chosen; do
        case $p in
        redis-server | memcached | prometheus | prometheus-redis-exporter) services="$services $p" ;;
        esac
    done
    remove_policy() {
        if [ -n "$ours" ]; then
            $as_root rm -f "$policy"
            ours=
        fi
    }
    if [ -n "$services" ] && [ ! -e "$policy" ]; then
        trap remove_policy EXIT
        trap 'exit 1' INT TERM HUP
        ours=1
        printf '#!/bin/sh\n# deps/install.sh: start no service while packages are installed\nexit 101\n' |
            $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $chosen
    remove_policy
    if [ -d /run/systemd/system ]; then
        for p in $services; do
            $as_root systemctl disable "$p.service" >/dev/null 2>&1 || true
            say "the $p service was not started and is disabled: systemctl enable $p undoes that"
        done
    fi
    ;;
dnf)
    # shellcheck disable=SC2086
    $as_root dnf -q -y install $chosen
    ;;
apk)
    # shellcheck disable=SC2086
    $as_root apk add --no-progress $chosen
    ;;
brew)
    # shellcheck disable=SC2086
    brew install $chosen
    ;;
esac
say "done"
