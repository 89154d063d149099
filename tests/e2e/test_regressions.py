"""Defects that were found once, each with the shortest way to see it."""
import threading
import time

import pytest

from harness import RespError, wait_until


@pytest.fixture
def duo(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, threads=1)
    t.wait_tiers(tier_upstream_state="up")
    return up, t


def blocked(t, n=1):
    wait_until(lambda: t.info("clients")["blocked_clients"] == n, what="%d blocked" % n)


# ---- EXEC, with all keys locked

def test_a_flush_within_exec_keeps_watches_and_blocked_clients(tiercel):
    t = tiercel(threads=1)
    with t.raw() as a, t.raw() as b:
        b.ask("WATCH", "k")
        a.pipeline(("MULTI",), ("FLUSHALL",), ("SET", "k", "1"), ("EXEC",))
        assert b.pipeline(("MULTI",), ("SET", "z", "1"), ("EXEC",))[-1] == b"*-1\r\n"
        b.send_command("BLPOP", "l", "10")
        blocked(t)
        a.pipeline(("MULTI",), ("FLUSHALL",), ("RPUSH", "l", "v"), ("EXEC",))
        assert b.read_reply() == b"*2\r\n$1\r\nl\r\n$1\r\nv\r\n"


def test_exec_with_commands_that_look_at_locked_shards(tiercel):
    t = tiercel(threads=1)
    with t.raw() as a, t.raw() as b:
        b_id = b.ask("CLIENT", "ID")
        b.send_command("BLPOP", "k", "0")
        b.send_command("GET", "k")
        blocked(t)
        got = a.pipeline(("MULTI",), ("SET", "j", "1"), ("GET", "k"), ("CLIENT", "UNBLOCK", b_id), ("EXEC",))[-1]
        assert got == b"*3\r\n+OK\r\n$-1\r\n:1\r\n"
        assert b.read_reply() == b"*-1\r\n" and b.read_reply() == b"$-1\r\n"
        for command in (("INFO",), ("MEMORY", "DOCTOR"), ("MEMORY", "STATS")):
            assert a.pipeline(("MULTI",), ("SET", "k", "1"), command, ("EXEC",))[-1].startswith(b"*2\r\n+OK\r\n")


# ---- SWAPDB

def test_swapdb_brings_a_watched_key(tiercel):
    t = tiercel()
    with t.raw() as a, t.raw() as b:
        b.ask("WATCH", "k")
        a.pipeline(("SELECT", "1"), ("SET", "k", "1"), ("SWAPDB", "0", "1"))
        assert b.pipeline(("MULTI",), ("SET", "z", "1"), ("EXEC",))[-1] == b"*-1\r\n"


@pytest.mark.parametrize("on_disk", [False, True])
def test_swapdb_brings_a_list_that_is_waited_for(tiercel, on_disk):
    t = tiercel(threads=2)
    with t.raw() as a, t.raw() as b:
        a.pipeline(("SELECT", "1"), ("RPUSH", "l", "v"))
        if on_disk:
            a.close()
            t.restart()
    with t.raw() as a, t.raw() as b:
        b.send_command("BLPOP", "l", "10")
        blocked(t)
        a.ask("SWAPDB", "0", "1")
        assert b.read_reply() == b"*2\r\n$1\r\nl\r\n$1\r\nv\r\n"


# ---- stopping

def test_many_shutdowns_are_one(tiercel):
    t = tiercel(threads=4)
    conns = [t.raw() for _ in range(40)]
    for i in range(100):
        conns[0].ask("SET", "k%d" % i, "v")
    t.expect_exit()

    def shut(c):
        try:
            c.send_command("SHUTDOWN")
        except OSError:
            pass

    threads = [threading.Thread(target=shut, args=(c,)) for c in conns]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert t.wait() == 0
    for c in conns:
        c.close()
    t.start()
    assert t.client().dbsize() == 100


# ---- an upstream: what is passed on

@pytest.mark.parametrize("command", [("SYNC",), ("PSYNC", "?", "-1"), ("WAIT", "1", "0")])
def test_what_would_take_the_shared_connection_is_not_passed_on(duo, command):
    _, t = duo
    with t.raw() as a, t.raw() as b:
        for first in (), (("WATCH", "w"),):
            for c in first:
                a.ask(*c)
            reply = a.ask(*command)
            assert reply == 0 or str(reply).startswith("ERR unknown command")
            for i in range(3):
                assert b.ask("SET", "k%d" % i, "v") == "OK" and b.ask("GET", "k%d" % i) == b"v"


def test_shard_channels_are_the_upstreams(duo):
    r, t = duo
    with t.raw() as a, t.raw() as b, r.raw() as sender:
        assert a.ask("SSUBSCRIBE", "c") == [b"ssubscribe", b"c", 1]
        assert sender.ask("SPUBLISH", "c", "x") == 1 and b.ask("SPUBLISH", "c", "y") == 1
        assert [a.read_value() for _ in range(2)] == [[b"smessage", b"c", b"x"], [b"smessage", b"c", b"y"]]
        assert b.ask("SET", "k", "v") == "OK" and b.ask("GET", "k") == b"v"


def test_commands_with_too_few_arguments(duo):
    _, t = duo
    with t.raw() as a:
        for c in ("COPY", "a"), ("COPY",), ("MOVE", "a"), ("SET",), ("OBJECT", "ENCODING"), ("BLPOP", "a"):
            assert isinstance(a.ask(*c), RespError)


def test_client_pause_holds_back_what_is_passed_on(duo):
    up, t = duo
    with t.raw() as a, t.raw() as b:
        a.ask("CLIENT", "PAUSE", "60000", "WRITE")
        b.send_command("SET", "k", "1")
        b.send_command("SET", "k", "2")
        time.sleep(0.2)
        assert up.call("EXISTS", "k") == 0
        a.ask("CLIENT", "UNPAUSE")
        assert b.read_reply() == b.read_reply() == b"+OK\r\n"
        assert up.call("GET", "k") == b"2"


# ---- an upstream: transactions

def test_select_at_the_upstream(duo):
    _, t = duo
    with t.raw() as a, t.raw() as b:

        def db():
            return int(a.ask("CLIENT", "INFO").split(b" db=")[1].split()[0])

        a.pipeline(("MULTI",), ("SELECT", "999"), ("EXEC",))
        assert db() == 0 and a.ask("GET", "x") is None
        for n in "-7", "999999":
            a.ask("WATCH", "k")
            assert isinstance(a.ask("SELECT", n), RespError)
            assert a.ask("SET", "x", "1") == "OK"
            a.ask("UNWATCH")
        a.ask("WATCH", "k")
        b.ask("SET", "k", "1")
        assert a.pipeline(("MULTI",), ("SELECT", "3"), ("EXEC",))[-1] == b"*-1\r\n"
        assert db() == 0
        a.pipeline(("WATCH", "k"), ("SELECT", "3"), ("UNWATCH",))
        assert db() == 3
        a.pipeline(("MULTI",), ("SELECT", "4"), ("DISCARD",))
        assert db() == 3
        a.pipeline(("MULTI",), ("SELECT", "4"), ("EXEC",))
        assert db() == 4


def test_watch_survives_exec_and_discard_without_multi(duo):
    up, t = duo
    with t.raw() as a:
        a.ask("WATCH", "k")
        assert a.ask("EXEC") == RespError("ERR EXEC without MULTI")
        assert a.ask("DISCARD") == RespError("ERR DISCARD without MULTI")
        up.call("SET", "k", "foreign")
        assert a.pipeline(("MULTI",), ("SET", "z", "1"), ("EXEC",))[-1] == b"*-1\r\n"


def test_a_client_that_only_watches_talks_to_this_server(duo):
    up, t = duo
    with t.raw() as a, t.raw() as b:
        a.ask("WATCH", "k")
        assert a.ask("CLIENT", "ID") == b.ask("CLIENT", "ID") - 1
        assert b"tier_upstream_state" in a.call("INFO", "tiers")
        assert a.call("HELLO").startswith(b"*14")
        a.send_command("BLPOP", "l", "0")
        time.sleep(1.5)  # longer than an answer may take
        up.call("RPUSH", "l", "e")
        assert a.read_reply() == b"*2\r\n$1\r\nl\r\n$1\r\ne\r\n"
        assert a.pipeline(("MULTI",), ("SET", "z", "1"), ("EXEC",))[-1] == b"*1\r\n+OK\r\n"
        a.ask("WATCH", "k")
        t.expect_exit()
        a.send_command("SHUTDOWN")
        assert t.wait() == 0
    assert up.alive()


def test_an_unwatch_in_a_pipeline_gives_the_connection_back(duo):
    up, t = duo
    with t.raw() as a:
        a.pipeline(("WATCH", "k"), ("UNWATCH",), ("SET", "k", "1"))
        before = up.calls("get")
        assert [a.ask("GET", "k") for _ in range(5)] == [b"1"] * 5
        assert up.calls("get") == before + 1


def test_own_swapdb_in_a_transaction_is_seen(duo):
    up, t = duo
    up.call("SET", "k", "old")
    with t.raw() as a, t.raw() as b:
        a.pipeline(("MULTI",), ("SWAPDB", "0", "1"))
        assert b.ask("GET", "k") == b"old"
        a.ask("EXEC")
        assert a.ask("GET", "k") is None and b.ask("GET", "k") is None


def test_tracked_keys_max_is_kept_to_with_a_disk(tiercel, redis_server):
    up = redis_server()
    with up.raw() as c:
        c.pipeline(*[("SET", "k%d" % i, "v" * 50) for i in range(3000)])
    t = tiercel(upstream=up, threads=1, tracked_keys_max=1000)
    t.wait_tiers(tier_upstream_state="up")
    with t.raw() as a:
        for i in range(0, 3000, 100):
            a.pipeline(*[("GET", "k%d" % j) for j in range(i, i + 100)])
    wait_until(lambda: t.tiers()["tier_demoting_bytes"] == 0)
    assert 900 <= t.tiers()["tier_memory_keys"] <= 1000


@pytest.mark.sequential
def test_flushed_keys_stay_away_when_the_numbers_of_databases_come_round(tiercel):
    t = tiercel(threads=1, disk=False)
    with t.raw() as a:
        a.ask("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        for i in range(10):
            a.ask("SET", "k%d" % i, "v", "EX", "1")
        flushes = 65536 // 16
        a.send(b"*1\r\n$8\r\nFLUSHALL\r\n" * (flushes - 10))
        for _ in range(flushes - 10):
            assert a.read_reply() == b"+OK\r\n"
        for _ in range(20):
            a.pipeline(("FLUSHALL",), ("SET", "new", "1"))
            assert a.ask("KEYS", "*") == [b"new"]
            assert {a.ask("RANDOMKEY") for _ in range(20)} == {b"new"}
        a.ask("DEBUG", "SET-ACTIVE-EXPIRE", "1")
        wait_until(lambda: t.tiers()["tier_memory_keys"] == 1, what="the dead are gone")


def test_paused_clients_that_leave_are_gone(tiercel):
    t = tiercel(threads=1)
    with t.raw() as a:
        a.ask("CLIENT", "PAUSE", "60000", "WRITE")
        for _ in range(10):
            with t.raw() as b:
                b.send_command("SET", "k", "v")
                wait_until(lambda: b"flags=b" in a.call("CLIENT", "LIST"))
            wait_until(lambda: a.call("CLIENT", "LIST").count(b"id=") == 1)
        a.ask("CLIENT", "UNPAUSE")
        assert a.ask("EXISTS", "k") == 0


def test_a_damaged_hyperloglog_is_shown_as_it_is(tiercel, redis_server):
    with tiercel().raw() as ours, redis_server().raw() as theirs:
        for conn in (ours, theirs):
            conn.call("PFADD", "h", "a", "b")
        whole = theirs.ask("GET", "h")
        for value in (whole, whole + b"\x05", whole[:-1], whole[:-2], whole[:16], whole + b"\x7f"):
            for command in (("SET", "h", value), ("PFDEBUG", "DECODE", "h"), ("PFCOUNT", "h"), ("PFADD", "h", "c"),
                            ("PFMERGE", "h", "h")):
                assert ours.call(*command) == theirs.call(*command), (value, command)


def test_minus_zero(tiercel, redis_server):
    with tiercel().raw() as ours, redis_server().raw() as theirs:
        for name, n in (("small", 3), ("large", 300)):
            members = [x for i in range(n) for x in ("%d" % (i + 1), "m%d" % i)]
            for command in (("ZADD", name, *members, "-0", "minus", "-0.0", "zero"), ("ZRANGE", name, "0", "3", "WITHSCORES"),
                            ("ZINCRBY", name, "-0", "minus"), ("ZSCORE", name, "zero"), ("ZADD", name, "INCR", "-0", "new")):
                assert ours.call(*command) == theirs.call(*command), command


def test_swapdb_in_a_transaction_brings_keys_that_are_on_disk(tiercel):
    t = tiercel(threads=2)
    with t.raw() as conn:
        conn.pipeline(("SELECT", "1"), ("RPUSH", "l", "a", "b"), ("SET", "s", "v"))
    t.restart()
    p = t.client().pipeline()
    p.get("s").execute_command("SWAPDB", "0", "1").get("s").lpush("l", "c").lrange("l", "0", "-1")
    assert p.execute() == [None, True, b"v", 3, [b"c", b"a", b"b"]]
