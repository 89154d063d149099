"""XREAD and XREADGROUP with BLOCK, beside redis-server."""
import pytest

from harness import wait_until

SETUP = (("XADD", "s", "1-1", "a", "b"), ("XGROUP", "CREATE", "s", "g", "$"))
PLAIN = ("XREAD", "BLOCK", "0", "STREAMS", "s", "$")
GROUP = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", "0", "STREAMS", "s", ">")
ADD = ("XADD", "s", "2-1", "x", "y")

CASES = [
    (PLAIN, [ADD]),
    (("XREAD", "COUNT", "1", "BLOCK", "0", "STREAMS", "t", "s", "$", "$"), [ADD]),
    (("XREAD", "BLOCK", "0", "STREAMS", "s", "5-0"), [ADD, ("XADD", "s", "6-1", "x", "y")]),
    (PLAIN, [("DEL", "s"), ("XADD", "s", "0-2", "x", "y"), ADD]),
    (PLAIN, [("SET", "s", "x"), ("DEL", "s"), ADD]),
    (PLAIN, [("XSETID", "s", "9-9"), ("XADD", "s", "10-1", "x", "y")]),
    (PLAIN, [("MULTI",), ADD, ("XDEL", "s", "2-1"), ("EXEC",), ("XADD", "s", "3-1", "x", "y")]),
    (("XREAD", "BLOCK", "50", "STREAMS", "s", "$"), []),
    (("XREAD", "BLOCK", "0", "STREAMS", "s", "0"), []),
    (GROUP, [ADD]),
    (("XREADGROUP", "GROUP", "g", "c", "NOACK", "COUNT", "2", "BLOCK", "0", "STREAMS", "s", ">"), [ADD]),
    (GROUP, [("DEL", "s")]),
    (GROUP, [("SET", "s", "x")]),
    (GROUP, [("XGROUP", "DESTROY", "s", "g")]),
    (GROUP, [("FLUSHALL",)]),
    (GROUP, [("RENAME", "s", "other")]),
    (("XREADGROUP", "GROUP", "g", "c", "BLOCK", "0", "STREAMS", "s", "0"), []),
]


def told(server, command, acts, proto):
    """What the client that waits is told, and what the key is like then."""
    with server.raw() as waiter, server.raw() as other:
        for c in (waiter, other):
            c.call("HELLO", proto)
        other.call("FLUSHALL")
        for setup in SETUP:
            other.call(*setup)
        waiter.send_command(*command)
        if acts:
            wait_until(lambda: server.info("clients")["blocked_clients"] == 1, what="it waits")
        for act in acts:
            other.call(*act)
        reply = waiter.read_reply()
        assert server.info("clients")["blocked_clients"] == 0
        return reply, other.call("XPENDING", "s", "g"), other.call("XLEN", "s")


@pytest.mark.parametrize("case", range(len(CASES)))
def test_as_redis(tiercel, redis_server, case):
    ours, theirs = tiercel(threads=2), redis_server()
    for proto in (2, 3):
        assert told(ours, *CASES[case], proto) == told(theirs, *CASES[case], proto)


def test_one_entry_goes_to_one_consumer_of_a_group(tiercel):
    t = tiercel(threads=2)
    with t.raw() as other:
        for setup in SETUP:
            other.call(*setup)
        waiters = [t.raw() for _ in range(6)]
        for i, c in enumerate(waiters):
            c.send_command("XREADGROUP", "GROUP", "g", "c%d" % i, "BLOCK", "0", "STREAMS", "s", ">")
            wait_until(lambda: t.info("clients")["blocked_clients"] == i + 1, what="they wait")
        for i, c in enumerate(waiters):  # the oldest first
            other.call("XADD", "s", "%d-1" % (i + 2), "n", i)
            assert b"\r\n%d-1\r\n" % (i + 2) in c.read_reply()
            c.close()
        assert other.ask("XPENDING", "s", "g")[0] == 6
