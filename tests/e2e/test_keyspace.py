"""Commands on the key space as a whole, with keys in memory, on disk, and between the two."""
import random
import threading
import time

import pytest

from harness import RespError, parse, wait_until

VALUE = "v" * 400


def fill(t, prefix, n, value=VALUE, db=0):
    """n keys, a thousand a pipeline."""
    c = t.client(db=db)
    for start in range(0, n, 1000):
        p = c.pipeline(transaction=False)
        for i in range(start, min(n, start + 1000)):
            p.set("%s:%d" % (prefix, i), value)
        p.execute()
    return {b"%s:%d" % (prefix.encode(), i) for i in range(n)}


def two_tiers(tiercel, **options):
    """A server whose memory holds only part of the keys that it returns."""
    t = tiercel(maxmemory="2mb", **{"threads": 2, **options})
    keys = fill(t, "k", 12000)
    tiers = t.tiers()
    assert tiers["tier_disk_keys"] > 3000 and tiers["tier_memory_keys"] < 9000
    return t, keys


def scan_all(t, count=None, db=0, **match):
    """All pages of a SCAN, as a list."""
    out = []
    c = t.client(db=db)
    cursor = 0
    while True:
        cursor, page = c.scan(cursor, count=count, **match)
        out += page
        if cursor == 0:
            return out


# ---- replies

def test_replies_and_errors(tiercel):
    t = tiercel()
    with t.raw() as c:
        assert c.call("SCAN", "0") == b"*2\r\n$1\r\n0\r\n*0\r\n"
        assert c.call("KEYS", "*") == b"*0\r\n"
        assert c.call("RANDOMKEY") == b"$-1\r\n"
        assert c.call("DBSIZE") == b":0\r\n"
        assert c.call("SCAN", "abc") == b"-ERR invalid cursor\r\n"
        assert c.call("SCAN", " 1") == b"-ERR invalid cursor\r\n"
        assert c.call("SCAN", "18446744073709551616") == b"-ERR invalid cursor\r\n"
        assert c.call("SCAN", "") == b"*2\r\n$1\r\n0\r\n*0\r\n"
        assert c.call("SCAN", "0", "COUNT", "0") == b"-ERR syntax error\r\n"
        assert c.call("SCAN", "0", "COUNT") == b"-ERR syntax error\r\n"
        assert c.call("SCAN", "0", "COUNT", "x") == b"-ERR value is not an integer or out of range\r\n"
        assert c.call("SCAN", "0", "LIMIT", "1") == b"-ERR syntax error\r\n"
        assert c.call("SCAN", "0", "TYPE", "nosuchtype") == b"*2\r\n$1\r\n0\r\n*0\r\n"
        assert c.call("SET", "key", "v") == b"+OK\r\n"
        assert c.call("RPUSH", "list", "v") == b":1\r\n"
        assert c.call("SCAN", "0", "COUNT", "100000", "TYPE", "STRING") == b"*2\r\n$1\r\n0\r\n*1\r\n$3\r\nkey\r\n"
        assert c.call("SCAN", "0", "COUNT", "100000", "MATCH", "l*") == b"*2\r\n$1\r\n0\r\n*1\r\n$4\r\nlist\r\n"
        assert c.call("KEYS", "k[a-f]y") == b"*1\r\n$3\r\nkey\r\n"
        assert c.call("FLUSHDB", "NOW") == b"-ERR syntax error\r\n"
        assert c.call("FLUSHALL", "SYNC", "ASYNC") == b"-ERR syntax error\r\n"
        assert c.call("SWAPDB", "x", "1") == b"-ERR invalid first DB index\r\n"
        assert c.call("SWAPDB", "0", "99999999999") == b"-ERR invalid second DB index\r\n"
        assert c.call("SWAPDB", "0", "16") == b"-ERR DB index is out of range\r\n"
        assert c.call("SWAPDB", "0", "0") == b"+OK\r\n"
        assert c.call("FLUSHDB", "ASYNC") == b"+OK\r\n"
        assert c.call("DBSIZE") == b":0\r\n"


def test_expired_keys_do_not_count(tiercel):
    t = tiercel()
    c = t.client()
    c.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    c.set("stays", "v")
    c.set("goes", "v", px=20)
    time.sleep(0.05)
    assert c.keys("*") == [b"stays"]
    assert scan_all(t) == [b"stays"]
    assert {c.randomkey() for _ in range(20)} == {b"stays"}


def test_scan_walks_once(tiercel):
    t = tiercel(disk=False)
    keys = fill(t, "k", 3000, "v")
    for count in (1, 10, 1000, 100000):
        found = scan_all(t, count)
        assert len(found) == 3000 and set(found) == keys
    assert sorted(scan_all(t, match="k:1?")) == [b"k:1%d" % i for i in range(10)]
    other = t.client(db=3)
    other.set("elsewhere", "v")
    assert other.keys() == [b"elsewhere"] and scan_all(t, db=3) == [b"elsewhere"]
    assert set(t.client().keys()) == keys


# ---- two tiers

def test_counts_and_walks_see_both_tiers(tiercel):
    t, keys = two_tiers(tiercel)
    c = t.client()
    assert c.dbsize() == len(keys)
    for count in (10, 500):
        found = scan_all(t, count)
        assert set(found) == keys
    found = c.keys("*")
    assert len(found) == len(keys) and set(found) == keys
    assert set(c.keys("k:77*")) == {k for k in keys if k.startswith(b"k:77")}
    assert c.keys("k:11999") == [b"k:11999"]


def test_walks_of_keys_that_are_only_on_disk(tiercel):
    t, keys = two_tiers(tiercel)
    t.restart()
    c = t.client()
    assert c.dbsize() == len(keys)
    pages = []
    cursor = 0
    while True:
        cursor, page = c.scan(cursor, count=10)
        pages.append(len(page))
        if cursor == 0:
            break
    assert sum(pages) == len(keys)
    assert max(pages) <= 200, "a page is bounded, however many keys a bucket has on disk"
    assert set(c.keys()) == keys
    cursor, page = c.scan(0, count=20000)
    assert cursor == 0 and set(page) == keys


def test_walks_in_a_transaction(tiercel):
    t, keys = two_tiers(tiercel)
    p = t.client().pipeline(transaction=True)
    p.keys("*")
    p.scan(0, count=100000)
    p.randomkey()
    p.dbsize()
    found, (cursor, page), one, size = p.execute()
    assert set(found) == keys and len(found) == len(keys)
    assert cursor == 0 and set(page) == keys
    assert one in keys and size == len(keys)


@pytest.mark.sequential
def test_randomkey_is_random(tiercel):
    t, keys = two_tiers(tiercel)
    c = t.client()
    found = {c.randomkey() for _ in range(300)}
    assert found <= keys and len(found) > 200
    few = t.client(db=1)
    few.set("a", "v")
    few.set("b", "v")
    assert {few.randomkey() for _ in range(100)} == {b"a", b"b"}
    assert t.client(db=2).randomkey() is None


@pytest.mark.timeout(90)
def test_scan_returns_what_stays(tiercel):
    """Keys that are there throughout come, while others are added and all are demoted and promoted."""
    t, keys = two_tiers(tiercel)
    done = threading.Event()
    errors = []

    def disturb(seed):
        rng = random.Random(seed)
        c = t.client()
        n = 0
        try:
            while not done.is_set():
                p = c.pipeline(transaction=False)
                for _ in range(50):
                    n += 1
                    p.set("new:%d:%d" % (seed, n), VALUE)
                    p.get("k:%d" % rng.randrange(12000))
                    p.delete("new:%d:%d" % (seed, n - 500))
                p.execute()
        except Exception as e:  # the test must see it
            errors.append(e)

    threads = [threading.Thread(target=disturb, args=(i,)) for i in range(2)]
    for th in threads:
        th.start()
    try:
        for count in (1000, 13):
            found = set(scan_all(t, count))
            assert keys <= found, "%d keys missing" % len(keys - found)
        found = t.client().keys("k:*")
        assert len(found) == len(keys) and set(found) == keys
    finally:
        done.set()
        for th in threads:
            th.join()
    assert not errors
    before = t.tiers()
    assert before["tier_promotions"] > 0 and before["tier_demotions"] > 0


def test_a_client_that_leaves_in_the_middle(tiercel):
    t, keys = two_tiers(tiercel)
    for _ in range(30):
        with t.raw() as c:
            c.send_command("KEYS", "*")
            c.send_command("RANDOMKEY")
    assert t.client().dbsize() == len(keys)


def test_other_clients_are_served_during_keys(tiercel):
    t, keys = two_tiers(tiercel, threads=1)
    with t.raw() as walker, t.raw() as other:
        for _ in range(5):
            walker.send_command("KEYS", "*")
            assert other.call("PING") == b"+PONG\r\n"
            assert len(walker.read_value()) == len(keys)
        # and replies stay in order behind it
        walker.send_command("KEYS", "nothing*")
        walker.send_command("PING")
        walker.send_command("SCAN", "0", "MATCH", "nothing*", "COUNT", "100000")
        assert walker.read_value() == [] and walker.read_value() == "PONG"
        assert walker.read_value() == [b"0", []]


# ---- whole databases

def test_flushdb_over_both_tiers(tiercel):
    t, _ = two_tiers(tiercel)
    other = fill(t, "other", 2000, db=1)
    c = t.client()
    assert c.flushdb()
    assert c.dbsize() == 0 and c.keys() == [] and scan_all(t) == [] and c.randomkey() is None
    assert c.get("k:1") is None and c.get("k:11999") is None
    assert t.client(db=1).dbsize() == len(other) and set(scan_all(t, db=1)) == other
    c.set("k:1", "new")
    assert c.keys() == [b"k:1"]
    t.restart()
    c = t.client()
    assert c.keys() == [b"k:1"] and c.get("k:1") == b"new"
    assert set(t.client(db=1).keys()) == other
    assert c.flushall() and t.client(db=1).dbsize() == 0
    t.restart()
    assert t.client(db=1).keys() == [] and t.client().keys() == []


def test_swapdb_over_both_tiers(tiercel):
    t, keys = two_tiers(tiercel)
    zero, one = t.client(), t.client(db=1)
    one.set("only", "one")
    assert zero.swapdb(0, 1)
    assert zero.keys() == [b"only"] and zero.get("only") == b"one" and zero.dbsize() == 1
    assert one.dbsize() == len(keys) and set(one.keys()) == keys
    assert one.get("k:0") == VALUE.encode() and zero.get("k:0") is None
    one.set("k:0", "changed")
    t.restart()
    zero, one = t.client(), t.client(db=1)
    assert zero.keys() == [b"only"] and set(one.keys()) == keys
    assert one.get("k:0") == b"changed" and one.get("k:7") == VALUE.encode()


def test_watch_sees_flush_and_swap(tiercel):
    t = tiercel()
    for command in (("FLUSHDB",), ("FLUSHALL", "ASYNC"), ("SWAPDB", "0", "5")):
        with t.raw() as c, t.raw() as other:
            for present in (True, False):
                other.call("FLUSHALL")
                if present:
                    other.call("SET", "watched", "v")
                else:
                    other.call("SET", "another", "v")
                assert c.call("WATCH", "watched") == b"+OK\r\n"
                other.call(*command)
                c.call("MULTI")
                c.call("PING")
                got = c.ask("EXEC")
                assert (got is None) == present, (command, present, got)


def test_flush_within_a_transaction(tiercel):
    t, _ = two_tiers(tiercel)
    with t.raw() as c:
        replies = c.pipeline(("MULTI",), ("SET", "a", "1"), ("FLUSHDB",), ("SET", "b", "2"), ("DBSIZE",),
                             ("KEYS", "*"), ("EXEC",))
        assert parse(replies[-1]) == ["OK", "OK", "OK", 1, [b"b"]]
        assert not any(isinstance(parse(r), RespError) for r in replies)


def test_dbsize_agrees_in_the_end(tiercel):
    """Overwrites, deletions and expiry of keys in either tier leave the right number."""
    t, keys = two_tiers(tiercel)
    c = t.client()
    p = c.pipeline(transaction=False)
    for i in range(0, 4000):
        p.set("k:%d" % i, "short")
    for i in range(4000, 6000):
        p.delete("k:%d" % i)
    for i in range(6000, 7000):
        p.pexpire("k:%d" % i, 1)
    p.execute()
    wait_until(lambda: c.dbsize() == len(keys) - 3000, what="DBSIZE is right")
    assert len(c.keys()) == len(keys) - 3000
