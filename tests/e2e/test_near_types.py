"""Near reads of all types: a part is asked for twice, then the whole value is here, and stays coherent."""
import time

import pytest
import redis

from harness import parse, wait_until
from proxy import seen, unseen

MAKE = {
    "h": [("HSET", "h", "f", "1", "g", "two", "n", "3.5")],
    "l": [("RPUSH", "l", "a", "b", "c", "b", "a")],
    "s": [("SADD", "s", "a", "b", "c"), ("SADD", "s2", "b", "c", "d")],
    "z": [("ZADD", "z", "1", "a", "2", "b", "3", "c"), ("ZADD", "z2", "5", "b", "6", "d")],
    "geo": [("GEOADD", "geo", "13.361389", "38.115556", "P", "15.087269", "37.502669", "C")],
    "x": [("XADD", "x", "1-1", "a", "1"), ("XADD", "x", "2-1", "b", "2", "c", "3"), ("XADD", "x", "3-1", "a", "4"),
          ("XDEL", "x", "2-1"), ("XGROUP", "CREATE", "x", "grp", "0")],
    "b": [("SET", "b", "foobar"), ("SET", "b2", "mynewtext"), ("SET", "n", "12345"), ("SET", "long", "0123456789" * 1000)],
}
READS = [
    "HGET h f", "HGET h none", "HMGET h f none g", "HGETALL h", "HLEN h", "HKEYS h", "HVALS h", "HEXISTS h g", "HSTRLEN h g",
    "HRANDFIELD h 10", "LRANGE l 0 -1", "LRANGE l 1 2", "LINDEX l -2", "LINDEX l 99", "LLEN l", "LPOS l b",
    "LPOS l a COUNT 0", "SISMEMBER s a", "SMISMEMBER s a q b", "SCARD s", "SINTERCARD 2 s s2", "SRANDMEMBER s 0",
    "ZSCORE z b", "ZMSCORE z a q", "ZCARD z", "ZCOUNT z (1 3", "ZLEXCOUNT z - +", "ZRANK z c", "ZREVRANK z c",
    "ZRANGE z 0 -1 WITHSCORES", "ZRANGE z 1 2 BYSCORE REV", "ZRANGE z 3 1 BYSCORE REV", "ZREVRANGE z 0 0",
    "ZRANGEBYSCORE z -inf +inf LIMIT 1 1", "ZREVRANGEBYSCORE z 3 2", "ZRANGEBYLEX z - +", "ZREVRANGEBYLEX z + -",
    "ZUNION 2 z z2 WITHSCORES", "ZINTER 2 z z2", "ZDIFF 2 z z2", "ZINTERCARD 2 z z2", "GEOPOS geo P q", "GEODIST geo P C km",
    "GEOHASH geo P", "GEOSEARCH geo FROMLONLAT 15 37 BYRADIUS 200 km ASC", "GEORADIUS_RO geo 15 37 200 km DESC WITHDIST",
    "GEORADIUSBYMEMBER_RO geo P 1000 km ASC", "XLEN x", "XRANGE x - +", "XREVRANGE x + - COUNT 1", "GETBIT b 7",
    "BITCOUNT b", "BITCOUNT long 1 -2", "BITPOS b 1", "BITFIELD_RO b GET u8 0", "LCS b b2", "LCS b b2 LEN", "EXISTS h l none",
    "TYPE h", "TYPE x", "TYPE none", "TTL h", "PTTL none", "EXPIRETIME h", "PEXPIRETIME z",
    # wrong types and bad arguments are the same errors, whoever says them
    "HGET l f", "LRANGE h 0 -1", "ZSCORE s a", "XLEN h", "GETBIT h 1", "LRANGE l x y", "ZRANGE z 0 -1 NONSENSE",
    "SINTERCARD 0 s", "LCS h l",
]
SORTED = ["SMEMBERS s", "SINTER s s2", "SUNION s s2", "SDIFF s s2", "SRANDMEMBER s 3", "ZRANDMEMBER z 3"]

pytestmark = pytest.mark.sequential


def raw(c, command):
    reply = parse(c.pipeline(command if isinstance(command, tuple) else tuple(command.split()))[0])
    return str(reply) if isinstance(reply, Exception) else reply


def fill(up):
    with up.raw() as c:
        for commands in MAKE.values():
            for command in commands:
                c.pipeline(command)


def kept(t, *keys):
    """Are there copies in memory?"""
    with t.raw() as c:
        for k in keys:
            found = parse(c.pipeline(("CACHE", "INSPECT", k))[0])
            if not found or found[3] != b"resident":
                return False
    return True


def bring(t, *reads, keys=None):
    """Reads until all keys are here."""
    keys = keys or [r.split()[1] for r in reads]
    with t.raw() as c:
        def all_here():
            for r in reads:
                raw(c, r)
            return kept(t, *keys)
        wait_until(all_here, what="copies of %s" % (keys,))


KEYS = ["h", "l", "s", "s2", "z", "z2", "geo", "x", "b", "b2", "n", "long"]


def bring_all(t):
    bring(t, *["TTL %s" % k for k in KEYS], keys=KEYS)


def test_every_read_is_answered_here_as_there(trio):
    up, wire, t = trio
    fill(up)
    bring_all(t)
    with t.raw() as c, up.raw() as direct:
        for key in ("none", "q"):
            for _ in range(3):
                raw(c, "TYPE " + key)
        wait_until(lambda: raw(c, "TYPE none") == "none")
        raw(c, "GET none")  # its absence is known
        wire.reset_counts()
        for command in READS:
            assert raw(c, command) == raw(direct, command), command
        for command in SORTED:
            assert sorted(raw(c, command)) == sorted(raw(direct, command)), command
        asked = wire.names.copy()
        assert not set(asked) - {"PING", "DUMP", "PTTL", "MEMORY", "TYPE", "EXISTS"}, asked
        assert asked["TYPE"] + asked["EXISTS"] + asked["PTTL"] <= 6, asked
    assert t.info("stats")["keyspace_hits"] > 50


def test_the_second_touch_fetches(trio):
    up, wire, t = trio
    up.client().hset("h", mapping={"f": "1"})
    c = t.client()
    assert c.hget("h", "f") == b"1"
    time.sleep(0.2)
    assert wire.count("DUMP") == 0 and wire.count("MEMORY") == 0
    assert c.hget("h", "f") == b"1"
    wait_until(lambda: kept(t, "h"))
    assert wire.count("DUMP") == 1 and wire.count("HGET") == 2
    assert [c.hget("h", "f") for _ in range(5)] == [b"1"] * 5
    assert wire.count("HGET") == 2


def test_a_miss_does_not_wait_for_the_fetch(trio):
    up, wire, t = trio
    up.client().hset("h", mapping={"f": "1"})
    c = t.client()
    wire.delay(down=1.0, where=unseen("HGET"))
    wire.delay(down=0.8, where=seen("CLIENT"))
    wire.delay(down=0.0, where=seen("HGET"))
    begin = time.monotonic()
    for _ in range(10):
        assert c.hget("h", "f") == b"1"
    assert time.monotonic() - begin < 0.7


def test_too_large_passes_through(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, upstream_max_object=2000)
    t.wait_tiers(tier_upstream_state="up")
    up.client().hset("big", mapping={"f%d" % i: "x" * 100 for i in range(100)})
    up.client().set("long", "y" * 5000)
    c = t.client()
    for _ in range(20):
        assert c.hget("big", "f7") == b"x" * 100
        assert c.get("long") == b"y" * 5000
    assert wire.count("HGET") == 20 and wire.count("MEMORY") == 1 and wire.count("DUMP") == 0
    assert not kept(t, "big") and not kept(t, "long")
    c.config_set("upstream-max-object", "1mb")
    for _ in range(70):
        c.hget("big", "f7")
    wait_until(lambda: kept(t, "big"))
    c.get("long")
    assert kept(t, "long")


def test_what_cannot_be_read_passes_through(tiercel, redis_server, proxy):
    up = redis_server()
    up.client().execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-dump", "-memory")
    wire = proxy(up)
    t = tiercel(upstream="redis://app:pw@127.0.0.1:%d" % wire.port)
    t.wait_tiers(tier_upstream_state="up")
    up.client().hset("h", mapping={"f": "1"})
    c = t.client()
    assert [c.hget("h", "f") for _ in range(30)] == [b"1"] * 30
    wait_until(lambda: t.tiers()["tier_upstream_unreadable"] == 1)
    assert [c.hget("h", "f") for _ in range(100)] == [b"1"] * 100
    assert t.tiers()["tier_upstream_unreadable"] == 1  # it is left alone for a while
    assert c.type("h") == b"hash" and c.exists("h") == 1


def test_without_memory_usage(tiercel, redis_server, proxy):
    up = redis_server()
    up.client().execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-memory")
    t = tiercel(upstream="redis://app:pw@127.0.0.1:%d" % up.port)
    t.wait_tiers(tier_upstream_state="up")
    up.client().rpush("l", "a")
    bring(t, "LLEN l")


@pytest.mark.heavy
def test_fields_that_expire_pass_through(tiercel, redis_server):
    """A hash that only a Redis 7.4 or another Tiercel has."""
    up = tiercel()
    up.call("HSET", "h", "f", "1", "g", "2")
    up.call("HPEXPIRE", "h", "4000", "FIELDS", "1", "g")
    t = tiercel(upstream="redis://127.0.0.1:%d" % up.port)
    t.wait_tiers(tier_upstream_state="up")
    c = t.client()
    wait_until(lambda: (c.hgetall("h"), t.tiers()["tier_upstream_unreadable"])[1] == 1)
    assert not kept(t, "h")
    wait_until(lambda: c.hgetall("h") == {b"f": b"1"}, timeout=8)


WRITES = [
    ("h", "HGET h f", "HSET h f 2", b"2"), ("h", "HLEN h", "HDEL h g", 2), ("h", "HGET h n", "HINCRBYFLOAT h n 1", b"4.5"),
    ("l", "LLEN l", "RPUSH l z", 6), ("l", "LINDEX l 0", "LPOP l", b"b"), ("l", "LRANGE l 0 0", "LSET l 0 q", [b"q"]),
    ("s", "SCARD s", "SADD s e", 4), ("s", "SISMEMBER s a", "SREM s a", 0), ("s", "SCARD s2", "SMOVE s2 s d", 2),
    ("z", "ZSCORE z a", "ZINCRBY z 5 a", b"6"), ("z", "ZCARD z", "ZPOPMIN z", 2), ("x", "XLEN x", "XADD x 9-1 a b", 3),
    ("b", "GETBIT b 7", "SETBIT b 7 1", 1), ("b", "BITCOUNT n", "APPEND n 1", 20), ("h", "TTL h", "EXPIRE h 100", 100),
    ("h", "EXISTS h", "DEL h", 0), ("z", "TYPE z", "RENAME z zz", "none"),
]


@pytest.mark.parametrize("own", [True, False])
def test_writes_of_elements(trio, own):
    up, wire, t = trio
    fill(up)
    others = [t.raw() for _ in range(4)]
    with t.raw() as c, up.raw() as direct:
        for key, read, write, want in WRITES:
            name = read.split()[1]
            bring(t, read, keys=[name])
            raw(c if own else direct, write)
            if own:  # at once, on every connection
                for o in others:
                    assert raw(o, read) == want, (read, write)
            else:
                wait_until(lambda: all(raw(o, read) == want for o in others), timeout=1.1, what=write)
    for o in others:
        o.close()


def test_expiry(trio):
    up, wire, t = trio
    u = up.client()
    u.hset("h", mapping={"f": "1"})
    u.pexpire("h", 1500)
    u.rpush("l", "a")
    u.expire("l", 100)
    bring(t, "HGET h f", "LLEN l")
    c = t.client()
    wire.reset_counts()
    assert 0 < c.pttl("h") <= 1500 and 90 < c.ttl("l") <= 100
    assert wire.count("PTTL") == 0
    time.sleep(1.6)
    assert c.hget("h", "f") is None and c.exists("h") == 0 and c.type("h") == b"none"


def test_absent_keys(trio):
    up, wire, t = trio
    c = t.client()
    wait_until(lambda: (c.hget("none", "f"), t.tiers()["tier_negative_hits"])[1] > 0)
    wire.reset_counts()
    assert c.hgetall("none") == {} and c.llen("none") == 0 and c.exists("none") == 0 and c.ttl("none") == -2
    assert wire.count("HGETALL") == wire.count("LLEN") == wire.count("EXISTS") == wire.count("TTL") == 0
    up.client().hset("none", "f", "now")
    wait_until(lambda: c.hget("none", "f") == b"now", timeout=1)


def test_to_disk_and_back(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2, maxmemory="6mb", maxmemory_policy="allkeys-lru")
    t.wait_tiers(tier_upstream_state="up")
    p = up.client().pipeline(transaction=False)
    n = 400
    for i in range(n):
        p.hset("h:%d" % i, mapping={"f%d" % j: "%d" % i + "x" * 50 for j in range(200)})
        p.rpush("l:%d" % i, *["%d.%d" % (i, j) for j in range(500)])
        p.zadd("z:%d" % i, {"m%d" % j: i + j for j in range(300)})
        p.sadd("s:%d" % i, *["%d-%d" % (i, j) for j in range(200)])
        p.xadd("x:%d" % i, {"a": "b" * 2000}, id="1-1")
    p.execute()
    c = t.client()

    def read(i):
        assert c.hget("h:%d" % i, "f7") == b"%d" % i + b"x" * 50
        assert c.lindex("l:%d" % i, 499) == b"%d.499" % i
        assert c.zscore("z:%d" % i, "m5") == i + 5
        assert c.sismember("s:%d" % i, "%d-199" % i)
        assert c.xlen("x:%d" % i) == 1

    for i in range(n):
        for _ in range(3):
            read(i)
    wait_until(lambda: t.tiers()["tier_demotions"] > 0)
    wire.reset_counts()
    for i in range(n):
        read(i)
    assert t.tiers()["tier_disk_hits"] > 100
    assert wire.count("HGET") + wire.count("LINDEX") + wire.count("ZSCORE") < 3 * n * 0.8
    # a foreign write drops what is on disk, too
    u = up.client()
    for i in range(n):
        u.hset("h:%d" % i, "f7", "new")
    time.sleep(1.1)
    assert all(c.hget("h:%d" % i, "f7") == b"new" for i in range(n))


def test_outage(trio):
    up, wire, t = trio
    fill(up)
    bring_all(t)
    c = t.client()
    wire.down()
    t.wait_tiers(tier_upstream_state="down")
    assert c.hget("h", "f") == b"1" and c.lrange("l", 0, 0) == [b"a"] and c.zscore("z", "a") == 1 and c.xlen("x") == 2
    assert c.type("s") == b"set" and c.exists("h") == 1
    assert t.tiers()["tier_stale_hits"] >= 6
    with pytest.raises(redis.ResponseError, match="^UPSTREAMDOWN|not reachable"):
        c.hget("unknown", "f")
    up.client().hset("h", "f", "changed")
    wire.up()
    t.wait_tiers(tier_upstream_state="up")
    assert c.hget("h", "f") == b"changed"  # suspects answer nothing while the upstream can be asked
    assert c.zscore("z", "a") == 1
    wait_until(lambda: kept(t, "z"))
    wire.reset_counts()
    assert c.zscore("z", "b") == 2 and wire.count("ZSCORE") == 0


def test_outage_without_stale_answers(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, stale_if_error_ms=0)
    t.wait_tiers(tier_upstream_state="up")
    fill(up)
    bring(t, "HGET h f")
    wire.down()
    t.wait_tiers(tier_upstream_state="down")
    with pytest.raises(redis.ResponseError, match="UPSTREAMDOWN|not reachable"):
        t.client().hget("h", "f")


def test_stale_answers_from_disk(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire)
    t.wait_tiers(tier_upstream_state="up")
    fill(up)
    bring_all(t)
    t.stop()
    wire.down()
    t.start()
    c = t.client()
    wait_until(lambda: c.hget("h", "f") == b"1")
    assert c.zrange("z", 0, -1) == [b"a", b"b", b"c"]


def test_order_in_a_pipeline(trio):
    """Reads of parts behind writes that are on their way see those."""
    up, wire, t = trio
    fill(up)
    bring_all(t)
    wire.delay(up=0.02, down=0.02)
    commands, want = [], []
    for i in range(30):
        commands += [("HGET", "h", "g"), ("HSET", "h", "f", i), ("HGET", "h", "f"), ("LLEN", "l"), ("GET", "n"),
                     ("RPUSH", "l", "more"), ("LLEN", "l"), ("TYPE", "h")]
        want += [b"two", 0, b"%d" % i, 5 + i, b"12345", 6 + i, 6 + i, "hash"]
    with t.raw() as c:
        begin = time.monotonic()
        assert [parse(r) for r in c.pipeline(*commands)] == want
        assert time.monotonic() - begin < 10


def test_pipeline_of_misses_costs_one_round_trip(trio):
    up, wire, t = trio
    p = up.client().pipeline(transaction=False)
    for i in range(500):
        p.hset("h:%d" % i, "f", i)
    p.execute()
    wire.delay(down=0.1)
    with t.raw() as c:
        begin = time.monotonic()
        got = c.pipeline(*[("HGET", "h:%d" % i, "f") for i in range(500)])
        assert time.monotonic() - begin < 10  # 500 round trips would be 50 s
    assert [parse(r) for r in got] == [b"%d" % i for i in range(500)]


def test_cursors_and_whole_keyspace_pass_through(trio):
    up, wire, t = trio
    fill(up)
    bring_all(t)
    wire.reset_counts()
    with t.raw() as c:
        for command in ("HSCAN h 0", "OBJECT ENCODING h", "MEMORY USAGE h", "DUMP h", "SORT l ALPHA", "XREAD STREAMS x 0",
                        "XINFO STREAM x", "XPENDING x grp", "TOUCH h", "DBSIZE"):
            raw(c, command)
            assert wire.count(command.split()[0]) == 1, command


def test_two_databases(trio):
    up, wire, t = trio
    up.client(db=0).hset("h", "f", "zero")
    up.client(db=3).hset("h", "f", "three")
    c0, c3 = t.client(db=0), t.client(db=3)
    for _ in range(4):
        assert c0.hget("h", "f") == b"zero" and c3.hget("h", "f") == b"three"
        time.sleep(0.05)
    wire.reset_counts()
    assert c0.hget("h", "f") == b"zero" and c3.hget("h", "f") == b"three" and wire.count("HGET") == 0
    c3.hset("h", "f", "3")
    assert c3.hget("h", "f") == b"3" and c0.hget("h", "f") == b"zero"
