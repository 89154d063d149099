"""CLIENT TRACKING with an upstream: a client that keeps what it read is told when the upstream changes it."""
import random
import threading
import time

import pytest

from harness import RespError, scaled, wait_until
from proxy import seen
from rawconn import encode


def tracking(server, *options):
    """A RESP3 connection that tracks."""
    c = server.raw(timeout=10)
    c.call("HELLO", 3)
    assert c.ask("CLIENT", "TRACKING", "ON", *options) == "OK"
    return c


def pushed(c):
    value = c.read_value()
    assert value[0] == b"invalidate", value
    return value[1]


def is_message(value):
    return isinstance(value, list) and value[:1] == [b"invalidate"]


def ask(c, *args):
    """The answer. Own writes may be told twice, so messages may come before it."""
    c.send_command(*args)
    value = c.read_value()
    while is_message(value):
        value = c.read_value()
    return value


def told(c, names):
    while pushed(c) != names:
        pass
    return True


def quiet(c):
    """Nothing is on its way: the answer is next."""
    c.send_command("ECHO", "mark")
    assert c.read_value() == b"mark"


# ---- foreign changes

def test_a_hit_a_miss_and_a_missing_key(trio):
    up, _, t = trio
    foreign = up.client()
    foreign.set("k", "1")
    t.client().get("k")  # a copy is here
    with tracking(t) as c:
        assert c.ask("GET", "k") == b"1"
        foreign.set("k", "2")
        assert pushed(c) == [b"k"]
        assert c.ask("GET", "k") == b"2", "fetched"
        foreign.delete("k")
        assert pushed(c) == [b"k"]
        assert c.ask("GET", "k") is None
        assert c.ask("GET", "k") is None, "a negative entry"
        foreign.set("k", "3")
        assert pushed(c) == [b"k"]
        foreign.set("k", "4")
        time.sleep(0.1)
        quiet(c)


def test_what_is_passed_through(trio):
    up, wire, t = trio
    foreign = up.client()
    foreign.hset("h", "f", "1")
    foreign.rpush("l", "a", "b")
    with tracking(t) as c:
        assert c.ask("HSCAN", "h", 0) == [b"0", [b"f", b"1"]]
        assert c.ask("DUMP", "l") is not None
        foreign.hset("h", "f", "2")
        assert pushed(c) == [b"h"]
        foreign.rpop("l")
        assert pushed(c) == [b"l"]
        assert c.ask("HSCAN", "h", 0) == [b"0", [b"f", b"2"]]
        foreign.delete("h")
        assert pushed(c) == [b"h"]
        assert c.ask("GET", "l").args[0].startswith("WRONGTYPE")
        foreign.rpush("l", "c")
        assert pushed(c) == [b"l"]
        assert c.ask("EVAL_RO", "return redis.call('GET', KEYS[1])", 1, "s") is None
        foreign.set("s", "x")
        assert pushed(c) == [b"s"]
        quiet(c)
        c.send_command("EVAL", "return redis.call('GET', KEYS[1])", 1, "s")
        while c.read_value() != b"x":
            pass
        assert pushed(c) == [b"s"], "it may have written: its answer is not for keeping"


def test_a_change_during_the_read_is_told_behind_its_answer(trio):
    up, wire, t = trio
    foreign = up.client()
    foreign.hset("h", "f", "1")
    with tracking(t) as c:
        wire.delay(down=0.3, where=seen("SET"))  # the connection of what is passed through
        assert c.ask("SET", "x", "1") == "OK"
        c.send_command("HSCAN", "h", 0)
        wait_until(lambda: wire.count("HSCAN") == 1)
        time.sleep(0.05)
        foreign.hset("h", "f", "2")
        got = [c.read_value() for _ in range(2)]
        while got[-1] != [b"invalidate", [b"h"]]:
            got.append(c.read_value())
        at = next(i for i, v in enumerate(got) if v[0] == b"0")
        assert at < len(got) - 1, "the last message comes behind the answer: %r" % got


def test_a_transaction(trio):
    up, _, t = trio
    foreign = up.client()
    foreign.set("a", "1")
    foreign.hset("h", "f", "1")
    with tracking(t) as c:
        assert c.ask("MULTI") == "OK"
        for command in (("GET", "a"), ("HGET", "h", "f"), ("SET", "other", "x")):
            assert c.ask(*command) == "QUEUED"
        foreign.set("a", "2")
        assert c.ask("EXEC") == [b"2", b"1", "OK"]
        foreign.set("a", "3")
        assert pushed(c) == [b"a"]
        foreign.hset("h", "f", "2")
        assert pushed(c) == [b"h"]
        assert c.pipeline(("MULTI",), ("GET", "a"), ("EXEC",))[2] == b"*1\r\n$1\r\n3\r\n"
        foreign.set("a", "4")
        assert pushed(c) == [b"a"]
        quiet(c)


def test_resp2_by_redirection(trio):
    up, _, t = trio
    foreign = up.client()
    foreign.set("k", "1")
    with t.raw() as messages, t.raw() as c:
        ident = messages.ask("CLIENT", "ID")
        assert messages.ask("SUBSCRIBE", "__redis__:invalidate")[2] == 1
        assert c.ask("CLIENT", "TRACKING", "ON", "REDIRECT", ident) == "OK"
        assert c.ask("GET", "k") == b"1" and c.ask("LRANGE", "l", 0, -1) == []
        foreign.set("k", "2")
        assert messages.read_value() == [b"message", b"__redis__:invalidate", [b"k"]]
        foreign.rpush("l", "x")
        assert messages.read_value() == [b"message", b"__redis__:invalidate", [b"l"]]
        foreign.flushall()
        assert messages.read_value() == [b"message", b"__redis__:invalidate", None]


def test_expiry_and_flush(trio):
    up, _, t = trio
    foreign = up.client()
    foreign.set("k", "1", px=300)
    with tracking(t) as c:
        assert c.ask("GET", "k") == b"1"
        assert pushed(c) == [b"k"]
        assert c.ask("GET", "k") is None
        foreign.flushdb()
        while c.read_value() != [b"invalidate", None]:
            pass


def test_an_evicted_copy_is_still_watched(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, threads=1, tracked_keys_max=10)
    t.wait_tiers(tier_upstream_state="up")
    p = up.client()
    for i in range(200):
        p.set("k:%d" % i, i)
    with t.raw() as first:  # past tracked-keys-max only what is read twice is tracked
        first.pipeline(*[("GET", "k:%d" % i) for i in range(200)])
    with tracking(t) as c:
        for i in range(200):
            assert c.ask("GET", "k:%d" % i) == b"%d" % i
        quiet(c)
        for i in range(200):
            p.set("k:%d" % i, "changed")
        assert {pushed(c)[0] for _ in range(200)} == {b"k:%d" % i for i in range(200)}


# ---- own writes

def test_own_writes(trio):
    up, _, t = trio
    other = t.client()
    with tracking(t) as c:
        ask(c, "GET", "k")
        other.set("k", "1")
        assert told(c, [b"k"]) and ask(c, "GET", "k") == b"1"
        assert ask(c, "SET", "k", "2") == "OK"
        assert told(c, [b"k"]) and ask(c, "GET", "k") == b"2"
        other.transaction(lambda p: p.set("k", "3"))
        assert told(c, [b"k"])
        ask(c, "GET", "k")
        other.eval("return redis.call('SET', 'k', '4')", 0)
        assert told(c, [b"k"])
        ask(c, "GET", "k")
        other.flushall()
        assert told(c, None)


def test_noloop_misses_nothing(trio):
    """Own writes may be told, foreign ones have to be: even one just before an own one."""
    up, wire, t = trio
    foreign = up.client()
    with tracking(t, "NOLOOP") as c:
        for n in range(50):
            ask(c, "GET", "k")
            foreign.set("k", "foreign %d" % n)
            c.send_command("APPEND", "k", "!")
            got = []
            while not any(isinstance(v, int) for v in got) or [b"invalidate", [b"k"]] not in got:
                got.append(c.read_value())
            assert ask(c, "ECHO", "x") == b"x"


def test_optin_and_optout(trio):
    up, _, t = trio
    foreign = up.client()
    with tracking(t, "OPTIN") as c:
        c.ask("GET", "a")
        c.ask("HSCAN", "h", 0)
        assert c.ask("CLIENT", "CACHING", "YES") == "OK"
        c.ask("HSCAN", "g", 0)
        assert c.ask("CLIENT", "CACHING", "YES") == "OK"
        assert c.ask("MULTI") == "OK" and c.ask("GET", "m") == "QUEUED" and c.ask("EXEC") == [None]
        for k in "ahgm":
            foreign.set(k, "x")
        assert [pushed(c), pushed(c)] == [[b"g"], [b"m"]]
        quiet(c)
        c.ask("GET", "a")
        foreign.set("a", "y")
        time.sleep(0.1)
        quiet(c)
    with tracking(t, "OPTOUT") as c:
        assert c.ask("CLIENT", "CACHING", "NO") == "OK"
        c.ask("LLEN", "l")
        c.ask("LLEN", "l2")
        foreign.rpush("l", "x")
        foreign.rpush("l2", "x")
        assert pushed(c) == [b"l2"]
        quiet(c)


# ---- what is refused

def test_refused(trio, tiercel, redis_server):
    _, _, t = trio
    with t.raw() as c:
        reply = c.ask("CLIENT", "TRACKING", "ON", "BCAST")
        assert isinstance(reply, RespError) and "BCAST is not available" in str(reply)
    up = redis_server()
    up.call("ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    t = tiercel(upstream="redis://plain:pw@127.0.0.1:%d" % up.port)
    t.wait_tiers(tier_upstream_state="up", coherence_mode="ttl")
    with t.raw() as c:
        wait_until(lambda: "coherence is now by ttl" in str(c.ask("CLIENT", "TRACKING", "ON")))


def test_broadcast_mode(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, coherence="broadcast", coherence_prefixes="in:")
    t.wait_tiers(tier_upstream_state="up", coherence_mode="broadcast")
    foreign = up.client()
    foreign.set("in:a", "1")
    foreign.set("out:a", "1")
    with tracking(t) as c:
        assert c.ask("GET", "in:a") == b"1" and c.ask("HSCAN", "in:h", 0) == [b"0", []]
        quiet(c)
        foreign.set("in:a", "2")
        assert pushed(c) == [b"in:a"]
        foreign.hset("in:h", "f", "1")
        assert pushed(c) == [b"in:h"]
        for command in (("GET", "out:a"), ("HSCAN", "out:h", 0)):
            c.ask(*command)
            assert pushed(c) == [command[1].encode()], "told at once: nobody watches it"


# ---- when the link is lost

def test_a_lost_link_tells_all(trio):
    up, wire, t = trio
    up.client().set("k", "1")
    with tracking(t) as c, tracking(t) as d:
        assert c.ask("GET", "k") == b"1"
        assert d.ask("HSCAN", "h", 0)
        wire.down()
        assert pushed(c) is None and pushed(d) is None
        wait_until(lambda: t.tiers()["tier_upstream_state"] == "down")
        c.send_command("GET", "k")  # a stale answer, for nobody vouches
        got = [c.read_value(), c.read_value()]
        while got[-1] != [b"invalidate", [b"k"]]:
            got.append(c.read_value())
        assert b"1" in got and got.index(b"1") < len(got) - 1
        wire.up()
        t.wait_tiers(tier_upstream_state="up")


def test_client_goes_while_its_keys_are_registered(trio):
    up, wire, t = trio
    wire.hang()
    for _ in range(20):
        c = tracking(t)
        c.send_command("HSCAN", "h", 0)
        c.send_command("GET", "h")
        c.close()
    wire.resume()
    assert t.client().ping()
    wait_until(lambda: t.info("clients")["tracking_clients"] == 0)


# ---- near caches stack, and the whole of it

def drop(cache, value):
    """Does what the message says. False: it is none."""
    if not is_message(value):
        return False
    if value[1] is None:
        cache.clear()
    else:
        for name in value[1]:
            cache.pop(name.decode(), None)
    return True


def reader(c, keys, cache, stop):
    """Keeps what it reads until told. Answers and messages come in one stream, so it may be as simple as this."""
    rng = random.Random(1)
    while not stop.is_set():
        k = rng.choice(keys)
        c.send_command(*(("GET", k) if k[0] == "s" else ("HGET", k, "f")))
        value = c.read_value()
        while drop(cache, value):
            value = c.read_value()
        if isinstance(value, RespError):
            cache.pop(k, None)
        else:
            cache[k] = value


def settle(c, cache):
    c.send_command("ECHO", "mark")
    while True:
        value = c.read_value()
        if not drop(cache, value):
            assert value == b"mark"
            return


def stress(up, front, writers, seconds, fault=None):
    keys = ["s:%d" % i for i in range(40)] + ["h:%d" % i for i in range(40)]
    stop = threading.Event()
    caches, conns, threads = [], [], []
    for i in range(3):
        c, cache = tracking(front, *(["NOLOOP"] if i == 2 else [])), {}
        conns.append(c)
        caches.append(cache)
        threads.append(threading.Thread(target=reader, args=(c, keys, cache, stop)))

    def write(server, seed):
        rng = random.Random(seed)
        with server.raw() as w:
            while not stop.is_set():
                k, n = rng.choice(keys), rng.randrange(10**9)
                w.call("SET", k, n) if k[0] == "s" else w.call("HSET", k, "f", n)
                if rng.random() < 0.02:
                    w.call("DEL", k)
                time.sleep(0.002)

    threads += [threading.Thread(target=write, args=(s, i)) for i, s in enumerate(writers)]
    for th in threads:
        th.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(seconds / 4)
        if fault:
            fault()
    stop.set()
    for th in threads:
        th.join()
    time.sleep(scaled(1.2))  # all messages are there
    kept = 0
    direct = up.client()
    for c, cache in zip(conns, caches):
        settle(c, cache)
        for k, value in cache.items():
            now = direct.get(k) if k[0] == "s" else direct.hget(k, "f")
            assert value == now, "%s: kept %r, but it is %r" % (k, value, now)
        kept += len(cache)
        c.close()
    return kept


@pytest.mark.timeout(60)
def test_no_stale_value_is_kept(trio):
    up, wire, t = trio
    assert stress(up, t, [up, up, t], 3) > 0


@pytest.mark.timeout(60)
def test_no_stale_value_is_kept_over_lost_links(trio):
    up, wire, t = trio
    wire.delay(down=0.003)
    stress(up, t, [up, up], 3, fault=lambda: wire.cut(seen("PTTL")))


@pytest.mark.heavy
@pytest.mark.timeout(60)
def test_a_sidecar_in_front_of_a_sidecar(trio, tiercel):
    up, _, back = trio
    front = tiercel(upstream=back, threads=2)
    front.wait_tiers(tier_upstream_state="up", coherence_mode="tracking")
    foreign = up.client()
    foreign.set("k", "1")
    with tracking(front) as c:
        assert c.ask("GET", "k") == b"1"
        assert front.client().get("k") == b"1" and back.client().get("k") == b"1"
        foreign.set("k", "2")
        assert told(c, [b"k"]) and ask(c, "GET", "k") == b"2"
        assert back.client().set("k", "3")
        assert told(c, [b"k"]) and ask(c, "GET", "k") == b"3"
        assert front.client().set("k", "4")
        assert told(c, [b"k"]) and ask(c, "GET", "k") == b"4"
    assert stress(up, front, [up, back, front], 3) > 0
