"""write=local: keys that live only in the sidecar. What they answer is compared by differential.py --local."""
import pytest

from harness import RespError, parse, wait_until

MIXED = b"write=local"


def sidecar(tiercel, up, rules=("l:*",), **options):
    args = [w for r in rules for w in ("--rule", r, "write=local")]
    t = tiercel(upstream=up, args=args, **options)
    t.wait_tiers(tier_upstream_state="up")
    return t


def refused(reply, text=MIXED):
    assert isinstance(reply, RespError) and text in str(reply).encode(), reply


def test_local_keys_never_reach_the_upstream_and_survive_what_drops_copies(tiercel, redis_server):
    up = redis_server()
    t = sidecar(tiercel, up, threads=2)
    theirs = up.client()
    theirs.set("l:a", "theirs")
    theirs.set("u:a", "theirs")
    with t.raw() as c:
        assert c.ask("GET", "l:a") is None, "the upstream's key of that name is not seen"
        assert c.ask("SET", "l:a", "ours") == "OK"
        assert c.ask("RPUSH", "l:list", "a", "b", "c") == 3
        assert c.ask("LPOP", "l:list") == b"a"
        assert c.ask("HSET", "l:h", "f", "v") == 1
        assert c.ask("SET", "l:gone", "x", "PX", "1") == "OK"
        assert c.ask("GET", "u:a") == b"theirs"
        assert sorted(theirs.keys("*")) == [b"l:a", b"u:a"], "nothing was sent"
        # a pipeline of both keeps its order
        assert [parse(r) for r in c.pipeline(("SET", "u:b", "1"), ("INCR", "l:n"), ("GET", "u:b"), ("INCR", "l:n"),
                                             ("GET", "l:n"), ("HGET", "l:h", "f"), ("APPEND", "u:b", "2"),
                                             ("MGET", "u:a", "u:b"))] == [
            "OK", 1, b"1", 2, b"2", b"v", 2, [b"theirs", b"12"]]
        theirs.flushall()
        assert t.call("CACHE", "FLUSH") == "OK"
        assert c.ask("MGET", "l:a", "l:n") == [b"ours", b"2"]
        assert c.ask("TYPE", "l:list") == "list" and c.ask("OBJECT", "ENCODING", "l:list") == b"quicklist"
        assert t.tiers()["tier_local_keys"] >= 4
        assert c.ask("RENAME", "l:a", "l:b") == "OK" and c.ask("COPY", "l:b", "l:c") == 1
        assert parse(c.pipeline(("DUMP", "l:c"))[0])[:1] == b"\x00"
        assert c.ask("EXPIRE", "l:c", "100") == 1 and c.ask("TTL", "l:c") in (99, 100)
        wait_until(lambda: c.ask("EXISTS", "l:gone") == 0, what="expiry")
        # a client that deletes everything means these too
        assert c.ask("FLUSHALL") == "OK"
        assert c.ask("EXISTS", "l:b", "l:n", "l:h") == 0
        assert c.ask("SET", "l:x", "1") == "OK" and t.call("CACHE", "FLUSH", "LOCAL") == "OK"
        assert c.ask("GET", "l:x") is None


def test_what_mixes_is_refused(tiercel, redis_server):
    up = redis_server()
    t = sidecar(tiercel, up)
    with t.raw() as c:
        for cmd in (("MSET", "l:a", "1", "u:a", "1"), ("RENAME", "l:a", "u:a"), ("MGET", "l:a", "u:a"), ("DEL", "u:a", "l:a"),
                    ("SUNIONSTORE", "u:s", "l:s"), ("EVAL", "return 1", "2", "l:a", "u:a"), ("BLPOP", "l:q", "u:q", "1"),
                    ("WATCH", "l:a", "u:a")):
            refused(c.ask(*cmd))
        assert up.client().keys("*") == []
        # a transaction is where its first command is
        assert [c.ask("MULTI"), c.ask("SET", "l:a", "1"), c.ask("INCR", "l:a")] == ["OK", "QUEUED", "QUEUED"]
        assert c.ask("EXEC") == ["OK", 2]
        assert [c.ask("MULTI"), c.ask("SET", "u:a", "1"), c.ask("GET", "u:a")] == ["OK", "QUEUED", "QUEUED"]
        assert c.ask("EXEC") == ["OK", b"1"]
        for first, other in (("l:a", "u:a"), ("u:a", "l:a")):
            assert [c.ask("MULTI"), c.ask("SET", first, "9")] == ["OK", "QUEUED"]
            refused(c.ask("SET", other, "9"))
            refused(c.ask("EXEC"), b"EXECABORT")
            assert c.ask("MGET", "u:a") == [b"1"] and c.ask("MGET", "l:a") == [b"2"]
        assert c.ask("MULTI") == "OK" and c.ask("EXEC") == []
        assert [c.ask("MULTI"), c.ask("UNWATCH"), c.ask("PING"), c.ask("GET", "u:a"), c.ask("EXEC")] == [
            "OK", "QUEUED", "QUEUED", "QUEUED", ["OK", "PONG", b"1"]]
        assert [c.ask("MULTI"), c.ask("GET", "l:a"), c.ask("UNWATCH"), c.ask("PING"), c.ask("EXEC")] == [
            "OK", "QUEUED", "QUEUED", "QUEUED", [b"2", "OK", "PONG"]]
        # watches
        assert c.ask("WATCH", "l:a") == "OK"
        refused(c.ask("WATCH", "u:a"))
        assert t.call("SET", "l:a", "5") == "OK"
        assert [c.ask("MULTI"), c.ask("GET", "l:a"), c.ask("EXEC")] == ["OK", "QUEUED", None]
        assert c.ask("WATCH", "u:a") == "OK"
        refused(c.ask("WATCH", "l:a"))
        assert c.ask("SET", "l:a", "6") == "OK", "outside of a transaction it is no matter"
        assert [c.ask("MULTI"), c.ask("GET", "u:a"), c.ask("EXEC")] == ["OK", "QUEUED", [b"1"]]
        # scripts
        assert c.ask("EVAL", "return redis.call('incr', KEYS[1])", "1", "l:a") == 7
        refused(c.ask("EVAL", "return redis.call('get', 'u:a')", "1", "l:a"))
        sha = c.ask("SCRIPT", "LOAD", "return redis.call('get', KEYS[1])")
        assert c.ask("EVALSHA", sha, "1", "l:a") == b"7" and c.ask("EVALSHA", sha, "1", "u:a") == b"1"


def test_local_keys_without_the_upstream_and_after_a_restart(tiercel, redis_server):
    up = redis_server()
    t = sidecar(tiercel, up, disk=True, threads=2)
    for i in range(300):
        t.call("SET", "l:%d" % i, "v%d" % i)
    up.stop()
    t.wait_tiers(tier_upstream_state="down")
    with t.raw() as c:
        assert c.ask("GET", "l:7") == b"v7" and c.ask("INCR", "l:n") == 1
        assert [c.ask("MULTI"), c.ask("INCR", "l:n"), c.ask("EXEC")] == ["OK", "QUEUED", [2]]
    t.stop()
    t.start()
    with t.raw() as c:
        assert c.ask("MGET", *["l:%d" % i for i in range(300)]) == [b"v%d" % i for i in range(300)]
        assert c.ask("GET", "l:n") == b"2"


def test_blocking_and_tracking(tiercel, redis_server):
    up = redis_server()
    t = sidecar(tiercel, up, threads=2)
    with t.raw() as waits, t.raw() as c, t.raw() as near:
        waits.send_command("BLPOP", "l:q", "0")
        wait_until(lambda: t.info("clients")["blocked_clients"] == 1, what="it waits")
        assert c.ask("RPUSH", "l:q", "x") == 1
        assert parse(waits.read_reply()) == [b"l:q", b"x"]
        near.ask("HELLO", "3")
        assert near.ask("CLIENT", "TRACKING", "ON") == "OK"
        assert near.ask("GET", "l:k") is None
        assert c.ask("SET", "l:k", "1") == "OK"
        assert b"l:k" in near.read_reply()


def test_rules_that_change(tiercel, redis_server):
    up = redis_server()
    t = sidecar(tiercel, up, rules=("other:*",))
    up.client().set("l:a", "theirs")
    with t.raw() as c:
        assert c.ask("GET", "l:a") == b"theirs"
        assert t.call("CACHE", "RULE", "SET", "l:*", "write=local") == "OK"
        assert c.ask("GET", "l:a") is None
        assert c.ask("SET", "l:a", "ours") == "OK"
        up.client().set("l:a", "new")
        assert c.ask("GET", "l:a") == b"ours"
        assert [c.ask("MULTI"), c.ask("INCR", "l:n")] == ["OK", "QUEUED"]
        assert t.call("CACHE", "RULE", "DEL", "l:*") == "OK"
        refused(c.ask("EXEC"), b"EXECABORT")
        wait_until(lambda: c.ask("GET", "l:a") == b"new", what="the upstream's value")
        assert t.call("CACHE", "RULE", "SET", "l:*", "write=local") == "OK"
        assert c.ask("GET", "l:a") == b"ours", "it was kept"


@pytest.mark.heavy
def test_tracked_keys_max_takes_no_local_key(tiercel, redis_server):
    up = redis_server()
    t = sidecar(tiercel, up, tracked_keys_max=100, disk=True)
    p = up.client().pipeline()
    for i in range(1000):
        p.set("u:%d" % i, "x")
    p.execute()
    with t.raw() as c:
        c.pipeline(*[("SET", "l:%d" % i, "x") for i in range(300)])
        c.pipeline(*[("GET", "u:%d" % i) for i in range(1000)])
        t.wait_tiers(tier_upstream_copies=lambda n: n <= 100)
        assert c.ask("EXISTS", *["l:%d" % i for i in range(300)]) == 300
