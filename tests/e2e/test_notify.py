"""Keyspace notifications: the same events in the same order as redis-server's, from every tier and thread."""
import collections
import itertools
import random
import threading
import time

import pytest

from harness import RespError, encode, scaled, wait_until
from test_tiers import value_of, write

ALL = "KEAnm"


class Listener:
    """Subscribes to all events of a server. events() returns those since the last call as (channel, text)."""

    def __init__(self, server, flags=ALL):
        self.server = server
        self.control = server.raw()
        self.messages = server.raw()
        self.marks = 0
        if flags is not None:
            assert self.control.call("CONFIG", "SET", "notify-keyspace-events", flags) == b"+OK\r\n"
        self.messages.pipeline(("PSUBSCRIBE", "__key*@*__:*"), ("SUBSCRIBE", "marks"))

    def events(self):
        self.marks += 1
        mark = b"%d" % self.marks
        self.control.call("PUBLISH", "marks", mark)
        found = []
        while True:
            message = self.messages.read_value()
            if message == [b"message", b"marks", mark]:
                return found
            found.append((message[2], message[3]))

    def keyevents(self):
        """Those of the channels by event, as (event, key)."""
        return [(channel.split(b":", 1)[1], key) for channel, key in self.events() if channel.startswith(b"__keyevent@")]

    def wait(self, n, event, timeout=10):
        """Waits for n keys with this event, and returns a counter of all (event, key)."""
        seen = collections.Counter()

        def enough():
            seen.update(self.keyevents())
            return sum(1 for e, _ in seen if e == event) >= n

        wait_until(enough, timeout=timeout, what="%s of %d keys" % (event, n))
        return seen


# ---- the same as redis-server

SCENARIOS = {
    "set": ["SET a 1", "SET a 2", "SET a 1 EX 100", "SET a 1 KEEPTTL", "SET b 1 NX GET", "SET b 1 NX", "SET no 1 XX",
            "SET a 3 GET", "SETEX d 10 v", "SETEX d 10 v", "PSETEX d 10000 v", "SETNX e 1", "SETNX e 1", "GETSET f 1",
            "GETSET f 2", "GETDEL f", "GETDEL f", "GETEX f", "GETEX a", "GETEX a EX 100", "GETEX a PERSIST",
            "GETEX a PERSIST", "GETEX a PXAT 5", "GETEX b EX 0", "SET a x EX", "LPUSH b x", "GET b"],
    "change": ["APPEND a x", "APPEND a y", "SETRANGE a 1 zz", "SETRANGE q 1 zz", ("SETRANGE", "q2", "1", ""),
               ("APPEND", "a", ""), ("APPEND", "a3", ""), "INCR n", "DECR n", "INCRBY n 5", "DECRBY n 3", "INCR a",
               "INCRBYFLOAT n 1.5", "INCRBYFLOAT nn 1.5"],
    "several": ["MSET a 1 b 2 new 3", "MSET x1 1 x1 2", "MSETNX x2 1 x2 2", "MSETNX x2 1 x3 2", "DEL a no b",
                "UNLINK x1 x1", "MGET no x2 no2 no", "EXISTS a no x2 no"],
    "missed": ["SET a v", "EXISTS no", "TOUCH a no", "TYPE no", "TTL no", "PTTL no", "EXPIRETIME no", "PEXPIRETIME no",
               "STRLEN no", "GETRANGE no 0 1", "SUBSTR no 0 1", "LCS no a", "LCS no no2", "OBJECT ENCODING no",
               "MEMORY USAGE no", "LLEN no", "LRANGE no 0 1", "LPOP no", "RPOP no 2", "PERSIST no", "EXPIRE no 1",
               "COPY no a", "MOVE no 1", "RENAME no a", "WATCH no", "UNWATCH", "GET no"],
    "expiry": ["SET n 1", "EXPIRE n 100", "EXPIRE n 100 NX", "PERSIST n", "PERSIST n", "PEXPIRE n 10000", "EXPIREAT n 5",
               "SET n 1", "EXPIRE n -1", "SET n 1", "PEXPIREAT n 99999999999999", "EXPIRE n 0"],
    "hashes": ["HSET h a 1 b 2", "HSET h a 1", "HMSET h c 3", "HSETNX h a 9", "HSETNX h d 9", "HINCRBY h a 2", "HINCRBY h b x",
               "HINCRBY h n 1", "HINCRBYFLOAT h a 1.5", "HINCRBYFLOAT f x 1.5", "HDEL h no", "HDEL h a b no", "HDEL no a",
               "HDEL h c d n", "HGET no a", "HMGET no a b", "HGETALL no", "HLEN no", "HEXISTS no a", "HSTRLEN no a",
               "HSCAN no 0", "HRANDFIELD no", "HRANDFIELD no 3", "HKEYS no", "HVALS no", "HSET f x 1", "HGET f x"],
    "sets": ["SADD s 1 2 3", "SADD s 1", "SADD t a", "SREM s 9", "SREM s 1", "SREM t a", "SADD one x", "SPOP one",
             "SADD one 7 8", "SPOP one 0", "SPOP one 5", "SPOP no", "SPOP no 3", "SADD m 1", "SMOVE m s 1", "SMOVE m s 1",
             "SMOVE s s 1", "SMOVE s s 77", "SMOVE s new 1", "SADD new 2", "SMOVE new s 2", "SINTERSTORE d s s",
             "SINTERSTORE d s no", "SINTERSTORE d s no", "SUNIONSTORE s s no", "SUNIONSTORE e no no", "SDIFFSTORE e s no",
             "SDIFFSTORE e e s", "SDIFFSTORE e no s", "SUNIONSTORE s no no2", "SADD p 1", "EXPIRE p 100", "SADD p 2",
             "SUNIONSTORE p p p", "SINTER p no", "SUNION no p", "SDIFF no p", "SINTERCARD 2 p no", "SISMEMBER no 1",
             "SMISMEMBER no 1 2", "SCARD no", "SMEMBERS no", "SSCAN no 0", "SRANDMEMBER no", "SRANDMEMBER no 3", "SMEMBERS p"],
    "names": ["SET n 1", "RENAME n m", "SET o 1", "RENAME m o", "RENAME o o", "RENAMENX o o", "RENAMENX o p", "SET r 1 EX 100",
              "RENAMENX r p", "COPY p s", "COPY p s", "COPY p s REPLACE", "COPY r s REPLACE", "COPY p p DB 1", "MOVE p 1",
              "MOVE s 1", "RPUSH l a b", "RENAME l p", "COPY p l", "SELECT 1", "MOVE s 2", "COPY p q DB 0", "SELECT 0"],
    "lists": ["LPUSH l a b", "RPUSH l c", "LPUSHX l d", "RPUSHX no d", "LPOP l 0", "LPOP l", "RPOP l 2", "RPOP l 9",
              "LPUSH l a", "LPOP l", "RPUSH l a b", "BLPOP no l 0", "BRPOP l 0", "LPUSH l a", "SET l x", "LPUSH l a",
              "DEL l", "BLPOP l 0.01"],
    "databases": ["SET a 1", "LPUSH l x", "SWAPDB 0 1", "SET a 1", "SELECT 1", "GET a", "FLUSHDB", "SET a 1", "FLUSHALL",
                  "SELECT 0"],
    "transaction": ["MULTI", "SET t1 1", "GET t2", "LPUSH t3 x", "LPOP t3", "INCR t1", "SELECT 2", "SET t1 1", "SELECT 0",
                    "RENAME t1 t3", "EXEC", "MULTI", "SET t1 1", "DISCARD", "GET t1"],
    # Nothing expires by itself here (and with one key a command there is one order).
    "expired": ["SET x 1 PX 10", "sleep", "GET x", "GET x", "SET x 1 PX 10", "sleep", "SET x 2", "SET x 1 PX 10", "sleep",
                "INCR x", "EXPIRE x 0", "SET x 1 PX 10", "sleep", "TTL x", "SET x 1 PX 10", "sleep", "SETNX x 1",
                "SET x 1 PX 10", "sleep", "SET x 1 XX", "SET x 1 PX 10", "sleep", "APPEND x 1", "SET x 1 PX 10", "sleep",
                "PERSIST x", "SET x 1 PX 10", "sleep", "GETDEL x", "SET x 1 PX 10", "sleep", "GETEX x", "SET x 1 PX 10",
                "sleep", "DEL x", "SET x 1 PX 10", "sleep", "COPY x y", "SET x 1 PX 10", "sleep", "MOVE x 1",
                "SET x 1 PX 10", "sleep", "RENAME x y", "SET x 1 PX 10", "SET y 1", "sleep", "RENAME y x",
                "SETEX x 100 v", "SET y 1 PX 10", "sleep", "EXISTS y", "SET y 1 PX 10", "sleep", "OBJECT ENCODING y"],
}


def run(connection, listener, commands):
    """Each command with its reply and its events."""
    out = []
    for command in commands:
        if command == "sleep":
            time.sleep(0.02)
            continue
        args = command.split() if isinstance(command, str) else command
        out.append((command, connection.ask(*args), listener.events()))
    return out


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_as_redis(tiercel, redis_server, name):
    results = []
    for server in (redis_server(enable_debug_command=True), tiercel(threads=2)):
        listener = Listener(server)
        with server.raw() as c:
            c.call("DEBUG", "SET-ACTIVE-EXPIRE", "0")
            results.append(run(c, listener, SCENARIOS[name]))
    for redis, tiercel_ in zip(*results):
        if redis[0] == "EXEC" or not isinstance(redis[1], RespError):
            assert redis == tiercel_
        assert redis[2] == tiercel_[2], redis[0]


def test_set_in_the_past(tiercel):
    """It is gone at once here; Redis says "expired" when it comes across the key."""
    t = tiercel()
    listener = Listener(t)
    with t.raw() as c:
        for command in (("SET", "a", "v", "PXAT", "5"), ("SET", "a", "v", "EXAT", "5", "NX", "GET")):
            assert c.call(*command) in (b"+OK\r\n", b"$-1\r\n")
            assert [e for e, _ in listener.keyevents() if e != b"keymiss"] == [b"new", b"set", b"expire", b"expired"]
        c.call("SET", "a", "v")
        listener.events()
        c.call("SET", "a", "v", "PXAT", "5")
        assert listener.keyevents() == [(b"set", b"a"), (b"expire", b"a"), (b"expired", b"a")]
        assert c.call("GET", "a") == b"$-1\r\n"


def blocked_pops(server):
    """A waiting client's pop comes behind the push that serves it."""
    listener = Listener(server)
    out = []
    with server.raw() as waiter, server.raw() as pusher:
        for pop, pushes in (("BLPOP no l 0", [("RPUSH", "l", "a")]), ("BRPOP no l 0", [("LPUSH", "l", "a", "b")]),
                            ("BLPOP no l 0", [("MULTI",), ("SET", "s", "v"), ("RPUSH", "l", "x"), ("APPEND", "s", "w"),
                                              ("EXEC",)]),
                            ("BLMOVE l m LEFT RIGHT 0", [("RPUSH", "l", "a")]),
                            ("BLMOVE l m RIGHT LEFT 0", [("RPUSH", "l", "a", "b")]),
                            ("BLMOVE l l LEFT RIGHT 0", [("RPUSH", "l", "a")]),
                            ("BRPOPLPUSH l s 0", [("MULTI",), ("SET", "s", "v"), ("RPUSH", "l", "x"), ("EXEC",)]),
                            ("BLMPOP 0 2 no l LEFT COUNT 2", [("RPUSH", "l", "a", "b", "c")]),
                            ("BLMPOP 0 2 no l RIGHT COUNT 5", [("RPUSH", "l", "a", "b", "c")])):
            pusher.call("DEL", "l", "s")
            waiter.send_command(*pop.split())
            wait_until(lambda: server.info("clients")["blocked_clients"] == 1)
            listener.events()
            pusher.pipeline(*pushes)
            out.append((waiter.read_value(), listener.events()))
    return out


def test_blocked_pops(tiercel, redis_server):
    assert blocked_pops(tiercel(threads=2)) == blocked_pops(redis_server())


# ---- the setting

def test_letters(tiercel, redis_server):
    """Every letter alone and in pairs, and some more. One difference is meant: where Redis 7.0 has A and n it forgets n
    when it is asked, and when it rewrites its file."""
    letters = "g$lshzxetdnKEmA"
    texts = ["", "K E", "Q", "AKE", "KEA", "nKEm", "g$lshzxetd", "g$lshzxetdKE", "g$lshzxet", "KEmng$", "KK", "ax", "AE"]
    texts += ["".join(p) for n in (1, 2) for p in itertools.permutations(letters, n)]
    answers = []
    for server in (redis_server(), tiercel()):
        with server.raw() as c:
            answers.append([(text, c.call("CONFIG", "SET", "notify-keyspace-events", text),
                             c.ask("CONFIG", "GET", "notify-keyspace-events")[1]) for text in texts])
            assert c.call("CONFIG", "SET", "notify-keyspace-events", "AKEnm") == b"+OK\r\n"
    for redis, here in zip(*answers):
        if not ("A" in redis[0] and "n" in redis[0]):
            assert redis == here
    with server.raw() as c:
        assert c.ask("CONFIG", "GET", "notify-keyspace-events")[1] == b"AnKEm"


def test_what_the_letters_choose(tiercel, redis_server):
    commands = ["SET a 1", "APPEND a 2", "EXPIRE a 100", "GET no", "LPUSH l x", "LPOP l", "DEL a"]
    for flags in ("", "KE", "A", "K$", "E$", "Eg", "El", "Kn", "Em", "Ex", "KA", "KEmn", "Egl"):
        results = []
        for server in (redis_server(), tiercel()):
            listener = Listener(server, flags)
            with server.raw() as c:
                results.append(run(c, listener, commands))
        assert results[0] == results[1], flags


def test_off_by_default(tiercel):
    t = tiercel()
    listener = Listener(t, flags=None)
    with t.raw() as c:
        c.call("SET", "a", "1", "PX", "10")
        time.sleep(0.05)
        c.call("GET", "a")
        assert listener.events() == []
        for flags, events in (("E$", 1), ("", 0), ("K$", 1)):
            assert c.call("CONFIG", "SET", "notify-keyspace-events", flags) == b"+OK\r\n"
            c.call("SET", "a", "1")
            assert len(listener.events()) == events


def test_from_the_file_and_rewritten(tiercel):
    t = tiercel(notify_keyspace_events="KEg$x")
    listener = Listener(t, flags=None)
    t.call("SETEX", "a", "100", "v")
    assert [e for e, _ in listener.keyevents()] == [b"set", b"expire"]
    path = t.home / "tiercel.conf"
    path.write_text("notify-keyspace-events \"\"\n")
    t.stop()
    t.args = [path]
    t.options["notify_keyspace_events"] = None
    t.start()
    assert t.call("CONFIG", "GET", "notify-keyspace-events") == [b"notify-keyspace-events", b""]
    t.call("CONFIG", "SET", "notify-keyspace-events", "AnE")
    assert t.call("CONFIG", "REWRITE") == "OK"
    t.restart()
    assert t.call("CONFIG", "GET", "notify-keyspace-events") == [b"notify-keyspace-events", b"AnE"]
    listener = Listener(t, flags=None)
    t.call("SET", "fresh", "v")
    assert [e for e, _ in listener.keyevents()] == [b"new", b"set"]


# ---- order

def test_own_events_do_not_tear_replies(tiercel):
    t = tiercel(threads=2)
    with t.raw() as c:
        c.call("HELLO", 3)
        c.call("CONFIG", "SET", "notify-keyspace-events", ALL)
        c.call("PSUBSCRIBE", "__key*@*__:*")
        c.send(encode("MULTI") + encode("SET", "a", 1) + encode("MGET", "a", "no", "b") + encode("EXEC") +
               encode("MGET", "no", "a"))
        replies, pushes = [], 0
        while len(replies) < 5:
            reply = c.read_reply()
            if reply.startswith(b">"):
                pushes += 1
            else:
                replies.append(reply)
        assert replies[3] == b"*2\r\n+OK\r\n*3\r\n$1\r\n1\r\n_\r\n_\r\n" and replies[4] == b"*2\r\n_\r\n$1\r\n1\r\n"
        while pushes < 10:
            assert c.read_reply().startswith(b">")
            pushes += 1


def test_order_of_a_key_over_threads(tiercel):
    """Clients on all loops make and remove the same keys; what is published about a key alternates."""
    t = tiercel(threads=4)
    listener = Listener(t, "KAn")
    errors = []

    def work(seed):
        rng = random.Random(seed)
        try:
            with t.raw() as c:
                for _ in range(40):
                    commands = []
                    for _ in range(20):
                        key = "k%d" % rng.randrange(4)
                        commands.append(rng.choice((("SETNX", key, "v"), ("DEL", key), ("SET", key, "v", "PX", "1"),
                                                    ("RENAME", key, "k%d" % rng.randrange(4)), ("GETDEL", key))))
                    c.pipeline(*commands)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert not errors
    t.call("DEL", "k0", "k1", "k2", "k3")
    exists, n = {}, 0
    for channel, event in listener.events():
        key = channel.split(b":", 1)[1]
        if event == b"new":
            exists[key] = True  # RENAME replaces, without an event of what went
        elif event in (b"del", b"expired", b"rename_from"):
            assert exists.get(key), (key, event)
            exists[key] = False
        elif event in (b"set", b"expire"):
            assert exists.get(key), (key, event)
        n += 1
    assert n > 1000 and not any(exists.values())


# ---- expired and evicted

def test_expired_by_itself(tiercel):
    t = tiercel(threads=3)
    listener = Listener(t, "KEx")
    c = t.client()
    p = c.pipeline(transaction=False)
    for i in range(300):
        p.set("x:%d" % i, "v", px=20 + i % 50)
        p.set("stays:%d" % i, "v", ex=1000)
    p.execute()
    seen = listener.wait(300, b"expired")
    assert seen == {(b"expired", b"x:%d" % i): 1 for i in range(300)}
    c.set("l", "v", px=1)
    time.sleep(0.05)
    c.get("l")
    assert sorted(listener.events()) == [(b"__keyevent@0__:expired", b"l"), (b"__keyspace@0__:l", b"expired")]


def demoted(t, n=12000, **options):
    """A server whose keys are mostly on disk: those with an expiry are the oldest."""
    c = t.client()
    p = c.pipeline(transaction=False)
    for i in range(200):
        p.set("x:%d" % i, value_of("x"), **options)
    p.execute()
    write(t, ["k:%d" % i for i in range(n)])
    wait_until(lambda: t.tiers()["tier_demotions"] > 1000)
    return c


@pytest.mark.sequential
@pytest.mark.timeout(120)
def test_expired_on_disk(tiercel):
    """Once for each key, whether somebody asks for it, overwrites it or nobody does."""
    t = tiercel(maxmemory="4mb", threads=2, notify_keyspace_events="KExn")
    listener = Listener(t, None)
    c = demoted(t, px=int(scaled(4000)))  # what has less than a second to live is evicted instead
    listener.events()
    until = c.pexpiretime("x:199") / 1000 + 0.01
    time.sleep(max(0, until - time.time()))
    with t.raw() as r:
        assert r.pipeline(*[("GET", "x:%d" % i) for i in range(50)]) == [b"$-1\r\n"] * 50
        assert r.pipeline(*[("SET", "x:%d" % i, "v") for i in range(50, 80)]) == [b"+OK\r\n"] * 30
        assert r.pipeline(*[("EXISTS", "x:%d" % i) for i in range(80, 100)]) == [b":0\r\n"] * 20
    seen = listener.wait(200, b"expired", timeout=40)
    assert {k: n for k, n in seen.items() if k[0] == b"expired"} == {(b"expired", b"x:%d" % i): 1 for i in range(200)}
    assert {k: n for k, n in seen.items() if k[0] == b"new"} == {(b"new", b"x:%d" % i): 1 for i in range(50, 80)}


def test_demotion_is_no_event(tiercel):
    t = tiercel(maxmemory="4mb", threads=2)
    listener = Listener(t, None)
    c = demoted(t)
    c.config_set("notify-keyspace-events", ALL)
    write(t, ["k:%d" % i for i in range(500)])  # most of them on disk
    assert c.get("k:600") == value_of("k:600")
    seen = collections.Counter(e for e, _ in listener.keyevents())
    assert seen == {b"set": 500}


def test_evicted_without_a_disk(tiercel):
    t = tiercel(maxmemory="4mb", disk=False, threads=2)
    listener = Listener(t, "Ee")
    write(t, ["k:%d" % i for i in range(6000)])
    c = t.client()
    seen = collections.Counter(listener.keyevents())

    def settled():  # memory goes on to shed for a moment
        gone = {b"k:%d" % i for i in range(6000)} - set(c.keys())
        seen.update(listener.keyevents())
        return len(gone) > 1000 and seen == {(b"evicted", k): 1 for k in gone}

    wait_until(settled)


@pytest.mark.heavy
@pytest.mark.timeout(180)
def test_evicted_at_the_disk_quota(tiercel):
    t = tiercel(maxmemory="4mb", disk_max_size="16mb", threads=2)
    listener = Listener(t, "KEe")
    keys = ["k:%d" % i for i in range(40000)]
    write(t, keys)
    seen = collections.Counter(listener.events())
    c = t.client()

    def settled():
        evicted = t.info("stats")["evicted_keys"]
        seen.update(listener.events())
        return sum(seen.values()) == 2 * evicted == 2 * (len(keys) - c.dbsize()) and t.info("stats")["evicted_keys"] == evicted

    wait_until(settled, timeout=20)
    gone = {k.encode() for k in keys} - set(c.scan_iter(count=5000))
    assert len(gone) > 10000
    assert seen == {event: 1 for k in gone
                    for event in ((b"__keyevent@0__:evicted", k), (b"__keyspace@0__:" + k, b"evicted"))}


# ---- with an upstream

def test_upstream_events_only(tiercel, redis_server):
    """Subscriptions are the upstream's; what happens to copies here is not published."""
    up = redis_server(notify_keyspace_events="KEA")
    t = tiercel(upstream=up, threads=2, notify_keyspace_events="KEAnm")
    with t.raw() as s, t.raw() as c:
        s.call("PSUBSCRIBE", "__key*@*__:*")
        c.call("SET", "a", "1")
        c.call("GET", "a")
        c.call("GET", "no")
        c.call("PEXPIRE", "a", "30")
        time.sleep(0.1)
        c.call("GET", "a")
        c.call("SET", "end", "1")
        seen = []
        while not seen or seen[-1] != b"end":
            seen.append(s.read_value()[3])
    assert seen == [b"set", b"a", b"expire", b"a", b"expired", b"a", b"set", b"end"]
