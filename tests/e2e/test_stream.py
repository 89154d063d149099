"""What the differential cannot show of streams: values that travel between servers, IDs from the clock."""
import random
import time

import pytest

from rawconn import RespError

pytestmark = pytest.mark.sequential


def fill(conn, key, seed):
    """A stream of some nodes with tombstones, groups and pending entries. The same for every connection."""
    rng = random.Random(seed)
    last = 0
    for i in range(rng.choice((3, 250, 900))):
        last += rng.choice((0, 1, 1, 5, 1000000))
        names = ["a", "b"] if rng.random() < 0.7 else ["n%d" % rng.randint(0, 3) for _ in range(rng.randint(1, 3))]
        pairs = [x for n in names for x in (n, rng.choice(("7", "-123456789", "text" * rng.randint(0, 30))))]
        conn.call("XADD", key, "%d-*" % last, *pairs)
        if rng.random() < 0.1:
            conn.call("XDEL", key, "%d-%d" % (rng.randint(0, last), rng.randint(0, 1)))
    for group in rng.sample(["g", "12", "", "long" * 20], rng.randint(0, 4)):
        conn.call("XGROUP", "CREATE", key, group, rng.choice(("0", "$", "5")))
        for consumer in ("ann", "77", "x" * 70):
            conn.call("XREADGROUP", "GROUP", group, consumer, "COUNT", str(rng.randint(1, 60)), "STREAMS", key, ">")
        conn.call("XACK", key, group, *["%d-0" % rng.randint(0, last) for _ in range(20)])
    if rng.random() < 0.3:
        conn.call("XTRIM", key, "MAXLEN", str(rng.randint(0, 200)))


def full(conn, key):
    return conn.ask("XINFO", "STREAM", key, "FULL", "COUNT", "0")


@pytest.mark.heavy
def test_dump_and_restore_in_both_directions(tiercel, redis_server):
    with tiercel().raw() as ours, redis_server().raw() as theirs:
        for seed in range(40):
            compress = "yes" if seed % 2 else "no"
            theirs.call("CONFIG", "SET", "rdbcompression", compress)
            for one, other in ((ours, theirs), (theirs, ours)):
                one.call("DEL", "s", "back")
                other.call("DEL", "t")
                fill(one, "s", seed)
                payload = one.ask("DUMP", "s")
                assert other.call("RESTORE", "t", "0", payload) == b"+OK\r\n"
                assert full(other, "t") == full(one, "s")
                assert one.call("RESTORE", "back", "0", other.ask("DUMP", "t")) == b"+OK\r\n"
                assert full(one, "back") == full(one, "s")
            if compress == "no":
                assert theirs.ask("DUMP", "s") == ours.ask("DUMP", "t")


def test_a_damaged_payload_is_refused_or_usable(tiercel):
    rng = random.Random(7)
    with tiercel().raw() as c:
        fill(c, "s", 3)
        payload = c.ask("DUMP", "s")
        for _ in range(500):
            bad = bytearray(payload[:-8] + bytes(8))  # without a checksum
            for _ in range(rng.randint(1, 3)):
                bad[rng.randint(1, len(bad) - 11)] = rng.randint(0, 255)
            if not isinstance(c.ask("RESTORE", "t", "0", bytes(bad), "REPLACE"), RespError):
                full(c, "t")
                c.call("XTRIM", "t", "MAXLEN", "1")
                c.call("XREVRANGE", "t", "+", "-")
        assert c.call("PING") == b"+PONG\r\n"


def test_ids_from_the_clock(tiercel):
    with tiercel().raw() as c:
        before = int(time.time() * 1000)
        ids = [c.ask("XADD", "s", "*", "a", str(i)).decode() for i in range(200)]
        parts = [tuple(map(int, i.split("-"))) for i in ids]
        assert parts == sorted(set(parts))
        assert before - 1000 <= parts[0][0] <= parts[-1][0] <= time.time() * 1000 + 1000
        c.ask("XADD", "s", "99999999999999-5", "a", "b")  # the clock is behind it now
        assert c.ask("XADD", "s", "*", "a", "b") == b"99999999999999-6"
        c.ask("XSETID", "s", "18446744073709551615-18446744073709551615")
        assert str(c.ask("XADD", "s", "*", "a", "b")).startswith("ERR The stream has exhausted")


def test_old_dump_type(tiercel):
    """RDB_STREAM_LISTPACKS of Redis 5 and 6, which has neither first ID nor counts."""
    with tiercel().raw() as c:
        lp = bytes([1, 1, 0, 1, 1, 1]) + b"\x81a\x02" + bytes([0, 1, 2, 1, 0, 1, 0, 1]) + b"\x81v\x02" + bytes([4, 1, 255])
        lp = (len(lp) + 6).to_bytes(4, "little") + (10).to_bytes(2, "little") + lp
        key = (5).to_bytes(8, "big") + (1).to_bytes(8, "big")
        body = b"\x0f\x01\x10" + key + bytes([len(lp)]) + lp + b"\x01\x05\x01\x01\x01g\x05\x01\x00\x00"
        assert c.call("RESTORE", "s", "0", body + b"\x09\x00" + bytes(8)) == b"+OK\r\n"
        assert c.ask("XRANGE", "s", "-", "+") == [[b"5-1", [b"a", b"v"]]]
        info = c.ask("XINFO", "STREAM", "s")
        info = dict(zip(info[::2], info[1::2]))
        assert info[b"entries-added"] == 1 and info[b"recorded-first-entry-id"] == b"5-1"
        assert c.ask("XINFO", "GROUPS", "s")[0][-4:] == [b"entries-read", 1, b"lag", 0]
