"""client-auth upstream: who a client is and what it may do, the upstream says."""
import threading
import time

import pytest

from harness import RespError, wait_until
from rawconn import RawConn

pytestmark = pytest.mark.sequential


@pytest.fixture
def world(tiercel, redis_server, proxy):
    """A Redis with users: `car` is the sidecar's own, `full` may do as much, `few` little."""
    up = redis_server()
    for user in (("car", "on", ">carpw", "~*", "&*", "+@all"), ("full", "on", ">fullpw", "~*", "&*", "+@all"),
                 ("few", "on", ">fewpw", "~few:*", "&few:*", "+@all", "-@dangerous", "+keys")):
        up.call("ACL", "SETUSER", *user)
    up.call("CONFIG", "SET", "requirepass", "defaultpw")
    wire = proxy(up)

    def sidecar(**options):
        t = tiercel(upstream="redis://car:carpw@127.0.0.1:%d" % wire.port, client_auth="upstream", threads=2, **options)

        def ready():
            with RawConn(t.port) as c:
                return c.ask("AUTH", "car", "carpw") == "OK"

        wait_until(ready, what="the upstream is there")
        return t

    return up, wire, sidecar


def direct(up, *commands, auth=("AUTH", "defaultpw")):
    with RawConn(up.port) as c:
        c.ask(*auth)
        return [c.ask(*command) for command in commands]


def refused(reply, word):
    assert isinstance(reply, RespError) and str(reply).startswith(word), reply
    return True


def test_before_and_at_authentication_it_is_as_the_upstream(world):
    up, _, sidecar = world
    t = sidecar()
    attempts = [("GET", "few:a"), ("NOSUCH", "x"), ("PING",), ("AUTH", "few", "wrong"), ("AUTH", "nobody", "x"),
                ("AUTH", "", "x"), ("AUTH", "wrong"), ("AUTH", "a", "b", "c"), ("GET", "few:a"), ("SUBSCRIBE", "few:c"),
                ("AUTH", "few", "fewpw"), ("SET", "few:a", "1"), ("GET", "few:a"), ("GET", "other"), ("ACL", "WHOAMI"),
                ("AUTH", "few", "wrong"), ("GET", "few:a"), ("FLUSHALL",), ("AUTH", "defaultpw"), ("GET", "other"),
                ("ACL", "WHOAMI"), ("RESET",), ("GET", "few:a"), ("QUIT",)]
    with RawConn(up.port) as a, RawConn(t.port) as b:
        for attempt in attempts:
            want, got = a.ask(*attempt), b.ask(*attempt)
            assert got == want, (attempt, got, want)


def test_hello(world):
    up, _, sidecar = world
    t = sidecar()
    with RawConn(t.port) as c:
        assert refused(c.ask("HELLO", 3), "NOAUTH")
        assert refused(c.ask("HELLO", 3, "AUTH", "few", "wrong"), "WRONGPASS")
        assert refused(c.ask("GET", "few:a"), "NOAUTH")
        assert c.ask("HELLO", 3, "AUTH", "few", "fewpw", "SETNAME", "me")[b"proto"] == 3
        assert c.ask("SET", "few:a", "1") == "OK" and c.ask("GET", "few:a") == b"1"
        assert c.call("GET", "few:none") == b"_\r\n"
        assert refused(c.ask("GET", "other"), "NOPERM")
        assert c.ask("HELLO", 2)[:2] == [b"server", b"redis"]
        assert c.call("GET", "few:none") == b"$-1\r\n", "who it is does not change"
    with RawConn(t.port) as c:
        assert c.ask("HELLO", 3, "AUTH", "car", "carpw")[b"proto"] == 3
        assert c.ask("ACL", "WHOAMI") == b"car" and c.ask("GET", "few:a") == b"1"
        assert b"user=car" in c.ask("CLIENT", "LIST")


def test_only_who_has_our_rights_shares_copies(world):
    up, wire, sidecar = world
    t = sidecar()
    direct(up, ("SET", "few:a", "1"), ("SET", "other", "2"))
    with RawConn(t.port) as car, RawConn(t.port) as few, RawConn(t.port) as full:
        assert car.ask("AUTH", "car", "carpw") == "OK"
        assert few.ask("AUTH", "few", "fewpw") == "OK"
        assert full.ask("AUTH", "full", "fullpw") == "OK"
        assert [car.ask("GET", k) for k in ("few:a", "other")] == [b"1", b"2"]
        wire.reset_counts()
        assert [car.ask("GET", k) for k in ("few:a", "other")] == [b"1", b"2"]
        assert wire.count("GET") == 0, "hits"
        assert few.ask("GET", "few:a") == b"1" and full.ask("GET", "other") == b"2"
        assert refused(few.ask("GET", "other"), "NOPERM")
        assert wire.count("GET") == 3, "theirs are the upstream's to answer"
        assert full.ask("SET", "other", "3") == "OK" and car.ask("GET", "other") == b"3", "own writes drop copies"
        assert full.pipeline(("MULTI",), ("SET", "other", "4"), ("EXEC",))[2] == b"*1\r\n+OK\r\n"
        assert car.ask("GET", "other") == b"4"
        assert full.pipeline(("SELECT", 3), ("SET", "k", "3"), ("SELECT", 0))[1] == b"+OK\r\n"
        assert car.ask("SELECT", 3) == "OK" and car.ask("GET", "k") == b"3"
        assert full.pipeline(("SELECT", 3), ("SET", "k", "4"), ("SELECT", 0))[1] == b"+OK\r\n"
        assert car.ask("GET", "k") == b"4"


def test_transactions_blocking_and_pubsub_on_its_own_connection(world):
    up, _, sidecar = world
    t = sidecar()
    with RawConn(t.port) as c, RawConn(t.port) as d:
        for x in (c, d):
            assert x.ask("AUTH", "few", "fewpw") == "OK"
        assert c.ask("WATCH", "few:a") == "OK" and d.ask("SET", "few:a", "x") == "OK"
        assert c.ask("MULTI") == "OK" and c.ask("SET", "few:a", "y") == "QUEUED"
        assert refused(c.ask("GET", "other"), "NOPERM")
        assert refused(c.ask("EXEC"), "EXECABORT")
        assert c.ask("MULTI") == "OK" and c.ask("INCR", "few:n") == "QUEUED" and c.ask("EXEC") == [1]
        c.send_command("BLPOP", "few:l", 5)
        time.sleep(0.05)
        assert d.ask("RPUSH", "few:l", "e") == 1
        assert c.read_value() == [b"few:l", b"e"]
        assert refused(c.ask("BLPOP", "other", 1), "NOPERM")
        assert c.ask("SUBSCRIBE", "few:x", "few:y")[2] == 1 and c.read_value()[2] == 2
        assert refused(d.ask("PUBLISH", "other", "x"), "NOPERM")
        assert d.ask("PUBLISH", "few:x", "hello") == 1
        assert c.read_value() == [b"message", b"few:x", b"hello"]
        assert c.ask("UNSUBSCRIBE", "few:x")[2] == 1 and c.ask("UNSUBSCRIBE")[2] == 0
        assert c.ask("GET", "few:n") == b"1"
        replies = c.pipeline(*[("INCR", "few:n") for _ in range(500)])
        assert replies == [b":%d\r\n" % n for n in range(2, 502)], "in order"


def test_what_is_about_this_server_is_the_shared_users(world):
    _, _, sidecar = world
    t = sidecar()
    commands = [("CONFIG", "GET", "port"), ("INFO",), ("CLIENT", "LIST"), ("CACHE", "INSPECT", "few:a"), ("ACL", "LIST"),
                ("MONITOR",), ("SLOWLOG", "GET"), ("CLIENT", "TRACKING", "ON"), ("SHUTDOWN",), ("CLIENT", "NOSUCH"),
                ("PSYNC", "?", "-1"), ("CONFIG", "SET", "maxmemory", "1mb")]
    with RawConn(t.port) as c:
        assert c.ask("AUTH", "full", "fullpw") == "OK"
        for command in commands:
            assert refused(c.ask(*command), "NOPERM"), command
        assert c.ask("PING") == "PONG" and c.ask("ECHO", "x") == b"x" and c.ask("CLIENT", "SETNAME", "n") == "OK"
        assert refused(c.ask("SELECT", 99999), "ERR DB index")
        assert c.ask("AUTH", "car", "carpw") == "OK"
        assert c.ask("CONFIG", "GET", "client-auth") == [b"client-auth", b"upstream"]


def test_an_upstream_without_passwords(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    up.call("ACL", "SETUSER", "few", "on", ">fewpw", "~few:*", "+@all")
    t = tiercel(upstream=wire, client_auth="upstream")
    t.wait_tiers(tier_upstream_state="up")
    with RawConn(t.port) as c:
        assert c.ask("SET", "k", "1") == "OK" and [c.ask("GET", "k") for _ in range(5)] == [b"1"] * 5
        assert wire.count("GET") == 1, "who does not log in is who we are"
        assert refused(c.ask("AUTH", "x"), "ERR AUTH <password> called without any password")
        assert c.ask("AUTH", "few", "fewpw") == "OK" and refused(c.ask("GET", "k"), "NOPERM")
        assert c.ask("RESET") == "RESET" and c.ask("GET", "k") == b"1"


def test_lost_connections_and_an_upstream_away(world):
    up, wire, sidecar = world
    t = sidecar(upstream_timeout_ms=500)
    with RawConn(t.port) as c, RawConn(t.port) as sub, RawConn(t.port) as tx, RawConn(t.port) as late:
        for x in (c, sub, tx):
            assert x.ask("AUTH", "few", "fewpw") == "OK"
        assert c.ask("SET", "few:a", "1") == "OK"
        assert sub.ask("SUBSCRIBE", "few:x")[2] == 1
        assert tx.ask("MULTI") == "OK"
        wire.down()
        wait_until(sub.is_closed)
        assert refused(late.ask("AUTH", "few", "fewpw"), "UPSTREAMDOWN")
        assert refused(tx.ask("EXEC"), "UPSTREAMDOWN") and wait_until(tx.is_closed)
        assert refused(c.ask("GET", "few:a"), "UPSTREAMDOWN")
        wire.up()
        wait_until(lambda: late.ask("AUTH", "few", "fewpw") == "OK")
        wait_until(lambda: c.ask("GET", "few:a") == b"1", what="it shows its credentials again")
        direct(up, ("ACL", "SETUSER", "few", "resetpass", ">other"))
        wire.cut()
        wait_until(lambda: str(c.ask("GET", "few:a")).startswith("WRONGPASS"), what="they do not hold any more")


def test_the_limit_of_connections(world):
    _, _, sidecar = world
    t = sidecar(upstream_pins_max=3)
    conns = [RawConn(t.port) for _ in range(12)]
    try:
        replies = [c.ask("AUTH", "few", "fewpw") for c in conns]
        assert replies.count("OK") in range(3, 7), "two workers, three each"
        assert {str(r).split()[0] for r in replies if r != "OK"} <= {"UPSTREAMBUSY"}
    finally:
        for c in conns:
            c.close()

    def again():
        with RawConn(t.port) as c:
            return c.ask("AUTH", "few", "fewpw") == "OK"

    wait_until(again, what="they are given back")


def test_strangers_hold_no_connections(world):
    _, _, sidecar = world
    t = sidecar(upstream_pins_max=2)
    conns = [RawConn(t.port) for _ in range(20)]
    try:
        for c in conns:
            assert [r[:7] for r in c.pipeline(("GET", "few:a"), ("INFO",), ("SET", "few:a", "x"))] == [b"-NOAUTH"] * 3
        with RawConn(t.port) as c:
            assert c.ask("AUTH", "few", "fewpw") == "OK" and c.ask("PING") == "PONG"
    finally:
        for c in conns:
            c.close()


def test_clients_go_while_they_wait(world):
    up, wire, sidecar = world
    t = sidecar()
    held = RawConn(t.port)
    assert held.ask("AUTH", "few", "fewpw") == "OK"
    wire.hang()
    conns = [RawConn(t.port) for _ in range(10)]
    for c in conns:
        c.send_command("AUTH", "few", "fewpw")
        c.send_command("GET", "few:a")
    held.send_command("BLPOP", "few:l", 0)
    time.sleep(0.1)
    for c in conns + [held]:
        c.close()
    wire.resume()
    with RawConn(t.port) as c:
        wait_until(lambda: c.ask("AUTH", "car", "carpw") == "OK")
        wait_until(lambda: c.ask("CLIENT", "LIST").count(b"\n") == 1)


def test_many_users_at_once(world):
    up, _, sidecar = world
    t = sidecar()
    wrong = []

    def user(i):
        name, own = ("few", "few:%d" % i) if i % 2 else ("car", "car:%d" % i)
        for n in range(20):
            with RawConn(t.port) as c:
                replies = c.pipeline(("AUTH", name, name + "pw"), ("SET", own, n), ("GET", own), ("ACL", "WHOAMI"))
                value = b"%d" % n
                want = [b"+OK\r\n", b"+OK\r\n", b"$%d\r\n%s\r\n" % (len(value), value),
                        b"$3\r\n%s\r\n" % name.encode()]
                if replies != want:
                    wrong.append((name, replies))

    threads = [threading.Thread(target=user, args=(i,)) for i in range(8)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not wrong, wrong[:3]


def test_secrets_stay_secret(world):
    _, _, sidecar = world
    t = sidecar(slowlog_log_slower_than=0)
    with RawConn(t.port) as m, RawConn(t.port) as c:
        assert m.ask("AUTH", "car", "carpw") == "OK" and m.ask("MONITOR") == "OK"
        assert c.ask("AUTH", "few", "fewpw") == "OK" and c.ask("HELLO", 2, "AUTH", "few", "fewpw")
        assert c.ask("SET", "few:end", "1") == "OK"
        seen_there = b""
        while b"few:end" not in seen_there:
            seen_there += m.read_reply()
        assert b"fewpw" not in seen_there
        with RawConn(t.port) as s:
            assert s.ask("AUTH", "car", "carpw") == "OK"
            assert b"fewpw" not in s.call("SLOWLOG", "GET", 100)
    assert "fewpw" not in t.log()


def test_needs_an_upstream(tiercel):
    with pytest.raises(Exception):
        tiercel(client_auth="upstream")
