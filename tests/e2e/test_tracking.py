"""CLIENT TRACKING: what each connection receives, in order, against redis-server; and over tiers and workers."""
import os
import random
import threading
import time

import pytest

from harness import scaled, wait_until
from rawconn import RawConn, encode, parse

KEYS = ["k0", "k1", "k2", "a:1", "a:2", "ab", "b:1", "{l}", "{s}"]
INVALIDATE = b"invalidate"


class World:
    """The connections of one server, by name, and what they receive."""

    def __init__(self, server, protos):
        self.server = server
        self.protos = protos
        self.conns, self.ids = {}, {}
        for name in protos:
            self.open(name)

    def open(self, name):
        c = self.server.raw()
        if self.protos[name] == 3:
            c.call("HELLO", 3)
        self.ids[name] = c.ask("CLIENT", "ID")
        self.conns[name] = c

    def close(self, name):
        ident = self.ids[name]
        self.conns.pop(name).close()
        self.conns["w"].call("PING")
        wait_until(lambda: b" " not in self.conns["w"].call("CLIENT", "LIST", "ID", ident)[:30], what="it is gone")

    def arg(self, a):
        return str(self.ids[a[1:]]) if a.startswith("@") else a

    def settle(self, got):
        """All that is on its way arrives: messages may take one step more through a redirection."""
        for turn in range(2):
            for name, c in self.conns.items():
                mark = b"mark %d" % turn
                c.send_command("PING", mark)
                while True:
                    raw = c.read_reply()
                    if raw.endswith(b"$%d\r\n%s\r\n" % (len(mark), mark)):
                        break
                    got[name].append(raw)

    def step(self, name, commands):
        """Sends commands at once. Per connection, what it received."""
        got = {n: [] for n in self.conns}
        c = self.conns[name]
        c.send(b"".join(encode(*map(self.arg, cmd)) for cmd in commands))
        self.settle(got)
        return got

    def plain(self, raw):
        """A reply as a value in which IDs of clients are names."""
        return self.named(parse(raw))

    def named(self, value):
        names = {v: k for k, v in self.ids.items()}
        if isinstance(value, list):
            value = [self.named(v) for v in value]
        if isinstance(value, list) and value[:1] == [b"tracking-redir-broken"]:
            value[1] = names[value[1]]
        elif isinstance(value, list) and value[:1] == [b"flags"]:
            value[3] = names.get(value[3], value[3])
        elif isinstance(value, dict) and b"redirect" in value:
            value[b"redirect"] = names.get(value[b"redirect"], value[b"redirect"])
        if isinstance(value, (list, dict)) and b"server" in value:
            value = "hello"
        return value


def text(value):
    return value if isinstance(value, str) else value.decode()


def is_push(value):
    return isinstance(value, list) and len(value) > 1 and (
        value[0] in (INVALIDATE, b"tracking-redir-broken") or value[:2] == [b"message", b"__redis__:invalidate"])


def loose(values):
    """Replies in order, and names of keys that were invalidated: where order and grouping depend on loops."""
    replies = [v for v in values if not is_push(v)]
    names = set()
    for v in values:
        if is_push(v):
            names.update(v[-1] if isinstance(v[-1], list) else [v[-1]])
    return replies, sorted(map(str, names))


def calm(values):
    """Messages that come together, by name: with several keys the command's own order is not told apart."""
    out, together = [], []
    for v in values + [None]:
        if is_push(v) and v is not None:
            together.append(v)
        else:
            out += sorted(together, key=str) + [v]
            together = []
    return out[:-1]


def run(server, protos, steps):
    world = World(server, protos)
    out = []
    for name, commands in steps:
        got = world.step(name, commands)
        out.append({n: [world.plain(raw) for raw in raws] for n, raws in got.items()})
    for c in world.conns.values():
        c.close()
    return out


# ---- single steps, exactly ----

SCENES = {
    "own writes, in a pipeline": [
        ("a", [("CLIENT", "TRACKING", "ON")]),
        ("a", [("GET", "k"), ("SET", "k", "1"), ("PING",), ("GET", "k")]),
        ("b", [("SET", "k", "2"), ("SET", "k", "3")]),
        ("a", [("MGET", "k", "j", "k"), ("MSET", "j", "1", "k", "2"), ("PING",)]),
    ],
    "missing keys, other databases": [
        ("a", [("CLIENT", "TRACKING", "ON"), ("GET", "no"), ("EXISTS", "no2"), ("TTL", "no3")]),
        ("b", [("SELECT", "5"), ("SET", "no", "1"), ("LPUSH", "no2", "1"), ("SADD", "no3", "1")]),
        ("a", [("GET", "m"), ("GET", "n")]),
        ("b", [("SET", "m", "1"), ("SELECT", "0"), ("SET", "m", "1"), ("MOVE", "m", "7"), ("SWAPDB", "0", "5")]),
        ("a", [("GET", "no")]),
        ("b", [("SWAPDB", "0", "5"), ("RENAME", "no", "q"), ("SELECT", "5"), ("RENAME", "no", "q")]),
    ],
    "transactions": [
        ("a", [("CLIENT", "TRACKING", "ON"), ("MULTI",), ("GET", "k"), ("SET", "k", "1"), ("GET", "k"), ("SET", "k", "2"),
               ("EXEC",), ("PING",)]),
        ("a", [("MULTI",), ("GET", "k"), ("FLUSHALL",), ("GET", "k"), ("EXEC",), ("PING",)]),
        ("b", [("SET", "k", "1")]),
        ("a", [("GET", "k"), ("WATCH", "k")]),
        ("b", [("SET", "k", "2")]),
        ("a", [("MULTI",), ("GET", "k"), ("EXEC",)]),
        ("b", [("SET", "k", "3")]),
    ],
    "scripts": [
        ("a", [("CLIENT", "TRACKING", "ON")]),
        ("a", [("EVAL", "return redis.call('get', 'other')", "1", "k")]),
        ("b", [("SET", "other", "1"), ("SET", "k", "1")]),
        ("a", [("EVAL", "return 1", "1", "k")]),
        ("b", [("SET", "k", "1")]),
        ("a", [("EVAL", "redis.call('get', KEYS[1]) redis.call('set', KEYS[1], '5') return redis.call('get', KEYS[2])", "2",
                "k", "j"), ("PING",)]),
        ("b", [("EVAL", "redis.call('set', 'j', '1') redis.call('set', 'k', '2')", "2", "k", "j")]),
        ("a", [("MULTI",), ("EVAL_RO", "return redis.call('get', KEYS[1])", "1", "k"), ("EXEC",)]),
        ("b", [("SET", "k", "1")]),
    ],
    "flushes": [
        ("a", [("CLIENT", "TRACKING", "ON"), ("GET", "k"), ("FLUSHALL",), ("PING",)]),
        ("b", [("FLUSHDB",), ("SET", "k", "1")]),
        ("b", [("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP"), ("FLUSHALL",), ("PING",)]),
        ("c", [("CLIENT", "TRACKING", "ON", "REDIRECT", "@a")]),
        ("w", [("FLUSHALL",)]),
    ],
    "opt in": [
        ("a", [("CLIENT", "TRACKING", "ON", "OPTIN"), ("GET", "k"), ("CLIENT", "CACHING", "YES"), ("CLIENT", "TRACKINGINFO"),
               ("GET", "j"), ("GET", "k2"), ("CLIENT", "TRACKINGINFO")]),
        ("b", [("MSET", "k", "1", "j", "1", "k2", "1")]),
        ("a", [("CLIENT", "CACHING", "YES"), ("MULTI",), ("GET", "k"), ("GET", "j"), ("EXEC",), ("GET", "k2")]),
        ("b", [("MSET", "k", "1", "j", "1", "k2", "1")]),
        ("a", [("MULTI",), ("GET", "k"), ("CLIENT", "CACHING", "YES"), ("GET", "j"), ("EXEC",), ("GET", "k2")]),
        ("b", [("MSET", "k", "1", "j", "1", "k2", "1")]),
        ("a", [("CLIENT", "CACHING", "YES"), ("NOSUCH",), ("GET", "k"), ("CLIENT", "CACHING", "YES"), ("CLIENT", "GETNAME"),
               ("GET", "j"), ("CLIENT", "CACHING", "YES"), ("GET",), ("GET", "k2")]),
        ("b", [("MSET", "k", "1", "j", "1", "k2", "1")]),
    ],
    "opt out": [
        ("a", [("CLIENT", "TRACKING", "ON", "OPTOUT"), ("GET", "k"), ("CLIENT", "CACHING", "NO"), ("CLIENT", "TRACKINGINFO"),
               ("GET", "j"), ("GET", "k2")]),
        ("b", [("MSET", "k", "1", "j", "1", "k2", "1")]),
        ("a", [("CLIENT", "CACHING", "YES"), ("CLIENT", "CACHING", "x"), ("CLIENT", "TRACKING", "ON", "OPTIN")]),
    ],
    "no loop": [
        ("a", [("CLIENT", "TRACKING", "ON", "NOLOOP"), ("GET", "k"), ("SET", "k", "1"), ("GET", "k")]),
        ("b", [("SET", "k", "2")]),
        ("b", [("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", "PREFIX", "k"), ("SET", "k1", "1"), ("SET", "x", "1")]),
        ("a", [("SET", "k2", "1")]),
    ],
    "no loop, from within a transaction": [
        ("a", [("SET", "k", "1"), ("MULTI",), ("CLIENT", "TRACKING", "ON", "NOLOOP"), ("GET", "k"), ("SET", "k", "2"), ("EXEC",)]),
        ("a", [("MULTI",), ("CLIENT", "TRACKING", "OFF"), ("CLIENT", "TRACKING", "ON"), ("GET", "k"), ("SET", "k", "3"), ("EXEC",)]),
    ],
    "redirection": [
        ("c", [("CLIENT", "TRACKING", "ON"), ("GET", "k")]),
        ("b", [("SET", "k", "1")]),
        ("a", [("CLIENT", "TRACKING", "ON", "REDIRECT", "@c"), ("CLIENT", "TRACKINGINFO"), ("GET", "k")]),
        ("b", [("SET", "k", "1")]),
        ("c", [("SUBSCRIBE", "x")]),
        ("a", [("GET", "k"), ("SET", "k", "2"), ("PING",)]),
        ("a", [("GET", "k"), ("CLIENT", "TRACKING", "ON", "REDIRECT", "@a"), ("SET", "k", "2"), ("PING",)]),
        ("a", [("GET", "k"), ("CLIENT", "TRACKING", "OFF"), ("SET", "k", "2"), ("CLIENT", "GETREDIR")]),
    ],
    "off and on again": [
        ("a", [("CLIENT", "TRACKING", "ON"), ("GET", "k"), ("GET", "j"), ("CLIENT", "TRACKING", "OFF")]),
        ("b", [("SET", "k", "1")]),
        ("a", [("CLIENT", "TRACKING", "ON")]),
        ("b", [("SET", "k", "1"), ("SET", "j", "1")]),
        ("a", [("GET", "k"), ("RESET",), ("CLIENT", "TRACKINGINFO")]),
        ("b", [("SET", "k", "1")]),
        ("a", [("CLIENT", "TRACKING", "ON"), ("GET", "k"), ("HELLO", "3"), ("CLIENT", "TRACKINGINFO")]),
        ("b", [("SET", "k", "1")]),
    ],
    "broadcasting": [
        ("a", [("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "b:", "PREFIX", "a:"), ("CLIENT", "TRACKINGINFO")]),
        ("b", [("SET", "a:1", "1")]),
        ("b", [("SET", "c:1", "1")]),
        ("b", [("DEL", "a:1")]),
        ("a", [("SET", "b:1", "1")]),
        ("a", [("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "a:1"), ("CLIENT", "TRACKING", "ON", "BCAST"),
               ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "q"), ("CLIENT", "TRACKINGINFO")]),
        ("b", [("SET", "c:1", "1")]),
        ("b", [("SET", "", "1")]),
        ("a", [("CLIENT", "TRACKING", "OFF"), ("CLIENT", "TRACKINGINFO")]),
        ("b", [("SET", "c:1", "1")]),
    ],
    "errors": [
        ("a", [("CLIENT", "TRACKING") + args]) for args in [
            ("ON", "PREFIX", "a"), ("ON", "REDIRECT", "0"), ("ON", "REDIRECT", "-1"), ("ON", "REDIRECT", "99999"),
            ("ON", "REDIRECT", "x"), ("ON", "REDIRECT"), ("FOO",), ("ON", "OPTIN", "OPTOUT"), ("ON", "BCAST", "OPTIN"),
            ("ON", "BCAST", "PREFIX", "foo", "PREFIX", "foobar"), ("ON", "BCAST", "PREFIX"), ("OFF", "x"), (),
            ("ON", "REDIRECT", "@b", "REDIRECT", "@c"), ("OFF", "BCAST", "OPTIN"), ("x", "REDIRECT", "77777")]
    ] + [
        ("a", [("CLIENT", "CACHING", "YES"), ("CLIENT", "CACHING"), ("CLIENT", "GETREDIR"), ("CLIENT", "GETREDIR", "x"),
               ("CLIENT", "TRACKINGINFO", "x"), ("CLIENT", "TRACKINGINFO")]),
        ("a", [("CLIENT", "TRACKING", "ON"), ("CLIENT", "TRACKING", "ON", "BCAST"), ("CLIENT", "CACHING", "YES"),
               ("CLIENT", "CACHING", "NO"), ("CLIENT", "TRACKING", "ON", "OPTIN"), ("CLIENT", "TRACKING", "ON", "OPTOUT"),
               ("CLIENT", "TRACKING", "ON", "REDIRECT", "@b"), ("CLIENT", "TRACKINGINFO")]),
        ("c", [("CLIENT", "TRACKING", "ON"), ("CLIENT", "TRACKINGINFO")]),
    ],
    "no replies": [
        ("a", [("CLIENT", "TRACKING", "ON"), ("CLIENT", "REPLY", "OFF"), ("GET", "k"), ("SET", "k", "1"),
               ("CLIENT", "REPLY", "ON")]),
        ("a", [("GET", "k"), ("CLIENT", "REPLY", "SKIP"), ("SET", "k", "1"), ("PING",)]),
    ],
    "all kinds of changes": [step for change in [
        ("SET", "k", "5"), ("GETSET", "k", "1"), ("APPEND", "k", "1"), ("INCR", "k"), ("EXPIRE", "k", "100"), ("PERSIST", "k"),
        ("PERSIST", "k"), ("SETBIT", "k", "4", "1"), ("GETDEL", "k"), ("DEL", "k"), ("RPUSH", "k", "1", "2"), ("LPOP", "k"),
        ("LPOP", "k"), ("SADD", "k", "1"), ("SADD", "k", "1"), ("SREM", "k", "1"), ("HSET", "k", "f", "1"), ("HDEL", "k", "g"),
        ("UNLINK", "k"), ("ZADD", "k", "1", "m"), ("ZINCRBY", "k", "1", "m"), ("SUNIONSTORE", "k", "nokey"),
        ("XADD", "k", "1-1", "f", "v"), ("XGROUP", "CREATE", "k", "g", "0"), ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "k",
                                                                           ">"),
        ("COPY", "k", "j"), ("RENAME", "k", "j"), ("RENAMENX", "j", "k"), ("PFADD", "p", "1"), ("MOVE", "k", "3"),
        ("EXPIRE", "p", "-1"), ("TOUCH", "k"), ("SET", "k", "1", "XX"), ("MSETNX", "k", "1", "j", "2"), ("SET", "k", "1", "NX")]
        for step in (("a", [("EXISTS", "k", "j", "p")]), ("b", [change]))],
}
SCENES["reads by patterns"] = [
    ("b", [("RPUSH", "l", "1", "2"), ("SET", "w_1", "2"), ("SET", "w_2", "1")]),
    ("a", [("CLIENT", "TRACKING", "ON"), ("SORT_RO", "l", "BY", "w_*", "GET", "w_*")]),
    ("b", [("SET", "w_1", "3"), ("RPUSH", "l", "3")]),
    ("a", [("SORT", "l", "BY", "w_*")]),
    ("b", [("RPUSH", "l", "4")]),
]
SCENES["all kinds of changes"].insert(0, ("a", [("CLIENT", "TRACKING", "ON")]))


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.heavy), 4])
@pytest.mark.parametrize("scene", SCENES)
def test_as_redis(tiercel, redis_server, scene, threads):
    protos = {"w": 2, "a": 3, "b": 3, "c": 2}
    ours, theirs = (run(s, protos, SCENES[scene]) for s in (tiercel(threads=threads), redis_server()))
    for step, o, t in zip(SCENES[scene], ours, theirs):
        assert {n: calm(v) for n, v in o.items()} == {n: calm(v) for n, v in t.items()}, step


def test_a_blocked_reader_is_told_before_its_reply(tiercel, redis_server):
    seen = []
    for server in (tiercel(threads=4), redis_server()):
        with server.raw() as a, server.raw() as b:
            a.call("HELLO", 3)
            a.call("CLIENT", "TRACKING", "ON")
            a.send_command("XREAD", "BLOCK", 0, "STREAMS", "s", "$")
            wait_until(lambda: b"blocked_clients:1" in b.call("INFO", "clients"), what="it waits")
            b.call("XADD", "s", "1-1", "f", "v")
            seen.append([a.read_reply(), a.read_reply()])
            b.call("XADD", "s", "1-2", "f", "v")
            seen[-1].append(a.call("PING"))
            a.call("LRANGE", "l", 0, -1)
            with server.raw() as c:
                c.send_command("BLPOP", "l", 0)
                wait_until(lambda: b"blocked_clients:1" in b.call("INFO", "clients"), what="it waits")
                b.call("RPUSH", "l", "1")
                c.read_reply()
            seen[-1].append(a.read_reply())
            seen[-1].append(a.call("PING"))
    assert seen[0] == seen[1]


def test_a_redirection_that_broke(tiercel, redis_server):
    seen = []
    for server in (tiercel(threads=4), redis_server()):
        world = World(server, {"w": 2, "a": 3, "b": 2, "d": 3})
        out = []
        for name in "ab":
            out += world.step(name, [("CLIENT", "TRACKING", "ON", "REDIRECT", "@d"), ("GET", "k"), ("GET", "j")])[name]
        out.append(world.step("w", [("SET", "k", "1")]))
        gone = world.ids["d"]
        world.close("d")
        got = world.step("w", [("SET", "j", "1")])
        out.append({n: [world.plain(r) for r in raws] for n, raws in got.items()})
        got = world.step("a", [("GET", "k"), ("SET", "k", "1"), ("CLIENT", "TRACKINGINFO"), ("CLIENT", "GETREDIR")])
        out.append([world.plain(r) if i < 4 else r == b":%d\r\n" % gone for i, r in enumerate(got["a"])])
        line = text(world.conns["a"].ask("CLIENT", "INFO"))
        out.append([f for f in line.split() if f.startswith("flags=")])
        out.append("redir=%d " % gone in line)
        world.conns["a"].call("CLIENT", "TRACKING", "ON", "BCAST")
        world.conns["a"].call("CLIENT", "TRACKING", "OFF")
        world.conns["a"].call("CLIENT", "TRACKING", "ON", "BCAST")
        line = text(world.conns["a"].ask("CLIENT", "INFO"))
        out.append([f for f in line.split() if f.startswith(("flags=", "redir="))])
        seen.append(out)
        for c in world.conns.values():
            c.close()
    assert seen[0] == seen[1]


# ---- random steps ----

def random_tracking(r, name):
    kind = r.random()
    if kind < 0.2:
        return ("CLIENT", "TRACKING", "OFF")
    args = ["ON"]
    if r.random() < 0.25:
        args += ["REDIRECT", r.choice(["@d", "@d", "@" + name, "@e"])]
    if r.random() < 0.3:
        args += ["BCAST"]
        if r.random() < 0.7:
            args += ["PREFIX", r.choice(["a", "a:", "b:", "k", ""])]
            if r.random() < 0.4:
                args += ["PREFIX", r.choice(["a:1", "b:", "k0"])]
    elif r.random() < 0.4:
        args += [r.choice(["OPTIN", "OPTOUT"])]
    if r.random() < 0.3:
        args += ["NOLOOP"]
    if r.random() < 0.03:
        args += [r.choice(["PREFIX", "OPTIN", "REDIRECT", "foo"])]
    return ("CLIENT", "TRACKING", *args)


def random_command(r, name):
    k, j = r.choice(KEYS), r.choice(KEYS)
    kind = r.random()
    if kind < 0.15:
        return random_tracking(r, name)
    if kind < 0.22:
        return r.choice([("CLIENT", "CACHING", "YES"), ("CLIENT", "CACHING", "NO"), ("CLIENT", "TRACKINGINFO")])
    if kind < 0.55:
        return r.choice([("GET", k), ("MGET", k, j), ("EXISTS", k, j), ("TYPE", k), ("LRANGE", "{l}", "0", "-1"),
                         ("STRLEN", k), ("SCARD", k), ("TTL", k), ("OBJECT", "ENCODING", k), ("GETRANGE", k, "0", "3"),
                         ("LLEN", k), ("SCARD", "{s}"), ("SINTERCARD", "2", "{s}", k), ("TOUCH", k),
                         ("EVAL", "return redis.call('get', KEYS[1])", "1", k)])
    if kind < 0.97:
        return r.choice([("SET", k, "1"), ("INCR", k), ("DEL", k, j), ("MSET", k, "1", j, "2"), ("RENAME", k, j), ("LPUSH", "{l}", "1"),
                         ("LPOP", "{l}"), ("SADD", "{s}", k), ("SREM", "{s}", k), ("EXPIRE", k, "100"), ("PERSIST", k),
                         ("COPY", k, j), ("MOVE", k, "1"), ("SELECT", r.choice("001")), ("APPEND", k, "x"), ("GETDEL", k),
                         ("SET", k, "1", "PX", "1"), ("EVAL", "return redis.call('set', KEYS[1], '7')", "1", k),
                         ("SUNIONSTORE", k, "{s}", j), ("UNLINK", k)])
    return r.choice([("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", "0", "1"), ("RESET",), ("HELLO", "3"), ("HELLO", "2")])


def random_steps(r, n):
    steps = []
    for _ in range(n):
        name = r.choice("aaabbc")
        commands = [random_command(r, name) for _ in range(r.choice([1, 1, 1, 2, 3, 6]))]
        if r.random() < 0.15:
            commands = [c for c in commands if c[0] not in ("RESET", "HELLO")]
            commands = [c for c in commands if "PX" not in c]
            commands = [("MULTI",), *commands, (r.choice(["EXEC", "EXEC", "DISCARD"]),)]
        # Whoever begins to listen gets what others did in the same turn of Redis's loop.
        commands = [c for c in commands if "BCAST" in c][:1] or commands
        # What may expire does so before anything else looks at it.
        if any("PX" in c for c in commands):
            steps.append((name, [c for c in commands if "PX" not in c] or [("PING",)]))
            steps += [(name, [c]) for c in commands if "PX" in c]
            continue
        steps.append((name, commands))
    return steps


def run_random(server, steps):
    world = World(server, {"w": 2, "a": 3, "b": 3, "c": 2, "d": 2, "e": 3})
    world.conns["d"].call("SUBSCRIBE", "__redis__:invalidate")
    out = []
    for name, commands in steps:
        got = world.step(name, commands)
        if "PX" in commands[0]:
            time.sleep(0.005)
            looks = [("EXISTS", commands[0][1]), ("SELECT", "1"), ("EXISTS", commands[0][1]), ("SELECT", "0")]
            for n, more in world.step("w", looks).items():
                got[n] += more
        out.append({n: [world.plain(raw) for raw in raws] for n, raws in got.items()})
    for c in world.conns.values():
        c.close()
    return out


@pytest.mark.timeout(120)
def test_random_steps(tiercel, redis_server):
    seed = int(os.environ.get("TRACKING_SEED", random.randrange(10 ** 6)))
    count = int(os.environ.get("TRACKING_STEPS", 1200))
    print("TRACKING_SEED=%d" % seed)
    steps = random_steps(random.Random(seed), count)
    ours, theirs = (run_random(s, steps) for s in (tiercel(threads=4), redis_server()))
    broadcasts = set()
    for i, (step, o, t) in enumerate(zip(steps, ours, theirs)):
        name, commands = step
        if any(c[:2] == ("CLIENT", "TRACKING") and "BCAST" in c for c in commands):
            broadcasts.add(name)
        for n in o:
            # In broadcasting mode, and where several clients' messages meet, grouping and order are the loops' matter.
            same = calm(o[n]) == calm(t[n]) if n not in broadcasts | {"d", "e"} else loose(o[n]) == loose(t[n])
            assert same, "seed %d, step %d: %s\n%s:\nours   %s\ntheirs %s" % (seed, i, step, n, o[n], t[n])


# ---- tiers, limits, workers ----

def tracking(server, *options):
    c = server.raw()
    c.call("HELLO", 3)
    assert c.call("CLIENT", "TRACKING", "ON", *options) == b"+OK\r\n"
    return c


def info(server, field):
    return int(server.info()[field])


@pytest.mark.heavy
def test_demotion_is_no_change_and_expiry_on_disk_is(tiercel):
    t = tiercel(threads=2, maxmemory="20mb", maxmemory_policy="allkeys-lru", compression="no")
    with tracking(t) as a, t.raw() as b:
        b.call("SET", "cold", "c" * 1000)
        b.call("SET", "mortal", "m" * 1000, "PX", int(scaled(4) * 1000))
        assert a.ask("GET", "cold") and a.ask("GET", "mortal")
        for i in range(0, 40000, 500):
            b.pipeline(*[("SET", "fill:%d" % j, "x" * 1000) for j in range(i, i + 500)])
        where = [f.decode() for f in b.ask("CACHE", "INSPECT", "cold") if isinstance(f, bytes)]
        assert "disk" in " ".join(where)
        assert a.ask("PING") == "PONG"  # nothing was said of either
        assert a.ask("GET", "cold") == b"c" * 1000
        wait_until(lambda: b.ask("EXISTS", "mortal") == 0, what="it expired")
        assert a.read_value() == [INVALIDATE, [b"mortal"]]
        b.call("SET", "cold", "1")
        assert a.read_value() == [INVALIDATE, [b"cold"]]


def test_expiry_that_nobody_asks_for(tiercel):
    t = tiercel(threads=2)
    with tracking(t) as a, tracking(t, "BCAST", "NOLOOP") as b, t.raw() as c:
        c.call("SET", "k", "1", "PX", 100)
        assert b.read_value() == [INVALIDATE, [b"k"]]
        a.call("GET", "k")
        assert a.read_value() == [INVALIDATE, [b"k"]]
        assert b.read_value() == [INVALIDATE, [b"k"]]


def test_eviction_is_told(tiercel):
    t = tiercel(threads=2, maxmemory="8mb", maxmemory_policy="allkeys-lru", disk="no")
    with tracking(t, "NOLOOP") as a:
        told = set()
        for i in range(12000):
            a.send(encode("SET", "k%d" % i, "x" * 1000) + encode("GET", "k%d" % i))
            value = None
            for _ in range(2):
                value = a.read_value()
                while isinstance(value, list):
                    told.update(value[1])
                    value = a.read_value()
            if value is None:  # gone before it was read
                told.add(b"k%d" % i)
        with t.raw() as b:
            names = [b"k%d" % i for i in range(12000)]
            gone = {k for i in range(0, 12000, 1000) for k, v in
                    zip(names[i:i + 1000], b.pipeline(*[("EXISTS", k) for k in names[i:i + 1000]])) if v == b":0\r\n"}
        a.send_command("ECHO", "end")
        while (value := a.read_value()) != b"end":
            told.update(value[1])
        assert gone and gone <= told


def test_the_table_has_a_limit(tiercel):
    t = tiercel(threads=2, tracking_table_max_keys=100)
    with tracking(t) as a, t.raw() as b:
        told = set()
        for i in range(500):
            a.send_command("GET", "k%d" % i)
            value = a.read_value()
            while value is not None:
                told.update(value[1])
                value = a.read_value()
        a.send_command("PING")
        while (value := a.read_value()) != "PONG":
            told.update(value[1])
        assert len(told) == 400 and info(t, "tracking_total_keys") == info(t, "tracking_total_items") == 100
        b.call("CONFIG", "SET", "tracking-table-max-keys", 10)
        while len(told) < 490:
            told.update(a.read_value()[1])
        assert info(t, "tracking_total_keys") == 10
        rest = {b"k%d" % i for i in range(500)} - told
        b.pipeline(*[("SET", "k%d" % i, "1") for i in range(500)])
        while rest:
            names = a.read_value()[1]
            assert set(names) <= rest
            rest -= set(names)
        assert info(t, "tracking_total_keys") == 0 and info(t, "tracking_clients") == 1
    wait_until(lambda: info(t, "tracking_clients") == 0, what="nobody tracks")


def test_figures(tiercel, redis_server):
    seen = []
    for s in (tiercel(threads=4), redis_server()):
        with tracking(s) as a, tracking(s) as b, tracking(s, "BCAST", "PREFIX", "x", "PREFIX", "y") as c, s.raw() as w:
            figures = []
            for who, cmd in [(a, ("MGET", "1", "2", "3")), (b, ("MGET", "2", "3", "4")), (a, ("GET", "1")), (c, ("GET", "9")),
                             (w, ("SET", "2", "1")), (w, ("FLUSHALL",)), (c, ("CLIENT", "TRACKING", "OFF"))]:
                who.call(*cmd)
                if cmd == ("FLUSHALL",):
                    c.read_reply()  # the message of it, which would be taken for the next command's answer
                i = s.info()
                figures.append([int(i["tracking_" + f]) for f in ("clients", "total_keys", "total_items", "total_prefixes")])
            line = [f for f in text(c.ask("CLIENT", "INFO")).split() if f.startswith(("flags=", "redir="))]
            seen.append((figures, line))
    assert seen[0] == seen[1]


def test_a_client_that_does_not_read_is_closed(tiercel):
    t = tiercel(threads=2, client_output_buffer_limit="normal 1mb 0 0")
    with t.raw() as b:
        a = RawConn(t.port, rcvbuf=4096)
        a.call("HELLO", 3)
        a.call("CLIENT", "TRACKING", "ON", "BCAST")
        wait_until(lambda: info(t, "tracking_clients") == 1, what="it tracks")

        def closed():
            b.pipeline(*[("SET", "k" * 500 + str(i), "1") for i in range(1000)])
            return info(t, "tracking_clients") == 0
        wait_until(closed, what="it is closed", timeout=30)
        assert info(t, "client_output_buffer_limit_disconnections") == 1
        a.close()


def test_clients_that_went_are_forgotten(tiercel):
    t = tiercel(threads=4)
    with t.raw() as b:
        for _ in range(20):
            conns = [tracking(t) for _ in range(8)] + [tracking(t, "BCAST") for _ in range(4)]
            for c in conns:
                c.send(encode("GET", "k") + encode("MGET", "a", "b"))
            b.call("SET", "k", "1")
            for c in conns:
                c.close()
            b.call("SET", "a", "1")
        wait_until(lambda: info(t, "tracking_clients") == 0, what="all are gone")
        assert info(t, "tracking_total_prefixes") == 0
        b.call("SET", "b", "1")
        b.call("SET", "k", "1")
        assert info(t, "tracking_total_keys") <= 3


class Reader(threading.Thread):
    """Caches what it reads, and drops what it is told of."""

    def __init__(self, server, seed, options, keys):
        super().__init__()
        self.conn = tracking(server, *options)
        self.r = random.Random(seed)
        self.cache, self.keys, self.reads = {}, keys, 0
        self.ending = False

    def drop(self, value):
        if value[1] is None:
            self.cache.clear()
        else:
            for k in value[1]:
                self.cache.pop(k, None)

    def read(self):
        while True:
            value = self.conn.read_value()
            if not (isinstance(value, list) and value and value[0] == INVALIDATE):
                return value
            self.drop(value)

    def run(self):
        while not self.ending:
            names = [b"s%d" % self.r.randrange(self.keys) for _ in range(self.r.randrange(1, 9))]
            self.conn.send(b"".join(encode("GET", k) for k in names))
            for k in names:
                self.cache[k] = self.read()
                self.reads += 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", [(), ("BCAST",), ("BCAST", "PREFIX", "s1", "PREFIX", "s2"), ("NOLOOP",)])
def test_no_stale_copy_is_left(tiercel, options):
    t = tiercel(threads=4, maxmemory="20mb", maxmemory_policy="allkeys-lru", tracking_table_max_keys=300)
    keys, ends = 400, []
    readers = [Reader(t, i, options, keys) for i in range(3)]

    def write(seed):
        r = random.Random(seed)
        with t.raw() as c:
            while not ends:
                k = "s%d" % r.randrange(keys)
                c.pipeline(*[r.choice([("SET", k, r.random()), ("SET", k, r.random()), ("DEL", k), ("APPEND", k, "x"),
                                       ("SET", k, r.random(), "PX", r.randrange(1, 30)), ("SET", k, "y" * 3000),
                                       ("RENAME", k, "s%d" % r.randrange(keys))]) for _ in range(4)])
                if r.random() < 0.002:
                    c.call("FLUSHALL")

    threads = [threading.Thread(target=write, args=(100 + i,)) for i in range(3)] + readers
    for th in threads:
        th.start()
    time.sleep(4)
    ends.append(True)
    for th in threads[:3]:
        th.join()
    for reader in readers:
        reader.ending = True
        reader.join()
    time.sleep(0.3)  # what has a time to live is over
    with t.raw() as b:
        b.pipeline(*[("EXISTS", "s%d" % i) for i in range(keys)])  # whoever looks finds it so
        for reader in readers:
            assert reader.reads > 100
            for _ in range(2):
                reader.conn.send_command("ECHO", "end")
                while reader.read() != b"end":
                    pass
            for k, value in reader.cache.items():
                if "PREFIX" not in options or k.startswith((b"s1", b"s2")):
                    assert b.ask("GET", k) == value, k
            reader.conn.close()
