"""SORT by keys that are on disk, in all the ways a command can be called; and what a lone node answers."""
import pytest

from harness import wait_until

N = 3000


def on_disk(tiercel, **options):
    t = tiercel(maxmemory="2mb", threads=2, **options)
    c = t.client()
    p = c.pipeline(transaction=False)
    for i in range(N):
        p.set("w:%d" % i, (i * 7919) % N)
        p.hset("h:%d" % i, mapping={"name": "n%d" % i, "pad": "x" * 900})
    p.rpush("l", *range(N))
    p.execute()
    assert t.tiers()["tier_disk_keys"] > N // 2
    return t, c


def by_weight(rows=N):
    return sorted(range(N), key=lambda i: (i * 7919) % N)[:rows]


@pytest.mark.sequential
@pytest.mark.timeout(120)
def test_weights_on_disk(tiercel):
    t, c = on_disk(tiercel)
    before = t.tiers()["tier_disk_reads"]
    want = [b"%d" % i for i in by_weight()]
    assert c.sort("l", by="w:*") == want
    assert c.sort("l", by="w:*", start=10, num=20, get=["#", "h:*->name", "w:*"]) == [
        x for i in by_weight(30)[10:] for x in (b"%d" % i, b"n%d" % i, b"%d" % ((i * 7919) % N))]
    assert c.sort("l", by="h:*->pad", alpha=True, start=0, num=3) is not None
    assert c.sort("l", by="w:*", get="h:*->name", store="out") == N
    assert c.lrange("out", 0, -1) == [b"n%d" % i for i in by_weight()]
    assert c.sort("l", by="w:*", desc=True)[0] == want[-1]
    assert t.tiers()["tier_disk_reads"] > before


@pytest.mark.timeout(120)
def test_in_transactions_and_scripts(tiercel):
    t, c = on_disk(tiercel)
    want = [b"n%d" % i for i in by_weight(50)]
    p = c.pipeline()
    p.set("w:0", N * 2)
    p.set("w:0", 0)
    p.sort("l", by="w:*", start=0, num=50, get="h:*->name")
    assert p.execute()[2] == want
    for before in ("", "redis.call('incr', 'runs') "):
        body = before + "return redis.call('sort', KEYS[1], 'by', 'w:*', 'limit', 0, 50, 'get', 'h:*->name')"
        assert c.eval(body, 1, "l") == want
        assert c.eval(body.replace("'sort'", "'sort_ro'"), 1, "l") == want


def test_a_list_that_is_stored_serves_who_waits_for_it(tiercel):
    t = tiercel()
    with t.raw() as waiting, t.raw() as c:
        c.call("SADD", "s", "3", "1", "2")
        waiting.send_command("BLPOP", "out", "0")
        wait_until(lambda: t.info("clients")["blocked_clients"] == 1, what="it waits")
        assert c.call("SORT", "s", "STORE", "out") == b":3\r\n" and c.call("LLEN", "out") == b":2\r\n"
        assert waiting.read_reply() == b"*2\r\n$3\r\nout\r\n$1\r\n1\r\n"
        assert c.call("SORT", "none", "STORE", "out") == b":0\r\n"
        assert c.call("EXISTS", "out") == b":0\r\n"


LONE = [("ROLE",), ("REPLICAOF", "no", "one"), ("SLAVEOF", "NO", "ONE"), ("REPLICAOF", "h", "x"), ("CLUSTER", "INFO"),
        ("CLUSTER", "NOPE"), ("CLUSTER", "HELP"), ("CLUSTER", "KEYSLOT", "a"), ("CLUSTER", "KEYSLOT"), ("ASKING",),
        ("READONLY",), ("READWRITE",), ("FAILOVER",), ("FAILOVER", "ABORT"), ("FAILOVER", "TO", "a"),
        ("FAILOVER", "TIMEOUT", "0"), ("FAILOVER", "TO", "a", "x"), ("FAILOVER", "FORCE", "TIMEOUT", "9"), ("MODULE", "LIST"),
        ("MODULE", "LOAD", "x"), ("MODULE", "NOPE"), ("RESTORE-ASKING", "k", "0", "x"), ("PFSELFTEST",),
        ("PFDEBUG", "ENCODING", "none"), ("PFDEBUG", "NOPE", "none")]


@pytest.mark.sequential
@pytest.mark.parametrize("proto", ["2", "3"])
def test_a_lone_node_answers_as_redis(tiercel, redis_server, proto):
    with tiercel().raw() as ours, redis_server().raw() as theirs:
        ours.call("HELLO", proto), theirs.call("HELLO", proto)
        for args in LONE:
            assert ours.call(*args) == theirs.call(*args), args


@pytest.mark.sequential
def test_restore_sets_what_eviction_knows(tiercel):
    for policy, option, what in (("allkeys-lru", "IDLETIME", "IDLETIME"), ("allkeys-lfu", "FREQ", "FREQ")):
        c = tiercel(maxmemory_policy=policy).client()
        c.set("a", "v")
        c.execute_command("RESTORE", "b", 0, c.dump("a"), option, 200)
        assert 200 <= c.object(what, "b") <= 201
