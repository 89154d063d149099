"""Commands that wait for a sorted set get the same replies from this server and from redis-server."""
import pytest

from harness import wait_until

# What waits, and what others do meanwhile.
WAITS = [
    ("BZPOPMIN z y 0", ["ZADD z 1 a 2 b", "ZRANGE z 0 -1"]),
    ("BZPOPMAX z y 0", ["ZADD y 1.5 a 2 b"]),
    ("BZMPOP 0 2 z q MIN", ["ZADD q 1 a 2 b", "ZCARD q"]),
    ("BZMPOP 0 2 z q MAX COUNT 5", ["ZADD q 1 a 2 b 3 c", "EXISTS q"]),
    ("BZPOPMIN z 0", ["SET z v", "DEL z", "LPUSH z x", "DEL z", "ZADD s 1 m", "RENAME s z", "EXISTS z"]),
    ("BZPOPMIN z 0", ["ZADD s 1 m 5 n", "ZUNIONSTORE z 1 s"]),
    ("BZPOPMIN z 0", ["ZADD s 1 m 5 n", "ZRANGESTORE z s 0 -1", "ZCARD z"]),
    ("BZPOPMAX g 0", ["GEOADD g 1 2 m", "EXISTS g"]),
    ("BZPOPMAX g 0", ["ZINCRBY g 2 m"]),
    ("BZPOPMIN z 0.1", []),
    ("BZMPOP 0.1 1 z MIN", []),
]
AT_ONCE = [
    "BZPOPMIN z x", "BZPOPMIN z -1", "BZMPOP 0 0 z MIN", "BZMPOP x 1 z MID", "BZMPOP x 1 z MIN", "BZMPOP 0 1 z MIN COUNT 0",
    "LPUSH l 1", "BZPOPMIN l 0", "BZMPOP 0 2 z l MIN", "MULTI", "BZPOPMIN z 0", "BZMPOP 0 1 z MAX", "EXEC",
    "ZADD z 1 a 2 b", "BZMPOP 0 2 none z MAX COUNT 9", "COMMAND GETKEYS bzmpop 0 2 a b min",
]


def clients_blocked(t):
    return t.info("clients")["blocked_clients"]


def replies(server, proto, waiting, meanwhile):
    with server.raw() as a, server.raw() as b:
        for conn in (a, b):
            conn.call("HELLO", proto)
        b.call("FLUSHALL")
        a.send_command(*waiting.split())
        if meanwhile:
            wait_until(lambda: clients_blocked(server) == 1, what="it waits")
        return [b.call(*c.split()) for c in meanwhile] + [a.read_reply()]


@pytest.mark.parametrize("proto", [2, 3])
def test_served_as_redis_does(tiercel, redis_server, proto):
    ours, theirs = tiercel(threads=2), redis_server()
    for waiting, meanwhile in WAITS:
        assert replies(ours, proto, waiting, meanwhile) == replies(theirs, proto, waiting, meanwhile), waiting


@pytest.mark.parametrize("proto", [2, 3])
def test_without_waiting(tiercel, redis_server, proto):
    with tiercel().raw() as ours, redis_server().raw() as theirs:
        for conn in (ours, theirs):
            conn.call("HELLO", proto)
        for line in AT_ONCE:
            assert ours.call(*line.split()) == theirs.call(*line.split()), line
