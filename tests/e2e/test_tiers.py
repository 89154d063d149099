"""Memory and disk together: nothing is lost, mixed up or torn, and memory stays within its bounds."""
import hashlib
import os
import random
import threading

import pytest

from harness import scaled, wait_until

MB = 1 << 20


def value_of(key, version=0, size=1024):
    """Bytes that do not compress and that tell whose they are."""
    seed = b"%s/%d" % (key if isinstance(key, bytes) else key.encode(), version)
    return hashlib.shake_128(seed).digest(size)


def write(t, keys, version=0, size=1024):
    c = t.client()
    for start in range(0, len(keys), 500):
        p = c.pipeline(transaction=False)
        for k in keys[start:start + 500]:
            p.set(k, value_of(k, version, size))
        replies = p.execute(raise_on_error=False)  # its exception would show 500 values
        assert set(map(str, replies)) == {"True"}, set(map(str, replies))


def read_wrong(t, keys, version=0, size=1024):
    """Those keys that do not have their value."""
    c = t.client()
    wrong = []
    for start in range(0, len(keys), 500):
        batch = keys[start:start + 500]
        for k, got in zip(batch, c.mget(batch)):
            if got != value_of(k, version, size):
                wrong.append(k)
    return wrong


def check_all(t, keys):
    c = t.client()
    assert c.dbsize() == len(keys)
    found = list(c.scan_iter(count=1000))
    assert len(found) == len(keys) and set(found) == {k.encode() for k in keys}
    wrong = read_wrong(t, keys)
    assert not wrong, "%d keys, such as %s" % (len(wrong), wrong[:3])


@pytest.mark.heavy
@pytest.mark.timeout(180)
def test_64_mb_into_16_mb(tiercel):
    t = tiercel(maxmemory="16mb", threads=2)
    keys = ["key:%d" % i for i in range(65536)]
    write(t, keys)
    assert t.rss_anon() < 40 * MB
    check_all(t, keys)
    assert t.rss_anon() < 40 * MB
    order = keys[:]
    random.Random(1).shuffle(order)
    assert not read_wrong(t, order[:10000])
    assert t.info("stats")["evicted_keys"] == 0, "with a disk tier, eviction is demotion"
    t.restart()
    check_all(t, keys)
    assert t.rss_anon() < 40 * MB


@pytest.mark.timeout(120)
def test_a_small_memory_and_all_kinds_of_use(tiercel):
    """Overwrites, deletions and counters whose keys move between the tiers all the time."""
    t = tiercel(maxmemory="2mb", threads=2)
    rng = random.Random(7)
    c = t.client()
    model = {}
    for _ in range(60):
        p = c.pipeline(transaction=False)
        expected = []
        for _ in range(200):
            k = "k:%d" % rng.randrange(5000)
            op = rng.random()
            if op < 0.5:
                model[k] = value_of(k, rng.randrange(1000), rng.choice((10, 900, 1500)))
                p.set(k, model[k])
                expected.append(True)
            elif op < 0.6:
                p.delete(k)
                expected.append(1 if model.pop(k, None) is not None else 0)
            elif op < 0.7:
                model[k] = model.get(k, b"") + b"tail"
                p.append(k, b"tail")
                expected.append(len(model[k]))
            else:
                p.get(k)
                expected.append(model.get(k))
        assert p.execute() == expected
    assert c.dbsize() == len(model)
    assert set(c.scan_iter(count=500)) == {k.encode() for k in model}
    t.restart()
    keys = sorted(model)
    assert t.client().mget(keys) == [model[k] for k in keys]
    assert t.client().dbsize() == len(model)


@pytest.mark.sequential
def test_expiry_is_kept_on_disk(tiercel):
    t = tiercel(maxmemory="2mb")
    c = t.client()
    keys = ["k:%d" % i for i in range(4000)]
    p = c.pipeline(transaction=False)
    for i, k in enumerate(keys):
        p.set(k, value_of(k), px=int(scaled(1500)) if i % 2 else 1000000)
    p.execute()
    assert c.dbsize() == 4000
    t.restart()
    c = t.client()
    assert 900 < c.ttl("k:0") <= 1000
    wait_until(lambda: c.get(keys[-1]) is None, what="the last one expires")
    assert sum(v is not None for v in c.mget(keys[1::2])) == 0
    assert not read_wrong(t, keys[0::2])
    assert c.dbsize() == 2000


def test_a_promoted_copy_is_dropped_without_a_write(tiercel):
    t = tiercel(maxmemory="2mb")
    keys = ["k:%d" % i for i in range(6000)]
    write(t, keys)
    assert not read_wrong(t, keys)
    before = t.tiers()
    assert not read_wrong(t, keys)
    after = t.tiers()
    assert after["tier_promotions"] > before["tier_promotions"]
    demoted = after["tier_demotions"] - before["tier_demotions"]
    assert demoted < (after["tier_promotions"] - before["tier_promotions"]) / 4


def test_mget_larger_than_memory_holds(tiercel):
    t = tiercel(maxmemory="2mb", inflight_max_bytes="64kb", threads=2)
    keys = ["k:%d" % i for i in range(300)]
    write(t, keys, size=20000)
    assert t.client().mget(keys[:100]) == [value_of(k, 0, 20000) for k in keys[:100]]
    assert t.client().mget(keys) == [value_of(k, 0, 20000) for k in keys]


def test_lists_move_between_tiers(tiercel):
    t = tiercel(maxmemory="2mb")
    c = t.client()
    for i in range(300):
        c.rpush("l:%d" % i, *[value_of("e", j, 100) for j in range(i % 40 + 1)])
    write(t, ["filler:%d" % i for i in range(5000)])
    for i in range(300):
        assert c.lrange("l:%d" % i, 0, -1) == [value_of("e", j, 100) for j in range(i % 40 + 1)]
        c.lpush("l:%d" % i, "head")
    t.restart()
    c = t.client()
    assert c.lrange("l:39", 0, 1) == [b"head", value_of("e", 0, 100)]
    assert c.llen("l:7") == 9


@pytest.mark.timeout(120)
def test_kill_in_the_middle_of_writes(tiercel):
    """What is read after kill -9 is a value that was written to that key, never torn, never another's."""
    t = tiercel(maxmemory="4mb", threads=2)
    rng = random.Random(3)
    for life in range(3):
        stop = threading.Event()

        def work(seed, life=life):
            r = random.Random(seed)
            try:
                c = t.client()
                while not stop.is_set():
                    p = c.pipeline(transaction=False)
                    for _ in range(100):
                        i = r.randrange(20000)
                        p.set("k:%d" % i, value_of("k:%d" % i, life, 200 + i % 1500))
                        if r.random() < 0.1:
                            p.delete("k:%d" % r.randrange(20000))
                    p.execute()
            except Exception:  # the server was killed
                pass

        threads = [threading.Thread(target=work, args=(life * 10 + n,)) for n in range(3)]
        for th in threads:
            th.start()
        wait_until(lambda: t.tiers()["tier_demotions"] > 3000 * (1 if life == 0 else 0.3), timeout=30,
                   what="keys reach the disk")
        threading.Event().wait(rng.random() * 0.3)
        t.kill9()
        stop.set()
        for th in threads:
            th.join()
        t.start()
        c = t.client()
        found = list(c.scan_iter(count=1000))
        assert len(found) > 500 and len(found) == len(set(found)) == c.dbsize()
        for k in found:
            i = int(k[2:])
            got = c.get(k)
            want = [value_of(k, version, 200 + i % 1500) for version in range(life + 1)]
            assert got in want, "%s has a value of nobody: %r" % (k, got and got[:40])


@pytest.mark.sequential
@pytest.mark.timeout(120)
def test_disk_max_size_drops_the_oldest(tiercel):
    t = tiercel(maxmemory="4mb", disk_max_size="16mb")
    keys = ["k:%d" % i for i in range(40000)]
    write(t, keys)
    c = t.client()
    wait_until(lambda: t.info("stats")["evicted_keys"] > 10000, what="the oldest are dropped")
    size = sum(os.path.getsize(os.path.join(t.dir, f)) for f in os.listdir(t.dir))
    assert size < 24 * MB
    wait_until(lambda: len(list(c.scan_iter(count=1000))) == c.dbsize(), what="DBSIZE and SCAN agree")
    present = list(c.scan_iter(count=1000))
    assert not read_wrong(t, keys[-3000:])
    wrong = [k for k in present if c.get(k) not in (value_of(k), None)]
    assert not wrong


def test_no_disk_evicts(tiercel):
    t = tiercel(maxmemory="2mb", disk=False)
    write(t, ["k:%d" % i for i in range(5000)])
    assert t.info("stats")["evicted_keys"] > 2000
    wait_until(lambda: t.client().dbsize() == len(t.client().keys()), what="eviction to end")
    assert t.tiers()["tier_disk_keys"] == 0


def test_restart_is_quick_to_answer(tiercel):
    t = tiercel(maxmemory="4mb")
    write(t, ["k:%d" % i for i in range(20000)])
    assert t.stop() < scaled(10)
    t.start()
    assert t.client().dbsize() == 20000
