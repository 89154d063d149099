"""Ten sidecars on one upstream: what each keeps, and what the upstream tracks for all of them.

Redis forgets a tracked key when it is written, flushed or pushed out of the table by tracking-table-max-keys, and at no
other time: not when the copy is dropped, nor when the connection closes (measured with 7.0.15). So tracked-keys-max
bounds the copies here, and the table needs its own limit; what Redis pushes out comes as an invalidation.
"""
import pytest

from harness import parse, scaled, wait_until

SIDECARS, MOST, KEYS = 10, 1000, 20000
PER_ITEM = 128  # bytes of the table for a key and one connection that reads it


def value_of(i):
    return b"value %d" % i


def read_all(t, keys, batch=500):
    with t.raw(timeout=scaled(60)) as c:
        for first in range(0, keys, batch):
            replies = c.pipeline(*[("GET", "k:%d" % i) for i in range(first, first + batch)])
            assert [parse(r) for r in replies] == [value_of(i) for i in range(first, first + batch)]


def copies(t):
    tiers = t.tiers()
    return tiers["tier_memory_keys"] + tiers["tier_disk_keys"]


@pytest.mark.heavy
@pytest.mark.timeout(100)
def test_ten_sidecars(tiercel, redis_server):
    up = redis_server(tracking_table_max_keys=SIDECARS * MOST)
    p = up.client().pipeline(transaction=False)
    for i in range(KEYS):
        p.set("k:%d" % i, value_of(i))
    p.execute()
    sidecars = [tiercel(upstream=up, threads=1, tracked_keys_max=MOST, maxmemory="64mb") for _ in range(SIDECARS)]
    for t in sidecars:
        t.wait_tiers(tier_upstream_state="up")
    before = up.info("memory")["used_memory"]
    for t in sidecars:
        read_all(t, KEYS)
        wait_until(lambda: copies(t) <= MOST, what="copies past tracked-keys-max are dropped")
    stats = wait_until(lambda: up.info("stats")["tracking_total_keys"] <= SIDECARS * MOST and up.info("stats"),
                       what="the upstream's table is within its limit")
    grown = up.info("memory")["used_memory"] - before
    print("copies %s; the upstream tracks %d keys, %d items, %d KB more" % (
        [copies(t) for t in sidecars], stats["tracking_total_keys"], stats["tracking_total_items"], grown // 1024))
    assert stats["tracking_total_items"] <= SIDECARS * SIDECARS * MOST
    # The connections and their buffers, and an entry for each sidecar in each key at worst.
    assert grown <= (4 << 20) + SIDECARS * SIDECARS * MOST * PER_ITEM
    # What is still tracked is told of, and nobody keeps what is not.
    for i in range(KEYS - 300, KEYS):
        up.client().set("k:%d" % i, "new")
    for t in sidecars:
        with t.raw() as c:
            names = ["k:%d" % i for i in range(KEYS - 300, KEYS)]
            wait_until(lambda: c.ask("MGET", *names) == [b"new"] * 300, timeout=3, what="the new values")
