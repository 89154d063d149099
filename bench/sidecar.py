"""A sidecar beside its clients, the upstream behind a link with 0.5 ms of delay each way; and clients that go there
directly.

    sidecar.py [--samples N] [--delay-us N] [--requests N] [--check]

Latency: one client, one request after another. Direct, hit and miss take turns, so that what else the machine does meets
all of them alike. A miss is a key that nobody has read before. An element read (HGET) of a hash that is not held passes
through; `hit` is one that has been read a few times.

Load: 20 connections, keys by Zipf (0.99), 95 % GET and 5 % SET; the upstream's commands and CPU time for each 1,000
requests of the clients, with the sidecar empty at the start, and in a second run of the same length.

The link is bench/link/link.c, or a network of your own making: --host-port. Results: build/bench/sidecar.md, .json.
"""
import argparse
import json
import os
import subprocess
import sys
import time

from common import OUT, SERVER_CORE, Bars, Client, Server, free_port, load, machine_lines, redis_argv, tiercel_argv, write_report

LINK = os.path.join(os.path.dirname(os.environ.get("TIERCEL_BIN") or "build/tiercel") or ".", "tiercel-link")
KEYS = 100000
MISS_LIMIT = 1.2
CASES = [("GET 100 B", "get", 100), ("GET 4 KB", "get", 4096), ("GET 64 KB", "get", 65536), ("HGET, hash of 100 fields", "hget", 0)]
WARM = 5  # reads of a key before it is taken to be held


def say(text):
    print(text, file=sys.stderr, flush=True)


class Link:
    def __init__(self, target, delay_us):
        self.port = free_port()
        self.proc = subprocess.Popen([LINK, str(self.port), str(target), str(delay_us)], stdin=subprocess.DEVNULL)
        for _ in range(200):
            try:
                Client(self.port).close()
                return
            except OSError:
                time.sleep(0.01)
        raise SystemExit("bench: the link does not listen")

    def close(self):
        self.proc.kill()
        self.proc.wait()


class Through:
    """A server's figures with its clients on another port: what common.load() wants."""

    def __init__(self, server, port):
        self.server, self.port, self.name = server, port, server.name

    def cpu_s(self):
        return self.server.cpu_s()


def fill(client, command, size, n):
    for i in range(n):
        if command == "get":
            client.send(b"*3\r\n$3\r\nSET\r\n$8\r\n%s\r\n$%d\r\n%s\r\n" % (key(size, i), size, os.urandom(size)))
        else:
            fields = b"".join(b"$3\r\nf%02d\r\n$10\r\n0123456789\r\n" % f for f in range(100))
            client.send(b"*202\r\n$4\r\nHSET\r\n$8\r\n%s\r\n" % key(size, i) + fields)
        client.read()


def key(size, i):
    return b"%c:%06d" % (b"abcdefgh"[(size.bit_length()) % 8], i)


def request(command, size, i):
    if command == "get":
        return b"*2\r\n$3\r\nGET\r\n$8\r\n%s\r\n" % key(size, i)
    return b"*3\r\n$4\r\nHGET\r\n$8\r\n%s\r\n$3\r\nf42\r\n" % key(size, i)


def ask(client, data):
    begin = time.perf_counter()
    client.send(data)
    if client.read() is None:
        raise SystemExit("bench: %r has no value" % data)
    return time.perf_counter() - begin


def at(values, share):
    v = sorted(values)
    return v[min(len(v) - 1, int(share * len(v)))] * 1e6


def latencies(upstream, direct_port, sidecar, samples, bars):
    rows, out = [], {}
    direct, near = Client(direct_port), Client(sidecar.port)
    for name, command, size in CASES:
        fill(upstream.client, command, size, samples + 1)
        for _ in range(WARM * (1 if command == "get" else 4)):
            ask(near, request(command, size, samples))
            time.sleep(0.01)
        took = {"direct": [], "hit": [], "miss": []}
        for i in range(samples):
            took["direct"].append(ask(direct, request(command, size, i)))
            took["hit"].append(ask(near, request(command, size, samples)))
            took["miss"].append(ask(near, request(command, size, i)))
        figures = {k: (at(v, 0.5), at(v, 0.99)) for k, v in took.items()}
        out[name] = figures
        ratio = figures["miss"][0] / figures["direct"][0]
        rows.append("| %s | %s | %.2f |" % (name, " | ".join("%.0f / %.0f" % figures[k] for k in ("direct", "hit", "miss")), ratio))
        bars.add("%s: p50 of a miss to that of a direct request" % name, ratio, MISS_LIMIT)
        upstream.client.call("FLUSHALL")
    direct.close()
    near.close()
    return ["| us, p50 / p99 | direct | hit | miss | miss to direct, p50 |", "|---|---|---|---|---|", *rows], out


def upstream_load(upstream, direct_port, sidecar, requests):
    """Commands and CPU of the upstream for 1,000 requests: direct, the sidecar empty, the sidecar warm."""
    args = ("-r", KEYS, "-d", 100, "-c", 20, "-n", requests)
    load(upstream, "-t", "set", "--keys", "seq", "-r", KEYS, "-d", 100, "-n", KEYS, "-P", 16)
    rows, out = [], {}
    for name, port in (("direct", direct_port), ("sidecar, empty", sidecar.port), ("sidecar, second run", sidecar.port)):
        commands, cpu = upstream.client.info("total_commands_processed", "stats"), upstream.cpu_s()
        r = load(Through(upstream, port), "-t", "get:95+set:5", "--keys", "zipf:0.99", *args)
        commands = upstream.client.info("total_commands_processed", "stats") - commands - 1
        cpu = upstream.cpu_s() - cpu
        out[name] = {"commands": commands * 1000 / r["requests"], "cpu_us": cpu * 1e9 / r["requests"], "rps": r["requests_per_second"]}
        rows.append("| %s | %.0f | %.1f | %.0f |" % (name, out[name]["commands"], out[name]["cpu_us"] / 1000, r["requests_per_second"]))
    return ["| for 1,000 requests of clients | commands at the upstream | its CPU time, ms | requests a second |", "|---|---|---|---|", *rows], out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--samples", type=int, default=2000)
    ap.add_argument("--delay-us", type=int, default=500, help="of the link, each way")
    ap.add_argument("--requests", type=int, default=200000)
    ap.add_argument("--host-port", type=int, help="a port here that leads to a redis-server over a network of your own; it will be flushed")
    ap.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    opt = ap.parse_args()
    os.makedirs(OUT, exist_ok=True)
    made = []
    try:
        upstream = Server("redis", redis_argv())
        made.append(upstream)
        link = None
        if not opt.host_port:
            link = Link(upstream.port, opt.delay_us)
            made.append(link)
        port = opt.host_port or link.port
        sidecar = Server("tiercel", tiercel_argv(upstream="redis://127.0.0.1:%d" % port))
        made.append(sidecar)
        deadline = time.monotonic() + 10
        while b"tier_upstream_state:up" not in sidecar.client.call("INFO", "tiers"):
            if time.monotonic() > deadline:
                raise SystemExit("bench: the upstream is not reached")
            time.sleep(0.02)
        bars = Bars()
        say("latency")
        table, latency = latencies(upstream, port, sidecar, opt.samples, bars)
        say("load")
        load_table, loads = upstream_load(upstream, port, sidecar, opt.requests)
    finally:
        for m in reversed(made):
            m.close()
    lines = ["# A sidecar and its upstream", "", *machine_lines(),
             "The link delays by %d us each way; servers on core %d; one thread." % (opt.delay_us, SERVER_CORE), "",
             *table, "", "20 connections, %d keys of 100 bytes by Zipf 0.99, 95 %% GET, 5 %% SET, %d requests:" % (KEYS, opt.requests), "",
             *load_table, "", *bars.table()]
    with open(os.path.join(OUT, "sidecar.json"), "w", encoding="utf-8") as f:
        json.dump({"latency": latency, "load": loads, "bars": bars.rows}, f, indent=1)
    write_report("sidecar.md", lines)
    sys.exit(opt.check and not bars.all_met())


if __name__ == "__main__":
    main()
