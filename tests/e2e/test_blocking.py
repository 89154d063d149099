"""Commands that wait for a list: turns, chains, second keys that are on disk, clients that go."""
import random
import threading
import time

import pytest

from harness import RespError, wait_until

WRONGTYPE = RespError("WRONGTYPE Operation against a key holding the wrong kind of value")


def blocked(t, n=1):
    wait_until(lambda: t.info("clients")["blocked_clients"] == n, what="%d blocked" % n)


def wait(t, c, *command):
    """Sends a command that waits, and waits until it does."""
    n = t.info("clients")["blocked_clients"]
    c.send_command(*command)
    blocked(t, n + 1)
    return c


@pytest.fixture
def pair(tiercel):
    t = tiercel(threads=2)
    with t.raw() as a:
        yield t, a


@pytest.fixture
def on_disk(tiercel):
    """A server with lists d0 to d9 on disk only."""
    t = tiercel(threads=2, appendonly="yes", appendfsync="always")
    with t.raw() as a:
        for i in range(10):
            a.ask("RPUSH", "d%d" % i, "old")
    t.restart()
    return t


def test_turns(pair):
    t, a = pair
    with t.raw() as b, t.raw() as c, t.raw() as d, t.raw() as e:
        wait(t, b, "BLPOP", "l", "0")
        wait(t, c, "BLMOVE", "l", "m", "RIGHT", "LEFT", "0")
        wait(t, d, "BLMPOP", "0", "2", "other", "l", "LEFT", "COUNT", "2")
        wait(t, e, "BRPOPLPUSH", "l", "m", "0")
        assert a.ask("RPUSH", "l", "1", "2", "3", "4", "5") == 5
        assert b.read_value() == [b"l", b"1"]
        assert c.read_value() == b"5"
        assert d.read_value() == [b"l", [b"2", b"3"]]
        assert e.read_value() == b"4"
        assert a.ask("LRANGE", "m", "0", "-1") == [b"4", b"5"] and a.ask("EXISTS", "l") == 0
        blocked(t, 0)


def test_a_chain_and_a_ring(pair):
    t, a = pair
    clients = [t.raw() for _ in range(20)]
    for i, c in enumerate(clients):
        wait(t, c, "BLMOVE", "c%d" % i, "c%d" % (i + 1), "LEFT", "RIGHT", "0")
    assert a.ask("RPUSH", "c0", "x") == 1
    assert [c.read_value() for c in clients] == [b"x"] * 20
    assert a.ask("LRANGE", "c20", "0", "-1") == [b"x"] and a.ask("DBSIZE") == 1
    wait(t, clients[0], "BLMOVE", "r", "r", "LEFT", "RIGHT", "0")
    assert a.ask("RPUSH", "r", "1", "2") == 2
    assert clients[0].read_value() == b"1"
    assert a.ask("LRANGE", "r", "0", "-1") == [b"2", b"1"]
    for c in clients:
        c.close()


def test_wrong_types(pair):
    t, a = pair
    with t.raw() as b, t.raw() as c:
        a.ask("SET", "s", "1")
        wait(t, b, "BLMOVE", "l", "s", "LEFT", "LEFT", "0")
        wait(t, c, "BLPOP", "l", "0")
        a.ask("RPUSH", "l", "x")
        assert b.read_value() == WRONGTYPE and c.read_value() == [b"l", b"x"]
        wait(t, b, "BLPOP", "l", "0")
        a.ask("SET", "l", "a string")
        blocked(t, 1)
        assert c.ask("BLPOP", "l", "0") == WRONGTYPE
        a.pipeline(("DEL", "l"), ("RPUSH", "l", "y"))
        assert b.read_value() == [b"l", b"y"]


def test_transactions(pair):
    t, a = pair
    with t.raw() as b:
        got = a.pipeline(("MULTI",), ("BLMOVE", "l", "m", "LEFT", "LEFT", "0"), ("BRPOPLPUSH", "l", "m", "0"),
                         ("BLMPOP", "0", "1", "l", "LEFT"), ("BLPOP", "l", "0"), ("EXEC",))
        assert got[-1] == b"*4\r\n$-1\r\n$-1\r\n*-1\r\n*-1\r\n"
        wait(t, b, "BLMOVE", "l", "m", "LEFT", "LEFT", "0")
        got = a.pipeline(("MULTI",), ("RPUSH", "l", "1"), ("LPOP", "l"), ("RPUSH", "l", "2", "3"), ("LLEN", "l"), ("EXEC",))
        assert got[-1] == b"*4\r\n:1\r\n$1\r\n1\r\n:2\r\n:2\r\n"
        assert b.read_value() == b"2"
        assert a.ask("LRANGE", "l", "0", "-1") == [b"3"] and a.ask("LRANGE", "m", "0", "-1") == [b"2"]


def test_timeouts_and_unblock(pair):
    t, a = pair
    with t.raw() as b:
        b_id = b.ask("CLIENT", "ID")
        for command in (("BLMOVE", "l", "m", "LEFT", "LEFT"), ("BRPOPLPUSH", "l", "m"), ("BLPOP", "l")):
            begin = time.monotonic()
            assert b.ask(*command, "0.05") is None
            assert time.monotonic() - begin >= 0.05
            wait(t, b, *command, "0")
            assert a.ask("CLIENT", "UNBLOCK", b_id) == 1 and b.read_value() is None
            wait(t, b, *command, "0")
            assert a.ask("CLIENT", "UNBLOCK", b_id, "ERROR") == 1
            assert b.read_value() == RespError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
        blocked(t, 0)
        a.ask("RPUSH", "l", "x")
        assert a.ask("LLEN", "l") == 1


# ---- a second key that has to be fetched first

def test_the_destination_is_on_disk(on_disk):
    t = on_disk
    with t.raw() as a, t.raw() as b, t.raw() as c:
        wait(t, b, "BLMOVE", "l", "d0", "LEFT", "RIGHT", "0")
        wait(t, c, "BLPOP", "l", "0")
        assert a.ask("RPUSH", "l", "x", "y") == 2
        assert b.read_value() == b"x" and c.read_value() == [b"l", b"y"]
        assert a.ask("LRANGE", "d0", "0", "-1") == [b"old", b"x"] and a.ask("EXISTS", "l") == 0
        blocked(t, 0)
        # what is moved may be what somebody waits for
        wait(t, b, "BLMOVE", "l", "d1", "LEFT", "RIGHT", "0")
        a.ask("DEL", "l")
        wait(t, c, "BLMOVE", "l2", "l", "LEFT", "RIGHT", "0")
        a.ask("RPUSH", "l2", "z")
        assert c.read_value() == b"z" and b.read_value() == b"z"
        assert a.ask("LRANGE", "d1", "0", "-1") == [b"old", b"z"]
    t.kill9()
    t.start()
    with t.raw() as a:
        assert a.ask("LRANGE", "d0", "0", "-1") == [b"old", b"x"]
        assert a.ask("LRANGE", "d1", "0", "-1") == [b"old", b"z"] and a.ask("EXISTS", "l", "l2") == 0


def test_swapdb_brings_the_source(on_disk):
    t = on_disk
    with t.raw() as a, t.raw() as b, t.raw() as c:
        a.ask("SELECT", "1")
        b.ask("SELECT", "1")
        wait(t, b, "BLMOVE", "d3", "m", "LEFT", "RIGHT", "0")
        c.ask("SELECT", "1")
        wait(t, c, "BLPOP", "d3", "d4", "0")
        a.ask("SWAPDB", "0", "1")
        assert b.read_value() == b"old" and c.read_value() == [b"d4", b"old"]
        assert a.ask("LRANGE", "m", "0", "-1") == [b"old"]


def test_clients_that_go_pass_their_turn_on(on_disk):
    t = on_disk
    with t.raw() as a, t.raw() as last:
        for i in range(10):
            movers = [t.raw() for _ in range(3)]
            for m in movers:
                wait(t, m, "BLMOVE", "l", "d%d" % i, "LEFT", "RIGHT", "0")
            last_id = last.ask("CLIENT", "ID")
            wait(t, last, "BLPOP", "l", "0")
            for m in movers[1:]:
                m.close()
            a.send_command("RPUSH", "l", "1")
            movers[0].close()
            a.read_reply()
            a.ask("RPUSH", "l", "2", "3", "4")
            assert last.read_value()[0] == b"l"
            blocked(t, 0)
            assert a.ask("CLIENT", "UNBLOCK", last_id) == 0
            left = a.ask("LLEN", "l") + a.ask("LLEN", "d%d" % i)
            assert left == 4, (i, left)
            a.ask("DEL", "l")


# ---- many at once

def mover(t, seed, stop, errors):
    rng = random.Random(seed)
    try:
        while not stop.is_set():
            with t.raw() as c:
                for _ in range(rng.randint(1, 30)):
                    src, dst = rng.choice(LISTS), rng.choice(LISTS)
                    kind = rng.random()
                    if kind < 0.8:
                        c.ask("BLMOVE", src, dst, rng.choice(ENDS), rng.choice(ENDS), rng.choice(("0.001", "0.05", "1")))
                    elif kind < 0.9:
                        c.ask("LMOVE", src, dst, rng.choice(ENDS), rng.choice(ENDS))
                    else:
                        c.pipeline(("MULTI",), ("LMOVE", src, dst, "LEFT", "LEFT"), ("BRPOPLPUSH", dst, src, "0"), ("EXEC",))
                if rng.random() < 0.3:  # goes while it waits
                    c.send_command("BLMOVE", rng.choice(LISTS), rng.choice(LISTS), "LEFT", "RIGHT", "0")
                    time.sleep(rng.random() / 100)
    except Exception as e:  # noqa: B902
        errors.append(e)


LISTS = ["list:%d" % i for i in range(12)]
ENDS = ("LEFT", "RIGHT")


@pytest.mark.parametrize("journal", ["no", "everysec", "always"])
@pytest.mark.timeout(120)
def test_nothing_is_lost_or_doubled(tiercel, journal):
    options = {} if journal == "no" else {"appendonly": "yes", "appendfsync": journal}
    t = tiercel(threads=2, maxmemory="6mb", **options)
    errors, stop = [], threading.Event()
    movers = [threading.Thread(target=mover, args=(t, i, stop, errors)) for i in range(8)]
    pushed = 0
    with t.raw() as a:
        for thread in movers:
            thread.start()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            a.pipeline(*[("RPUSH", random.choice(LISTS), "%d" % (pushed + i)) for i in range(3)])
            pushed += 3
            if pushed % 300 == 0:  # has lists go to disk
                a.pipeline(*[("SET", "fill:%d" % (pushed + i), "x" * 20000) for i in range(30)])
            if pushed % 999 == 0 and journal != "always":
                a.pipeline(("SWAPDB", "0", "1"), ("SWAPDB", "0", "1"))
        stop.set()
        for thread in movers:
            thread.join()
        assert not errors, errors
        blocked(t, 0)
        if journal == "always":
            t.kill9()
            t.start()
    with t.raw() as a:
        found = sorted(int(e) for name in LISTS for e in a.ask("LRANGE", name, "0", "-1"))
        assert found == list(range(pushed))
