"""Scripts, transactions with scripts and unknown commands: their answer comes when no old copy is left, on any worker."""
import time

import pytest
import redis

from harness import parse
from proxy import seen

SET_K = "redis.call('set', 'k' .. ARGV[2], ARGV[1]); return ARGV[1]"
LAG = 0.3


@pytest.fixture
def lagging(tiercel, redis_server, proxy):
    """Invalidations come LAG seconds late."""
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=3)
    t.wait_tiers(tier_upstream_state="up")
    wire.delay(down=LAG, where=seen("SUBSCRIBE"))
    return up, wire, t


def check(t, run, rounds=4):
    """run(client, round) makes k0..k9 hold what it returns; nobody who asks after it sees anything older."""
    readers = [t.client() for _ in range(12)]  # on all workers
    writer = t.client()
    keys = ["k%d" % i for i in range(10)]
    writer.mset({k: "old" for k in keys})
    for n in range(rounds):
        for r in readers:
            r.mget(keys)  # there are copies
        want = run(writer, n).encode()
        for r in readers:
            assert r.mget(keys) == [want] * len(keys), "round %d" % n


def test_a_script_with_undeclared_keys(lagging):
    up, wire, t = lagging

    def run(c, n):
        c.eval("for i = 0, 9 do redis.call('set', 'k' .. i, ARGV[1]) end", 0, "new %d" % n)
        return "new %d" % n

    begin = time.monotonic()
    check(t, run)
    assert time.monotonic() - begin > 4 * LAG  # it has waited: the test can fail


def test_a_function(lagging):
    up, wire, t = lagging
    c = t.client()
    c.function_load("#!lua name=lib\nredis.register_function('all', function(k, a) "
                    "for i = 0, 9 do redis.call('set', 'k' .. i, a[1]) end return 1 end)")

    def run(c, n):
        assert c.execute_command("FCALL", "all", 0, "f%d" % n) == 1
        return "f%d" % n

    check(t, run)


def test_a_script_in_a_transaction(lagging):
    up, wire, t = lagging

    def run(c, n):
        p = c.pipeline(transaction=True)
        p.incr("n")
        p.eval("for i = 0, 9 do redis.call('set', 'k' .. i, ARGV[1]) end", 0, "t%d" % n)
        p.execute()
        return "t%d" % n

    check(t, run)


def test_a_script_while_keys_are_watched(lagging):
    up, wire, t = lagging

    def run(c, n):
        with c.pipeline() as p:
            p.watch("other")
            p.eval("for i = 0, 9 do redis.call('set', 'k' .. i, ARGV[1]) end", 0, "w%d" % n)
        return "w%d" % n

    check(t, run)


def test_only_reading_does_not_wait(lagging):
    up, wire, t = lagging
    c = t.client()
    c.set("k", "v")
    begin = time.monotonic()
    for _ in range(20):
        assert c.execute_command("EVAL_RO", "return redis.call('get', 'k')", 0) == b"v"
        assert c.set("x", "y") and c.incr("n")
    assert time.monotonic() - begin < 20 * LAG


def test_order_behind_a_script(lagging):
    """What was sent behind it comes behind it, and sees what it did."""
    up, wire, t = lagging
    with t.raw() as c:
        c.pipeline(("SET", "k0", "a"), ("GET", "k0"))
        got = c.pipeline(("EVAL", SET_K, "0", "b", "0"), ("GET", "k0"), ("INCR", "n"), ("EVAL", SET_K, "0", "c", "0"),
                         ("GET", "k0"), ("PING",))
    assert [parse(r) for r in got] == [b"b", b"b", 1, b"c", b"c", "PONG"]


def test_many_at_once(lagging):
    """Those that wait together share their questions."""
    up, wire, t = lagging
    conns = [t.raw() for _ in range(40)]
    wire.reset_counts()
    begin = time.monotonic()
    for i, c in enumerate(conns):
        c.send(b"*5\r\n$4\r\nEVAL\r\n$%d\r\n%s\r\n$1\r\n0\r\n$1\r\nv\r\n$1\r\n0\r\n" % (len(SET_K), SET_K.encode()) * 5)
    for c in conns:
        assert c.read_exact(5 * 7) == b"$1\r\nv\r\n" * 5
        c.close()
    assert time.monotonic() - begin < 30
    assert wire.count("PING") < 40 * 5 * 3 / 2


def test_a_fence_without_an_answer(tiercel, redis_server, proxy):
    """The invalidations do not come at all: the answer comes, and no copy is served any more."""
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2, upstream_timeout_ms=500)
    t.wait_tiers(tier_upstream_state="up")
    c, other = t.client(), [t.client() for _ in range(6)]
    c.set("k0", "old")
    assert all(o.get("k0") == b"old" for o in other)
    wire.hang(where=seen("SUBSCRIBE"), up=False)
    assert c.eval(SET_K, 0, "new", "0") == b"new"
    for o in other:  # no link vouches for what they have, and it is not served as a stale copy either
        with pytest.raises(redis.ResponseError, match="UPSTREAM|not reachable"):
            o.get("k0")
    wire.resume()
    t.wait_tiers(tier_upstream_state="up")
    for o in other:
        assert o.get("k0") == b"new"


def test_the_client_goes_while_its_answer_waits(lagging):
    up, wire, t = lagging
    for _ in range(5):
        with t.raw() as c:
            c.send(b"*5\r\n$4\r\nEVAL\r\n$%d\r\n%s\r\n$1\r\n0\r\n$1\r\nv\r\n$1\r\n0\r\n" % (len(SET_K), SET_K.encode()))
            time.sleep(0.05)
    assert t.client().eval(SET_K, 0, "w", "0") == b"w"
    assert t.client().get("k0") == b"w"
