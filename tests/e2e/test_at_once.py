"""Requests of many connections that are there at the same time: the server reads several before it runs the first."""
import random

import pytest

from harness import RespError, parse, wait_until
from rawconn import encode


class Crowd:
    """Connections whose requests the server finds all at once: it is stopped while they are sent."""

    def __init__(self, t, n):
        self.t = t
        self.conns = [t.raw() for _ in range(n)]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for c in self.conns:
            c.close()

    def send(self, data):
        """data: of each connection, bytes."""
        self.t.pause()
        for conn, some in zip(self.conns, data):
            conn.send(some)
        self.t.resume()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_gets_its_own_reply(tiercel, threads):
    t = tiercel(threads=threads, maxmemory="64mb")
    rng = random.Random(threads)
    with Crowd(t, 120) as crowd:
        values = [None] * 120
        for i, c in enumerate(crowd.conns):
            if i % 5 == 0:
                assert c.ask("SELECT", i % 16) == "OK"
        for turn in range(30):
            data, want = [], []
            for i in range(120):
                kind = rng.random()
                key = "k:%d" % i
                if kind < 0.4:
                    data.append(encode("GET", key))
                    want.append([values[i]])
                elif kind < 0.8:
                    values[i] = b"%d:%d:" % (i, turn) + b"v" * rng.choice((1, 60, 1000, 3000))
                    data.append(encode("SET", key, values[i]))
                    want.append(["OK"])
                elif kind < 0.85:
                    values[i] = b"%d" % turn * 60000
                    data.append(encode("SET", key, values[i]) + encode("GET", key))
                    want.append(["OK", values[i]])
                elif kind < 0.9:
                    data.append(encode("STRLEN", key) + encode("NOSUCH") + b"\r\n" + b"PING\r\n")
                    want.append([len(values[i] or b""), RespError, "PONG"])
                elif kind < 0.95:
                    data.append(encode("MULTI") + encode("GET", key) + encode("EXEC"))
                    want.append(["OK", "QUEUED", [values[i]]])
                else:
                    data.append(encode("DEL", key))
                    want.append([int(values[i] is not None)])
                    values[i] = None
            cut = [len(d) if rng.random() < 0.8 else rng.randrange(len(d)) for d in data]
            crowd.send([d[:n] for d, n in zip(data, cut)])
            for c, d, n in zip(crowd.conns, data, cut):
                if n < len(d):
                    c.send(d[n:])
            for i, c in enumerate(crowd.conns):
                for w in want[i]:
                    got = parse(c.read_reply())
                    assert isinstance(got, RespError) if w is RespError else got == w, (i, turn)


def test_one_closes_the_others(tiercel):
    t = tiercel(threads=1)
    for _ in range(5):
        with Crowd(t, 60) as crowd:
            for c in crowd.conns:
                assert c.ask("PING") == "PONG"
            before = int(t.call("GET", "n") or 0)
            crowd.send([encode("INCR", "n") if i != 7 else encode("CLIENT", "KILL", "TYPE", "normal") for i in range(60)])
            killed = parse(crowd.conns[7].read_reply())
            ran = int(t.call("GET", "n")) - before
            assert killed == 59 and 0 <= ran <= 59, (killed, ran)
        wait_until(lambda: t.info("clients")["connected_clients"] == 1, what="all others are gone")


def test_what_one_does_the_next_one_sees(tiercel):
    t = tiercel(threads=1)
    with Crowd(t, 16) as crowd:
        for c in crowd.conns:
            c.ask("PING")
        t.call("SET", "k", "old")
        crowd.send([encode("SET", "k", "0")] + [encode("APPEND", "k", "x")] * 7 +
                   [encode("GET", "k"), encode("FLUSHALL"), encode("GET", "k"), encode("SWAPDB", "0", "1"),
                    encode("SET", "k", "new"), encode("DBSIZE"), encode("FLUSHDB"), encode("EXISTS", "k")])
        got = [parse(c.read_reply()) for c in crowd.conns]
        # In which order is the kernel's business; that each sees a state that was is not.
        assert got[0] == "OK" and sorted(got[1:8]) == sorted(set(got[1:8])), got
        assert got[9] == got[11] == got[12] == got[14] == "OK", got
        assert got[10] is None or set(got[10]) <= set(b"0xnewold"), got
        assert got[15] in (0, 1) and got[13] in (0, 1), got
