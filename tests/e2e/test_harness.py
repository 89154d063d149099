"""The tools of these tests do what the tests rely on. They need no tiercel, only redis-server."""
import time

import pytest

import harness
from proxy import seen
from rawconn import RespError, encode, parse


def test_reply_parser():
    assert parse(b"*3\r\n$1\r\na\r\n:-1\r\n*1\r\n+x\r\n") == [b"a", -1, ["x"]]
    assert parse(b"%1\r\n+k\r\n,1.5\r\n") == {"k": 1.5}
    assert parse(b"-ERR no\r\n") == RespError("ERR no")
    assert parse(b"$-1\r\n") is None and parse(b"_\r\n") is None and parse(b"*-1\r\n") is None
    assert encode("SET", b"k", 1) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\n1\r\n"


def test_raw_replies(redis_server):
    with redis_server().raw() as c:
        assert c.call("HELLO", 3).startswith(b"%7\r\n")
        assert c.call("RPUSH", "l", "a", "b") == b":2\r\n"
        assert c.call("LRANGE", "l", 0, -1) == b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"
        assert c.call("CONFIG", "GET", "port").startswith(b"%1\r\n$4\r\nport\r\n")
        assert c.pipeline(("GET", "x"), ("PING",)) == [b"_\r\n", b"+PONG\r\n"]
        assert c.silent_for(0.05)
        c.send_command("QUIT")
        assert c.read_to_end() == b"+OK\r\n"


def test_proxy_counts(redis_server, proxy):
    wire = proxy(redis_server())
    with harness.RawConn(wire.port) as c:
        assert c.call("SET", "a", "x" * 100000) == b"+OK\r\n"
        assert len(c.call("GET", "a")) == 100000 + len("$100000\r\n\r\n")
        c.call("GET", "b")
        assert wire.count("get") == 2 and wire.count() == 3
        assert wire.count_keys("GET") == {b"a": 1, b"b": 1}
        assert wire.bytes_up > 100000 and wire.bytes_down > 100000
        (only,) = wire.connections
        assert only.saw("SET") and not only.saw("DEL")


def test_proxy_delay_is_latency_not_bandwidth(redis_server, proxy):
    wire = proxy(redis_server())
    wire.delay(up=0.05, down=0.05)
    with harness.RawConn(wire.port) as c:
        begin = time.monotonic()
        c.pipeline(*[("GET", "k%d" % i) for i in range(1000)])
        took = time.monotonic() - begin
    assert 0.1 <= took < 1


def test_proxy_hangs_and_cuts_by_predicate(redis_server, proxy):
    wire = proxy(redis_server())
    with harness.RawConn(wire.port, timeout=5) as sub, harness.RawConn(wire.port, timeout=5) as other:
        sub.call("SUBSCRIBE", "c")
        wire.hang(where=seen("SUBSCRIBE"))
        assert other.call("PUBLISH", "c", "m") == b":1\r\n"
        assert sub.silent_for(0.1)
        wire.resume()
        assert sub.read_value() == [b"message", b"c", b"m"]
        assert wire.cut(where=seen("SUBSCRIBE")) == 1
        with pytest.raises((EOFError, ConnectionError)):
            sub.read_reply()
        assert other.call("PING") == b"+PONG\r\n"
        wire.down()
        with pytest.raises((EOFError, ConnectionError)):
            other.call("PING")
        with pytest.raises(ConnectionError):
            harness.RawConn(wire.port)
        wire.up()
        with harness.RawConn(wire.port) as again:
            assert again.call("PING") == b"+PONG\r\n"


def test_server_pauses_and_restarts(redis_server):
    up = redis_server()
    assert up.client().set("k", "v")
    with up.raw() as c:
        up.pause()
        c.send_command("PING")
        assert c.silent_for(0.1)
        up.resume()
        assert c.read_reply() == b"+PONG\r\n"
    assert up.calls("set") == 1
    up.restart()
    assert up.cli("GET", "k") == ""
    up.kill9()
    up.start()
    assert up.rss_anon() > 0
