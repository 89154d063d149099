"""What is passed on as it is: blocking, shard channels, databases, and CACHE FLUSH, which is about this server."""
import select
import threading
import time

import pytest
import redis

from harness import RespError, parse, wait_until
from proxy import seen
from rawconn import encode

pytestmark = pytest.mark.sequential


def blocked(up):
    return up.info("clients")["blocked_clients"]


@pytest.mark.parametrize("how,want", [("TIMEOUT", b"*-1\r\n"),
                                      ("ERROR", b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n")])
def test_client_unblock(trio, how, want):
    up, wire, t = trio
    with t.raw() as c, t.raw() as other:
        me = parse(c.pipeline(("CLIENT", "ID"))[0])
        for _ in range(3):  # the connection is used again
            c.send(encode("BLPOP", "jobs", "0") + encode("PING"))
            wait_until(lambda: blocked(up) == 1)
            assert parse(other.pipeline(("CLIENT", "UNBLOCK", me, how))[0]) == 1
            assert c.read_exact(len(want) + 7) == want + b"+PONG\r\n"
        assert parse(other.pipeline(("CLIENT", "UNBLOCK", me, how))[0]) == 0
        up.call("RPUSH", "jobs", "one")
        assert parse(c.pipeline(("BLPOP", "jobs", "1"))[0]) == [b"jobs", b"one"]


def test_client_kill_ends_the_wait_at_the_upstream(trio):
    up, wire, t = trio
    with t.raw() as c:
        me = parse(c.pipeline(("CLIENT", "ID"))[0])
        c.send(encode("BLPOP", "jobs", "0"))
        wait_until(lambda: blocked(up) == 1)
        t.call("CLIENT", "KILL", "ID", str(me))
        wait_until(lambda: blocked(up) == 0)
    up.call("RPUSH", "jobs", "one")
    assert t.client().lpop("jobs") == b"one"


def test_blocking_commands(trio):
    up, wire, t = trio
    u, got = up.client(), {}
    commands = {"BLMPOP": ("BLMPOP", "0", "1", "l", "LEFT"), "BZPOPMIN": ("BZPOPMIN", "z", "0"),
                "BLMOVE": ("BLMOVE", "from", "to", "LEFT", "RIGHT", "0"), "XREAD": ("XREAD", "BLOCK", "0", "STREAMS", "x", "$")}

    def run(name):
        with t.raw() as c:
            got[name] = parse(c.pipeline(commands[name])[0])

    threads = [threading.Thread(target=run, args=(n,)) for n in commands]
    for th in threads:
        th.start()
    wait_until(lambda: blocked(up) == 4)
    u.rpush("l", "1")
    u.zadd("z", {"m": 1})
    u.rpush("from", "2")
    u.xadd("x", {"a": "b"}, id="1-1")
    for th in threads:
        th.join(10)
    assert got == {"BLMPOP": [b"l", [b"1"]], "BZPOPMIN": [b"z", b"m", b"1"], "BLMOVE": b"2",
                   "XREAD": [[b"x", [[b"1-1", [b"a", b"b"]]]]]}


def test_reading_a_stream_takes_no_connection(trio):
    up, wire, t = trio
    up.client().xadd("x", {"a": "b"}, id="1-1")
    with t.raw() as c:
        c.pipeline(("XREAD", "STREAMS", "x", "0"))
        before = wire.accepted
        got = c.pipeline(*[("XREAD", "COUNT", "1", "STREAMS", "x", "0")] * 50)
    assert all(parse(r) == [[b"x", [[b"1-1", [b"a", b"b"]]]]] for r in got) and wire.accepted == before


def test_shard_channels(trio):
    up, wire, t = trio
    with t.raw() as c:
        assert parse(c.pipeline(("SSUBSCRIBE", "ch"))[0]) == [b"ssubscribe", b"ch", 1]
        assert up.call("SPUBLISH", "ch", "hello") == 1
        assert parse(c.read_reply()) == [b"smessage", b"ch", b"hello"]
        assert parse(c.pipeline(("SUNSUBSCRIBE", "ch"))[0]) == [b"sunsubscribe", b"ch", 0]
        assert parse(c.pipeline(("GET", "k"))[0]) is None


def test_subscribed_and_more_in_resp3(trio):
    up, wire, t = trio
    up.client().set("k", "v")
    with t.raw() as c:
        c.pipeline(("HELLO", "3"))
        c.send(encode("SUBSCRIBE", "ch"))
        assert c.read_reply()[1:] == b"3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n"
        assert parse(c.pipeline(("GET", "k"))[0]) == b"v"
        assert parse(c.pipeline(("INCR", "n"))[0]) == 1
        up.call("PUBLISH", "ch", "hello")
        assert c.read_reply() == b">3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$5\r\nhello\r\n"
        assert isinstance(parse(c.pipeline(("HELLO", "2"))[0]), RespError)  # its connection there speaks RESP3


def test_databases_beyond_ours(tiercel, redis_server):
    up = redis_server(databases=32)
    t = tiercel(upstream="redis://127.0.0.1:%d" % up.port, databases=16)
    t.wait_tiers(tier_upstream_state="up")
    c = t.client()
    c.set("k", "v")
    assert c.get("k") == b"v"
    assert c.execute_command("MOVE", "k", "20") == 1
    assert c.get("k") is None
    with pytest.raises(redis.ResponseError, match="out of range"):
        c.execute_command("SELECT", "20")


def test_cache_flush(trio):
    up, wire, t = trio
    u = up.client()
    c = t.client()
    for db in (0, 1):
        up.client(db=db).mset({"k%d" % i: "v" for i in range(20)})
    for db in (0, 1):
        t.client(db=db).mget(["k%d" % i for i in range(20)])
    wire.reset_counts()
    assert c.execute_command("CACHE", "FLUSH", "1") in (b"OK", "OK", True)
    assert c.get("k3") == b"v" and wire.count("GET") == 0
    assert t.client(db=1).get("k3") == b"v" and wire.count("GET") == 1
    assert c.execute_command("CACHE", "FLUSH") in (b"OK", "OK", True)
    assert c.get("k3") == b"v" and wire.count("GET") == 2
    assert u.dbsize() == 20
    for bad in (("16",), ("-1",), ("x",), ("0", "1")):
        with pytest.raises(redis.ResponseError):
            c.execute_command("CACHE", "FLUSH", *bad)


def test_cache_flush_without_an_upstream(tiercel):
    c = tiercel().client()
    c.set("k", "v")
    with pytest.raises(redis.ResponseError, match="no upstream"):
        c.execute_command("CACHE", "FLUSH")
    assert c.get("k") == b"v"


def test_whole_key_space(trio):
    up, wire, t = trio
    u, c = up.client(), t.client()
    u.mset({"k%d" % i: "v" for i in range(50)})
    assert c.dbsize() == 50 and len(c.keys("*")) == 50 and len(list(c.scan_iter(count=7))) == 50
    assert c.randomkey().startswith(b"k")
    assert c.get("k1") == b"v"
    c.flushdb()
    assert c.get("k1") is None and u.dbsize() == 0


def test_a_blocking_command_has_its_own_deadline_and_that_of_any_answer(trio):
    up, wire, t = trio
    with t.raw() as c:
        for command in ("BLPOP none 0.2", "BLMPOP 0.2 1 none LEFT", "XREAD COUNT 1 BLOCK 200 STREAMS none $",
                        "BLMOVE none other LEFT LEFT 0.2"):
            assert c.call(*command.split()) == b"*-1\r\n", command
        for command in ("BLPOP none 0.5", "XREAD BLOCK 500 STREAMS none $"):
            c.send(encode(*command.split()))
            wait_until(lambda: blocked(up) == 1)
            wire.hang(where=seen("BLPOP", "XREAD"))
            assert c.read_reply().startswith(b"-UPSTREAMTIMEOUT")
            wire.resume()
            wait_until(lambda: blocked(up) == 0)
        c.send(encode("BLPOP", "none", "0"))  # waits as long as it is told to
        assert not select.select([c.sock], [], [], 2)[0]
        up.call("RPUSH", "none", "x")
        assert parse(c.read_reply()) == [b"none", b"x"]
