"""Large values go to disk, come back and are saved in slices, with rests in between: what comes back is what went, and
whatever a client does in the middle of it holds."""
import threading

import pytest
import redis

from harness import scaled, wait_until

N = 50_000
KINDS = {
    "zset": ("ZADD", lambda i: (i * 7919 % N, "member:%08d" % i), "ZCARD"),
    "hash": ("HSET", lambda i: ("field:%08d" % i, "value %d" % i), "HLEN"),
    "set": ("SADD", lambda i: ("member:%08d" % i,), "SCARD"),
    "list": ("RPUSH", lambda i: ("element:%08d" % i,), "LLEN"),
}


def build(c, kind, key="large", n=N):
    add, element, _ = KINDS[kind]
    p = c.pipeline(transaction=False)
    for first in range(0, n, 1000):
        p.execute_command(add, key, *(word for i in range(first, first + 1000) for word in element(i)))
    p.execute()


def content(c, kind, key="large"):
    """All of it, in an order that does not depend on hash tables."""
    if kind == "zset":
        return c.execute_command("ZRANGE", key, 0, -1, "WITHSCORES")
    if kind == "list":
        return c.lrange(key, 0, -1)
    return sorted(c.hgetall(key).items() if kind == "hash" else c.smembers(key))


def state(c, key="large"):
    got = c.execute_command("CACHE", "INSPECT", key)
    return got and dict(zip(got[::2], got[1::2]))[b"state"]


def squeeze(c):
    """Room for less than one of them."""
    c.config_set("maxmemory", "1mb")


def demote(c):
    squeeze(c)
    wait_until(lambda: state(c) == b"on-disk", 60, what="the value is on disk")
    c.config_set("maxmemory", 0)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_is_what_went(tiercel, kind):
    t = tiercel(threads=2, maxmemory=0)
    c = t.client()
    build(c, kind)
    c.pexpire("large", 10**9)
    before = content(c, kind)
    demote(c)
    assert c.execute_command(KINDS[kind][2], "large") == N
    assert content(c, kind) == before
    assert 0 < c.pttl("large") <= 10**9


@pytest.mark.sequential
def test_string(tiercel):
    t = tiercel(threads=2, maxmemory=0, compression=False)
    c = t.client()
    value = bytes(range(256)) * 8000
    c.set("large", value)
    demote(c)
    assert c.getrange("large", 255, 257) == value[255:258]
    assert c.get("large") == value
    t.restart()
    assert t.client().get("large") == value


# What a client may do to it, and what is there then: type, and length.
ACTS = {
    "del": (("DEL", "large"), "none", 0),
    "unlink": (("UNLINK", "large"), "none", 0),
    "set": (("SET", "large", "small"), "string", 5),
    "flushall": (("FLUSHALL",), "none", 0),
    "push": (("RPUSH", "large", "one more"), "list", 20_001),
    "rename": (("RENAME", "large", "large"), "list", 20_000),
    "persist": (("PEXPIRE", "large", 10**9), "list", 20_000),
    "expire": (("PEXPIREAT", "large", 1), "none", 0),
    "swapdb": (("SWAPDB", 0, 1), "none", 0),
}
LENGTH = {"none": lambda c: 0, "string": lambda c: c.strlen("large"), "list": lambda c: c.llen("large")}


def check(t, act):
    _, kind, length = ACTS[act]
    c = t.client()
    assert c.type("large") == kind.encode(), act
    assert LENGTH[kind](c) == length, act


def build_list(c):
    c.flushall()
    p = c.pipeline(transaction=False)
    for first in range(0, 20_000, 1000):
        p.rpush("large", *(b"%05d" % i + b"x" * 95 for i in range(first, first + 1000)))
    p.execute()


def test_act_while_it_goes(tiercel):
    t = tiercel(threads=2, maxmemory=0, compression=False)
    c = t.client()
    for act, (command, _, _) in ACTS.items():
        build_list(c)
        squeeze(c)
        wait_until(lambda: state(c) != b"resident", what="it is to leave")
        c.config_set("maxmemory", 0)  # or there would be no room for it to be read
        c.execute_command(*command)
        check(t, act)
        wait_until(lambda: t.tiers()["tier_demoting_bytes"] == 0, 30, what="nothing leaves any more")
        check(t, act)


def test_act_while_it_comes(tiercel):
    t = tiercel(threads=2, maxmemory=0, compression=False)
    c = t.client()
    for act in "unlink", "set", "flushall", "rename", "swapdb":
        command = ACTS[act][0]
        build_list(c)
        demote(c)
        got = []

        def read():
            try:
                got.append(t.client().lindex("large", -1))
            except redis.ResponseError as e:
                got.append(str(e)[:9])

        reader = threading.Thread(target=read)
        reader.start()
        try:
            c.execute_command(*command)
        finally:
            reader.join(scaled(30))
        assert got[0] in (None, b"19999" + b"x" * 95, b"one more", "WRONGTYPE"), (act, got)
        check(t, act)


@pytest.mark.sequential
def test_stop_while_it_goes_and_comes(tiercel):
    t = tiercel(threads=2, maxmemory=0, compression=False)
    for come in False, True:
        c = t.client()
        build_list(c)
        before = c.lrange("large", 0, -1)
        if come:
            demote(c)
            with t.raw() as raw:
                raw.send_command("LINDEX", "large", 1)
                t.restart()
        else:
            squeeze(c)
            t.restart()
        assert t.client().lrange("large", 0, -1) == before


def test_writers_do_not_wait_for_rests(tiercel):
    """Memory is full, and what leaves is large: writes go on as soon as it has left."""
    t = tiercel(threads=2, maxmemory=0, compression=False)
    c = t.client()
    build_list(c)
    c.config_set("maxmemory", "3mb")
    p = c.pipeline(transaction=False)
    for i in range(2000):
        p.set("other:%d" % i, b"y" * 1000)
    p.execute()
    assert c.get("other:1999") == b"y" * 1000 and c.llen("large") == 20_000


@pytest.mark.parametrize("often", [False, True])
def test_saved_while_it_changes(tiercel, often):
    """What a save wrote is the value as it was at some time, whole."""
    t = tiercel(threads=2, maxmemory=0, compression=False)
    c = t.client()
    build_list(c)
    c.bgsave()
    pushes = 300 if often else 1
    for i in range(pushes):
        c.rpush("large", "more:%d" % i)
    wait_until(lambda: not t.info("persistence")["rdb_bgsave_in_progress"], 30)
    if not often:
        c.execute_command("SAVE")
    t.kill9()
    t.start()
    now = t.client().lrange("large", 0, -1)
    more = len(now) - 20_000
    if not often:
        assert more == 1
    elif now:  # else it was changed after it was saved
        assert 0 <= more <= pushes
    assert not now or now == [b"%05d" % i + b"x" * 95 for i in range(20_000)] + [b"more:%d" % i for i in range(more)]


def test_written_by_the_journal(tiercel):
    """One change of a large value is on disk soon, without anything else that is written."""
    t = tiercel(threads=2, maxmemory=0, compression=False, appendonly=True)
    c = t.client()

    def written():
        got = c.execute_command("CACHE", "INSPECT", "large")
        got = dict(zip(got[::2], got[1::2]))
        return got[b"tier"] == b"memory+disk" and got[b"dirty"] == 0

    build_list(c)
    for act in lambda: c.rpush("large", "one more"), lambda: c.lset("large", 0, "first"), lambda: c.lpop("large", 2):
        wait_until(written, 30, what="it is on disk")
        act()
    wait_until(written, 30, what="it is on disk")
    t.kill9()
    t.start()
    assert t.client().lrange("large", 0, -1) == [b"%05d" % i + b"x" * 95 for i in range(2, 20_000)] + [b"one more"]
