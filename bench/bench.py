"""Side-by-side measurements of Tiercel and redis-server.

    bench.py                 CPU per request and bytes per key; build/bench/bench.md and .json
    bench.py instructions    instructions per request, from callgrind

CPU time is the server's own (user and system, of all its threads), from /proc/PID/stat. The
servers share one core and the load has another, so neither is charged for the other; runs are
interleaved, and a ratio is taken between runs that followed one another.

From the environment:
    TIERCEL_BIN       the server (build/tiercel)
    BENCH_ROUNDS      interleaved runs of each cell (5)
    BENCH_SCALE       factor on the number of requests (1)
    BENCH_KEYS        key space of the requests (500000)
    BENCH_MEMORY_KEYS keys of the memory rows (1000000); 0 skips them
    BENCH_OUT         where results go (build/bench)
    BENCH_MAX_RATIO   fail if GET at pipeline 16 costs more than this share of redis-server's CPU
"""
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

from common import LOAD_CORE, OUT, Client, Server, command, machine_lines, redis_argv, tiercel_argv, write_report

CLIENTS = 50
VALUE = 64
KEY = 16  # "key:" and 12 digits, as redis-benchmark makes them
PRELOAD_BATCH = 1000
CELLS = [("GET", 1, 200_000), ("GET", 16, 1_000_000), ("SET", 1, 200_000), ("SET", 16, 1_000_000)]


def env(name, default):
    return type(default)(os.environ.get(name) or default)


ROUNDS = env("BENCH_ROUNDS", 5)
SCALE = env("BENCH_SCALE", 1.0)
KEYS = env("BENCH_KEYS", 500_000)
MEMORY_KEYS = env("BENCH_MEMORY_KEYS", 1_000_000)
MAX_RATIO = env("BENCH_MAX_RATIO", 0.0)


def key(i):
    return b"key:%012d" % i


def fill(server, keys):
    value = b"x" * VALUE
    for start in range(0, keys, PRELOAD_BATCH):
        batch = range(start, min(start + PRELOAD_BATCH, keys))
        server.client.send(b"".join(command("SET", key(i), value) for i in batch))
        for _ in batch:
            server.client.read()


SERVERS = {
    "redis-server": redis_argv(),
    "tiercel": tiercel_argv(disk="no"),
    "tiercel, disk": tiercel_argv(disk="yes"),
}


# ---- CPU per request -------------------------------------------------------------------------

def run_cell(server, cmd, pipeline, requests):
    """Microseconds of the server's CPU per request."""
    before = server.cpu_s()
    out = subprocess.run(["taskset", "-c", str(LOAD_CORE), "redis-benchmark", "-h", "127.0.0.1", "-p",
                          str(server.port), "-c", str(CLIENTS), "-P", str(pipeline), "-n", str(requests), "-r",
                          str(KEYS), "-d", str(VALUE), "-t", cmd.lower(), "--csv"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if out.returncode != 0 or f'"{cmd}"' not in out.stdout:
        raise SystemExit(f"bench: redis-benchmark against {server.name}:\n{out.stdout}")
    return (server.cpu_s() - before) * 1e6 / requests


def measure_cpu():
    servers = [Server(name, argv) for name, argv in SERVERS.items()]
    try:
        for s in servers:
            fill(s, KEYS)
        result = {}
        for n in range(ROUNDS):
            for cmd, pipeline, requests in CELLS:
                requests = max(int(requests * SCALE), CLIENTS * pipeline)
                for s in servers:
                    us = run_cell(s, cmd, pipeline, requests)
                    result.setdefault(f"{cmd} P{pipeline}", {}).setdefault(s.name, []).append(us)
            print(f"round {n + 1} of {ROUNDS} done", file=sys.stderr, flush=True)
        return result
    finally:
        for s in servers:
            s.close()


def ratio_to_redis(runs, name):
    return statistics.median(a / b for a, b in zip(runs[name], runs["redis-server"]))


def cpu_table(cpu):
    lines = ["| server CPU, us per request | " + " | ".join(cpu) + " |", "|---" * (len(cpu) + 1) + "|"]
    for name in SERVERS:
        cells = []
        for runs in cpu.values():
            us = runs[name]
            cell = f"{statistics.median(us):.2f} ({min(us):.2f} - {max(us):.2f})"
            if name != "redis-server":
                cell += f", **{ratio_to_redis(runs, name):.2f}**"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


# ---- memory per key --------------------------------------------------------------------------

def measure_memory():
    result = {}
    for name, argv in SERVERS.items():
        s = Server(name, argv)
        try:
            before = s.client.info("used_memory", "memory"), s.client.info("used_memory_rss", "memory")
            fill(s, MEMORY_KEYS)
            time.sleep(1.5)  # figures that are sampled
            after = s.client.info("used_memory", "memory"), s.client.info("used_memory_rss", "memory")
            used, rss = ((b - a) / MEMORY_KEYS - KEY - VALUE for a, b in zip(before, after))
            result[name] = {"used": used, "rss": rss}
        finally:
            s.close()
    return result


def memory_table(memory):
    lines = [f"| bytes per key beyond key and value, {MEMORY_KEYS:,} keys | used_memory | RSS |", "|---|---|---|"]
    lines += [f"| {name} | {m['used']:.1f} | {m['rss']:.1f} |" for name, m in memory.items()]
    return lines


# ---- instructions per request ------------------------------------------------------------------

def drive(clients, cmd, pipeline, requests):
    """Every connection has one batch under way, as with redis-benchmark."""
    value = b"x" * VALUE
    sent, n = 0, 0
    while sent < requests:
        for c in clients:
            batch = []
            for _ in range(pipeline):
                n = (n * 1103515245 + 12345) & 0x7FFFFFFF
                k = key((n >> 8) % 10_000)
                batch.append(command("SET", k, value) if cmd == "SET" else command("GET", k))
            c.send(b"".join(batch))
        for c in clients:
            for _ in range(pipeline):
                c.read()
        sent += pipeline * len(clients)
    return sent


def count_instructions(name, cmd, pipeline, keep):
    base = os.path.join(OUT, f"callgrind.{re.sub('[^a-z]+', '-', name)}.{cmd}.P{pipeline}")
    for old in os.listdir(OUT):
        if old.startswith(os.path.basename(base)):
            os.unlink(os.path.join(OUT, old))
    s = Server(name, SERVERS[name],
               ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={base}"))
    clients = []
    try:
        fill(s, 10_000)
        clients = [Client(s.port) for _ in range(CLIENTS)]
        drive(clients, cmd, pipeline, 1)  # buffers exist
        control = ["callgrind_control", "-i", "on", str(s.proc.pid)]
        subprocess.run(control, check=True, stdout=subprocess.DEVNULL)
        sent = drive(clients, cmd, pipeline, int((20_000 if pipeline > 1 else 5_000) * SCALE))
        control[2] = "off"
        subprocess.run(control, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["callgrind_control", "-d", str(s.proc.pid)], check=True, stdout=subprocess.DEVNULL)
        time.sleep(0.5)
    finally:
        for c in clients:
            c.close()
        s.close()
    total = 0
    for part in os.listdir(OUT):
        if part.startswith(os.path.basename(base)):
            with open(os.path.join(OUT, part), encoding="utf-8") as f:
                for line in f:
                    if line.startswith(("summary:", "totals:")):
                        total = max(total, int(line.split()[1]))
            if not keep:
                os.unlink(os.path.join(OUT, part))
    return total / sent


def instruction_table():
    lines = ["| instructions per request (user space) | " + " | ".join(f"{c} P{p}" for c, p, _ in CELLS) + " |",
             "|---" * (len(CELLS) + 1) + "|"]
    for name in ("redis-server", "tiercel"):  # LMDB's file cannot be mapped under valgrind
        counts = [count_instructions(name, cmd, pipeline, True) for cmd, pipeline, _ in CELLS]
        lines.append(f"| {name} | " + " | ".join(f"{n:.0f}" for n in counts) + " |")
    return lines


# ---- report --------------------------------------------------------------------------------------

def head():
    return [*machine_lines(), f"{KEYS:,} keys of {KEY} bytes, values of {VALUE} bytes, {CLIENTS} connections, one server thread, "
            f"compression off; median of {ROUNDS} interleaved runs (least - most), **ratio to redis-server**.", ""]


def main():
    os.makedirs(OUT, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    if sys.argv[1:] == ["instructions"]:
        write_report("instructions.md", instruction_table())
        return 0
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    cpu = measure_cpu()
    lines = head() + cpu_table(cpu)
    result = {"cpu_us": cpu}
    if MEMORY_KEYS > 0:
        result["memory"] = measure_memory()
        lines += ["", *memory_table(result["memory"])]
    with open(os.path.join(OUT, "bench.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
    write_report("bench.md", lines)
    ratio = ratio_to_redis(cpu["GET P16"], "tiercel")
    if MAX_RATIO and ratio > MAX_RATIO:
        print(f"bench: GET at pipeline 16 costs {ratio:.2f} of redis-server's CPU, more than {MAX_RATIO}",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
