"""Reads of what is on disk, many of them served on the loop itself: never a wrong, a foreign or an old value."""
import hashlib
import random
import threading
import time

import pytest

KEYS = 12000
CLIENTS = 4
EXPIRES_S = 0.2   # a key that got PEXPIRE 50 is gone by then


def name(k):
    return "k:%d" % k


def value_of(k, version):
    head = b"%d/%d/" % (k, version)
    size = 40 + (k * 7919 + version * 104729) % 2400
    return head + hashlib.shake_128(head).digest(size)


class Keys:
    """What each key must have. A key is changed by its owner only; version 0 = it does not exist."""

    def __init__(self):
        self.version = [0] * KEYS    # as acknowledged
        self.begun = [0] * KEYS      # changes sent
        self.ended = [0] * KEYS      # changes acknowledged
        self.gone_at = [0.0] * KEYS  # != 0: it expires
        self.next_version = 0

    def stable(self, k):
        if self.gone_at[k] and time.monotonic() > self.gone_at[k]:
            self.gone_at[k] = 0.0
            self.version[k] = 0
        return self.begun[k] == self.ended[k] and not self.gone_at[k]

    def value(self, k):
        return value_of(k, self.version[k]) if self.version[k] else None


class Client(threading.Thread):
    def __init__(self, t, keys, number, until):
        super().__init__()
        self.c = t.client()
        self.keys = keys
        self.number = number
        self.until = until
        self.rng = random.Random(number)
        self.reads = 0
        self.error = None

    def run(self):
        try:
            while time.monotonic() < self.until:
                self.step()
        except Exception as e:  # shown by the test
            self.error = e

    def mine(self):
        return self.rng.randrange(KEYS // CLIENTS) * CLIENTS + self.number

    def step(self):
        op = self.rng.random()
        if op < 0.55:
            self.read([self.rng.randrange(KEYS)], lambda ks: [self.c.get(name(ks[0]))])
        elif op < 0.75:
            self.read(self.rng.sample(range(KEYS), self.rng.choice((2, 5, 16, 30))),
                      lambda ks: self.c.mget([name(k) for k in ks]))
        elif op < 0.85:
            self.read(self.rng.sample(range(KEYS), 20), self.pipelined)
        else:
            self.change(self.mine())

    def pipelined(self, ks):
        p = self.c.pipeline(transaction=False)
        for k in ks:
            p.get(name(k))
        return p.execute()

    def read(self, ks, get):
        """Whoever reads a key that nobody was changing meanwhile must see what its owner has left there."""
        before = {k: self.keys.ended[k] for k in ks if self.keys.stable(k)}
        for k, got in zip(ks, get(ks)):
            self.reads += 1
            assert got is None or got.startswith(b"%d/" % k), "%s has another's value %r" % (name(k), got[:20])
            if got is not None:
                assert got == value_of(k, int(got.split(b"/", 2)[1])), "%s is torn" % name(k)
            if k in before and self.keys.stable(k) and self.keys.ended[k] == before[k]:
                want = self.keys.value(k)
                assert got == want, "%s: %r, not %r" % (name(k), got and got[:20], want and want[:20])

    def change(self, k):
        keys = self.keys
        if not keys.stable(k):
            return
        op = self.rng.random()
        keys.begun[k] += 1
        if op < 0.65:
            keys.next_version += 1
            version = keys.next_version
            self.c.set(name(k), value_of(k, version))
            keys.version[k] = version
        elif op < 0.8:
            assert self.c.delete(name(k)) == (keys.version[k] != 0)
            keys.version[k] = 0
        elif op < 0.9:
            assert self.c.expire(name(k), 1000) == (keys.version[k] != 0)
        else:
            assert self.c.pexpire(name(k), 50) == (keys.version[k] != 0)
            keys.gone_at[k] = time.monotonic() + EXPIRES_S
        keys.ended[k] += 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("appendonly", ["no", pytest.param("yes", marks=pytest.mark.twin)])
def test_no_wrong_value(tiercel, appendonly):
    t = tiercel(maxmemory="3mb", threads=2, appendonly=appendonly, compression="no")
    keys = Keys()
    c = t.client()
    for start in range(0, KEYS, 500):
        p = c.pipeline(transaction=False)
        for k in range(start, start + 500):
            keys.version[k] = 1
            p.set(name(k), value_of(k, 1))
        p.execute()
    keys.next_version = 1
    until = time.monotonic() + 3
    clients = [Client(t, keys, n, until) for n in range(CLIENTS)]
    for x in clients:
        x.start()
    for x in clients:
        x.join()
    for x in clients:
        if x.error:
            raise x.error
    assert sum(x.reads for x in clients) > 1000
    assert t.tiers()["tier_disk_inline_reads"] > 100
    time.sleep(EXPIRES_S)
    last = Client(t, keys, 0, 0)
    for start in range(0, KEYS, 500):
        last.read(list(range(start, start + 500)), last.pipelined)
    assert c.dbsize() == sum(v != 0 for v in keys.version)
