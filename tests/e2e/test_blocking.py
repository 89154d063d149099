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
    """A server whose database 1 has lists d0 to d9 on disk only: after a SWAPDB those who waited for something else
    need them."""
    t = tiercel(threads=2, appendonly="yes", appendfsync="always")
    with t.raw() as a:
        a.ask("SELECT", "1")
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
        a.ask("SWAPDB", "0", "1")
        assert a.ask("RPUSH", "l", "x", "y") == 2
        assert b.read_value() == b"x" and c.read_value() == [b"l", b"y"]
        assert a.ask("LRANGE", "d0", "0", "-1") == [b"old", b"x"] and a.ask("EXISTS", "l") == 0
        blocked(t, 0)
        # what is moved may be what somebody waits for
        wait(t, b, "BLMOVE", "l", "d1", "LEFT", "RIGHT", "0")
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
        wait(t, b, "BLMOVE", "d3", "m", "LEFT", "RIGHT", "0")
        wait(t, c, "BLPOP", "d3", "d4", "0")
        a.ask("SWAPDB", "0", "1")
        assert b.read_value() == b"old" and c.read_value() == [b"d4", b"old"]
        assert a.ask("LRANGE", "m", "0", "-1") == [b"old"]


@pytest.mark.parametrize("how", ["close", "unblock", "timeout"])
def test_who_goes_passes_the_turn_on(on_disk, how):
    """While what it needs is fetched, or before, or after: whoever is next gets the next element."""
    t = on_disk
    with t.raw() as a, t.raw() as last:
        for i in range(10):
            m = t.raw()
            m_id = m.ask("CLIENT", "ID")
            wait(t, m, "BLMOVE", "l", "d%d" % i, "LEFT", "RIGHT", "0.25" if how == "timeout" else "0")
            wait(t, last, "BLPOP", "l", "0")
            if i == 0:
                a.ask("SWAPDB", "0", "1")
            if how == "timeout":
                time.sleep(0.2 + i / 100)
            a.send(b"RPUSH l 1\r\n" + (b"CLIENT UNBLOCK %d\r\n" % m_id if how == "unblock" else b""))
            if how == "close":
                m.close()
            assert a.read_value() == 1
            gone = how == "unblock" and a.read_value() == 1
            moved = m.read_value() if how != "close" else None
            assert not (moved and gone)
            a.ask("RPUSH", "l", "2")
            assert last.read_value() in ([b"l", b"1"], [b"l", b"2"])
            blocked(t, 0)
            assert a.ask("LLEN", "l") + a.ask("LLEN", "d%d" % i) == 2
            m.close()
            a.ask("DEL", "l")


# ---- many at once

HOT = ["hot:%d" % i for i in range(6)]      # mostly empty: those that are waited for
COLD = ["cold:%d" % i for i in range(300)]  # mostly on disk
ENDS = ("LEFT", "RIGHT")


def mover(t, seed, stop, errors):
    rng = random.Random(seed)
    target = lambda: rng.choice(HOT if rng.random() < 0.5 else COLD)
    try:
        while not stop.is_set():
            with t.raw() as c:
                for _ in range(rng.randint(1, 30)):
                    kind, ends = rng.random(), (rng.choice(ENDS), rng.choice(ENDS))
                    if kind < 0.6:
                        c.ask("BLMOVE", rng.choice(HOT), target(), *ends, rng.choice(("0.001", "0.01", "0.1")))
                    elif kind < 0.9:
                        c.ask("LMOVE", rng.choice(COLD), rng.choice(HOT), *ends)
                    else:
                        c.pipeline(("MULTI",), ("LMOVE", rng.choice(COLD), HOT[0], *ends),
                                   ("BRPOPLPUSH", rng.choice(HOT), target(), "0"), ("EXEC",))
                if rng.random() < 0.5:  # goes while it waits
                    c.send_command("BLMOVE", rng.choice(HOT), target(), "LEFT", "RIGHT", "0")
                    time.sleep(rng.random() / 100)
    except Exception as e:  # noqa: B902
        errors.append(e)


@pytest.mark.parametrize("journal", ["no", "everysec", "always"])
@pytest.mark.timeout(120)
def test_nothing_is_lost_or_doubled(tiercel, journal):
    options = {} if journal == "no" else {"appendonly": "yes", "appendfsync": journal}
    t = tiercel(threads=2, maxmemory="6mb", **options)
    errors, stop = [], threading.Event()
    movers = [threading.Thread(target=mover, args=(t, i, stop, errors)) for i in range(8)]
    with t.raw() as a:
        a.pipeline(*[("RPUSH", name, "%d" % i, "%d" % (1000 + i)) for i, name in enumerate(COLD)])
    t.restart()
    with t.raw() as a:
        for thread in movers:
            thread.start()
        end = time.monotonic() + 3
        n = 0
        while time.monotonic() < end:
            n += 1
            a.pipeline(*[("SET", "fill:%d" % ((n * 10 + i) % 3000), "x" * 20000) for i in range(10)])
            if n % 5 == 0:
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
        found = sorted(int(e) for name in HOT + COLD for e in a.ask("LRANGE", name, "0", "-1"))
        assert found == sorted([*range(len(COLD)), *range(1000, 1000 + len(COLD))])


def test_names_that_a_script_makes(tiercel):
    """What a script has signalled is served when it ends, and its strings may be gone by then."""
    t = tiercel(threads=2)
    script = """for i = 1, 50 do redis.call('RPUSH', 'l' .. i, i) end
        local t = {} for i = 1, 200000 do t[i] = 'x' .. i end
        collectgarbage() return #t"""
    waiting = [t.raw() for _ in range(50)]
    for i, c in enumerate(waiting):
        c.send_command("BLPOP", "l%d" % (i + 1), "0")
    blocked(t, 50)
    with t.raw() as a:
        assert a.ask("EVAL", script, "0") == 200000
    for i, c in enumerate(waiting):
        assert c.read_value() == [b"l%d" % (i + 1), b"%d" % (i + 1)]
        c.close()


def test_many_for_one_key_after_swapdb(tiercel):
    t = tiercel(threads=4)
    waiting = [t.raw() for _ in range(20)]
    for c in waiting:
        c.send_command("BLPOP", "l", "0")
    blocked(t, 20)
    with t.raw() as a:
        a.ask("SELECT", "1")
        a.ask("RPUSH", "l", *[str(i) for i in range(20)])
        a.ask("SWAPDB", "0", "1")
        assert sorted(int(c.read_value()[1]) for c in waiting) == list(range(20))
        assert a.ask("DBSIZE") == 0
    for c in waiting:
        c.close()
