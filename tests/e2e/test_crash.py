"""What is left after kill -9 and after power failures (crash.py), and that its checks notice what they are for."""
import os
import time

import pytest

import crash
from ledger import Key, Ledger, Op, Seen, State, Wrong, blob

SEED = int(os.environ.get("CRASH_SEED", time.time()))
ROUNDS = int(os.environ.get("CRASH_ROUNDS", 200))
KEEP = os.environ.get("CRASH_KEEP")  # a directory for what a failed run left


def rounds(n, seed=SEED, **options):
    done = crash.run(n, seed, keep=KEEP, **options)
    print(done.summary())
    assert done.answered > n * 20
    return done


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_ten_rounds():
    done = rounds(10, seconds=0.8)
    moved = [done.figures["tier_" + name] for name in ("demotions", "promotions", "clean_drops", "disk_commits")]
    assert min(moved) > 50, "a tier was not used: %s" % done.figures


@pytest.mark.sanitize
@pytest.mark.timeout(60)
def test_four_rounds_sanitized():
    rounds(4, seconds=0.8)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_rounds():
    rounds(ROUNDS // 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_rounds_in_little_room():
    """The quota is so small that blocks are cleaned all the time, and nothing may be dropped for it."""
    rounds(ROUNDS - ROUNDS // 2, SEED + 1, disk_max_size="96mb", maxmemory_policy="noeviction")


# -- the checks are checked


@pytest.mark.heavy
def test_a_sync_that_does_nothing_is_noticed():
    c = crash.Crash(1, seconds=0.5)
    try:
        c.round("always", shim=True, broken=True)
        with pytest.raises(AssertionError, match="lost|old value|set aside"):
            c.finish()
    finally:
        c.remove()


@pytest.mark.heavy
@pytest.mark.parametrize("redis", [False, True])
def test_an_early_answer_is_noticed(redis):
    """everysec answers before it has synced: as `always` that must not pass."""
    c = crash.Crash(2, redis=redis)
    try:
        c.round("everysec", shim=True, judge="always")
        with pytest.raises(Wrong, match="lost|old value"):
            c.finish()
    finally:
        c.remove()


@pytest.mark.heavy
def test_redis_passes():
    """A real redis-server with an append-only file keeps all of it."""
    done = rounds(3, 4, redis=True, seconds=0.8)
    assert done.undone > 1000


class Told:
    """A ledger of a few keys, told what was done: do(seconds before the kill or None, (key, state)...)."""

    killed = 1000.0

    def __init__(self):
        self.ledger = Ledger(0)
        self.ledger.keys = {}
        self.a, self.b = (self.ledger.add(0, p, 1)[0] for p in (b"a", b"b"))

    def value(self, key, seq, size=100):
        return State(((key.label, seq, size),))

    def do(self, ago, *changes):
        op = Op(len(self.ledger.ops))
        self.ledger.ops.append(op)
        op.sent = self.killed - (ago or 0) - 0.001
        op.acked = None if ago is None else self.killed - ago
        for key, state in changes:
            key.history.append((op, state))
            key.now = state

    def problems(self, mode, a, b, **kw):
        seen = {(k.db, k.name): Seen(s.value() if isinstance(s, State) else s, -2 if s is None else -1, 1e6, 1e6)
                for k, s in ((self.a, a), (self.b, b))}
        return " ".join(self.ledger.settle(seen, mode, self.killed, 1e6, **kw))


def told():
    t = Told()
    t.a1, t.a2, t.a3 = (t.value(t.a, i) for i in (1, 2, 3))
    t.b1, t.b2, t.b3 = (t.value(t.b, i) for i in (4, 5, 6))
    t.do(3.0, (t.a, t.a1))
    t.do(2.0, (t.b, t.b1))
    t.do(1.0, (t.a, t.a2))
    t.do(0.3, (t.b, t.b2))
    t.do(None, (t.a, t.a3), (t.b, t.b3))  # a transaction that was not answered
    return t


def left(t, mode, states):
    """problems() when these are left, such as "a2 b1" ("-" is nothing)."""
    a, b = (None if name == "-" else getattr(t, name) for name in states.split())
    return t.problems(mode, a, b)


@pytest.mark.parametrize("mode, states", [
    ("always", "a2 b2"), ("always", "a3 b3"),
    ("everysec", "a1 b1"), ("everysec", "a2 b1"), ("everysec", "a2 b2"), ("everysec", "a3 b3"),
    ("no", "a2 b1"), ("no", "a2 b2"), ("no", "a3 b3"), ("no", "- -"), ("no", "- b1"), ("no", "a3 b1"),
])
def test_what_may_be_there(mode, states):
    assert left(told(), mode, states) == ""


@pytest.mark.parametrize("mode, states, why", [
    ("always", "a1 b2", "an old value is back"),
    ("always", "a2 -", "lost"),
    ("always", "a2 b3", "is there in part"),
    ("everysec", "a1 -", "lost"),
    ("everysec", "- b1", "lost"),
    ("everysec", "a1 b3", "is there in part"),
    ("everysec", "a1 b2", "kept out of order"),
    ("no", "a1 b2", "an old value is back"),
])
def test_what_may_not_be_there(mode, states, why):
    assert why in left(told(), mode, states)


def test_values_that_are_none():
    for make in (lambda v: v[:-1], lambda v: v[:50] + b"x" + v[51:], lambda v: blob(b"0/b0", 2, 100),
                 lambda v: v + b"x"):
        for mode in ("always", "no"):
            t = told()
            assert "never was so" in t.problems(mode, make(t.a2.value()), t.b2)


def test_what_save_promises():
    for name, why in (("a2", None), (None, "lost"), ("a1", "an old value is back")):
        t = Told()
        t.a1, t.a2 = (t.value(t.a, i) for i in (1, 2))
        t.do(0.3, (t.a, t.a1))
        t.do(0.2, (t.a, t.a2))
        problems = t.problems("save", name and getattr(t, name), None, saved_at=t.killed - 0.1)
        assert problems == "" if why is None else why in problems


def test_expiry_is_judged():
    key = Key(0, b"e")
    state = State(((key.label, 1, 50),), expiry=[50000, 50010, 10000])
    for value, pttl, at, ok in ((state.value(), 5000, 45000, True), (state.value(), 9000, 45000, False),
                                (state.value(), -1, 45000, False), (None, -2, 45000, False), (None, -2, 50005, True),
                                (None, -2, 90000, True), (state.value(), 10, 90000, False)):
        assert state.matches(Seen(value, pttl, at, at)) == ok, (value, pttl, at)
