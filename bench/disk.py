"""The disk tier against its bars; redis-server without persistence beside it where a bar is a ratio.

    disk.py [--parts a,b,c] [--scale F] [--rounds N] [--check]

    a  500,000 values of 1 KB with maxmemory 100mb: every key set once, then random GETs over all keys.
       One worker, all threads of a server on one core, load from the other, 20 connections, no pipeline.
       In slices, during which the servers take turns; the CPU time for what Tiercel has queued for the disk by then counts in its slice.
    b  20,000,000 keys with values of 100 bytes and maxmemory 400mb: anonymous memory while filling and
       after, the time a stop and a start take, and whether a sample of reads finds everything.
    c  bytes passed to write calls for each byte demoted, at 1 KB and at 100 bytes, until five times the
       quota has passed through; and the size of the file. Once with ever new keys, and once with
       overwrites all over a key space that takes a third of the quota.

Values do not compress and compression is off. --scale shrinks the numbers of keys, the memory and the
quotas for a quick look; bars are then only a hint. Results: build/bench/disk.md and disk.json.
"""
import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time

from common import (LOAD, OUT, TIERCEL, Server, load, machine_lines, redis_argv, spread, tiercel_argv,
                    write_report)

MB = 1 << 20
KEY = 16
LIMITS = {"fill rate": 0.8, "fill p99.9": 5, "GET rate": 0.85, "GET p99.9": 5, "RssAnon": 460 * MB, "start": 5,
          1024: 1.3, 100: 1.8}
VERDICT = {True: "met", False: "**missed**"}


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bars:
    """What was to be shown, and whether it was."""

    def __init__(self):
        self.rows = []

    def add(self, what, value, limit, met, text):
        self.rows.append({"what": what, "value": value, "limit": limit, "met": met, "text": text})

    def table(self):
        lines = ["| bar | measured | limit | |", "|---|---|---|---|"]
        for r in self.rows:
            lines.append(f"| {r['what']} | {r['text']} | {r['limit']} | {VERDICT[r['met']]} |")
        return lines


# ---- (a) speed beside redis-server -----------------------------------------------------------

def settle(server):
    """Waits until nothing is queued for the disk; returns the seconds that took."""
    begin = time.monotonic()
    while server.client.info("tier_disk_queue_bytes", "tiers") and time.monotonic() < begin + 30:
        time.sleep(0.002)
    return time.monotonic() - begin


def slice_of_load(server, args):
    """What a server leaves undone counts too: the CPU time it takes. (Not the half second for which demoted records
    wait for company.)"""
    cpu = server.cpu_s()
    r = load(server, *args)
    if server.name == "tiercel":
        loaded = server.cpu_s()
        r["settle_s"] = settle(server)
        r["left_cpu_s"] = server.cpu_s() - loaded
        r["requests_per_second"] = r["requests"] / (r["seconds"] + r["left_cpu_s"])
        r["server_cpu_us"] = (server.cpu_s() - cpu) * 1e6 / r["requests"]
    return r


def part_a(opt, bars):
    keys, gets = int(500_000 * opt.scale), int(opt.gets * opt.scale)
    memory = int(100 * MB * opt.scale)
    common = ("-c", 20, "-d", 1024)
    runs = {"redis-server": {"fill": [], "get": []}, "tiercel": {"fill": [], "get": []}}
    for n in range(opt.rounds):
        servers = []
        try:
            servers += [Server("redis-server", redis_argv())]
            servers += [Server("tiercel", tiercel_argv(maxmemory=memory))]
            for what in ("fill", "get"):
                for i in range(opt.slices):
                    first, end = keys * i // opt.slices, keys * (i + 1) // opt.slices
                    args = ["-t", "set", "--keys", "seq", "--first-key", first, "-r", end - first]
                    if what == "get":
                        args = ["-t", "get", "-r", keys, "-n", gets // opt.slices, "--seed", n * 1000 + i, *opt.verify]
                    for server in servers if (n + i) % 2 == 0 else reversed(servers):
                        runs[server.name][what].append(slice_of_load(server, [*common, *args]))
        finally:
            for server in servers:
                server.close()
        say(f"a: round {n + 1} of {opt.rounds}: " + "; ".join(
            f"{name} SET {median_of(r['fill'][-opt.slices:]):,.0f}/s, GET {median_of(r['get'][-opt.slices:]):,.0f}/s"
            for name, r in runs.items()))
    return report_a(opt, bars, runs, keys, memory)


def median_of(rounds, get=lambda r: r["requests_per_second"]):
    return statistics.median(get(r) for r in rounds)


FIGURES = {"rate": lambda r: r["requests_per_second"], "p99.9": lambda r: r["latency_us"]["p99_9"],
           "CPU": lambda r: r["server_cpu_us"]}


def report_a(opt, bars, runs, keys, memory):
    lines = [f"## {keys:,} values of 1 KB, maxmemory {memory // MB} MB, {opt.rounds} rounds of {opt.slices} slices", "",
             "| | SET/s | SET p99.9, us | SET CPU, us | GET/s | GET p99.9, us | GET CPU, us | missed | others' CPU |",
             "|---|---|---|---|---|---|---|---|---|"]
    for name, r in runs.items():
        cells = [spread([get(x) for x in r[what]], 2 if figure == "CPU" else 0)
                 for what in ("fill", "get") for figure, get in FIGURES.items()]
        others = statistics.mean(x["others_cpu"] for what in r.values() for x in what)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {sum(x['misses'] for x in r['get']):,} | {others:.0%} |")
    ratios = {}
    for what, title in (("fill", "fill"), ("get", "GET")):
        for figure, get in FIGURES.items():
            ratio = ratios[f"{title} {figure}"] = [get(t) / get(r) for t, r in
                                                   zip(runs["tiercel"][what], runs["redis-server"][what])]
            limit = LIMITS.get(f"{title} {figure}")
            if not limit:
                lines += ["", f"Server CPU per request, {title}: {spread(ratio)} of redis-server's."]
            elif figure == "rate":
                bars.add(f"(a) {title} rate to redis-server's", ratio, f">= {limit}", statistics.median(ratio) >= limit,
                         spread(ratio))
            else:
                bars.add(f"(a) {title} p99.9 to redis-server's", ratio, f"<= {limit}", statistics.median(ratio) <= limit,
                         spread(ratio))
    missed = sum(x["misses"] for x in runs["tiercel"]["get"])
    bars.add("(a) keys missed", missed, "0", missed == 0, f"{missed:,}")
    return lines + [""], {"runs": runs, "ratios": ratios}


# ---- (b) memory, stop and start ----------------------------------------------------------------

class Sampler(threading.Thread):
    """The most of a figure while something runs."""

    def __init__(self, figure):
        super().__init__(daemon=True)
        self.figure, self.most, self.ended = figure, 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.05):
            self.most = max(self.most, self.figure())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def read_through(path):
    with open(path, "rb", buffering=0) as f:
        while f.read(4 * MB):
            pass


def part_b(opt, bars):
    keys, memory = int(20_000_000 * opt.scale), int(400 * MB * opt.scale)
    limit = int(LIMITS["RssAnon"] * opt.scale) if opt.scale < 1 else LIMITS["RssAnon"]
    common = ("-c", 20, "-r", keys, "-d", 100)
    server = Server("tiercel", tiercel_argv(maxmemory=memory))
    try:
        with Sampler(server.rss_anon) as rss:
            fill = load(server, *common, "-t", "set", "--keys", "seq", "-P", 16)
        say(f"b: filled with {keys:,} keys at {fill['requests_per_second']:,.0f}/s")
        with Sampler(server.rss_anon) as idle:
            time.sleep(3)
        end = server.rss_anon()
        dbsize = int(server.client.call("DBSIZE"))
        file = os.path.join(server.dir, "tiercel.mdb")
        stop = server.terminate(120)
        size = os.stat(file).st_size
        read_through(file)
        start = server.start()
        start_cpu = server.cpu_s()
        after = int(server.client.call("DBSIZE"))
        sample = load(server, *common, "-t", "get", "-n", max(int(300_000 * opt.scale), 20_000), "-P", 4, "--verify")
        say(f"b: stopped in {stop:.1f} s, started in {start:.2f} s, sample missed {sample['misses']:,}")
        result = {"fill": fill, "rss_anon_filling": rss.most, "rss_anon_idle": idle.most, "rss_anon_end": end,
                  "dbsize": dbsize, "dbsize_after": after, "stop_s": stop, "start_s": start, "start_cpu_s": start_cpu, "file_bytes": size,
                  "sample": sample, "rss_anon_restarted": server.rss_anon()}
    finally:
        server.close()
    most = max(rss.most, idle.most, end)
    bars.add("(b) RssAnon, most, MB", most, f"< {limit // MB}", most < limit, f"{most / MB:.0f}")
    bars.add("(b) seconds until it answers again", start, f"< {LIMITS['start']}", start < LIMITS["start"], f"{start:.2f}")
    missed = sample["misses"]
    bars.add("(b) sampled keys missed after the start", missed, "0", missed == 0, f"{missed:,} of {sample['requests']:,}")
    for what, lost in (("filling", keys - dbsize), ("the restart", dbsize - after)):
        bars.add(f"(b) keys lost by {what}", lost, "0", lost == 0, f"{lost:,}")
    lines = [f"## {keys:,} keys of 100 bytes, maxmemory {memory // MB} MB", "",
             "| RssAnon filling | at rest | after the start | file | SET/s, pipeline 16 | stop, s | start, s | its CPU, s |",
             "|---|---|---|---|---|---|---|---|",
             f"| {rss.most / MB:.0f} MB | {end / MB:.0f} MB | {result['rss_anon_restarted'] / MB:.0f} MB | "
             f"{size / MB:,.0f} MB | {fill['requests_per_second']:,.0f} | {stop:.1f} | {start:.2f} | {start_cpu:.2f} |", ""]
    return lines, result


# ---- (c) bytes written, size of the file ---------------------------------------------------------

def write_segments(opt, size, pattern, quota):
    """Half quotas' worth of SETs, each with its figures, until five quotas have been demoted."""
    record = KEY + size
    memory = quota // 8
    per_segment = quota // 2 // record
    # Overwrites: beyond what memory holds, keys and values take a third of the quota (at 100 bytes about half, with
    # what the file adds to each record).
    space = (memory + quota // 3) // record
    server = Server("tiercel", tiercel_argv(maxmemory=memory, disk_max_size=quota))
    file = os.path.join(server.dir, "tiercel.mdb")
    segments, demoted = [], 0
    try:
        before = server.written(), server.client.info("tier_demotions", "tiers")
        while demoted < 5 * quota and len(segments) < 40:
            n = len(segments)
            keys = ("--keys", "seq", "-n", per_segment, "--key-prefix", f"{n:02d}:", "-r", per_segment)
            if pattern == "overwrite":
                keys = ("--keys", "uniform", "-n", per_segment, "-r", space, "--seed", n + 1)
            run = load(server, "-c", 20, "-P", 8, "-d", size, "-t", "set", *keys)
            settle(server)
            time.sleep(0.2)  # the figures are those of the last commit
            now = server.written(), server.client.info("tier_demotions", "tiers")
            st = os.stat(file)
            moved = (now[1] - before[1]) * record
            demoted += moved
            segments.append({"demoted": demoted, "demoted_now": moved, "written_now": now[0] - before[0],
                             "file_bytes": st.st_size, "file_blocks": st.st_blocks * 512,
                             "drops": server.client.info("tier_dirty_drops", "tiers"), "info": server.client.tiers(),
                             "requests_per_second": run["requests_per_second"], "server_cpu_us": run["server_cpu_us"]})
            before = now
    finally:
        server.close()
    return segments


def per_commit(segments):
    """MB written by each commit: small ones, of a slow load, write more for each byte."""
    commits = segments[-1]["info"]["tier_disk_commits"] - segments[0]["info"]["tier_disk_commits"]
    return sum(s["written_now"] for s in segments[1:]) / max(commits, 1) / MB


def factor(segments):
    return sum(s["written_now"] for s in segments) / max(sum(s["demoted_now"] for s in segments), 1)


def part_c(opt, bars):
    quota = max(int(512 * MB * opt.scale), 32 * MB)
    lines = [f"## Bytes written for each byte demoted, quota {quota // MB} MB", "",
             "| values | keys | first quota | from 1 to 4 quotas | last quota | MB a commit | file after 1.5, 3, 5 quotas, MB | dirty drops |",
             "|---|---|---|---|---|---|---|---|"]
    result = {}
    for size in opt.sizes:
        for pattern in opt.patterns:
            segs = write_segments(opt, size, pattern, quota)
            result[f"{size} {pattern}"] = segs
            parts = [[s for s in segs if lo * quota < s["demoted"] <= hi * quota] or segs[-1:]
                     for lo, hi in ((0, 1), (1, 4), (4, 99))]
            f = [factor(p) for p in parts]
            files = [next((s["file_bytes"] for s in segs if s["demoted"] >= q * quota), segs[-1]["file_bytes"])
                     for q in (1.5, 3, 5)]
            text = ", ".join(f"{b / MB:,.0f}" for b in files)
            lines.append(f"| {size} | {pattern} | {f[0]:.2f} | {f[1]:.2f} | {f[2]:.2f} | {per_commit(segs):.2f} | {text} | "
                         f"{segs[-1]['drops']:,} |")
            say(f"c: {size} bytes, {pattern}: {f[0]:.2f}, {f[1]:.2f}, {f[2]:.2f}; file {text} MB")
            limit = LIMITS[1024 if size >= 1024 else 100]
            met = max(f[0], f[2]) <= limit
            bars.add(f"(c) {size} bytes, {pattern} keys: first and last quota", f, f"<= {limit}", met,
                     f"{f[0]:.2f}, {f[2]:.2f}")
            grows = files[2] / files[1]
            bars.add(f"(c) {size} bytes, {pattern} keys: file at 5 quotas to that at 3", grows, "<= 1.01", grows <= 1.01,
                     f"{grows:.3f}")
    return lines + [""], result


PARTS = {"a": part_a, "b": part_b, "c": part_c}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="a,b,c")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5, help="of part a (5)")
    parser.add_argument("--slices", type=int, default=5, help="of each phase of part a, the servers taking turns (5)")
    parser.add_argument("--gets", type=int, default=500_000, help="random GETs of a round of part a, before --scale")
    parser.add_argument("--sizes", type=lambda s: [int(x) for x in s.split(",")], default=[1024, 100],
                        help="of values in part c (1024,100)")
    parser.add_argument("--patterns", type=lambda s: s.split(","), default=["new", "overwrite"],
                        help="of keys in part c (new,overwrite)")
    parser.add_argument("--verify", action="store_const", const=["--verify"], default=[],
                        help="check every value that part a reads; costs the load generator some CPU")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    opt = parser.parse_args()
    parts = opt.parts.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    if any(p not in PARTS for p in parts) or set(opt.patterns) - {"new", "overwrite"} or opt.scale <= 0 or min(opt.rounds, opt.slices) < 1:
        parser.error("parts are a, b, c; patterns new, overwrite; scale, rounds and slices are above 0")
    for program in (TIERCEL, LOAD):
        if not os.access(program, os.X_OK):
            raise SystemExit(f"disk.py: {program} is missing: run make")
    os.makedirs(OUT, exist_ok=True)
    bars, lines, results = Bars(), [], {}
    for part in parts:
        more, results[part] = PARTS[part](opt, bars)
        lines += more
    scaled = [f"Everything at {opt.scale:g} of its size: bars are a hint."] if opt.scale != 1 else []
    with open(os.path.join(OUT, "disk.json"), "w", encoding="utf-8") as f:
        json.dump({"bars": bars.rows, "scale": opt.scale, "parts": results}, f, indent=1)
    write_report("disk.md", [*machine_lines(), *scaled, "", *bars.table(), "", *lines])
    return 1 if opt.check and not all(r["met"] for r in bars.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
