"""Latency of reads while a value of a million elements is built, read, demoted, promoted and deleted.

    large.py [--types LIST] [--servers LIST] [--scale F] [--check]

For a hash, a list, a set and a sorted set of 1,000,000 elements:

    build     another client adds one element after another, 50,000 a second
    read      it reads all of it in pieces of 100 (HSCAN, LRANGE, SSCAN, ZRANGE)
    demote    the memory limit falls, until the value is on disk (only servers with a disk tier)
    promote   the limit is gone, and an element is read
    delete    DEL; until its memory is free

Meanwhile 50,000 GETs a second go over a hot set of 1,000 other keys, as in spikes.py, and latency is counted in the same way.
The bar: p99.9 of each at most five times the idle one, which is the median of those measured before each type.

Results: build/bench/large.md, large.json.
"""
import argparse
import json
import os
import signal
import statistics
import sys
import time

from common import LOAD, OUT, TIERCEL, Bars, command, machine_lines, write_report
from spikes import CALM_US, SERVERS, Stage, Writer, say

LIMIT = 5
ELEMENTS = 1_000_000
PIECE = 100
KEY = b"large"


def form(*args):
    """A request with a number in it, for Writer."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a % 0) if b"%" in a else len(a), a) for a in args)


NAME = b"field:%012d"
BUILD = {"hash": form(b"HSET", KEY, NAME, b"0123456789"), "list": form(b"RPUSH", KEY, NAME), "set": form(b"SADD", KEY, NAME),
         "zset": form(b"ZADD", KEY, b"1", NAME)}
SIZE = {"hash": "HLEN", "list": "LLEN", "set": "SCARD", "zset": "ZCARD"}
SCAN = {"hash": "HSCAN", "set": "SSCAN"}
RANGE = {"list": "LRANGE", "zset": "ZRANGE"}
ONE = {"hash": ("HGET", KEY, NAME % 1), "list": ("LINDEX", KEY, 1), "set": ("SISMEMBER", KEY, NAME % 1),
       "zset": ("ZSCORE", KEY, NAME % 1)}


def whole_reply(client):
    """A reply with what is in it."""
    line = client.file.readline()
    if line[:1] == b"-":
        raise RuntimeError(line.decode())
    if line[:1] in b"*%":
        return [whole_reply(client) for _ in range(int(line[1:]) * (2 if line[:1] == b"%" else 1))]
    if line[:1] == b"$":
        return None if line[1:3] == b"-1" else client.file.read(int(line[1:]) + 2)[:-2]
    return line[1:-2]


def ask(client, *args):
    client.send(command(*args))
    return whole_reply(client)


class Life:
    """One value from its first element to its end."""

    def __init__(self, stage, kind, elements):
        self.stage, self.kind, self.elements = stage, kind, elements
        self.client = stage.server.client
        self.has_disk = "disk" in stage.name

    def phases(self):
        yield "build", self.build
        yield "read", self.read
        if self.has_disk:
            yield "demote", self.demote
            yield "promote", self.promote
        yield "delete", self.delete

    def build(self):
        writer = Writer(self.stage.server.port, self.stage.opt.write_rate, total=self.elements, one=BUILD[self.kind])
        writer.start()
        writer.join()
        ask(self.client, "EXPIRE", KEY, 86400)
        return {"what": f"{writer.finish():,.0f} elements/s"}

    def read(self):
        begin, seen = time.monotonic(), 0
        if self.kind in SCAN:
            cursor = b"0"
            while True:
                cursor, items = ask(self.client, SCAN[self.kind], KEY, cursor, "COUNT", PIECE)
                seen += len(items) // (2 if self.kind == "hash" else 1)
                if cursor == b"0":
                    break
        else:
            for first in range(0, self.elements, PIECE):
                seen += len(ask(self.client, RANGE[self.kind], KEY, first, first + PIECE - 1))
        if seen < self.elements:
            raise SystemExit(f"large.py: {seen} elements of {self.elements}")
        return {"what": f"{seen / (time.monotonic() - begin):,.0f} elements/s"}

    def state(self):
        reply = ask(self.client, "CACHE", "INSPECT", KEY)
        return dict(zip(reply[::2], reply[1::2]))[b"state"].decode()

    def wait(self, done):
        begin = time.monotonic()
        while not done():
            if time.monotonic() > begin + 60:
                raise SystemExit("large.py: it takes more than a minute")
            time.sleep(0.02)
        return time.monotonic() - begin

    def demote(self):
        size, used = int(ask(self.client, "MEMORY", "USAGE", KEY)), self.client.info("used_memory", "memory")
        ask(self.client, "CONFIG", "SET", "maxmemory", max(used - int(size * 0.7), 1))
        took = self.wait(lambda: self.state() == "on-disk")
        ask(self.client, "CONFIG", "SET", "maxmemory", 0)
        time.sleep(self.stage.opt.idle)
        return {"what": f"{size / 1e6:,.0f} MB, on disk after {took:.2f} s"}

    def promote(self):
        begin = time.monotonic()
        ask(self.client, *ONE[self.kind])
        took = time.monotonic() - begin
        if int(ask(self.client, SIZE[self.kind], KEY)) != self.elements:
            raise SystemExit("large.py: elements are missing")
        time.sleep(self.stage.opt.idle)
        return {"what": f"answered after {took * 1000:,.0f} ms"}

    def delete(self):
        used, size = self.client.info("used_memory", "memory"), int(ask(self.client, "MEMORY", "USAGE", KEY))
        begin = time.monotonic()
        ask(self.client, "DEL", KEY)
        answered = time.monotonic() - begin
        gone = self.wait(lambda: self.client.info("used_memory", "memory") < used - size * 0.8)
        time.sleep(self.stage.opt.idle)
        return {"what": f"answered after {answered * 1000:,.0f} ms, gone after {gone:.2f} s"}


def run_life(opt, kind, name):
    try:
        stage = Stage(opt, name, maxmemory_policy="volatile-lru")  # so that this value leaves memory, and no other
        idle = stage.idle()
        return idle, [{"type": kind, "phase": phase, "server": name, **stage.while_reading(happens)}
                      for phase, happens in Life(stage, kind, int(ELEMENTS * opt.scale)).phases()]
    finally:
        while opt.servers_running:
            opt.servers_running.pop().close()


def report(opt, rows, idle_runs):
    idles = {name: statistics.median(runs) for name, runs in idle_runs.items()}
    bars = Bars()
    for r in rows:
        r["to_idle"] = r["latency_us"]["p99_9"] / idles[r["server"]]
        if r["server"] != "redis-server":
            bars.add(f"{r['type']}, {r['phase']}: p99.9 to the idle one", r["to_idle"], LIMIT)
    with open(os.path.join(OUT, "large.json"), "w", encoding="utf-8") as f:
        json.dump({"rows": rows, "idle_p99_9": idle_runs, "scale": opt.scale, "bars": bars.rows}, f, indent=1)
    lines = ["# Large values", "", *machine_lines(), "",
             f"{opt.rate:,} GETs/s, open loop, of 1,000 other keys, while a value of {int(ELEMENTS * opt.scale):,} elements comes and goes; microseconds.",
             "", "p99.9 idle: " + ", ".join(f"{name} {v:,.0f} us ({min(idle_runs[name]):,.0f} - {max(idle_runs[name]):,.0f})"
                                            for name, v in idles.items()) + ".", ""]
    if max(idles.values()) > CALM_US:
        lines += [f"**Idle, p99.9 is above {CALM_US:,} us: other processes disturb this run, and its bars say nothing.**", ""]
    lines += [*bars.table(), "", "| type | phase | server | p50 | p99 | p99.9 | max | p99.9 to idle | |", "|---" * 9 + "|"]
    for r in rows:
        us = r["latency_us"]
        lines.append(f"| {r['type']} | {r['phase']} | {r['server']} | " + " | ".join(f"{us[p]:,.0f}" for p in ("p50", "p99", "p99_9", "max")) +
                     f" | {r['to_idle']:.1f} | {r['what']} |")
    write_report("large.md", lines)
    return bars


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(BUILD))
    parser.add_argument("--servers", default="redis-server;tiercel, disk", help="of " + "; ".join(SERVERS) + ", with ; between them")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of elements, for a quick look")
    parser.add_argument("--rate", type=int, default=50_000, help="GETs a second (50000)")
    parser.add_argument("--write-rate", type=int, default=50_000, help="elements a second (50000)")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds of idle reads, and of reads after each thing that is soon done (3)")
    parser.add_argument("--no-spin", dest="spin", action="store_false", help="the load sleeps between requests: less exact")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    opt = parser.parse_args()
    kinds, servers = opt.types.split(","), [s.strip() for s in opt.servers.split(";")]
    if set(kinds) - set(BUILD) or set(servers) - set(SERVERS) or min(opt.scale, opt.rate, opt.write_rate, opt.idle) <= 0:
        parser.error("no such type or server, or a number that is not above 0")
    opt.servers_running = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    for program in (TIERCEL, LOAD):
        if not os.access(program, os.X_OK):
            raise SystemExit(f"large.py: {program} is missing: run make")
    os.makedirs(OUT, exist_ok=True)
    rows, idle_runs = [], {name: [] for name in servers}
    for kind in kinds:
        for name in servers:
            idle, found = run_life(opt, kind, name)
            idle_runs[name].append(idle["latency_us"]["p99_9"])
            rows += found
            for r in found:
                say(f"{kind}, {r['phase']}, {name}: p99.9 {r['latency_us']['p99_9']:,.0f} us, idle {idle['latency_us']['p99_9']:,.0f} us; {r['what']}")
    bars = report(opt, rows, idle_runs)
    return 1 if opt.check and not bars.all_met() else 0


if __name__ == "__main__":
    sys.exit(main())
