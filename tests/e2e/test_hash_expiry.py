"""Fields of hashes that expire, which redis-server 7.0 does not know: what the pages of its later commands say."""
import time

import pytest

from harness import wait_until
from rawconn import RespError
from test_notify import Listener

pytestmark = pytest.mark.sequential

SOON = "60"  # ms


@pytest.fixture(params=["small", "large"])
def c(request, tiercel):
    server = tiercel(disk="yes")
    with server.raw() as connection:
        connection.server = server
        connection.call("HSET", "h", "a", "1", "b", "2", "c", "3")
        if request.param == "large":
            connection.call("HSET", "h", *(x for i in range(300) for x in ("f%d" % i, "v")))
        yield connection


def ask(c, line):
    return c.ask(*line.split())


def ttl(c, line):
    """HTTL's reply, in steps of 50, so that it matters little how long the test takes."""
    return [v if v < 0 else -(-v // 50) * 50 for v in ask(c, "HTTL " + line)]


def test_conditions_and_replies(c):
    assert ask(c, "HEXPIRE h 100 FIELDS 3 a b zz") == [1, 1, -2]
    assert ttl(c, "h FIELDS 4 a b c zz") == [100, 100, -1, -2]
    assert ask(c, "HEXPIRE h 200 NX FIELDS 2 a c") == [0, 1]
    assert ask(c, "HEXPIRE h 50 GT FIELDS 2 a c") == [0, 0]
    assert ask(c, "HPEXPIRE h 50000 lt FIELDS 2 a c") == [1, 1]
    assert ask(c, "HEXPIRE h 300 XX FIELDS 2 a c") == [1, 1]
    at = ask(c, "HPEXPIRETIME h FIELDS 1 a")[0]
    assert abs(at - time.time() * 1000 - 300000) < 30000
    assert ask(c, "HEXPIRETIME h FIELDS 1 a") == [(at + 999) // 1000]
    assert ask(c, "HPEXPIREAT h %d FIELDS 1 a" % (at + 7)) == [1]
    assert ask(c, "HPEXPIRETIME h FIELDS 1 a") == [at + 7]
    assert 0 < ask(c, "HPTTL h FIELDS 1 a")[0] <= 300007
    assert ask(c, "HPERSIST h FIELDS 3 a zz a") == [1, -2, -1]
    assert ask(c, "HEXPIREAT h 5 FIELDS 2 a a") == [2, -2]
    assert ask(c, "HEXISTS h a") == 0
    assert ask(c, "HTTL no FIELDS 2 a b") == ask(c, "HPERSIST no FIELDS 2 a b") == [-2, -2]
    assert ask(c, "HEXPIRE no 5 FIELDS 1 a") == [-2]
    assert ask(c, "EXISTS no") == 0


@pytest.mark.parametrize("line", [
    "HEXPIRE h 5 FIELDS 2 a", "HEXPIRE h 5 FIELDS 1 a b", "HEXPIRE h 5 FIELDS 0 a", "HEXPIRE h 5 FIELDS x a",
    "HEXPIRE h x FIELDS 1 a", "HEXPIRE h -1 FIELDS 1 a", "HEXPIRE h 9223372036854775807 FIELDS 1 a", "HEXPIRE h 5 foo 1 a",
    "HEXPIRE h 5 NX XX FIELDS 1 a", "HTTL h FIELDS 2 a", "HTTL h FOO 1 a", "HPERSIST h FIELDS 9 a", "HGETDEL h FIELDS 0 a",
    "HGETEX h EX 5 PX 5 FIELDS 1 a", "HGETEX h EX x FIELDS 1 a", "HGETEX h KEEPTTL FIELDS 1 a", "HGETEX h FNX FIELDS 1 a",
    "HSETEX h FNX FXX FIELDS 1 a 1", "HSETEX h PERSIST FIELDS 1 a 1", "HSETEX h FIELDS 1 a 1 b", "HSETEX h FIELDS 2 a 1",
    "HSETEX h EX 1 KEEPTTL FIELDS 1 a 1", "HSETEX h EX FIELDS 1 a 1"])
def test_errors_change_nothing(c, line):
    before = sorted(ask(c, "HGETALL h"))
    assert isinstance(ask(c, line), RespError)
    assert sorted(ask(c, "HGETALL h")) == before
    assert ttl(c, "h FIELDS 1 a") == [-1]


def test_what_has_expired_is_in_no_reply(c):
    n = ask(c, "HLEN h")
    assert ask(c, "HPEXPIRE h %s FIELDS 2 a b" % SOON) == [1, 1]
    wait_until(lambda: ask(c, "HGET h a") is None)
    assert ask(c, "HLEN h") == n - 2
    assert ask(c, "HMGET h a b c") == [None, None, b"3"]
    assert len(ask(c, "HGETALL h")) == 2 * (n - 2)
    assert len(ask(c, "HRANDFIELD h 1000")) == n - 2
    assert b"a" not in ask(c, "HSCAN h 0 COUNT 1000")[1]
    assert ask(c, "HSETNX h a 7") == 1
    assert ask(c, "HINCRBY h b 1") == 1
    assert ttl(c, "h FIELDS 2 a b") == [-1, -1]


def test_a_key_goes_with_its_last_field(c):
    for key, line in (("k1", "EXISTS k1"), ("k2", "TYPE k2"), ("k3", "TTL k3"), ("k4", "HLEN k4"), ("k5", "HGETEX k5 FIELDS 1 a")):
        ask(c, "HSETEX %s PX 30 FIELDS 2 a 1 b 2" % key)
        missing = ask(c, line.replace(key, "no"))
        wait_until(lambda: ask(c, line) == missing)
        assert ask(c, "OBJECT ENCODING " + key) is None


def test_a_new_value_has_no_expiry_and_a_changed_one_keeps_it(c):
    ask(c, "HEXPIRE h 100 FIELDS 3 a b c")
    ask(c, "HSET h a 5")
    ask(c, "HINCRBY h b 5")
    ask(c, "HINCRBYFLOAT h c 0.5")
    assert ttl(c, "h FIELDS 3 a b c") == [-1, 100, 100]
    assert ask(c, "HSETEX h KEEPTTL FIELDS 1 b x") == 1
    assert ttl(c, "h FIELDS 1 b") == [100]
    assert ask(c, "HSETEX h FIELDS 1 b y") == 1
    assert ttl(c, "h FIELDS 1 b") == [-1]


def test_get_and_set_with_expiry(c):
    assert ask(c, "HGETEX h EX 50 FIELDS 2 a zz") == [b"1", None]
    assert ask(c, "HGETEX h FIELDS 1 a") == [b"1"]
    assert ttl(c, "h FIELDS 1 a") == [50]
    assert ask(c, "HGETEX h PERSIST FIELDS 1 a") == [b"1"]
    assert ttl(c, "h FIELDS 1 a") == [-1]
    assert ask(c, "HGETEX h PXAT 5 FIELDS 1 a") == [b"1"]
    assert ask(c, "HGETDEL h FIELDS 2 a b") == [None, b"2"]
    assert ask(c, "HSETEX h FNX EX 50 FIELDS 2 a x c y") == 0
    assert ask(c, "HSETEX h FXX EX 50 FIELDS 2 a x c y") == 0
    assert ask(c, "HMGET h a c") == [None, b"3"]
    assert ask(c, "HSETEX h FNX EX 50 FIELDS 2 a x b y") == 1
    assert ttl(c, "h FIELDS 2 a b") == [50, 50]
    assert ask(c, "HSETEX new EXAT 5 FIELDS 1 a x") == 1
    assert ask(c, "EXISTS new") == 0
    assert ask(c, "HGETDEL new FIELDS 2 a b") == ask(c, "HGETEX new FIELDS 2 a b") == [None, None]


def test_copies_and_restarts_keep_it(c):
    ask(c, "HEXPIRE h 1000 FIELDS 1 a")
    ask(c, "HPEXPIRE h 3000 FIELDS 1 b")
    at = ask(c, "HPEXPIRETIME h FIELDS 3 a b c")
    ask(c, "COPY h copy")
    ask(c, "RENAME h moved")
    assert ask(c, "HPEXPIRETIME copy FIELDS 3 a b c") == ask(c, "HPEXPIRETIME moved FIELDS 3 a b c") == at
    c.server.restart()
    with c.server.raw() as again:
        assert ask(again, "HPEXPIRETIME copy FIELDS 1 a") == at[:1]
        wait_until(lambda: ask(again, "HGET copy b") is None)
        assert ttl(again, "moved FIELDS 2 b c") == [-2, -1]
        assert ask(again, "HGET moved a") == b"1"


def test_events(c):
    with c.server.raw() as d:
        d.call("DEL", "h")
        listener = Listener(c.server, "KEA")
        for line in ("HSET h a 1 b 2 c 3", "HEXPIRE h 100 FIELDS 2 a b", "HPERSIST h FIELDS 2 a c", "HPERSIST h FIELDS 1 c",
                     "HGETEX h EX 5 FIELDS 1 a", "HGETEX h PERSIST FIELDS 1 a", "HSETEX h EX 5 FIELDS 1 a 2",
                     "HGETDEL h FIELDS 2 a zz", "HEXPIREAT h 1 FIELDS 1 b", "HPEXPIRE h 1 FIELDS 1 c"):
            ask(d, line)
        wait_until(lambda: ask(d, "HLEN h") == 0)
        ask(d, "HSETEX n PX 1 FIELDS 2 a 1 b 2")
        wait_until(lambda: ask(d, "HSET n b 3") is not None and ask(d, "HGET n a") is None)
        events = [e.decode() for e, _ in listener.keyevents()]
    assert events[:14] == ["hset", "hexpire", "hpersist", "hexpire", "hpersist", "hset", "hexpire", "hdel", "hdel", "hexpire",
                           "hexpired", "del", "hset", "hexpire"]


def expired(c):
    return int(c.server.client().info("stats")["expired_subkeys"])


def test_fields_go_though_nobody_reads_them(c):
    """Those of a large hash in several steps; a hash goes with the last one, and what tracks or watches it is told."""
    c.call("DEL", "h")
    listener = Listener(c.server, "Ehg")
    with c.server.raw() as other:
        other.call("HELLO", "3")
        other.call("HSETEX", "some", "PX", SOON, "FIELDS", "2", "a", "1", "b", "2")
        other.call("HSET", "some", "c", "3")
        other.call("CLIENT", "TRACKING", "ON")
        other.call("HGET", "some", "c")
        other.call("HSETEX", "all", "PX", SOON, "FIELDS", "2000", *(x for i in range(2000) for x in ("f%d" % i, "v")))
        wait_until(lambda: ask(c, "DBSIZE") == 1 and expired(c) == 2002)
        pushed = other.read_value()
    assert pushed == [b"invalidate", [b"some"]]
    assert ask(c, "HGETALL some") == [b"c", b"3"]
    events = {}
    for event, key in listener.keyevents():
        events.setdefault(key, []).append(event)
    assert events[b"some"] == [b"hset", b"hexpire", b"hset", b"hexpired"]
    assert events[b"all"][:3] == [b"hset", b"hexpire", b"hexpired"] and events[b"all"].count(b"del") == 1
    assert events[b"all"][-1] == b"del" and set(events[b"all"][3:-1]) <= {b"hexpired"}


def test_nothing_goes_while_active_expiry_is_off_and_what_got_no_expiry_stays(c):
    ask(c, "DEBUG SET-ACTIVE-EXPIRE 0")
    ask(c, "HSETEX off PX 1 FIELDS 1 a 1")
    ask(c, "HSETEX moved PX 1 FIELDS 1 a 1")
    ask(c, "HSETEX kept EX 100 FIELDS 2 a 1 b 2")
    ask(c, "HPERSIST kept FIELDS 2 a b")
    ask(c, "HPEXPIRE h 1 FIELDS 1 b")
    wait_until(lambda: ask(c, "HEXISTS h b") == 0)
    assert ask(c, "DBSIZE") == 4
    before = expired(c)
    ask(c, "DEBUG SET-ACTIVE-EXPIRE 1")
    wait_until(lambda: ask(c, "DBSIZE") == 2)
    assert expired(c) == before + 2 and ask(c, "HLEN kept") == 2


def test_of_a_hash_on_disk_they_go_when_it_is_read(c):
    ask(c, "DEBUG SET-ACTIVE-EXPIRE 0")
    ask(c, "HSETEX cold PX 1 FIELDS 1 a 1")
    c.server.restart()
    with c.server.raw() as again:
        assert ask(again, "HGET cold a") is None
        assert ask(again, "EXISTS cold") == 0 and ask(again, "DBSIZE") == 1
