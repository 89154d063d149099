#!/bin/sh
# Compares Tiercel with redis-server side by side: CPU per request, memory per key, and with
# `run.sh instructions` instructions per request. What can be set is in bench.py's head.
#   make bench                              all of it, about four minutes
#   make bench ARGS=instructions            under callgrind; repeatable to a fraction of a percent
#   BENCH_ROUNDS=1 BENCH_SCALE=0.1 make bench
set -eu
cd "$(dirname "$0")/.."
: "${TIERCEL_BIN:=build/tiercel}"
export TIERCEL_BIN

for tool in python3 taskset redis-server redis-benchmark; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "bench: $tool is missing: make deps-test installs it" >&2
        exit 1
    fi
done
if [ ! -x "$TIERCEL_BIN" ]; then
    echo "bench: $TIERCEL_BIN is missing: run make" >&2
    exit 1
fi
exec python3 bench/bench.py "$@"
