#!/bin/sh
# usage: run.sh SECONDS DIR fuzz_<name>...
# Runs each fuzz target for SECONDS from the seeds in tests/fuzz/corpus/<name>, JOBS at once (default: 2); new finds
# and crashes go to DIR. Ends with "N passed, N failed": one test for each target.
if [ "$1" = one ]; then # one SECONDS DIR fuzz_<name>: to its files .out and .rc
    seconds=$2 dir=$3 bin=$4
    here=$(cd "$(dirname "$0")" && pwd)
    name=${bin##*/fuzz_}
    finds=$dir/finds/$name
    crashes=$dir/crashes/$name
    mkdir -p "$finds" "$crashes"
    seeds=$here/corpus/$name
    [ -d "$seeds" ] || seeds=
    dict=$here/$name.dict
    [ -f "$dict" ] && dict=-dict=$dict || dict=
    # shellcheck disable=SC2086
    "$bin" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 \
        -artifact_prefix="$crashes/" $dict "$finds" $seeds >"$bin.out" 2>&1
    echo $? >"$bin.rc"
    exit
fi

seconds=$1
dir=$2
shift 2
for bin in "$@"; do rm -f "$bin.rc"; done
printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -I BIN sh "$0" one "$seconds" "$dir" BIN
passed=0
failed=0
for bin in "$@"; do
    name=${bin##*/}
    if [ "$(cat "$bin.rc" 2>/dev/null)" = 0 ]; then
        echo "ok      $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$bin.out") runs"
        passed=$((passed + 1))
    else
        echo "FAILED  $name"
        tail -n 60 "$bin.out"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
