"""Checks that two sidecars on one upstream never show what they must not.

    checker.py [--ops N] [--seed N] [--calm] [--protocol whole|deaf] [--verbose]

Clients write and read 500 keys of all types, at a real redis-server and through two servers with it as their upstream,
while faults are injected between them: delays, lost and half-open connections (each kind alone, too), a stopped and a
killed upstream. Then: every read must have been current (judge.py) in the upstream's own history (history.py), writes
are never read as older by those of the same sidecar, and once all is quiet every key reads the same everywhere.

The seed decides the faults and what clients send; what happens between them is up to the machine. --protocol deaf
leaves out every invalidation on its way to one sidecar, which must be found out. CHECKER_SEED, CHECKER_OPS as defaults.
"""
import argparse
import contextlib
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import clients  # noqa: E402
import harness  # noqa: E402
import history  # noqa: E402
import judge  # noqa: E402
import reads  # noqa: E402
from harness import seen, wait_until  # noqa: E402
from rawconn import RawConn, parse  # noqa: E402

INVAL = seen("SUBSCRIBE")
FETCH = seen("CLIENT TRACKING")
KINDS = {"all": None, "inval": INVAL, "fetch": FETCH, "write": lambda c: not INVAL(c) and not FETCH(c)}
PINS = seen("MULTI", "WATCH", "RESET", "BLPOP", "BZPOPMIN")
SHOWN = 8  # violations of a kind that are printed


def is_invalidation(reply):
    return b"__redis__:invalidate" in reply and reply.startswith((b"*3\r\n$7\r\nmessage", b">"))


class World:
    """redis-server, a proxy for each of two sidecars and one for direct clients, the recorder."""

    def __init__(self, seed, verbose=False, sidecar=(), settings=None, pins=False):
        self.rng = random.Random(seed)
        self.verbose = verbose
        self.began = time.monotonic()
        self.stack = contextlib.ExitStack()
        self.settings = {"threads": 2, "maxmemory": "2mb", "stale_if_error_ms": 0, "disk_max_size": "64mb",
                         **(settings or {})}
        self.sidecar_args = list(sidecar)
        self.pins = pins
        self.recorder = None
        self.marks = []
        self.faults = 0

    def say(self, text):
        if self.verbose:
            print("%7.2f %s" % (time.monotonic() - self.began, text), flush=True)

    def __enter__(self):
        self.up = self._start(harness.Redis(appendonly="yes", repl_diskless_sync="no", repl_timeout=100000, databases=16,
                                            auto_aof_rewrite_percentage=0, client_output_buffer_limit="replica 0 0 0"))
        clients.fill_ballast(self.up.port)
        self.recorder = history.Recorder(self.up.port)
        self.stack.callback(self.recorder.close)
        self.recorder.connect()
        self.wires = [self._start(harness.Proxy(self.up)) for _ in range(2)]
        self.direct = self._start(harness.Proxy(self.up))
        self.sidecars = [self._start(harness.Tiercel(upstream=w, args=self.sidecar_args, **self.settings)) for w in self.wires]
        for s in self.sidecars:
            s.wait_tiers(tier_upstream_state="up")
        self.bound = max(s.tiers()["coherence_bound_ms"] for s in self.sidecars) / 1000
        return self

    def __exit__(self, *error):
        self.stack.close()

    def _start(self, server):
        def end():
            try:
                server.close()
            finally:
                server.remove()

        server.start()
        self.stack.callback(end)
        return server

    @property
    def targets(self):
        return {"A": self.sidecars[0].port, "B": self.sidecars[1].port, "up": self.direct.port}

    # -- the upstream's lives

    def caught_up(self):
        """Whether the recorder has all that was executed."""
        with RawConn(self.up.port) as c:
            text = c.ask("INFO", "replication")
        return harness.parse_info(text.decode())["master_repl_offset"] == self.recorder.offset()

    def mark(self):
        """A moment of the history, and what every key was just then."""
        name = b"mark:%d" % len(self.marks)
        keys = [(db, k) for db in (0, 3) for k in clients.all_keys()]
        with RawConn(self.up.port) as c:
            c.call("SELECT", history.STAMP_DB)
            time.sleep(3 * history.STAMP_EVERY)
            c.pipeline(("MULTI",), ("SET", history.MARK_KEY, name))
            for db, k in keys:
                c.pipeline(("SELECT", db), reads.command(reads.WHOLE[k[:1].decode()], k))
            replies = c.ask("EXEC")[1:]
        state = {}
        for at, reply in zip(keys, replies[1::2]):
            kind = reads.WHOLE[at[1][:1].decode()]
            state[at] = reads.came(kind, reply)
        self.marks.append((name, state))
        return state

    def restart_upstream(self):
        """Killed when the recorder has everything, so that the history is whole; nobody gets in before it listens again."""
        with RawConn(self.up.port) as c:
            c.call("CLIENT", "PAUSE", 20000, "WRITE")
        wait_until(self.caught_up, timeout=15, what="the recorder has caught up")
        for w in self.wires + [self.direct]:
            w.refuse()
        self.up.kill9()
        self.up.start()
        self.recorder.connect()
        self.mark()
        for w in self.wires + [self.direct]:
            w.up()

    # -- faults

    def swallowed(self, where):
        """Blocking commands have no deadline: on a half-open connection their client waits until TCP gives up, which is
        no matter of coherence. --pins has these connections swallowed, too."""
        return lambda c: (where is None or where(c)) and (self.pins or (not PINS(c) and sum(c.names.values()) > 8))

    def fault(self):
        """One of them, on one link or both; returns what undoes it."""
        rng = self.rng
        wires = rng.choice((self.wires, self.wires[:1], self.wires[1:]))
        kind = rng.choice(list(KINDS))
        where = KINDS[kind]
        what = rng.choice(("delay", "delay", "delay", "skew", "skew", "cut", "cut", "half-open", "half-open", "freeze", "freeze",
                           "down", "kill-pubsub", "stop", "restart"))
        self.faults += 1
        self.say("fault: %s of %s on %s" % (what, kind, "both" if len(wires) == 2 else self.wires.index(wires[0])))
        undo = contextlib.ExitStack()
        for w in wires:
            if what == "delay":
                w.delay(rng.uniform(0, 0.02), rng.uniform(0.001, 0.3), where)
                undo.callback(w.delay)
            elif what == "skew":  # answers behind their invalidations, and the other way round
                w.delay(0, rng.uniform(0.05, 0.3), rng.choice((INVAL, FETCH)))
                undo.callback(w.delay)
            elif what == "cut":
                w.cut(where)
            elif what == "half-open":
                way = rng.choice(((True, True), (True, False), (False, True)))
                w.swallow(self.swallowed(where), *way)
            elif what == "freeze":
                way = rng.choice(((True, True), (True, False), (False, True)))
                w.hang(where, *way)
                undo.callback(w.resume)
            elif what == "down":
                w.down()
                undo.callback(w.up)
        if what == "kill-pubsub":
            with RawConn(self.up.port) as c:
                c.call("CLIENT", "KILL", "TYPE", "pubsub")
        elif what == "stop":
            self.up.pause()
            undo.callback(self.up.resume)
        elif what == "restart":
            self.restart_upstream()
        return undo

    def heal(self):
        self.up.resume()
        for w in self.wires + [self.direct]:
            w.delay()
            w.resume()
            w.up()


def quiet(world, report):
    """After the last write: what everybody reads, key by key."""
    for s in world.sidecars:
        s.wait_tiers(tier_upstream_state="up", timeout=30)
    time.sleep(world.bound + 0.1)
    truth = world.mark()
    mortal = set()  # what expires is judged by its time, not here
    with RawConn(world.up.port) as c:
        for db, k in truth:
            c.call("SELECT", db)
            if c.ask("PTTL", k) != -1 and truth[db, k] not in (None, "none", (), frozenset()):
                mortal.add((db, k))
    differ = 0
    for name, s in zip("AB", world.sidecars):
        for _ in range(4):  # connections, so both threads
            with RawConn(s.port) as c:
                for (db, k), want in truth.items():
                    kind = reads.WHOLE[k[:1].decode()]
                    got = reads.came(kind, parse(c.pipeline(("SELECT", db), reads.command(kind, k))[1]))
                    if got != want and (db, k) not in mortal:
                        differ += 1
                        report.violation("quiet", "%s of database %d through %s: %.200r, upstream: %.200r" % (k, db, name, got, want))
    world.say("quiet: %d differ" % differ)


class Report:
    def __init__(self):
        self.violations = {}
        self.lines = []

    def violation(self, kind, text):
        self.violations.setdefault(kind, []).append(text)

    @property
    def ok(self):
        return not self.violations

    def __str__(self):
        out = list(self.lines)
        for kind, texts in sorted(self.violations.items()):
            out.append("%d violations: %s" % (len(texts), kind))
            out += ["    " + t for t in texts[:SHOWN]]
        out.append("coherent" if self.ok else "NOT COHERENT")
        return "\n".join(out)


def run(ops=10000, seed=1, calm=False, protocol="whole", verbose=False, undeclared=True, sidecar=(), settings=None, limit=40, rate=None,
        pins=False):
    """Runs the load until `ops` operations are done, at most `limit` seconds; returns the Report."""
    report = Report()
    with World(seed, verbose, sidecar, settings, pins) as world:
        load = clients.Load(world.targets, {"A": 8, "B": 8, "up": 5}, 3, seed, {"undeclared": undeclared})
        world.stack.callback(load.close)
        if rate:
            load.shared.pause.value = 2 * 21 / rate
        if protocol == "deaf":
            world.wires[0].drop(is_invalidation, INVAL)
        begin = time.monotonic()
        while load.done < ops and time.monotonic() < begin + limit:
            time.sleep(world.rng.uniform(0.2, 0.8))
            if not calm:
                with world.fault():
                    time.sleep(world.rng.choice((0.05, 0.3, 0.6, 1.0, 1.5, world.bound + 0.5)))
        took = time.monotonic() - begin
        world.heal()
        seen_ops, errors, odd = load.finish()
        quiet(world, report)
        tiers = [s.tiers() for s in world.sidecars]
        wait_until(world.caught_up, timeout=15, what="the recorder has caught up")
        chunks = world.recorder.finish()
        marks = world.marks
        bound = world.bound
        world.say("judging")
    timelines, states = history.replay(chunks)
    for name, state in marks:  # the model of the upstream is right, or nothing else is
        then = states.get(name)
        if then is None:
            report.violation("model", "%s is not in the history" % name)
            continue
        for at, got in state.items():
            want = reads.expected(reads.WHOLE[at[1][:1].decode()], then.get(at), None)
            if got != want:
                report.violation("model", "%s at %s: %.100r, replayed %.100r" % (at, name, got, want))
    j = judge.Judge(timelines, bound)
    j.judge(seen_ops)
    for kind, texts in j.violations.items():
        for t in texts:
            report.violation(kind, t)
    for t in odd:
        report.violation("unexpected answer", t)
    c = j.counts
    report.lines = [
        "seed %s, %d operations in %.1f s, %d faults, %d lives of the upstream" % (seed, load.done, took, world.faults, chunks.count(None) + 1),
        "%d reads (A %d, B %d, direct %d), %d acknowledged writes, %d versions of %d keys" % (
            c["reads"], c["A"], c["B"], c["up"], c["writes"], sum(len(t.value) - 1 for t in timelines.values()), len(timelines)),
        "bound %.0f ms, oldest answer %.0f ms, %d reads older than one before on their connection (not promised)" % (
            bound * 1000, j.age * 1000, c["not monotonic"]),
        "errors: %s" % (", ".join("%s %d" % e for e in sorted(errors.items())) or "none"),
        "hits: memory %s, disk %s; demotions %s; upstream requests %s; invalidations %s" % tuple(
            "/".join(str(t.get(n, "?")) for t in tiers)
            for n in ("tier_memory_hits", "tier_disk_hits", "tier_demotions", "tier_upstream_requests", "tier_invalidations"))]
    return report


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--ops", type=int, default=int(os.environ.get("CHECKER_OPS", 10000)))
    ap.add_argument("--seed", type=int, default=int(os.environ.get("CHECKER_SEED", time.time())))
    ap.add_argument("--limit", type=float, default=3600, help="seconds at most")
    ap.add_argument("--rate", type=float, help="operations a second, about")
    ap.add_argument("--calm", action="store_true", help="no faults")
    ap.add_argument("--protocol", choices=("whole", "deaf"), default="whole")
    ap.add_argument("--declared-only", action="store_true",
                    help="what scripts write without declaring it need not be seen at once")
    ap.add_argument("--pins", action="store_true", help="half-open connections of blocking commands, too: their clients may hang")
    ap.add_argument("--verbose", action="store_true")
    opt = ap.parse_args()
    print("seed %d" % opt.seed, flush=True)
    report = run(opt.ops, opt.seed, opt.calm, opt.protocol, opt.verbose, not opt.declared_only, limit=opt.limit,
                 rate=opt.rate, pins=opt.pins)
    print(report)
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
