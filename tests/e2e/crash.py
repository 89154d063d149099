"""A server that is killed while it writes, again and again on the same directory; after each start what is there is
compared with what its clients know (ledger.py).

    python3 tests/e2e/crash.py --rounds 20 --seed 7 [--redis] [--modes always,no] [--keep DIR] [maxmemory=3mb ...]

Modes of a round:

    always, everysec   appendonly yes; everything answered (1.5 s before the kill) is there, in order
    no                 appendonly no; keys may be lost, but nothing comes back that was replaced 0.5 s before
    stop               appendonly no and SIGTERM: everything is there
    switch             appendonly is turned on while it runs; as always from then on
    save               appendonly no and a SAVE or BGSAVE: what was not touched since is there

With the shim a kill is a power failure (shim/lostwrites.c), with all that was not synced lost or a part of it.
"""
import argparse
import pathlib
import random
import shutil
import signal
import threading
import time

import harness
import ledger
from harness import scaled, wait_until
from ledger import Ledger, Wrong, Writer
from shims import LostWrites

# (mode, with the shim)
CYCLE = [("always", False), ("always", True), ("no", True), ("everysec", True), ("switch", True), ("always", True),
         ("save", False), ("no", False), ("stop", True), ("everysec", False)]
MORE = [("always", True), ("always", False), ("save", True), ("everysec", False), ("no", True), ("always", True),
        ("switch", False), ("everysec", True), ("stop", False), ("no", False)]

FIGURES = ("tier_demotions", "tier_promotions", "tier_clean_drops", "tier_disk_commits", "tier_disk_carried_keys")


class RedisAof(harness.Redis):
    """A real redis-server that keeps its data: what the checks are checked with."""

    def __init__(self, port=None, env=None, **options):
        super().__init__(port, **options)
        self.env = env
        self.dir = self.home

    def environment(self):
        return self.env


class Crash:
    """Rounds on one directory. options are the server's."""

    def __init__(self, seed, redis=False, writers=3, seconds=2.0, in_order=True, **options):
        self.seed = seed
        self.in_order = in_order
        self.rng = random.Random(seed)
        self.redis = redis
        self.seconds = seconds  # the longest life, where the mode does not want more
        self.ledgers = [Ledger(i) for i in range(writers)]
        self.lost = None  # LostWrites of the life under way
        self.ended = None  # how the last one ended, until that is checked
        self.rounds = self.answered = self.undone = 0
        self.figures = dict.fromkeys(FIGURES, 0)
        if redis:
            self.server = RedisAof(auto_aof_rewrite_percentage=0, **options)
        else:
            options = {"maxmemory": "3mb", "disk_max_size": "1gb", "threads": 2, "disk_stall_ms": 60000, **options}
            self.server = harness.Tiercel(**options)

    def round(self, mode, shim=False, broken=False, judge=None):
        """One life of the server: it starts, what the last one left is checked, clients write, it is killed.
        broken: nothing is synced at all; judge: the mode to judge it by, if that is another."""
        self.rounds += 1
        sync_us = self.rng.choice((None, 5000, 30000)) if shim else None
        share = 1.0 if self.redis else self.rng.choice((1.0, 1.0, 0.5)) if shim else 0
        self.lost = LostWrites(self.server.dir, sync_us, broken,
                               shutil.which("redis-server") if self.redis else None) if shim else None
        try:
            self._configure(mode)
            if self.rounds > 1 and self.rng.random() < 0.15:
                self._fall(share)
            self.server.start()
            self._check()
            self.ended = self._live(mode)
            self._undo(share)
        finally:
            if self.lost:
                self.lost.remove()
        self.ended["mode"] = judge or mode
        self.ended["what"] = "round %d, %s%s" % (self.rounds, mode, ", shim (sync %s us, %.0f %% lost)" % (
            sync_us or 0, share * 100) if shim else "")
        return self.ended["what"]

    def finish(self):
        """The last check."""
        self.lost = None
        self._configure(self.ended["mode"])
        self.server.start()
        self._check()
        self.server.close()

    def remove(self):
        if self.server.alive():
            self.server.kill9()
        self.server.remove()

    # -- parts of a life

    def _configure(self, mode):
        only, sync = {"always": ("yes", "always"), "everysec": ("yes", "everysec")}.get(mode, ("no", "always"))
        self.server.options.update(appendonly=only, appendfsync=sync)
        self.server.env = self.lost.env if self.lost else {}

    def _undo(self, share):
        if self.lost:
            self.undone += self.lost.undo(self.rng, share)

    def _fall(self, share):
        """Killed while it starts."""
        self.server.start(wait=False)
        time.sleep(self.rng.random() * 0.15)
        self.server.kill9()
        self._undo(share)

    def _check(self):
        """What is there is what may be."""
        if self.ended is None:
            return
        e, self.ended = self.ended, None
        seen, problems = ledger.observe(self.server.port, self.ledgers)
        for one in self.ledgers:
            problems += one.settle(seen, e["mode"], e["killed"], e["wall_ms"], e["saved_at"], self.in_order)
        problems += ["set aside: %s" % p.name for p in self.server.dir.glob("*.bad-*")]
        self._raise(e["what"], problems)

    def _raise(self, what, problems):
        if problems:
            raise Wrong("seed %d, %s: %d problems\n%s" % (self.seed, what, len(problems), "\n".join(problems[:12])))

    def _live(self, mode):
        """Clients write until the end. Returns how it ended."""
        least, most = (1.7, max(2.5, self.seconds)) if mode == "everysec" else (0.2, self.seconds)
        until = time.monotonic() + self.rng.uniform(least, most)
        done = threading.Event()
        writers = [Writer(one, self.server.port, self.rng.random(), done, mode) for one in self.ledgers]
        for w in writers:
            w.start()
        e = {"saved_at": None}
        if mode in ("switch", "save"):
            time.sleep(self.rng.uniform(0.1, 0.4))
            e["saved_at"] = self._switch() if mode == "switch" else self._save()
            until = max(until, time.monotonic() + self.rng.uniform(0, 0.3))
        else:
            time.sleep((until - time.monotonic()) / 2)
        self._take_figures()
        while time.monotonic() < until and not any(w.problem for w in writers):
            time.sleep(max(0, min(0.05, until - time.monotonic())))
        if self.lost and mode != "stop" and self.rng.random() < 0.5:
            self.lost.wait_unsynced(0.3)
        problems = [] if self.server.alive() else ["the server ended by itself"]
        if mode == "stop":
            done.set()
            for w in writers:
                w.join(scaled(30))
        e["killed"], e["wall_ms"] = time.monotonic(), time.time() * 1000
        if mode == "stop":
            self.server.stop(signal.SIGTERM)
        elif not problems:
            self.server.kill9()
        done.set()
        for w in writers:
            w.join(scaled(30))
        self.answered += sum(w.answered for w in writers)
        self._raise("round %d, %s" % (self.rounds, mode), problems + [w.problem for w in writers if w.problem])
        return e

    def _switch(self):
        """Turns appendonly on; what was written before is on disk, too, when it says that it is done."""
        with self.server.raw() as c:
            for args in (("appendfsync", "always"), ("appendonly", "yes")):
                reply = c.call("CONFIG", "SET", *args)
                assert reply == b"+OK\r\n", reply
        wait_until(lambda: self.server.info("persistence")["aof_rewrite_in_progress"] == 0, what="appendonly is on")

    def _save(self):
        began = time.monotonic()
        with self.server.raw(timeout=scaled(60)) as c:
            if self.rng.random() < 0.5:
                reply = c.call("SAVE")
                assert reply == b"+OK\r\n", reply
            else:
                reply = c.call("BGSAVE")
                assert reply == b"+Background saving started\r\n", reply
                wait_until(lambda: self.server.info("persistence")["rdb_bgsave_in_progress"] == 0, what="BGSAVE ends")
                assert self.server.info("persistence")["rdb_last_bgsave_status"] == "ok"
        return began

    def _take_figures(self):
        if not self.redis:
            tiers = self.server.tiers()
            for name in FIGURES:
                self.figures[name] += tiers.get(name, 0)

    def summary(self):
        return "seed %d: %d rounds, %d requests answered, %d key states went with a kill, %d kept, %d KB undone, %s" % (
            self.seed, self.rounds, self.answered, sum(w.lost for w in self.ledgers),
            sum(w.kept for w in self.ledgers), self.undone >> 10,
            ", ".join("%s %d" % (k.replace("tier_", ""), v) for k, v in self.figures.items()))


def run(rounds, seed, redis=False, modes=None, verbose=True, **options):
    """Rounds over all modes. Returns the Crash; it is removed, and kept under `keep` when it failed."""
    keep = options.pop("keep", None)
    crash = Crash(seed, redis=redis, **options)
    if redis and not modes:
        modes = ["always", "everysec"]
    cycle = [c for c in CYCLE + MORE if not modes or c[0] in modes]
    try:
        for i in range(rounds):
            what = crash.round(*cycle[i % len(cycle)])
            if verbose:
                print("%s: %d answered so far" % (what, crash.answered), flush=True)
        crash.finish()
    except BaseException:
        print(crash.summary())
        print(crash.server.log_tail())
        if keep:
            shutil.copytree(crash.server.home, pathlib.Path(keep) / ("seed-%d" % seed), dirs_exist_ok=True)
        raise
    finally:
        crash.remove()
    return crash


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--seconds", type=float, default=2.0, help="the longest round, where the mode wants no more")
    p.add_argument("--redis", action="store_true", help="redis-server with an append-only file instead")
    p.add_argument("--modes", help="some of always,everysec,no,stop,switch,save")
    p.add_argument("--any-order", action="store_true", help="let later requests be kept where earlier ones are not")
    p.add_argument("--keep", help="where the directory of a failed run is kept")
    p.add_argument("options", nargs="*", help="of the server: name=value")
    a = p.parse_args()
    modes = a.modes.split(",") if a.modes else None
    options = {k.replace("-", "_"): v for k, v in (o.split("=", 1) for o in a.options)}
    print(run(a.rounds, a.seed, a.redis, modes, keep=a.keep, seconds=a.seconds,
              in_order=not a.any_order, **options).summary())


if __name__ == "__main__":
    main()
