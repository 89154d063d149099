"""Latency of reads while something large happens to the key space.

    spikes.py [--scenarios LIST] [--servers LIST] [--scale F] [--write-rate N] [--check]

    idle     nothing else
    writes   another client overwrites 1,000 keys at the write rate: what the writes cost by themselves
    grow     it inserts until the table has grown from 1,000 to 10,000,000 small keys
    expire   1,000,000 keys expire at the same moment; from then until they are gone
    evict    it inserts at the write rate into a server that is full, so every insert evicts
    flush    FLUSHALL of 5,000,000 keys; until their memory is free
    async    FLUSHALL ASYNC of as many

Meanwhile 50,000 GETs a second (tiercel-bench, open loop, random distances, polling) go over a hot set of 1,000
keys that is always there, on connections of their own. Latency counts from when a request was due. The bar: p99.9 at most
three times the idle one of the same run, which is the median of those measured before each scenario.

The server has one core; on the other are the load and the writer. The writer sends small batches made beforehand, so
that it needs the core for some tens of microseconds at a time, and sleeps in between: as a real-time thread
if that is allowed, so that it is not kept waiting for a time slice and then has to send much at once.

Results: build/bench/spikes.md, spikes.json, spikes.svg.
"""
import argparse
import json
import os
import signal
import socket
import statistics
import sys
import threading
import time

import plot
from common import (LOAD, LOAD_CORE, OUT, TIERCEL, Bars, Load, Server, command, load, machine_lines, redis_argv,
                    tiercel_argv, write_report)

MB = 1 << 20
HOT = 1000
LIMIT = 3
CALM_US = 1000  # an idle p99.9 above that is the machine's
SMALL = 8       # bytes of an inserted value
BATCH = 50      # requests
CONNECTIONS = 50
UNDER_WAY = 1000  # on a connection: there is room for a second's requests, so a server that stalls does not hold the load up
HOT_ARGS = ("-r", HOT, "--key-prefix", "hot:", "-d", 64)
SERVERS = {"redis-server": redis_argv, "tiercel": lambda **s: tiercel_argv(disk="no", **s),
           "tiercel, disk": lambda **s: tiercel_argv(disk="yes", **s)}
PERCENTILES = {"p50": "p50", "p99": "p99", "p99_9": "p99.9", "p99_99": "p99.99", "max": "max"}


def say(text):
    print(text, file=sys.stderr, flush=True)


class Writer(threading.Thread):
    """SETs of ever new keys (or of `wrap` ones, again and again; or other requests, `one` with a number in it) at a steady
    rate, in batches. It never sends more than one batch at once, so a server that falls behind gets less, and no burst later."""

    def __init__(self, port, rate, total=None, wrap=None, size=SMALL, one=None):
        super().__init__(daemon=True)
        self.rate, self.total, self.wrap = rate, total, wrap
        self.sent, self.late_s, self.seconds, self.ended = 0, 0.0, 0.0, threading.Event()
        one = one or b"*3\r\n$3\r\nSET\r\n$16\r\nnew:%%012d\r\n$%d\r\n%s\r\n" % (size, b"x" * size)
        self.form = one * BATCH
        self.sock = socket.create_connection(("127.0.0.1", port), 60)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.failure = None

    def run(self):
        try:
            os.sched_setaffinity(0, {LOAD_CORE})
            self.write()
        except (OSError, RuntimeError) as e:
            self.failure = e
        finally:
            self.sock.close()

    def write(self):
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        except OSError:
            pass  # not allowed: it has to wait for its turn
        interval, begin = BATCH / self.rate, time.monotonic()
        due = begin
        data = self.form % tuple(range(BATCH))
        while not self.ended.is_set() and (self.total is None or self.sent < self.total):
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            self.sock.sendall(data)
            self.sent += BATCH
            first = self.sent % self.wrap if self.wrap else self.sent
            data = self.form % tuple(range(first, first + BATCH))  # while the server is at work
            got = b""
            while got.count(b"\n") < BATCH:
                more = self.sock.recv(65536)
                got += more
                if not more or b"-" in more:
                    raise RuntimeError(f"a write was answered {got[-80:]!r}")
            due = max(due + interval, time.monotonic() - interval)
        self.seconds = time.monotonic() - begin

    def finish(self):
        self.ended.set()
        self.join()
        if self.failure:
            raise SystemExit(f"spikes.py: the writer: {self.failure}")
        return self.sent / max(self.seconds, 1e-9)


# ---- one scenario on one server ----------------------------------------------------------------

class Stage:
    """A server with its hot set, and the reads that go on while something happens."""

    def __init__(self, opt, name, **settings):
        self.opt, self.name, self.before = opt, name, None
        self.server = Server(name, SERVERS[name](**settings))
        opt.servers_running.append(self.server)
        self.set_hot()

    def set_hot(self):
        load(self.server, "-c", 4, "-t", "set", "--keys", "seq", *HOT_ARGS)

    def reads(self):
        more = ("--spin",) if self.opt.spin else ()
        return Load(self.server, "-c", CONNECTIONS, "-P", UNDER_WAY, "-t", "get", *HOT_ARGS, "--rate", self.opt.rate, "--poisson",
                    "-D", 100_000, "--timeout", 120, *more)

    def while_reading(self, happens):
        """The report of the reads that were due while happens() ran."""
        reads = self.reads()
        time.sleep(0.2)  # connected
        extra = happens() or {}
        return {**reads.finish(interrupt=True), **extra}

    def keys(self):
        return int(self.server.client.call("DBSIZE"))

    def idle(self):
        return self.while_reading(lambda: time.sleep(self.opt.idle))

    def fill(self, keys, *args, size=SMALL):
        load(self.server, "-c", 20, "-P", 16, "-t", "set", "--keys", "seq", "-r", keys, "-d", size, *args)

    def wait_until(self, done, least, most):
        """Seconds until it is done, with `least` seconds of reads in any case."""
        begin, took = time.monotonic(), None
        while time.monotonic() < begin + (least if took else most):
            time.sleep(0.05)
            if not took and done():
                took = time.monotonic() - begin
        return took or most

    def write(self, **options):
        """Runs a writer to its end, or for the idle time."""
        writer = Writer(self.server.port, self.opt.write_rate, **options)
        writer.start()
        if options.get("total"):
            writer.join()
        else:
            time.sleep(self.opt.idle * 2)
        return {"write_rate": writer.finish(), "written": writer.sent}


def run_idle(opt, name):
    return Stage(opt, name), None


def run_writes(opt, name):
    stage = Stage(opt, name)
    return stage, lambda: stage.write(wrap=1000)


def run_grow(opt, name):
    stage = Stage(opt, name)
    return stage, lambda: stage.write(total=int(10_000_000 * opt.scale))


def run_expire(opt, name):
    stage = Stage(opt, name)
    keys = int(1_000_000 * opt.scale)
    at = int(time.time() + 5 + opt.idle + keys / 50_000)  # time enough to fill, and for the idle reads
    load(stage.server, "-c", 20, "-P", 16, "--keys", "seq", "-r", keys, "-n", keys, "-d", SMALL, "set", "__key__", "__value__",
         "exat", at)
    if time.time() > at - opt.idle - 1:
        raise SystemExit("spikes.py: filling took longer than the keys live")
    stage.before = lambda: time.sleep(max(at - 0.5 - time.time(), 0))

    def happens():
        time.sleep(max(at - time.time(), 0))
        return {"seconds_until_gone": stage.wait_until(lambda: stage.keys() <= HOT, opt.idle, 60)}
    return stage, happens


def run_evict(opt, name):
    memory = max(int(200 * MB * opt.scale), 32 * MB)
    stage = Stage(opt, name, maxmemory=memory, maxmemory_policy="allkeys-lru")
    stage.fill(int(memory / 64 * 1.2), "--key-prefix", "old:", size=32)
    stage.set_hot()
    return stage, lambda: stage.write(size=32)


def run_flush(opt, name, *how):
    stage = Stage(opt, name)
    stage.fill(int(5_000_000 * opt.scale))
    used = [stage.server.client.info("used_memory", "memory")]
    hot = b"".join(command("SET", b"hot:%012d" % i, b"x" * 64) for i in range(HOT))

    def happens():
        client, begin = stage.server.client, time.monotonic()
        client.send(command("FLUSHALL", *how) + hot)  # GETs in between miss, and count
        client.read()
        took = time.monotonic() - begin
        for _ in range(HOT):
            client.read()

        def settled():
            """A tenth went, and in ten looks no more."""
            used.append(client.info("used_memory", "memory"))
            return used[-1] < used[0] * 0.9 and len(used) > 10 and used[-1] > used[-11] - used[0] / 500
        return {"flush_s": took, "seconds_until_gone": took + stage.wait_until(settled, opt.idle, 60) - 0.5}
    return stage, happens


SCENARIOS = {"idle": run_idle, "writes": run_writes, "grow": run_grow, "expire": run_expire, "evict": run_evict,
             "flush": run_flush, "async": lambda opt, name: run_flush(opt, name, "ASYNC")}


def run_scenario(opt, scenario, name):
    try:
        stage, happens = SCENARIOS[scenario](opt, name)
        idle = stage.idle()
        if happens is None:
            return idle, idle
        if stage.before:
            stage.before()
        return idle, stage.while_reading(happens)
    finally:
        while opt.servers_running:
            opt.servers_running.pop().close()


# ---- report --------------------------------------------------------------------------------------

TITLES = {"idle": "idle", "writes": "writes alone", "grow": "{:,} to {:,} keys", "expire": "{:,} keys expire",
          "evict": "evicting", "flush": "FLUSHALL of {:,} keys", "async": "FLUSHALL ASYNC of {:,} keys"}
NUMBERS = {"grow": 10_000_000, "expire": 1_000_000, "flush": 5_000_000, "async": 5_000_000}


def title_of(scenario, scale):
    n = int(NUMBERS.get(scenario, 0) * scale)
    return TITLES[scenario].format(HOT, n) if scenario == "grow" else TITLES[scenario].format(n)


def remarks(r):
    text = []
    if "write_rate" in r:
        text.append(f"{r['write_rate']:,.0f} SETs/s")
    if "flush_s" in r:
        text.append(f"answered after {r['flush_s'] * 1000:,.0f} ms")
    if "seconds_until_gone" in r:
        text.append(f"gone after {r['seconds_until_gone']:.1f} s")
    if r["misses"]:
        text.append(f"{r['misses']:,} misses")
    if r["send_delay_us"]["p99_9"] > r["latency_us"]["p99_9"] / 2:
        text.append("the load generator was the limit")
    if r["others_cpu"] > 0.05:
        text.append(f"others took {r['others_cpu']:.0%} of the machine")
    return "; ".join(text)


def table(rows, idles):
    lines = ["| scenario | server | " + " | ".join(PERCENTILES.values()) + " | p99.9 to idle | sent late by, p99.9 | |",
             "|---" * (len(PERCENTILES) + 5) + "|"]
    for r in rows:
        us = r["latency_us"]
        ratio = "" if r["scenario"] == "idle" else f"{us['p99_9'] / idles[r['server']]:.1f}"
        lines.append(f"| {r['scenario']} | {r['server']} | " + " | ".join(f"{us[p]:,.0f}" for p in PERCENTILES) +
                     f" | {ratio} | {r['send_delay_us']['p99_9']:,.0f} | {remarks(r)} |")
    return lines


def report(opt, rows, idle_runs):
    idles = {name: statistics.median(runs) for name, runs in idle_runs.items()}
    bars = Bars()
    for r in rows:
        if r["server"] != "redis-server" and r["scenario"] not in ("idle", TITLES["writes"]):
            bars.add(f"{r['scenario']}, {r['server']}: p99.9 to the idle one",
                     r["latency_us"]["p99_9"] / idles[r["server"]], LIMIT)
    result = {"rows": rows, "idle_p99_9": idle_runs, "rate": opt.rate, "scale": opt.scale, "bars": bars.rows}
    with open(os.path.join(OUT, "spikes.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
    lines = ["# Latency spikes", "", *machine_lines(), "",
             f"{opt.rate:,} GETs/s, open loop, of {HOT:,} hot keys; microseconds from when a request was due. Another client writes {opt.write_rate:,} "
             f"SETs/s where it says so, in batches of {BATCH}. *Sent late by* is the part of a latency before the request left, "
             "the load generator's own lateness.", ""]
    lines += ["p99.9 idle: " + ", ".join(f"{name} {v:,.0f} us ({min(idle_runs[name]):,.0f} - {max(idle_runs[name]):,.0f})"
                                         for name, v in idles.items()) + ".", ""]
    if max(idles.values()) > CALM_US:
        lines += [f"**Idle, p99.9 is above {CALM_US:,} us: other processes disturb this run, and its bars say nothing.**", ""]
    if opt.scale != 1:
        lines += [f"Numbers of keys at {opt.scale:g} of their size: bars are a hint.", ""]
    plots = plot.draw(result, OUT)
    shown = [f"![spikes]({p})" for p in plots] if plot.pyplot else [plot.WHY_NOT]
    write_report("spikes.md", [*lines, *bars.table(), "", *table(rows, idles), "", *shown])
    return bars


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--servers", default="redis-server;tiercel", help="of " + "; ".join(SERVERS) + ", with ; between them")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers of keys, for a quick look")
    parser.add_argument("--rate", type=int, default=50_000, help="GETs a second (50000)")
    parser.add_argument("--write-rate", type=int, default=50_000, help="SETs a second of the writer (50000)")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds of idle reads before each scenario (3)")
    parser.add_argument("--no-spin", dest="spin", action="store_false", help="the load sleeps between requests: less exact")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    opt = parser.parse_args()
    scenarios, servers = opt.scenarios.split(","), [s.strip() for s in opt.servers.split(";")]
    if set(scenarios) - set(SCENARIOS) or set(servers) - set(SERVERS) or min(opt.scale, opt.rate, opt.write_rate, opt.idle) <= 0:
        parser.error("no such scenario or server, or a number that is not above 0")
    opt.servers_running = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    for program in (TIERCEL, LOAD):
        if not os.access(program, os.X_OK):
            raise SystemExit(f"spikes.py: {program} is missing: run make")
    os.makedirs(OUT, exist_ok=True)
    rows, idle_runs = [], {name: [] for name in servers}
    for scenario in scenarios:
        for name in servers:
            idle, r = run_scenario(opt, scenario, name)
            idle_runs[name].append(idle["latency_us"]["p99_9"])
            rows.append({"scenario": title_of(scenario, opt.scale), "server": name, **r})
            say(f"{scenario}, {name}: p99.9 {r['latency_us']['p99_9']:,.0f} us, idle {idle['latency_us']['p99_9']:,.0f} us; {remarks(r)}")
    bars = report(opt, rows, idle_runs)
    return 1 if opt.check and not bars.all_met() else 0


if __name__ == "__main__":
    sys.exit(main())
