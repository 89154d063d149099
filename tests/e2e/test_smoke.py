"""The server starts, answers, and stops. What fails here makes every other test fail."""
import signal

from rawconn import parse


def test_redis_py(tiercel):
    c = tiercel().client()
    assert c.ping()
    assert c.get("absent") is None
    assert c.set("key", b"a\x00b\r\n")
    assert c.get("key") == b"a\x00b\r\n"
    assert c.delete("key") == 1
    assert c.get("key") is None


def test_redis_cli(tiercel):
    t = tiercel()
    assert t.cli("PING") == "PONG"
    assert t.cli("SET", "key", "value") == "OK"
    assert t.cli("GET", "key") == "value"
    assert t.cli("NOSUCHCOMMAND", "x", check=False).startswith("ERR unknown command 'NOSUCHCOMMAND'")


def test_protocol_error_closes_only_its_connection(tiercel):
    t = tiercel()
    with t.raw() as good, t.raw() as bad:
        assert good.call("SET", "k", "v") == b"+OK\r\n"
        bad.send(b"*1\r\n!broken\r\n")
        assert bad.read_to_end() == b"-ERR Protocol error: expected '$', got '!'\r\n"
        assert good.call("GET", "k") == b"$1\r\nv\r\n"


def test_unknown_command_keeps_the_connection(tiercel):
    with tiercel().raw() as c:
        assert c.call("NOSUCHCOMMAND", "a").startswith(b"-ERR unknown command")
        assert c.call("PING") == b"+PONG\r\n"


def test_info_tiers(tiercel):
    t = tiercel()
    c = t.client()
    c.set("k", "v")
    c.get("k")
    tiers = t.tiers()
    assert tiers["tier_memory_hits"] >= 1
    assert tiers["tier_memory_keys"] == 1


def test_sigterm_stops_in_order(tiercel):
    t = tiercel()
    t.client().set("k", "v")
    t.stop(signal.SIGTERM, expect=0)
    t.start()
    assert parse(t.raw().call("PING")) == "PONG"


def test_sigint_stops_in_order(tiercel):
    t = tiercel()
    t.stop(signal.SIGINT, expect=0)
