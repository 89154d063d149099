"""In front of a real redis-server: what it costs the upstream, and that nobody sees old values."""
import threading
import time

import pytest

from harness import RespError, parse, scaled, wait_until
from rawconn import encode


def fill(up, n, name="k:%d", value="value of %d", **options):
    p = up.client().pipeline(transaction=False)
    for i in range(n):
        p.set(name % i, value % i, **options)
    p.execute()


# ---- what reads cost

def test_reads_through_once(trio):
    up, wire, t = trio
    up.client().set("k", "v")
    c = t.client()
    assert [c.get("k") for _ in range(10)] == [b"v"] * 10
    assert wire.count("GET") == 1
    assert c.strlen("k") == 1 and c.exists("k") == 1 and c.type("k") == b"string"
    assert wire.count("STRLEN") == wire.count("EXISTS") == wire.count("TYPE") == 0


@pytest.mark.timeout(60)
def test_10000_concurrent_gets_cost_one_request(trio):
    up, wire, t = trio
    up.client().set("hot", "value")
    wire.delay(down=0.3)
    conns = [t.raw() for _ in range(100)]
    try:
        request = b"*2\r\n$3\r\nGET\r\n$3\r\nhot\r\n" * 100
        for c in conns:
            c.send(request)
        for c in conns:
            assert c.read_exact(100 * len(b"$5\r\nvalue\r\n")) == b"$5\r\nvalue\r\n" * 100
    finally:
        for c in conns:
            c.close()
    assert wire.count_keys("GET")[b"hot"] == 1
    assert t.tiers()["tier_coalesced_misses"] > 0


def test_a_missing_key_costs_one_request_too(trio):
    up, wire, t = trio
    wire.delay(down=0.2)
    conns = [t.raw() for _ in range(50)]
    for c in conns:
        c.send(b"*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n" * 20)
    for c in conns:
        assert c.read_exact(20 * 5) == b"$-1\r\n" * 20
        c.close()
    assert wire.count_keys("GET")[b"none"] == 1


def test_pipeline_of_misses_costs_one_round_trip(trio):
    up, wire, t = trio
    fill(up, 1000)
    wire.delay(down=0.1)
    with t.raw() as c:
        begin = time.monotonic()
        replies = c.pipeline(*[("GET", "k:%d" % i) for i in range(1000)])
        took = time.monotonic() - begin
    assert [parse(r) for r in replies] == [b"value of %d" % i for i in range(1000)]
    assert took < scaled(0.6) + 0.4, "1,000 round trips of 0.1 s would be 100 s; this took %.2f s" % took
    assert wire.count("GET") == 1000


def test_mget_of_misses_costs_one_round_trip(trio):
    up, wire, t = trio
    fill(up, 500)
    wire.delay(down=0.1)
    begin = time.monotonic()
    assert t.client().mget(["k:%d" % i for i in range(500)]) == [b"value of %d" % i for i in range(500)]
    assert time.monotonic() - begin < scaled(0.6) + 0.4


def test_mget_of_more_than_may_be_in_flight(tiercel, redis_server):
    up = redis_server()
    value = "x" * 10000 + "%d"
    fill(up, 100, value=value)
    t = tiercel(upstream=up, inflight_max_bytes=200000, maxmemory="2mb", compression="no", disk=False)
    t.wait_tiers(tier_upstream_state="up")
    keys = ["k:%d" % i for i in range(100)]
    for _ in range(3):
        assert t.client().mget(keys) == [(value % i).encode() for i in range(100)]
    # several at once: the limit admits them one after another
    results = []
    threads = [threading.Thread(target=lambda: results.append(t.client().mget(keys))) for _ in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert results == [[(value % i).encode() for i in range(100)]] * 4


def test_order_of_replies_in_a_mixed_pipeline(trio):
    up, wire, t = trio
    fill(up, 50)
    wire.delay(down=0.02)
    commands, want = [], []
    for i in range(50):
        commands += [("GET", "k:%d" % i), ("SET", "w:%d" % i, i), ("GET", "w:%d" % i), ("PING",), ("INCR", "w:%d" % i)]
        want += [b"value of %d" % i, "OK", b"%d" % i, "PONG", i + 1]
    with t.raw() as c:
        assert [parse(r) for r in c.pipeline(*commands)] == want


# ---- what is kept, and for how long

def test_expiry_comes_along(trio):
    up, wire, t = trio
    up.client().set("k", "v", px=60000)
    up.client().set("soon", "v", px=700)
    c = t.client()
    assert c.get("k") == b"v" and c.get("soon") == b"v"
    wire.reset_counts()
    assert 50000 < c.pttl("k") <= 60000
    assert wire.count("PTTL") == 0
    time.sleep(0.8)
    assert c.get("soon") is None


def test_absence_is_remembered_and_coherent(trio):
    up, wire, t = trio
    c = t.client()
    assert [c.get("none") for _ in range(5)] == [None] * 5
    assert wire.count_keys("GET")[b"none"] == 1
    assert t.tiers()["tier_negative_hits"] >= 4
    up.client().set("none", "now")
    wait_until(lambda: c.get("none") == b"now", timeout=1.5)


def test_databases_are_told_apart(trio):
    up, _, t = trio
    up.client(db=0).set("k", "zero")
    up.client(db=2).set("k", "two")
    assert t.client(db=0).get("k") == b"zero"
    assert t.client(db=2).get("k") == b"two"
    assert t.client(db=1).get("k") is None


def test_disk_copies_are_asked_for_anew_after_a_restart(trio):
    up, wire, t = trio
    fill(up, 20)
    c = t.client()
    for i in range(20):
        c.get("k:%d" % i)
    t.stop()
    up.client().set("k:3", "changed meanwhile")
    up.client().delete("k:4")
    t.start()
    t.wait_tiers(tier_upstream_state="up")
    assert t.client().get("k:3") == b"changed meanwhile"
    assert t.client().get("k:4") is None
    assert t.client().get("k:5") == b"value of 5"


# ---- coherence

def test_a_foreign_write_is_seen_in_time(trio):
    up, _, t = trio
    bound = t.tiers()["coherence_bound_ms"] / 1000
    assert t.tiers()["coherence_mode"] == "tracking" and bound <= 2
    c, foreign = t.client(), up.client()
    for i in range(20):
        foreign.set("k", i)
        wait_until(lambda: c.get("k") == b"%d" % i, timeout=bound, interval=0.001)
        assert c.get("k") == b"%d" % i
    foreign.delete("k")
    wait_until(lambda: c.get("k") is None, timeout=bound)
    foreign.set("k", "again", ex=100)
    wait_until(lambda: c.get("k") == b"again", timeout=bound)
    foreign.flushall()
    wait_until(lambda: c.get("k") is None, timeout=bound)
    assert t.tiers()["tier_invalidations"] > 0


def test_an_own_write_is_seen_at_once_by_all(trio):
    up, wire, t = trio
    clients = [t.client() for _ in range(6)]
    for i in range(50):
        clients[i % 6].set("k", i)
        assert [c.get("k") for c in clients] == [b"%d" % i] * 6
    assert up.client().get("k") == b"49"


def test_a_write_goes_through_and_drops_the_copy(trio):
    up, wire, t = trio
    c = t.client()
    up.client().set("k", "1", ex=100)
    assert c.get("k") == b"1"
    assert c.incr("k") == 2 and up.client().get("k") == b"2"
    wire.reset_counts()
    assert c.get("k") == b"2" and wire.count("GET") == 1
    assert 90 < c.ttl("k") <= 100
    assert c.append("k", "0") == 2 and c.get("k") == b"20"
    assert c.delete("k") == 1 and c.get("k") is None
    assert c.set("k", "nx", nx=True) and c.get("k") == b"nx"
    assert c.getset("k", "x") == b"nx" and c.get("k") == b"x"
    assert c.mset({"a": "1", "b": "2"}) and c.mget("a", "b") == [b"1", b"2"]
    assert c.rename("a", "b") and c.mget("a", "b") == [None, b"1"]


def test_lost_link_makes_copies_suspects(trio):
    up, wire, t = trio
    c = t.client()
    fill(up, 10)
    for i in range(10):
        c.get("k:%d" % i)
    wire.down()
    up.client().set("k:1", "changed")
    wire.up()
    t.wait_tiers(tier_upstream_state="up")
    assert c.get("k:1") == b"changed"
    assert c.get("k:2") == b"value of 2"


def test_concurrent_foreign_writes_end_with_the_last(trio):
    up, _, t = trio
    stop = threading.Event()

    def reader():
        c = t.client()
        while not stop.is_set():
            c.mget(["k:%d" % i for i in range(20)])

    readers = [threading.Thread(target=reader) for _ in range(3)]
    for th in readers:
        th.start()
    foreign = up.client()
    for n in range(100):
        p = foreign.pipeline(transaction=False)
        for i in range(20):
            p.set("k:%d" % i, n)
        p.execute()
    stop.set()
    for th in readers:
        th.join()
    c = t.client()
    wait_until(lambda: c.mget(["k:%d" % i for i in range(20)]) == [b"99"] * 20, timeout=2)


# ---- when it is away

@pytest.mark.timeout(60)
def test_upstream_stopped_and_started(trio):
    up, _, t = trio
    fill(up, 5)
    c = t.client()
    for i in range(5):
        assert c.get("k:%d" % i) == b"value of %d" % i
    up.stop()
    wait_until(lambda: t.tiers()["tier_upstream_state"] == "down", what="it is noticed")
    for i in range(5):
        assert c.get("k:%d" % i) == b"value of %d" % i, "hits go on"
    assert t.tiers()["tier_stale_hits"] >= 5
    for command in (("GET", "never seen"), ("SET", "k:1", "x"), ("INCR", "n"), ("LRANGE", "l", "0", "-1")):
        begin = time.monotonic()
        reply = t.call(*command)
        assert isinstance(reply, RespError), (command, reply)
        assert time.monotonic() - begin < scaled(3), "the deadline"
    assert t.call("PING") == "PONG"
    up.start()
    t.wait_tiers(tier_upstream_state="up", timeout=20)
    assert c.get("k:1") is None, "it came back empty"
    assert c.set("k:1", "again") and c.get("k:1") == b"again"


@pytest.mark.timeout(60)
def test_upstream_that_hangs(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, upstream_timeout_ms=500)
    t.wait_tiers(tier_upstream_state="up")
    up.client().set("k", "v")
    c = t.client()
    assert c.get("k") == b"v"
    up.pause()
    try:
        begin = time.monotonic()
        replies = [t.call("GET", "other"), t.call("SET", "k2", "v")]
        assert all(isinstance(r, RespError) for r in replies), replies
        assert time.monotonic() - begin < scaled(4)
        wait_until(lambda: t.tiers()["tier_upstream_state"] != "up", timeout=5)
        assert c.get("k") == b"v"
    finally:
        up.resume()
    t.wait_tiers(tier_upstream_state="up", timeout=20)
    wait_until(lambda: t.call("SET", "k3", "v") == "OK", timeout=5)


def test_starts_without_its_upstream(tiercel, redis_server):
    up = redis_server()
    up.client().set("k", "v")
    up.stop()
    t = tiercel(upstream=up)
    assert isinstance(t.call("GET", "k"), RespError)
    up.start()
    t.wait_tiers(tier_upstream_state="up", timeout=20)
    up.client().set("k", "v")
    wait_until(lambda: t.call("GET", "k") == b"v", timeout=3)


# ---- what has a connection of its own

def test_transactions(trio):
    up, _, t = trio
    up.client().set("a", "1")
    with t.raw() as c:
        assert c.ask("GET", "a") == b"1"
        replies = [parse(r) for r in c.pipeline(("MULTI",), ("INCR", "a"), ("GET", "a"), ("SET", "b", "x"), ("EXEC",))]
        assert replies == ["OK", "QUEUED", "QUEUED", "QUEUED", [2, b"2", "OK"]]
        assert c.ask("GET", "a") == b"2" and c.ask("GET", "b") == b"x"
        assert c.ask("WATCH", "a") == "OK"
        up.client().set("a", "9")
        assert [parse(r) for r in c.pipeline(("MULTI",), ("INCR", "a"), ("EXEC",))] == ["OK", "QUEUED", None]
        assert c.ask("GET", "a") == b"9"
        assert c.ask("MULTI") == "OK" and c.ask("SET", "a", "no") == "QUEUED" and c.ask("DISCARD") == "OK"
        assert c.ask("GET", "a") == b"9"
    with t.raw() as c:
        c.pipeline(("MULTI",), ("SET", "a", "lost"))
    assert t.client().get("a") == b"9"


def test_blocking_pop(trio):
    up, _, t = trio
    with t.raw() as waiter, t.raw() as other:
        waiter.send_command("BLPOP", "l1", "l2", "10")
        assert waiter.silent_for(0.2)
        assert other.ask("RPUSH", "l2", "e") == 1
        assert waiter.read_value() == [b"l2", b"e"]
        assert waiter.ask("PING") == "PONG"
        waiter.send_command("BLPOP", "l1", "0.2")
        assert waiter.read_value() is None
        waiter.send_command("BLPOP", "l1", "0")
        assert waiter.silent_for(0.1)
    # the client that left takes no element
    time.sleep(0.2)
    up.client().rpush("l1", "kept")
    time.sleep(0.1)
    assert up.client().llen("l1") == 1


def test_subscribe(trio):
    up, _, t = trio
    with t.raw() as sub, t.raw() as pub:
        assert sub.ask("SUBSCRIBE", "ch") == [b"subscribe", b"ch", 1]
        assert sub.ask("PSUBSCRIBE", "p*") == [b"psubscribe", b"p*", 2]
        up.client().publish("ch", "from upstream")
        assert sub.read_value() == [b"message", b"ch", b"from upstream"]
        assert pub.ask("PUBLISH", "pat", "from here") == 1
        assert sub.read_value() == [b"pmessage", b"p*", b"pat", b"from here"]
        assert sub.ask("UNSUBSCRIBE", "ch") == [b"unsubscribe", b"ch", 1]
        assert sub.ask("PUNSUBSCRIBE") == [b"punsubscribe", b"p*", 0]
        assert sub.ask("PING") == "PONG"


def test_unknown_commands_and_types_pass_through(trio):
    up, _, t = trio
    with t.raw() as c:
        assert c.ask("HSET", "h", "f", "v") == 1
        assert c.ask("HGET", "h", "f") == b"v"
        assert c.ask("ZADD", "z", "1", "m") == 1
        assert c.ask("ZRANGE", "z", "0", "-1", "WITHSCORES") == [b"m", b"1"]
        assert c.ask("EVAL", "return redis.call('INCR', KEYS[1])", "1", "n") == 1
        assert c.ask("GET", "n") == b"1"
        assert str(c.ask("GET", "h")).startswith("WRONGTYPE")
        assert c.ask("TYPE", "h") == "hash"
        assert c.ask("RPUSH", "l", "a", "b") == 2 and c.ask("LRANGE", "l", "0", "-1") == [b"a", b"b"]
        assert c.ask("DBSIZE") == 4
        assert sorted(c.ask("KEYS", "*")) == [b"h", b"l", b"n", b"z"]
        assert c.ask("SCAN", "0", "COUNT", "100")[0] == b"0"
        assert c.ask("FLUSHALL") == "OK"
        assert c.ask("GET", "n") is None


# ---- what an outage must not do

def test_a_lost_transaction_is_not_run_in_pieces(trio):
    up, wire, t = trio
    with t.raw() as c:
        assert c.ask("MULTI") == "OK"
        assert c.ask("SET", "a", "1") == "QUEUED"
        wire.cut()
        t.wait_tiers(tier_upstream_state="up")
        # In one piece: the server closes after its answer, and must not find anything unread then.
        c.send(encode("SET", "b", "2") + encode("EXEC"))
        assert c.read_reply().startswith(b"-UPSTREAM")
        assert c.read_to_end() == b""
    wire.down()
    t.wait_tiers(tier_upstream_state="down")
    with t.raw() as c:
        c.send(encode("MULTI") + encode("SET", "c", "3") + encode("EXEC"))
        assert c.read_reply().startswith(b"-UPSTREAMDOWN")
        assert c.read_to_end() == b""
    wire.up()
    t.wait_tiers(tier_upstream_state="up")
    assert t.call("SET", "d", "4") == "OK"
    assert up.client().keys("*") == [b"d"]


def test_writes_that_cannot_be_sent_leave_the_copies(trio):
    up, wire, t = trio
    up.client().set("k", "v")
    assert t.call("GET", "k") == b"v"
    wire.down()
    t.wait_tiers(tier_upstream_state="down")
    for command in (("SET", "k", "w"), ("DEL", "k"), ("FLUSHALL",)):
        assert str(t.call(*command)).startswith("UPSTREAMDOWN")
        assert t.call("GET", "k") == b"v"


def test_nothing_runs_behind_quit(trio):
    up, wire, t = trio
    wire.delay(down=0.2)
    with t.raw() as c:
        c.send(encode("GET", "missing") + encode("QUIT") + encode("SET", "x", "1"))
        assert c.read_to_end() == b"$-1\r\n+OK\r\n"
    assert up.client().get("x") is None
