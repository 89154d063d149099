#!/bin/bash
# Another distribution's versions of the libraries and of the compiler: there the packages of deps/ are installed, the sources
# of the last commit built with warnings as errors, the unit tests run, and the end-to-end tests that speak to the libraries most.
#   SUITE=trixie bash tests/packaging/port.sh       (root; needs debootstrap and a mirror; some minutes)
# ROOT=dir keeps and reuses the base system there; MIRROR chooses another mirror, E2E other tests, JOBS how many at once.
# debootstrap verifies packages where it has the keyring of the distribution (Debian: ubuntu-keyring), and warns elsewhere.
set -euo pipefail

cd "$(dirname "$0")/../.."
suite=${SUITE:-trixie} components=main
case $suite in
jammy | noble | plucky | questing) components=main,universe default=http://archive.ubuntu.com/ubuntu ;;
*) default=http://deb.debian.org/debian ;;
esac
mirror=${MIRROR:-$default} jobs=${JOBS:-2}
tests=${E2E:-tests/e2e/test_smoke.py tests/e2e/test_upstream.py tests/e2e/test_tls.py}
# shellcheck source=tests/packaging/root.sh
. tests/packaging/root.sh
trap leave EXIT

make_root
mkdir -p "$root/dev/shm"
mount_there -t tmpfs tmpfs "$root/dev/shm"
rm -rf "$root/src"
mkdir "$root/src"
git archive HEAD | tar -x -C "$root/src"
port() { inside sh -ec 'cd /src; "$@"' sh "$@"; }

port sh deps/install.sh build
# Each line of the other lists has a package here; of the tests' tools only those are installed that these tests use.
# shellcheck disable=SC2016
port sh -c 'sed -e "s/#.*//" -e "s/[[:space:]]//g" -e "/^$/d" deps/apt-test.txt deps/apt-bench.txt | while read -r line; do
    for p in $(echo "$line" | tr "|" " "); do
        ! apt-cache policy "$p" | grep -q "Candidate: [^(]" || continue 2
    done
    echo "$line"
done' >"$work/missing"
[ ! -s "$work/missing" ] || fail "no package here for: $(cat "$work/missing")"
inside apt-get -qq install -y --no-install-recommends libcmocka-dev redis-server redis-tools python3 python3-redis python3-pytest \
    python3-pytest-xdist procps openssl >"$work/apt.log" 2>&1 || fail "$(tail -5 "$work/apt.log")"
port gcc --version | sed -n 1p
for package in libuv hiredis libzstd libssl libmicrohttpd lmdb; do
    echo "$package $(port pkg-config --modversion "$package" 2>/dev/null || echo '(no .pc file)')"
done
port make -j"$jobs" LTO=0 WERROR=1 all
port make -j"$jobs" LTO=0 WERROR=1 unit
# shellcheck disable=SC2086
port env TIERCEL_BIN=build/tiercel PYTHONDONTWRITEBYTECODE=1 python3 -m pytest -p no:cacheprovider -q -n "$jobs" \
    -m "not soak and not sanitize" -c tests/e2e/pytest.ini --rootdir . $tests
echo "$suite: built and tested"
