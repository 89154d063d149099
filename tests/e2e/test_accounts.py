"""What commands that wait, and transactions, leave in the statistics; and transactions that meet a script which does
not end. Each runs on redis-server and here."""
import re
import time

import pytest

from harness import RespError, wait_until


@pytest.fixture(params=[pytest.param("redis_server", marks=pytest.mark.heavy), "tiercel"])
def server(request):
    options = {"disk": "no"} if request.param == "tiercel" else {}
    return request.getfixturevalue(request.param)(**options)


def stat(server, command):
    """calls, rejected_calls and failed_calls."""
    line = server.info("commandstats").get("cmdstat_" + command, "")
    return tuple(int(n) for n in re.findall(r"calls=(\d+)", line)) or None


def blocked(server, n=1):
    wait_until(lambda: server.info("clients")["blocked_clients"] == n, what="%d blocked" % n)


@pytest.mark.sequential
def test_exec_is_counted(server):
    with server.raw() as a:
        a.ask("MULTI")
        a.ask("PING")
        a.ask("EXEC")
        assert stat(server, "exec") == (1, 0, 0)
        a.ask("MULTI")
        a.ask("NONE")
        a.ask("EXEC")
        assert stat(server, "exec") == (2, 0, 1)


def test_who_waits_is_counted_at_the_end(server):
    with server.raw() as a, server.raw() as b:
        ident = a.ask("CLIENT", "ID")
        b.ask("CONFIG", "SET", "slowlog-log-slower-than", "0")
        a.send_command("BLPOP", "l", "0")
        blocked(server)
        b.ask("SLOWLOG", "RESET")
        b.ask("LPUSH", "l", "x")
        a.read_value()
        assert b.ask("SLOWLOG", "GET", "2")[0][3][:1] in ([b"BLPOP"], [b"LPUSH"])
        assert stat(server, "blpop") == (1, 0, 0)
        a.send_command("BLPOP", "l", "0")
        blocked(server)
        b.ask("CLIENT", "UNBLOCK", ident, "ERROR")
        assert isinstance(a.read_value(), RespError)
        assert stat(server, "blpop") == (2, 0, 1)
        b.ask("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")
        a.send_command("XREADGROUP", "GROUP", "g", "me", "BLOCK", "0", "STREAMS", "s", ">")
        blocked(server)
        b.ask("XGROUP", "DESTROY", "s", "g")
        assert isinstance(a.read_value(), RespError)
        assert stat(server, "xreadgroup") == (1, 0, 1)


def test_paused_clients_are_blocked(server):
    with server.raw() as a, server.raw() as b, server.raw() as c:
        a.ask("CLIENT", "PAUSE", "60000", "WRITE")
        b.send_command("PUBLISH", "channel", "x")
        c.send_command("PFCOUNT", "key")
        blocked(server, 2)
        a.ask("CLIENT", "UNPAUSE")
        assert (b.read_value(), c.read_value()) == (0, 0)
        blocked(server, 0)


@pytest.mark.sequential
def test_percentiles(server):
    with server.raw() as a:
        a.ask("CONFIG", "SET", "latency-tracking-info-percentiles", "0.0 50.00 99.95")
        assert a.ask("CONFIG", "GET", "latency-tracking-info-percentiles")[1] == b"0 50 99.95"
        line = server.info("latencystats")["latency_percentiles_usec_config|set"]
        assert re.fullmatch(r"p0=[\d.]+,p50=[\d.]+,p99.95=[\d.]+", line)
        for bad in ("10.0 101.0", "-1", "abc", "50 x"):
            assert isinstance(a.ask("CONFIG", "SET", "latency-tracking-info-percentiles", bad), RespError)
        a.ask("CONFIG", "SET", "latency-tracking-info-percentiles", "")
        assert a.ask("CONFIG", "GET", "latency-tracking-info-percentiles")[1] == b""


@pytest.mark.sequential
def test_a_key_that_comes_expired_is_no_change(server):
    with server.raw() as a:
        for there in ((), ("SET", "x", "old", "PX", "1")):
            a.ask("FLUSHALL")
            a.ask("DEBUG", "SET-ACTIVE-EXPIRE", "0")
            a.ask("SELECT", "0")
            a.ask("SET", "x", "new", "PX", "1")
            a.ask("SELECT", "1")
            if there:
                a.ask(*there)
            time.sleep(0.01)
            a.ask("WATCH", "x")
            a.ask("SWAPDB", "0", "1")
            a.ask("MULTI")
            a.ask("PING")
            assert a.ask("EXEC") is not None
            a.ask("DEBUG", "SET-ACTIVE-EXPIRE", "1")


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_transaction_does_not_run_by_halves(server, before):
    """`before`: commands of it that came before the script was slow."""
    steps = [("MULTI",), ("INCR", "n"), ("INCR", "n"), ("EXEC",)]
    with server.raw() as a, server.raw() as b, server.raw() as c:
        c.ask("CONFIG", "SET", "busy-reply-threshold", "10")
        a.ask("WATCH", "watched")
        for step in steps[:before]:
            a.ask(*step)
        b.send_command("EVAL", "while true do redis.call('GET', KEYS[1]) end", "1", "watched")
        wait_until(lambda: isinstance(c.ask("GET", "x"), RespError), what="a slow script")
        a.ask(*steps[before])
        if before == 0:
            a.ask(*steps[1])
        if before == 2:  # the whole rest, while nobody can be asked for the watched key
            assert str(a.ask("EXEC")).startswith("EXECABORT")
        assert c.ask("SCRIPT", "KILL") == "OK"
        b.read_value()
        if before < 2:
            a.ask(*steps[2])
            assert str(a.ask("EXEC")).startswith("EXECABORT")
        assert a.ask("GET", "n") is None
        assert a.ask("WATCH", "watched") == "OK"
        a.ask("MULTI")
        a.ask("PING")
        assert a.ask("EXEC") is not None
