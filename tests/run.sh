#!/usr/bin/env bash
# Runs the test stages, prints what each took, and ends with "N passed, N failed".
#
#   tests/run.sh                    what CI runs: all stages below, in this order
#   tests/run.sh only STAGE...      some of them: lint gcc clang unit e2e coherence differential apps asan tsan fuzz; soak
#
# Environment: JOBS, PYTEST_WORKERS, PYTHON, TIERCEL_BIN (e2e, coherence, differential, apps; default build/tiercel),
# E2E (pytest arguments that replace the whole of tests/e2e), FUZZ_SECONDS, SOAK_SECONDS, CRASH_ROUNDS.
# A stage's output is kept in build/test-logs/STAGE.log. A stage counts its tests in
# lines "N passed, N failed"; one that fails without counting is one failed test.
set -u
cd "$(dirname "$0")/.." || exit 1
# Not a part of the make that may have started this: its jobs and variables are not for the stages.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=/usr/bin/python3
    [ -x "$PYTHON" ] || PYTHON=python3
fi
PYTEST_WORKERS=${PYTEST_WORKERS:-$((JOBS + 1))}
FUZZ_SECONDS=${FUZZ_SECONDS:-}
LOGS=build/test-logs
export PYTHONDONTWRITEBYTECODE=1

run_make() { make --no-print-directory -j"$JOBS" "$@"; }

# One check that is one test: check NAME COMMAND...
check() {
    local name=$1
    shift
    if "$@"; then
        echo "ok      $name"
        echo "1 passed, 0 failed"
    else
        echo "FAILED  $name"
        echo "0 passed, 1 failed"
        return 1
    fi
}

# pytest with its last line in the form that is counted: run_pytest ARGUMENTS...
# Where pytest-xdist is there several run at once: they wait more than they work.
# With AGAIN=1, see tests/unit/run.sh.
run_pytest() {
    local out rc tail passed failed errs side=() again=()
    out=$(mktemp) || return 1
    "$PYTHON" -c 'import xdist' 2>/dev/null && side=(-n "$PYTEST_WORKERS")
    "$PYTHON" -m pytest "${side[@]}"  -p no:cacheprovider -c tests/e2e/pytest.ini --rootdir . "$@" 2>&1 | tee "$out"
    rc=${PIPESTATUS[0]}
    tail=$(grep -E '(passed|failed|error|errors|skipped|deselected|no tests ran).* in [0-9.]+s' "$out" | tail -n 1)
    if [ "${AGAIN:-0}" = 1 ] && [ "$rc" -eq 1 ] && ! grep -qE 'Sanitizer:|runtime error:|CHECK\(|^ERROR ' "$out"; then
        mapfile -t again < <(sed -n 's/^FAILED \([^ ]*\).*/\1/p' "$out" | head -n 3)
        [ "${#again[@]}" -eq "$(grep -c '^FAILED ' "$out")" ] || again=()
    fi
    rm -f "$out"
    count() { sed -n "s/.*[^0-9]\([0-9][0-9]*\) $1.*/\1/p" <<<" $tail"; }
    passed=$(count passed)
    failed=$(count failed)
    errs=$(count error)
    failed=$((${failed:-0} + ${errs:-0}))
    [ "$rc" -eq 5 ] && rc=0 # nothing collected
    [ "$rc" -ne 0 ] && [ "$failed" -eq 0 ] && failed=1
    if [ "${#again[@]}" -ne 0 ]; then
        echo "once more, alone: ${again[*]}"
        if "$PYTHON" -m pytest -p no:cacheprovider -c tests/e2e/pytest.ini --rootdir . "${again[@]}" 2>&1; then
            passed=$((${passed:-0} + failed))
            failed=0
            rc=0
        fi
    fi
    echo "${passed:-0} passed, $failed failed"
    return "$rc"
}

stage_lint() {
    local rc=0
    check layers make --no-print-directory layers PYTHON="$PYTHON" || rc=1
    check layers-selftest "$PYTHON" tests/lint/test_check_layers.py || rc=1
    check format make --no-print-directory fmt-check || rc=1
    check scripts bash tests/lint/scripts.sh "$PYTHON" || rc=1
    return $rc
}

stage_gcc() { check "gcc -Werror" run_make CC=gcc WERROR=1 all; }

stage_clang() { check "clang -Werror" run_make CC=clang WERROR=1 BUILD=build/clang all; }

stage_unit() { run_make CC=gcc WERROR=1 unit; }

stage_e2e() {
    export TIERCEL_BIN=${TIERCEL_BIN:-build/tiercel}
    # shellcheck disable=SC2086
    run_pytest -m "not soak and not sanitize" ${E2E:-tests/e2e}
}

# Alone: what it judges are times.
stage_coherence() {
    export TIERCEL_BIN=${TIERCEL_BIN:-build/tiercel}
    PYTEST_WORKERS=1 run_pytest -m "not soak and not sanitize" tests/coherence
}

stage_differential() {
    export TIERCEL_BIN=${TIERCEL_BIN:-build/tiercel}
    [ -n "$(find tests/differential -name 'test_*.py' 2>/dev/null)" ] || { echo "0 passed, 0 failed"; return 0; }
    PYTHONPATH=tests/e2e${PYTHONPATH:+:$PYTHONPATH} run_pytest -m "not soak and not sanitize" tests/differential
}

# Applications and clients of others. Where one is not installed its tests fail in CI, and are named as left out elsewhere.
stage_apps() {
    export TIERCEL_BIN=${TIERCEL_BIN:-build/tiercel}
    run_pytest -m "not soak and not sanitize" -W ignore -rfEs tests/apps
}

# Builds with a sanitizer, and sets what it is to do: sanitizer_build NAME SAN
sanitizer_build() {
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1}
    export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}
    # The deadlock detector stops at 64 locks held by one thread, fewer than a command with many keys takes.
    local supp=
    [ -f tests/tsan.supp ] && supp=:suppressions=$PWD/tests/tsan.supp
    export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=0:detect_deadlocks=0:history_size=4$supp}
    local why
    why=$(sanitizer_works "$2") || { echo "$1: the sanitizer does not run here: $why"; return 1; }
    run_make CC=gcc WERROR=0 BUILD="build/$1" SAN="$2" all
}

# Unit tests and end-to-end tests on a sanitizer build: sanitized NAME SAN WORKERS [UNIT_SKIP [MARKS]]
sanitized() {
    local rc=0 build=build/$1
    sanitizer_build "$1" "$2" || return 1
    AGAIN=1 UNIT_TIMEOUT=600 run_make CC=gcc WERROR=0 BUILD="$build" SAN="$2" UNIT_SKIP="${4:-}" unit || rc=1
    # shellcheck disable=SC2086
    AGAIN=1 TIERCEL_BIN=$build/tiercel TIERCEL_SANITIZE=$1 PYTEST_WORKERS=$3 run_pytest -m "not soak and not heavy${5:-}" ${E2E:-tests/e2e} || rc=1
    return $rc
}

# Some kernels place memory where a sanitizer of this compiler cannot work.
sanitizer_works() {
    local dir rc
    dir=$(mktemp -d) || return 1
    echo 'int main(void) { return 0; }' >"$dir/a.c"
    gcc -fsanitize="$1" -o "$dir/a" "$dir/a.c" 2>&1 && "$dir/a" 2>&1
    rc=$?
    rm -rf "$dir"
    return $rc
}

stage_asan() { sanitized asan address "$PYTEST_WORKERS"; }

# What has one thread, or one client that waits for each reply, has no races.
ONE_THREAD="acl base codec collections command_table conf function list object resp set_hash stream zset"
# Minutes of cleaning, by threads that test_disk and the end-to-end tests have as well.
TSAN_LONG="disk_clean"
stage_tsan() { sanitized tsan thread "$PYTEST_WORKERS" "$ONE_THREAD $TSAN_LONG" " and not sequential and not twin"; }

stage_fuzz() { run_make FUZZ_SECONDS="${FUZZ_SECONDS:-6}" fuzz; }

# The load once more on a sanitizer build, and on more threads than there may be cores: soak_load NAME SAN
soak_load() {
    sanitizer_build "$1" "$2" || return 1
    LOAD_THREADS=${LOAD_THREADS:-4} TIERCEL_BIN=build/$1/tiercel TIERCEL_SANITIZE=$1 \
        run_pytest -m soak tests/e2e/test_load.py
}

stage_soak() {
    local rc=0
    run_make CC=gcc all || return 1
    export TIERCEL_BIN=${TIERCEL_BIN:-build/tiercel}
    run_pytest -m "soak" tests/e2e || rc=1
    PYTHONPATH=tests/e2e${PYTHONPATH:+:$PYTHONPATH} run_pytest -m "soak" tests/differential || rc=1
    PYTEST_WORKERS=1 run_pytest -m "soak" tests/coherence || rc=1
    soak_load asan address || rc=1
    soak_load tsan thread || rc=1
    run_make FUZZ_SECONDS="${SOAK_SECONDS:-1800}" fuzz || rc=1
    return $rc
}

declare -a names passed failed took
add() { # STAGE: runs it, counts, remembers
    local stage=$1 log=$LOGS/$1.log start rc p f
    start=$SECONDS
    echo "== $stage"
    if [ -n "$verbose" ]; then
        (stage_"$stage") 2>&1 | tee "$log"
        rc=${PIPESTATUS[0]}
    else
        (stage_"$stage") >"$log" 2>&1
        rc=$?
    fi
    p=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$log" | awk '{ s += $1 } END { print s + 0 }')
    f=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$log" | awk '{ s += $1 } END { print s + 0 }')
    [ "$rc" -ne 0 ] && [ "$f" -eq 0 ] && f=1
    if [ -z "$verbose" ] && [ "$f" -ne 0 ]; then
        tail -n 300 "$log"
        echo "(whole log: $log)"
    fi
    echo "-- $stage: $p ok, $f failed, $((SECONDS - start)) s"
    [ -n "$verbose" ] || sed -n 's/^SKIPPED .*\(left out: .*\)/   \1/p' "$log" | sort -u
    names+=("$stage")
    passed+=("$p")
    failed+=("$f")
    took+=("$((SECONDS - start))")
}

verbose=
stages=(lint gcc clang unit e2e coherence differential apps asan tsan fuzz)
if [ "${1:-}" = only ]; then
    shift
    [ $# -gt 0 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
    stages=("$@")
    verbose=1
elif [ $# -gt 0 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
fi
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" >/dev/null || { echo "no such stage: $stage" >&2; exit 2; }
done

mkdir -p "$LOGS"
for stage in "${stages[@]}"; do
    add "$stage"
done

total_passed=0
total_failed=0
echo
printf '%-14s %8s %8s %8s\n' stage ok failed seconds
for i in "${!names[@]}"; do
    printf '%-14s %8d %8d %8d\n' "${names[i]}" "${passed[i]}" "${failed[i]}" "${took[i]}"
    total_passed=$((total_passed + passed[i]))
    total_failed=$((total_failed + failed[i]))
done
printf '%-14s %8s %8s %8d\n\n' total "$total_passed" "$total_failed" "$SECONDS"
echo "$total_passed passed, $total_failed failed"
[ "$total_failed" -eq 0 ]
