#!/bin/sh
# Runs the unit test programs named, JOBS at once (default: 2); prints one line for each, the
# whole output of those that fail, and the sum of their tests: "N passed, N failed".
# A program that dies without a summary counts as one failed test.
# With AGAIN=1, for sanitizer builds: what fails without a report of the sanitizer or of CHECK(), for the time
# it took beside others, say, runs once more, alone.
limit=${UNIT_TIMEOUT:-300}
command -v timeout >/dev/null 2>&1 && limit="timeout $limit" || limit=
# shellcheck disable=SC2016
printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -I BIN sh -c "$limit"' "$1" >"$1.out" 2>&1; echo $? >"$1.rc"' sh BIN
passed=0
failed=0
for bin in "$@"; do
    name=${bin##*/}
    out=$bin.out
    rc=$(cat "$bin.rc")
    if [ "$rc" -ne 0 ] && [ "${AGAIN:-0}" = 1 ] && ! grep -qE 'Sanitizer|runtime error:|CHECK\(' "$out"; then
        echo "again   $name (exit $rc)"
        cat "$out"
        $limit "$bin" >"$out" 2>&1
        rc=$?
    fi
    p=$(sed -n 's/^\[  PASSED  \] \([0-9][0-9]*\) test(s).*/\1/p' "$out" | awk '{ s += $1 } END { print s + 0 }')
    f=$(sed -n 's/^\[  FAILED  \] \([0-9][0-9]*\) test(s).*/\1/p' "$out" | awk '{ s += $1 } END { print s + 0 }')
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    if [ "$rc" -eq 0 ]; then
        echo "ok      $name ($p)"
    else
        echo "FAILED  $name (exit $rc)"
        cat "$out"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
