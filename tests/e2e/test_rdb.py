"""Values travel between Redis and this server, both ways: DUMP and RESTORE, and a dump.rdb at the first start."""
import pathlib
import random

import pytest

from harness import Redis, Tiercel

pytestmark = pytest.mark.sequential

SIZES = (1, 7, 200, 3000)


def populate(r):
    """Every type in every encoding, under names that say which."""
    rng = random.Random(5)
    member = lambda i: rng.choice((b"%d" % i, b"member:%d" % i, rng.randbytes(rng.randrange(1, 90)) + b"%d" % i))
    for name, value in (("int", 77), ("empty", ""), ("text", "falcon"), ("raw", rng.randbytes(5000)),
                        ("packed", "price=1;" * 900), ("number", "12345678901234567890"), ("float", "3.5")):
        r.set("string:" + name, value)
    r.setrange("string:modified", 10, "x")
    r.setbit("string:bits", 1000, 1)
    r.pfadd("string:hll", *range(50))
    r.pfadd("string:hll:dense", *range(20000))
    for n in SIZES:
        r.rpush("list:%d" % n, *[member(i) for i in range(n)])
        r.sadd("set:int:%d" % n, *[rng.randrange(-10 ** rng.randrange(1, 19), 10 ** 18) for _ in range(n)])
        r.sadd("set:%d" % n, *[member(i) for i in range(n)])
        r.hset("hash:%d" % n, mapping={member(i): member(i) for i in range(n)})
        r.zadd("zset:%d" % n, {member(i): rng.choice((i, i / 3, -i, 1e300, 5)) for i in range(n)})
        for i in range(n):
            r.xadd("stream:%d" % n, {b"f%d" % (i % 3): member(i), "same": i}, id="%d-%d" % (i // 5 + 1, i % 5 + 1))
    r.rpush("list:large", b"x" * 100000, "small", b"y" * 9000)
    r.zadd("zset:odd", {"inf": float("inf"), "-inf": float("-inf"), "-0": -0.0, "third": 1 / 3})
    r.sadd("set:16bit", 1, -2, 300)
    r.xgroup_create("stream:200", "g", "0")
    r.xreadgroup("g", "alice", {"stream:200": ">"}, count=20)
    r.xreadgroup("g", "bob", {"stream:200": ">"}, count=3)
    r.xack("stream:200", "g", "1-2", "2-1")
    r.xdel("stream:200", "1-3", "9-1")
    r.xgroup_create("stream:7", "empty", "$")
    r.xtrim("stream:3000", maxlen=1000)


def contents(r, key):
    kind = r.type(key)
    if kind == b"string":
        return r.get(key)
    if kind == b"list":
        return r.lrange(key, 0, -1)
    if kind == b"set":
        return sorted(r.smembers(key))
    if kind == b"hash":
        return r.hgetall(key)
    if kind == b"zset":
        return r.zrange(key, 0, -1, withscores=True)
    full = r.execute_command("XINFO", "STREAM", key, "FULL", "COUNT", 0)
    names = (b"entries", b"last-generated-id", b"max-deleted-entry-id", b"entries-added", "recorded-first-entry-id",
             b"groups", b"length")
    pairs = dict(zip(full[::2], full[1::2])) if isinstance(full, list) else full
    return [_without_times(pairs.get(n)) for n in names]


def _without_times(value):
    """When consumers were seen, and deliveries made, is about the same."""
    if isinstance(value, list):
        out = [_without_times(v) for v in value]
        return [v for i, v in enumerate(out) if i == 0 or out[i - 1] not in (b"seen-time", b"active-time")]
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in (b"seen-time", b"active-time")}
    return None if isinstance(value, int) and value > 1600000000000 else value


def same(a, b):
    keys = sorted(a.keys())
    assert keys == sorted(b.keys())
    for key in keys:
        assert contents(a, key) == contents(b, key), key
        if a.type(key) != b"string":  # one that was changed in place is raw only there
            assert a.object("encoding", key) == b.object("encoding", key), key


@pytest.fixture(params=["to redis", "from redis"])
def pair(request, tiercel, redis_server):
    """(who dumps, who restores)"""
    ours, theirs = tiercel(threads=2, maxmemory="4mb").client(), redis_server().client()
    return (ours, theirs) if request.param == "to redis" else (theirs, ours)


def test_dump_and_restore(pair):
    source, target = pair
    populate(source)
    for key in source.keys():
        target.restore(key, 0, source.dump(key))
    same(source, target)
    for limit in ("hash-max-listpack-entries", "zset-max-listpack-entries", "set-max-intset-entries"):
        for r in pair:
            r.config_set(limit, 3)
    for key in source.keys():
        target.restore("again:" + key.decode("latin-1"), 0, source.dump(key))
        source.restore("again:" + key.decode("latin-1"), 0, target.dump(key))
    same(source, target)


def test_expiry_and_errors(pair):
    source, target = pair
    for r in pair:
        r.set("k", "v")
    for payload in [r.dump("k") for r in pair]:
        for args in ((0, payload), (-1, payload), ("x", payload), (0, payload[:-1]), (0, b""), (0, payload, "REPLACE", "FREQ", 256),
                     (0, payload, "IDLETIME", -1), (0, payload, "NONSENSE"), (0, b"\x01" + payload[1:]),
                     (0, payload, "IDLETIME", 1, "FREQ", 1)):
            assert target_says(target, args) == target_says(source, args)
    target.restore("soon", 5000, payload)
    assert 0 < target.pttl("soon") <= 5000
    target.restore("k", 1, payload, replace=True, absttl=True)
    assert not target.exists("k")


def target_says(r, args):
    try:
        return r.execute_command("RESTORE", "k", *args)
    except Exception as e:  # the text of the error
        return str(e)


def saved(r):
    r.save()
    return pathlib.Path(r.config_get("dir")["dir"], "dump.rdb").read_bytes()


def test_first_start_loads_a_dump():
    redis = Redis()
    ours = Tiercel(threads=2, maxmemory="4mb")
    try:
        redis.start()
        r = redis.client()
        populate(r)
        r.set("gone", "x", px=1)
        r.set("stays", "x", ex=1000)
        other = redis.client(db=3)
        other.set("in three", "y")
        ours.dir.mkdir(exist_ok=True)
        (ours.dir / "dump.rdb").write_bytes(saved(r))
        ours.start()
        t = ours.client()
        same(r, t)
        assert 990 < t.ttl("stays") <= 1000 and ours.client(db=3).get("in three") == b"y"
        t.delete("string:int")
        ours.stop()
        ours.start()  # it has keys of its own by now
        assert not ours.client().exists("string:int") and ours.client().get("string:text") == b"falcon"
        ours.stop()
    finally:
        redis.remove()
        ours.remove()


@pytest.mark.parametrize("damage", ["cut", "flipped", "head", "newer"])
def test_a_damaged_dump_is_refused(damage):
    redis = Redis()
    ours = Tiercel()
    try:
        redis.start()
        populate(redis.client())
        data = bytearray(saved(redis.client()))
        if damage == "cut":
            data = data[:len(data) // 2]
        elif damage == "flipped":
            data[len(data) // 2] ^= 1
        elif damage == "head":
            data[0] = 0
        else:
            data[5:9] = b"0099"
        ours.dir.mkdir(exist_ok=True)
        (ours.dir / "dump.rdb").write_bytes(data)
        ours.start(wait=False)
        assert ours.process.wait(timeout=20) != 0
        assert "dump.rdb" in ours.log_tail()
    finally:
        redis.remove()
        ours.remove()
