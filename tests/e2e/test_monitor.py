"""MONITOR: every command, of every worker, as Redis shows it."""
import re


def lines(client, n):
    out = []
    while len(out) < n:
        line = client.read_line()
        out.append(re.sub(rb"^\+[\d.]+ \[(\d+) [^\]]*\]", rb"[\1]", line.rstrip(b"\r\n")))
    return out


def script(c):
    c.call("SELECT", 2)
    c.call("SET", "k", b'a"b\\c\n\r\t\x07\x08\x00\xff d')
    c.call("GET", "k")
    c.call("NOSUCH", "x")
    c.call("GET")
    c.call("AUTH", "secret")
    c.call("CONFIG", "GET", "save")
    c.call("MULTI")
    c.call("INCR", "n")
    c.call("PING")
    c.call("EXEC")
    c.call("EVALSHA", "0" * 40, 0)
    c.call("CLIENT", "SETNAME", "me")


def test_as_redis(tiercel, redis_server):
    shown = []
    for server in (tiercel(threads=2), redis_server()):
        with server.raw() as watcher, server.raw() as c:
            assert watcher.call("MONITOR") == b"+OK\r\n"
            script(c)
            c.call("ECHO", "end")
            got = []
            while not got or b'"end"' not in got[-1]:
                got += lines(watcher, 1)
            shown.append(got)
    known = [line for line in shown[1] if b"EVALSHA" not in line]
    assert [line for line in shown[0] if b"EVALSHA" not in line] == known


def test_all_workers(tiercel):
    t = tiercel(threads=4)
    with t.raw() as watcher:
        watcher.call("MONITOR")
        others = [t.raw() for _ in range(12)]
        for i, c in enumerate(others):
            for j in range(20):
                c.call("GET", "%d:%d" % (i, j))
        seen = lines(watcher, 240)
        for i in range(len(others)):
            mine = [line for line in seen if b'"%d:' % i in line]
            assert mine == [b'[0] "GET" "%d:%d"' % (i, j) for j in range(20)]
        assert b" flags=O " in watcher_info(t)
        watcher.call("RESET")
        for c in others:
            c.close()
        assert b" flags=O " not in watcher_info(t)


def watcher_info(t):
    with t.raw() as c:
        return c.ask("CLIENT", "LIST")
