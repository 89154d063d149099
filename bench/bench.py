"""Side-by-side measurements of Tiercel, redis-server and whatever other servers are installed.

    bench.py [--rows LIST] [--slices N] [--peers LIST] [--scale F] [--docs] [--check]
    bench.py instructions    only instructions per request, from callgrind

The servers run at the same time, each pinned to one core, and take turns in short slices of load, which
another core sends. What is compared is the server's own CPU time per request (user and system, of all its
threads). A ratio is taken between slices that followed one another; of the ratios, the median counts.
Results: build/bench/bench.md, bench.json and plots (with --rows: bench-rows.md, bench-rows.json).

From the environment: TIERCEL_BIN (build/tiercel), BENCH_OUT (build/bench).
"""
import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import memcached
import plot
from common import (LOAD, OUT, TIERCEL, Bars, Client, Server, command, first_line, load, machine_lines, middle,
                    quartiles, redis_argv, tiercel_argv, write_report)

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plots")
CLIENTS = 50
VALUE = 64
KEY = 16  # "key:" and 12 digits
REFERENCE = "redis-server"


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- what is measured ------------------------------------------------------------------------

class Data:
    """Keys that are there before requests are made of them."""

    def __init__(self, prefix, keys, *args):
        self.prefix, self.keys, self.args = prefix, keys, args

    def load_args(self, scale):
        return ["-r", max(int(self.keys * scale), 100), "--key-prefix", self.prefix, *self.args]


SMALL = Data("key:", 500_000, "-d", VALUE)
NUMBERS = Data("num:", 100_000)
KB = Data("1kb:", 50_000, "-d", "1kb")
KB64 = Data("64k:", 1_000, "-d", "64kb")
JSON = Data("jso:", 20_000, "-d", "2kb", "--values", "json")


class Row:
    def __init__(self, test, pipeline, data, bar=None, note=""):
        name = {"get": "GET", "set": "SET", "incr": "INCR", "mget": "MGET 100 keys"}[test]
        self.name = name + note + f" P{pipeline}"
        self.test, self.pipeline, self.data, self.bar = test, pipeline, data, bar

    def load_args(self, scale, seed):
        return ["-c", CLIENTS, "-t", self.test, "-P", self.pipeline, "--mget-keys", 100, "--seed", seed + 1,
                *self.data.load_args(scale)]


class Command:
    """A row of a command that the load generator has no test for."""

    def __init__(self, name, keys, *words):
        self.name, self.keys, self.words, self.bar = f"{name} P16", keys, words, 1

    def load_args(self, scale, seed):
        return ["-c", CLIENTS, "-P", 16, "--seed", seed + 1, "-r", max(int(self.keys * scale), 100), "-d", VALUE]


# What is taken out was put in by the row before.
TYPES = [Command("HSET", 100_000, "hset", "hash:__key__", "field", "__value__"),
         Command("HGET", 100_000, "hget", "hash:__key__", "field"),
         Command("LPUSH", 10_000, "lpush", "list:__key__", "__value__"), Command("LPOP", 10_000, "lpop", "list:__key__"),
         Command("SADD", 100_000, "sadd", "set", "__key__"),
         Command("ZADD", 100_000, "zadd", "zset", "__rand_int__", "__key__"),
         Command("ZRANGE of 10", 100_000, "zrange", "zset", "100", "109"),
         Command("EVAL", 100_000, "eval", "return redis.call('hget', KEYS[1], 'field')", "1", "hash:__key__")]
BASE = [Row("get", 1, SMALL, 0.84), Row("get", 16, SMALL, 0.45), Row("set", 1, SMALL, 0.84), Row("set", 16, SMALL, 0.40)]
OTHERS = [Row("incr", 16, NUMBERS, 1), Row("mget", 1, SMALL, 1), Row("get", 16, KB, 1, " 1 KB"),
          Row("set", 16, KB, 1, " 1 KB"), Row("get", 1, KB64, 1, " 64 KB"), Row("set", 1, KB64, 1, " 64 KB")]
COMPRESSION = [Row("get", 16, JSON, None, " JSON 2 KB"), Row("set", 16, JSON, None, " JSON 2 KB")]

MOST, MOST_OF_ALL = 0.7, 4  # of OTHERS: so many at this ratio or better
MOST_TYPES = 5  # and of TYPES
LIMITS = {"threads": 1.15, "memory": 28, "memory, TTL": 36}
RATES = [20_000, 50_000, 80_000]


# ---- servers ---------------------------------------------------------------------------------

def dragonfly_argv(program):
    return [program, "--port", "{port}", "--bind", "127.0.0.1", "--dir", "{dir}", "--dbfilename", "",
            "--proactor_threads", "1"]


def pogocache_argv(program):
    return [program, "-h", "127.0.0.1", "-p", "{port}", "--threads", "1"]


PEERS = {"redis-server": redis_argv, "valkey-server": redis_argv,
         "keydb-server": lambda program: redis_argv(program, server_threads=1),
         "dragonfly": dragonfly_argv, "pogocache": pogocache_argv}


def peer_servers(wanted):
    """{name: argv} of peers that speak RESP: the reference, and those wanted or, without a list, installed."""
    found = {}
    for program in [REFERENCE, *(wanted if wanted is not None else PEERS)]:
        make = PEERS.get(os.path.basename(program))
        if make and shutil.which(program):
            found[program] = make(program)
        elif wanted is not None and program != "memcached":
            raise SystemExit(f"bench: {program} is not installed, or none of {', '.join(PEERS)}")
    if REFERENCE not in found:
        raise SystemExit(f"bench: {REFERENCE} is missing: sh deps/install.sh bench")
    return found


class Run:
    """Options, and what was found so far."""

    def __init__(self, opt):
        self.opt = opt
        self.wanted = opt.peers.split(",") if opt.peers is not None else None
        self.peers = peer_servers(self.wanted)
        self.argv = {**self.peers, "tiercel": tiercel_argv(disk="no"), "tiercel, disk": tiercel_argv(disk="yes")}
        self.bars, self.lines, self.result = Bars(), [], {"scale": opt.scale, "value": VALUE, "others_cpu": []}
        self.failed = {}

    def wants(self, name):
        """Is it chosen by --rows, by its name or the beginning of it?"""
        name = name.lower()
        chosen = [x.strip().lower() for x in (self.opt.rows or "").split(",")]
        whole = [r.name.lower() for r in BASE + OTHERS + TYPES]
        return name in chosen or any(name.startswith(x) for x in chosen if x not in whole)

    def load(self, server, *args, **options):
        r = load(server, *args, **options)
        self.result["others_cpu"].append(r["others_cpu"])
        return r

    def fill(self, server, data):
        self.load(server, *data.load_args(self.opt.scale), "-c", 20, "-t", "set", "--keys", "seq", "-P", 16)

    def slice(self, server, row, i, *more, **options):
        """Microseconds of CPU per request; None when the server does not know the command."""
        words = getattr(row, "words", ())
        r = self.load(server, *row.load_args(self.opt.scale, i), *more, "-D", self.opt.slice, *words, errors=True, **options)
        if r["errors"]:
            self.failed[f"{server.name}, {row.name}"] = r["first_error"]
            return None
        return r["server_cpu_us"]

    def take_turns(self, rows, servers):
        """{row: {server: [us, ...]}}"""
        result = {row.name: {s.name: [] for s in servers} for row in rows}
        for i in range(self.opt.slices):
            for row in rows:
                for s in servers if i % 2 == 0 else reversed(servers):
                    us = self.slice(s, row, i)
                    if us is None:
                        result[row.name].pop(s.name, None)
                    elif s.name in result[row.name]:
                        result[row.name][s.name].append(us)
        return result


def ratios(runs, name, to=REFERENCE):
    return [a / b for a, b in zip(runs[name], runs[to])]


def ratio_bar(bars, what, values, limit):
    bars.add(what, quartiles(values)[1], limit, middle(values))


# ---- CPU per request -------------------------------------------------------------------------

def cpu_table(title, result, names):
    lines = [f"| {title} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, runs in result.items():
        cells = []
        for name in names:
            if name not in runs:
                cells.append("-")
            elif name == REFERENCE:
                cells.append(middle(runs[name]))
            else:
                r = ratios(runs, name)
                cells.append(f"{quartiles(runs[name])[1]:,.2f}, **{middle(r)}**")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines + [""]


def measure_cpu(run):
    rows = [r for r in BASE + OTHERS if run.wants(r.name)]
    if not rows:
        return
    servers = []
    try:
        for name, argv in run.argv.items():
            servers.append(Server(name, argv))
        for s in servers:
            for data in (SMALL, KB, KB64):
                if any(r.data is data for r in rows):
                    run.fill(s, data)
        say(f"CPU per request of {', '.join(run.argv)}: {len(rows)} rows, {run.opt.slices} slices")
        result = run.result["cpu_us"] = run.take_turns(rows, servers)
    finally:
        for s in servers:
            s.close()
    run.lines += ["## Server CPU per request", "", *cpu_table("us, and ratio to redis-server", result, list(run.argv))]
    for row in rows:
        ratio_bar(run.bars, f"{row.name}: CPU to redis-server's", ratios(result[row.name], "tiercel"), row.bar)
    others = [quartiles(ratios(result[r.name], "tiercel"))[1] for r in rows if r in OTHERS]
    if len(others) == len(OTHERS):
        worst = sorted(others)[MOST_OF_ALL - 1]
        run.bars.add(f"of the {len(others)} rows INCR to 64 KB, the {MOST_OF_ALL}th best", worst, MOST)


def measure_types(run):
    rows = [r for r in TYPES if run.wants(r.name) or run.wants("types")]
    argv = {name: run.argv[name] for name in [*run.peers, "tiercel"]}
    servers = []
    if not rows:
        return
    try:
        for name, a in argv.items():
            servers.append(Server(name, a))
        say(f"CPU per request of {', '.join(argv)}: {len(rows)} rows of data types")
        for row in rows:  # what the first slices read
            for s in servers:
                run.slice(s, row, 0)
        result = run.result["types_us"] = run.take_turns(rows, servers)
    finally:
        for s in servers:
            s.close()
    run.lines += ["## Data types", "", *cpu_table("us, and ratio to redis-server", result, list(argv))]
    for row in rows:
        ratio_bar(run.bars, f"{row.name}: CPU to redis-server's", ratios(result[row.name], "tiercel"), row.bar)
    best = sorted(quartiles(ratios(result[r.name], "tiercel"))[1] for r in rows)
    if len(best) == len(TYPES):
        run.bars.add(f"of the {len(best)} rows of data types, the {MOST_TYPES}th best", best[MOST_TYPES - 1], MOST)


def measure_threads(run):
    """Two threads of the server and two of the load on both cores, beside one thread as everywhere else."""
    one = Server("1 thread", tiercel_argv(disk="no"))
    two = Server("2 threads", tiercel_argv(disk="no", threads=2), pinned=False)
    try:
        for s in (one, two):
            run.fill(s, SMALL)
        result = {}
        for i in range(run.opt.slices):
            for row in BASE:
                turns = [(one, (), {}), (two, ("--threads", 2), {"pinned": False})]
                runs = result.setdefault(row.name, {s.name: [] for s in (one, two)})
                for s, more, options in turns if i % 2 == 0 else reversed(turns):
                    runs[s.name].append(run.slice(s, row, i, *more, **options))
    finally:
        one.close()
        two.close()
    run.result["threads_us"] = result
    run.lines += ["## Two threads on two cores, which they share with the load", "",
                  "| us | 1 thread | 2 threads | ratio |", "|---|---|---|---|"]
    for row, runs in result.items():
        r = ratios(runs, two.name, one.name)
        run.lines.append(f"| {row} | {middle(runs[one.name])} | {middle(runs[two.name])} | **{middle(r)}** |")
        ratio_bar(run.bars, f"{row}: CPU of 2 threads to that of 1", r, LIMITS["threads"])
    run.lines.append("")


def measure_compression(run):
    argv = {REFERENCE: run.argv[REFERENCE], "tiercel": run.argv["tiercel"],
            "tiercel, zstd": tiercel_argv(disk="no", compression="zstd")}
    servers = []
    try:
        for name, a in argv.items():
            servers.append(Server(name, a))
            run.fill(servers[-1], JSON)
        result = run.result["compression_us"] = run.take_turns(COMPRESSION, servers)
    finally:
        for s in servers:
            s.close()
    run.lines += ["## The cost of compression", "", *cpu_table("us, and ratio to redis-server", result, list(argv))]


# ---- memory per key --------------------------------------------------------------------------

def memory_figures(server):
    time.sleep(0.3)  # figures that are sampled
    try:
        return {"rss": server.rss(), "used": server.client.info("used_memory", "memory")}
    except RuntimeError:  # no INFO, or none of that
        return {"rss": server.rss()}


def memory_of(run, name, argv, keys, args):
    """Bytes by which it grows per key, and bytes of keys and values per key."""
    s = Server(name, argv)
    try:
        before = memory_figures(s)
        r = run.load(s, "-c", 4, "-P", 16, "-t", "set", "--keys", "seq", "-r", keys, *args, errors=True)
        if r["errors"]:
            run.failed[f"{name}, memory"] = r["first_error"]
            return None
        return {k: (v - before[k]) / keys for k, v in memory_figures(s).items()}
    finally:
        s.close()


def measure_memory(run):
    keys = max(int(2_000_000 * run.opt.scale), 10_000)
    result = run.result["memory"] = {"keys": keys, "plain": {}, "ttl": {}}
    for name, argv in run.argv.items():
        say(f"memory of {name}")
        for kind, args in (("plain", ()), ("ttl", ("--ttl", 3600))):
            grown = memory_of(run, name, argv, keys, ["-d", VALUE, *args])
            if grown:
                result[kind][name] = {k: v - KEY - VALUE for k, v in grown.items()}
    if uses_memcached(run):
        result["plain"]["memcached"] = {"rss": memcached_memory(keys)}
    run.lines += [f"## Memory: bytes per key beyond key and value, {keys:,} keys", "",
                  "| | RSS | used_memory | RSS, with a TTL | used_memory, with a TTL |", "|---|---|---|---|---|"]
    for name in result["plain"]:
        cells = [f"{result[kind].get(name, {}).get(figure, 0):.1f}" if figure in result[kind].get(name, {}) else "-"
                 for kind in ("plain", "ttl") for figure in ("rss", "used")]
        run.lines.append(f"| {name} | " + " | ".join(cells) + " |")
    run.lines.append("")
    run.bars.add("bytes per key beyond key and value (RSS)", result["plain"]["tiercel"]["rss"], LIMITS["memory"])
    run.bars.add("bytes per key beyond key and value (RSS), with a TTL", result["ttl"]["tiercel"]["rss"],
                 LIMITS["memory, TTL"])


JSON_SIZES = "500:30,1500:40,4000:30"


def measure_json(run):
    keys = max(int(100_000 * run.opt.scale), 2_000)
    argv = {**run.peers, "tiercel, no compression": tiercel_argv(disk="no"),
            "tiercel, zstd": tiercel_argv(disk="no", compression="zstd")}
    sizes = [s.split(":") for s in JSON_SIZES.split(",")]
    raw = KEY + sum(int(size) * int(weight) for size, weight in sizes) / sum(int(w) for _, w in sizes)
    result = run.result["json"] = {"keys": keys, "raw": raw, "rss": {}}
    for name, a in argv.items():
        grown = memory_of(run, name, a, keys, ["-d", JSON_SIZES, "--values", "json"])
        if grown:
            result["rss"][name] = grown["rss"]
    run.lines += [f"## Memory: JSON of 500 bytes to 4 KB, {keys:,} keys", "",
                  f"| | bytes per key (RSS) | to key and value, {raw:,.0f} |", "|---|---|---|"]
    run.lines += [f"| {name} | {b:,.0f} | {b / raw:.2f} |" for name, b in result["rss"].items()] + [""]


# ---- latency ---------------------------------------------------------------------------------

PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9", "p99_99": "p99.99", "max": "max"}


def measure_latency(run):
    """Open loop: what a request waits counts from when it was due, whoever is late."""
    opt, result, servers = run.opt, {}, []
    say("latency")
    try:
        for name, argv in run.argv.items():
            servers.append(Server(name, argv))
            run.fill(servers[-1], SMALL)
        for rate in RATES:
            runs = result[str(rate)] = {s.name: [] for s in servers}
            for i in range(max(opt.slices // 3, 1)):
                for s in servers if i % 2 == 0 else reversed(servers):
                    r = run.load(s, "-c", CLIENTS, "-P", 1000, "-t", "get:9+set:1", *SMALL.load_args(opt.scale), "--rate", rate,
                                 "--poisson", "--spin", "-D", max(opt.slice * 3, 0.5), "--seed", i + 1, errors=True)
                    runs[s.name].append({"latency_us": r["latency_us"], "send_delay_us": r["send_delay_us"]})
    finally:
        for s in servers:
            s.close()
    run.result["latency"] = result
    run.lines += ["## Latency, open loop: nine GETs to one SET, us", "",
                  "| requests/s | | " + " | ".join(PERCENTILES.values()) + " | sent late by, p99.9 |",
                  "|---" * (len(PERCENTILES) + 3) + "|"]
    for rate, runs in result.items():
        for name, slices in runs.items():
            cells = [f"{statistics.median(s['latency_us'][p] for s in slices):,.0f}" for p in PERCENTILES]
            late = statistics.median(s["send_delay_us"]["p99_9"] for s in slices)
            run.lines.append(f"| {int(rate):,} | {name} | " + " | ".join(cells) + f" | {late:,.0f} |")
    run.lines += ["", "Median of the slices of each. Latency counts from when a request was due; *sent late by* is the part "
                  "of it for which the load generator is to blame: a connection always has room.", ""]


# ---- memcached -------------------------------------------------------------------------------

def uses_memcached(run):
    return (run.wanted is None or "memcached" in run.wanted) and bool(shutil.which("memcached"))


def memcached_memory(keys):
    s = memcached.Memcached("memcached", memcached.argv())
    try:
        before = s.rss()
        memcached.fill(s, keys, b"x" * VALUE)
        return (s.rss() - before) / keys - KEY - VALUE
    finally:
        s.close()


def measure_memcached(run):
    if not uses_memcached(run):
        run.lines += ["memcached is not installed, or not wanted: no figures.", ""]
        return
    say("memcached")
    servers = []
    try:
        servers.append(Server(REFERENCE, run.argv[REFERENCE]))
        servers.append(memcached.Memcached("memcached", memcached.argv()))
        cells = [(r.test.upper(), r.pipeline) for r in BASE]
        result = memcached.measure(servers, cells, max(int(SMALL.keys * run.opt.scale), 1000), VALUE,
                                   max(run.opt.slices * 2 // 3, 1), run.opt.slice)
    finally:
        for s in servers:
            s.close()
    run.result["memcached_us"] = result
    run.lines += ["## memcached", "", "Both driven by a small client in Python (`bench/memcached.py`) in place of tiercel-bench, "
                  "so only the ratio is to be set beside the others.", "",
                  *cpu_table("us, and ratio to redis-server", result, [REFERENCE, "memcached"])]


# ---- instructions per request ------------------------------------------------------------------

def drive(clients, cmd, pipeline, requests):
    """Every connection has one batch under way."""
    value = b"x" * VALUE
    sent, n = 0, 0
    while sent < requests:
        for c in clients:
            batch = []
            for _ in range(pipeline):
                n = (n * 1103515245 + 12345) & 0x7FFFFFFF
                k = memcached.key((n >> 8) % 10_000)
                batch.append(command("SET", k, value) if cmd == "SET" else command("GET", k))
            c.send(b"".join(batch))
        for c in clients:
            for _ in range(pipeline):
                c.read()
        sent += pipeline * len(clients)
    return sent


def callgrind_files(base):
    return [os.path.join(OUT, f) for f in os.listdir(OUT) if f.startswith(os.path.basename(base))]


def count_instructions(name, argv, cells, scale):
    """{cell: instructions per request}. What callgrind wrote stays in build/bench, for callgrind_annotate."""
    base = os.path.join(OUT, "callgrind." + re.sub("[^a-z]+", "-", name))
    for old in callgrind_files(base):
        os.unlink(old)
    s = Server(name, argv, ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={base}"))
    clients, result = [], {}

    def control(*args):
        subprocess.run(["callgrind_control", *args, str(s.proc.pid)], check=True, stdout=subprocess.DEVNULL)

    try:
        for start in range(0, 10_000, 500):
            s.client.send(b"".join(command("SET", memcached.key(i), b"x" * VALUE) for i in range(start, start + 500)))
            for _ in range(500):
                s.client.read()
        clients += [Client(s.port) for _ in range(CLIENTS)]
        for cmd, pipeline in cells:
            drive(clients, cmd, pipeline, 1)  # buffers exist
            control("-i", "on")
            sent = drive(clients, cmd, pipeline, int((20_000 if pipeline > 1 else 5_000) * scale))
            control("-i", "off")
            control("--dump")
            time.sleep(0.5)
            dumped = [f for f in callgrind_files(base) if re.fullmatch(r".*\.\d+", f)]
            result[f"{cmd} P{pipeline}"] = sum(map(total_of, dumped)) / sent
            for f in dumped:
                os.rename(f, f"{base}.{cmd}.P{pipeline}")
    finally:
        for c in clients:
            c.close()
        s.close()
    return result


def total_of(path):
    total = 0
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.startswith(("summary:", "totals:")):
                total = max(total, int(line.split()[1]))
    return total


def measure_instructions(run):
    if not shutil.which("valgrind"):
        run.lines += ["valgrind is not installed: no instructions per request.", ""]
        return
    cells = [(r.test.upper(), r.pipeline) for r in BASE]
    result = run.result["instructions"] = {}
    for name in (REFERENCE, "tiercel"):  # LMDB's file cannot be mapped under valgrind
        say(f"instructions of {name}")
        result[name] = count_instructions(name, run.argv[name], cells, run.opt.scale)
    run.lines += ["## Instructions per request, user space", "", "| | " + " | ".join(r.name for r in BASE) + " |",
                  "|---" * (len(BASE) + 1) + "|"]
    run.lines += [f"| {name} | " + " | ".join(f"{n:,.0f}" for n in r.values()) + " |" for name, r in result.items()] + [""]


# ---- report --------------------------------------------------------------------------------------

def head(run):
    opt = run.opt
    others = statistics.mean(run.result["others_cpu"] or [0])
    lines = [*machine_lines(), *[first_line(p, "--version") for p in run.peers if p != REFERENCE], "",
             f"{int(SMALL.keys * opt.scale):,} keys of {KEY} bytes, values of {VALUE} bytes, {CLIENTS} connections, one server "
             f"thread, `compression no` unless a row says otherwise. Medians of {opt.slices} slices of {opt.slice:g} s (with their quartiles), "
             f"the servers taking turns. Other processes took {others:.0%} of the machine meanwhile.", ""]
    if opt.scale != 1:
        lines += [f"Everything at {opt.scale:g} of its size: bars are a hint.", ""]
    return lines


def report(run, seconds):
    run.result["bars"], run.result["seconds"] = run.bars.rows, seconds
    name = "bench-rows" if run.opt.rows else "bench"
    with open(os.path.join(OUT, name + ".json"), "w", encoding="utf-8") as f:
        json.dump(run.result, f, indent=1)
    notes = [f"- {what}: {error}" for what, error in run.failed.items()]
    if notes:
        notes = ["Left out, because the server answered an error:", "", *notes, ""]
    plots = plot.draw(run.result, OUT)
    shown = [f"![{os.path.splitext(p)[0]}]({p})" for p in plots] if plot.pyplot else [plot.WHY_NOT]
    lines = ["# Benchmark", "", *head(run), *(run.bars.table() if run.bars.rows else []), "", *run.lines, *notes, *shown]
    write_report(name + ".md", lines)
    if run.opt.docs:
        os.makedirs(DOCS, exist_ok=True)
        for file in [name + ".md", *plots]:
            shutil.copy(os.path.join(OUT, file), DOCS)
    say(f"{seconds:.0f} s; {OUT}/{name}.md, {name}.json{''.join(', ' + p for p in plots)}")


MEASURES = {"threads": measure_threads, "compression": measure_compression, "memory": measure_memory,
            "json": measure_json, "latency": measure_latency, "memcached": measure_memcached,
            "instructions": measure_instructions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["instructions"], help="as --rows instructions")
    parser.add_argument("--rows", help="only those that begin with one of these, as in --rows 'get p16,set,memory'; beside "
                        f"the rows of CPU there are types, {', '.join(MEASURES)}")
    parser.add_argument("--slices", type=int, default=15, help="of each row and server (15)")
    parser.add_argument("--slice", type=float, default=0.3, help="seconds of each (0.3)")
    parser.add_argument("--peers", help="programs beside redis-server, names or paths; default: all that are on PATH")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers of keys, for a quick look")
    parser.add_argument("--docs", action="store_true", help="also into bench/plots/")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    opt = parser.parse_args()
    if opt.scale <= 0 or opt.slices < 1 or opt.slice <= 0:
        parser.error("scale, slices and slice are above 0")
    opt.rows = opt.what or opt.rows
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    for program in (TIERCEL, LOAD):
        if not os.access(program, os.X_OK):
            raise SystemExit(f"bench: {program} is missing: run make")
    os.makedirs(OUT, exist_ok=True)
    run, begin = Run(opt), time.monotonic()
    measure_cpu(run)
    measure_types(run)
    for name, measure in MEASURES.items():
        if run.wants(name):
            measure(run)
    report(run, time.monotonic() - begin)
    return 1 if opt.check and not run.bars.all_met() else 0


if __name__ == "__main__":
    sys.exit(main())
