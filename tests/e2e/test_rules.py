"""Rules by key pattern: how long copies are fresh, refreshed and served, and which are kept at all."""
import threading
import time

import pytest

from harness import RespError, parse, scaled, wait_until
from rawconn import encode


def rule(t, *words):
    assert t.call("CACHE", "RULE", "SET", *words) == "OK"


def verdict(t, key):
    """CACHE RULE TEST as a dict; its values as a dict of (value, where from)."""
    flat = t.call("CACHE", "RULE", "TEST", key)
    out = dict(zip(flat[::2], flat[1::2]))
    values = out[b"values"]
    return out, {k.decode(): (v[0].decode(), v[1].decode()) for k, v in zip(values[::2], values[1::2])}


def field(t, key, name):
    flat = t.call("CACHE", "INSPECT", key)
    return dict(zip(flat[::2], flat[1::2]))[name.encode()]


# ---- which rule

def test_the_most_specific_rule_decides_and_says_why(trio):
    up, wire, t = trio
    rule(t, "*", "ttl=1h", "compress=no")
    rule(t, "user:*", "ttl=5s", "stale-while-revalidate=1m")
    rule(t, "user:1?", "write=around")
    assert t.call("CACHE", "RULE", "LIST") == [b"user:1? write=around", b"user:* ttl=5s stale-while-revalidate=1m",
                                               b"* ttl=1h compress=no"]
    why, values = verdict(t, "user:12")
    assert why[b"rule"] == b"user:1?" and why[b"literal_bytes"] == 6
    assert why[b"also_matched"] == [b"user:*", b"*"]
    assert values["write"] == ("around", "rule") and values["ttl"] == ("0", "default")
    assert values["stale-if-error"] == ("5m", "stale-if-error-ms")
    assert verdict(t, "user:123")[1]["ttl"] == ("5s", "rule")
    assert t.call("CACHE", "RULE", "DEL", "user:1?") == "OK"
    assert verdict(t, "user:12")[0][b"rule"] == b"user:*"
    assert verdict(t, "x")[0][b"rule"] == b"*"
    for bad in (("SET", "a*"), ("SET", "a*", "ttl=5"), ("SET", "a*", "colour=red"), ("SET", "a*", "refresh-ahead=5"),
                ("SET", "", "ttl=5s"), ("SET", "a*", "write=local", "ttl=5s"), ("DEL", "nothing"), ("TEST",), ("FROB", "x")):
        assert isinstance(t.call("CACHE", "RULE", *bad), RespError), bad
    assert len(t.call("CACHE", "RULE", "LIST")) == 2, "what was bad has changed nothing"


def test_rules_of_a_file_and_rewrite(tiercel, redis_server, tmp_path):
    up = redis_server()
    conf = tmp_path / "t.conf"
    conf.write_text("# mine\nrule user:* ttl=5s\n# more\nrule \"with blank *\" write=around\n")
    t = tiercel(upstream=up, args=[conf])
    assert t.call("CACHE", "RULE", "LIST") == [b"with blank * write=around", b"user:* ttl=5s"]
    rule(t, "z*", "ttl=500ms", "max-object=64kb")
    assert t.call("CACHE", "RULE", "DEL", "user:*") == "OK"
    assert t.call("CONFIG", "REWRITE") == "OK"
    text = conf.read_text()
    assert '# mine\nrule "with blank *" write=around\nrule z* ttl=500ms max-object=64kb\n# more\n' in text
    t.restart()
    assert t.call("CACHE", "RULE", "LIST") == [b"with blank * write=around", b"z* ttl=500ms max-object=64kb"]


# ---- freshness

@pytest.mark.sequential
def test_stale_while_revalidate_hides_the_latency(trio):
    up, wire, t = trio
    rule(t, "hot*", "ttl=1s", "stale-while-revalidate=1m")
    up.client().set("hot", "value")
    assert t.client().get("hot") == b"value"
    time.sleep(1.1)
    conns = [t.raw() for _ in range(50)]
    wire.reset_counts()
    wire.delay(down=0.5)
    for c in conns:
        c.send(encode("GET", "hot"))
    for c in conns:
        assert c.read_exact(11) == b"$5\r\nvalue\r\n"
    assert t.tiers()["tier_upstream_hits"] == 1, "nobody waited for the upstream"
    wait_until(lambda: field(t, "hot", "state") == b"resident", timeout=scaled(5), what="it is fresh again")
    wire.delay()
    assert wire.count_keys("GET")[b"hot"] == 1, "one refresh for all"
    tiers = t.tiers()
    assert tiers["tier_refreshes"] == 1 and tiers["tier_stale_served"] >= 50 and tiers["tier_refresh_failures"] == 0
    for c in conns:
        c.close()


def test_refresh_ahead_never_makes_a_hot_key_wait_or_stale(trio):
    up, wire, t = trio
    rule(t, "hot*", "ttl=1s", "refresh-ahead=70")
    up.client().set("hot", "value")
    c = t.client()
    assert c.get("hot") == b"value"
    wire.reset_counts()
    wire.delay(down=0.2)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert c.get("hot") == b"value"
        time.sleep(0.005)
    tiers = t.tiers()
    assert tiers["tier_upstream_requests"] == 1 + tiers["tier_refreshes"], "no read has waited for a fetch"
    assert tiers["tier_stale_served"] == 0
    assert 3 <= wire.count_keys("GET")[b"hot"] <= 10 and tiers["tier_refreshes"] >= 3


def test_past_the_window_a_read_waits_for_a_fetch(trio):
    up, wire, t = trio
    rule(t, "k*", "ttl=100ms", "stale-while-revalidate=100ms")
    rule(t, "plain*", "ttl=100ms")
    up.client().mset({"k": "v", "plain": "v"})
    c = t.client()
    assert c.mget("k", "plain") == [b"v", b"v"]
    time.sleep(0.4)
    wire.reset_counts()
    wire.delay(down=0.2)
    for key in ("k", "plain"):
        begin = time.monotonic()
        assert c.get(key) == b"v"
        assert time.monotonic() - begin >= 0.19
    assert wire.count("GET") == 2 and t.tiers()["tier_refreshes"] == 0


@pytest.mark.sequential
def test_ttl_tells_the_upstreams_truth(trio):
    up, wire, t = trio
    rule(t, "k*", "ttl=200ms", "stale-while-revalidate=1m")
    up.client().set("k", "v", px=60000)
    up.client().set("k2", "v")
    c = t.client()
    for _ in range(3):
        assert c.get("k") == b"v" and 50000 < c.pttl("k") <= 60000
        assert c.get("k2") == b"v" and c.pttl("k2") == -1
        time.sleep(0.25)
    up.client().set("k", "v", px=300)
    wait_until(lambda: 0 < c.pttl("k") <= 300, timeout=2)
    time.sleep(0.4)
    assert c.get("k") is None, "stale-while-revalidate does not outlive the key itself"


@pytest.mark.sequential
def test_jitter_spreads_the_ends(trio):
    up, wire, t = trio
    rule(t, "j*", "ttl=4s", "ttl-jitter=100")
    keys = ["j%d" % i for i in range(100)]
    up.client().mset({k: "v" for k in keys})
    c = t.client()
    c.mget(keys)
    wire.reset_counts()
    time.sleep(2)
    c.mget(keys)
    assert 10 <= wire.count("GET") <= 90, "some have ended after half of the ttl, others not"


@pytest.mark.sequential
def test_an_invalidation_during_a_refresh_wins(trio):
    up, wire, t = trio
    rule(t, "k*", "ttl=200ms", "stale-while-revalidate=1m")
    up.client().set("k", "old")
    c = t.client()
    assert c.get("k") == b"old"
    time.sleep(0.3)
    wire.delay(down=0.5, where=lambda conn: conn.saw("PTTL"))
    assert c.get("k") == b"old"  # starts the refresh
    up.client().set("k", "new")
    wait_until(lambda: c.get("k") == b"new", timeout=scaled(3), interval=0.01)
    wire.delay()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert c.get("k") == b"new"
        time.sleep(0.02)


def test_own_writes_drop_copies_whatever_their_freshness(trio):
    up, wire, t = trio
    rule(t, "k*", "ttl=50ms", "stale-while-revalidate=1m")
    c = t.client()
    for i in range(20):
        assert c.set("k", i)
        assert c.get("k") == b"%d" % i
        time.sleep(0.06)
        assert c.get("k") == b"%d" % i  # stale, and being refreshed
        assert c.incr("k") == i + 1 and c.get("k") == b"%d" % (i + 1)


@pytest.mark.heavy
@pytest.mark.timeout(60)
def test_a_refresh_that_fails_is_not_tried_at_every_hit(trio):
    up, wire, t = trio
    rule(t, "k*", "ttl=100ms", "stale-while-revalidate=1m", "stale-if-error=0")
    rule(t, "short*", "ttl=100ms", "stale-while-revalidate=100ms", "stale-if-error=0")
    up.client().mset({"k": "v", "short": "v"})
    c = t.client()
    assert c.mget("k", "short") == [b"v", b"v"]
    assert up.call("ACL", "SETUSER", "default", "-get") == "OK"
    time.sleep(0.25)
    wire.reset_counts()
    begin = time.monotonic()
    while time.monotonic() - begin < 2:
        assert c.get("k") == b"v"
    most = 2 * (time.monotonic() - begin + 1)  # one a second, of each of two workers
    assert 1 <= wire.count_keys("GET")[b"k"] <= most
    wait_until(lambda: t.tiers()["tier_refresh_failures"] == t.tiers()["tier_refreshes"] >= 1)
    reply = t.call("GET", "short")
    assert isinstance(reply, RespError) and "NOPERM" in str(reply), "its window is over"
    assert up.call("ACL", "SETUSER", "default", "+get") == "OK"
    assert c.get("short") == b"v"


@pytest.mark.heavy
@pytest.mark.timeout(60)
def test_stale_if_error_by_rule(trio):
    up, wire, t = trio
    rule(t, "never*", "stale-if-error=0")
    rule(t, "short*", "stale-if-error=4s", "ttl=100ms")
    up.client().mset({"never": "v", "short": "v", "long": "v"})
    c = t.client()
    assert c.mget("never", "short", "long") == [b"v"] * 3
    wire.down()
    wait_until(lambda: t.tiers()["tier_upstream_state"] == "down", what="it is noticed")
    assert c.get("long") == b"v" and c.get("short") == b"v"
    assert isinstance(t.call("GET", "never"), RespError)
    time.sleep(4.1)
    assert isinstance(t.call("GET", "short"), RespError)
    assert c.get("long") == b"v"
    wire.up()
    t.wait_tiers(tier_upstream_state="up", timeout=20)
    wait_until(lambda: t.call("MGET", "never", "short", "long") == [b"v"] * 3, timeout=5)


@pytest.mark.sequential
def test_negative_ttl_by_rule(trio):
    up, wire, t = trio
    rule(t, "none*", "negative-ttl=0")
    rule(t, "some*", "negative-ttl=1m")
    c = t.client()
    for _ in range(5):
        assert c.get("none") is None and c.get("some") is None
    time.sleep(1.2)
    assert c.get("some") is None
    assert wire.count_keys("GET") == {b"none": 5, b"some": 1}


# ---- what is kept

def test_write_around_keeps_from_the_second_read_on(trio):
    up, wire, t = trio
    rule(t, "a*", "write=around")
    up.client().set("a", "v", ex=100)
    up.client().lpush("alist", 1)
    c = t.client()
    assert 90 < c.ttl("a") <= 100 and c.get("a") == b"v"
    assert up.info("stats")["tracking_total_keys"] == 0, "the upstream does not track it"
    assert c.get("a") == b"v"
    assert up.info("stats")["tracking_total_keys"] == 1
    wire.reset_counts()
    assert [c.get("a") for _ in range(5)] == [b"v"] * 5 and wire.count("GET") <= 1
    assert c.set("a", "w") and c.get("a") == b"w" and up.client().get("a") == b"w"
    assert isinstance(t.call("GET", "alist"), RespError)
    assert t.call("GET", "a-none") is None


def test_objects_over_max_object_are_not_kept(trio):
    up, wire, t = trio
    rule(t, "m*", "max-object=1kb")
    up.client().mset({"m1": "x" * 1024, "m2": "x" * 1025})
    c = t.client()
    for _ in range(3):
        assert c.get("m1") == b"x" * 1024 and c.get("m2") == b"x" * 1025
    assert wire.count_keys("GET") == {b"m1": 1, b"m2": 3}


def test_compression_by_rule(trio):
    up, wire, t = trio
    rule(t, "plain*", "compress=no")
    up.client().mset({"plain": "x" * 5000, "packed": "x" * 5000})
    assert t.client().mget("plain", "packed") == [b"x" * 5000] * 2
    assert field(t, "plain", "memory_codec") == b"none" and field(t, "packed", "memory_codec") == b"zstd"


def held(t):
    db = t.info("keyspace").get("db0", "keys=0,")
    return int(db.split("keys=")[1].split(",")[0])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [
    {"maxmemory_policy": "noeviction", "disk": False},
    {"maxmemory_policy": "noeviction", "disk": True, "maxmemory": "2mb", "compression": "no"},
    {"maxmemory_policy": "volatile-lru", "disk": False},
    {"maxmemory_policy": "allkeys-lru", "disk": True, "maxmemory": "2mb", "compression": "no"},
])
def test_tracked_keys_max_bounds_copies_in_memory_and_on_disk(tiercel, redis_server, options):
    up = redis_server()
    p = up.client().pipeline(transaction=False)
    for i in range(1000):
        p.set("k:%d" % i, "v%d " % i * 1000)
    p.execute()
    t = tiercel(upstream=up, tracked_keys_max=200, threads=2, **options)
    t.wait_tiers(tier_upstream_state="up")
    c = t.client()
    for _ in range(2):
        for i in range(1000):
            assert c.get("k:%d" % i) == b"v%d " % i * 1000
            if i % 100 == 99:
                wait_until(lambda: held(t) <= 200, timeout=5, what="at most 200 copies, there are %d" % held(t))
    c.config_set("tracked-keys-max", 50)
    wait_until(lambda: held(t) <= 50, timeout=10, what="the lower limit")


def test_rules_change_while_keys_are_read(trio):
    up, wire, t = trio
    up.client().mset({"k:%d" % i: i for i in range(50)})
    stop, errors = threading.Event(), []

    def reader():
        with t.raw() as c:
            while not stop.is_set():
                got = [parse(r) for r in c.pipeline(*[("GET", "k:%d" % i) for i in range(50)])]
                if got != [b"%d" % i for i in range(50)]:
                    errors.append(got)

    readers = [threading.Thread(target=reader) for _ in range(4)]
    for th in readers:
        th.start()
    for n in range(60):
        rule(t, "k:*", "ttl=%dms" % (n % 5 * 10 + 1), "stale-while-revalidate=20ms", "refresh-ahead=50")
        rule(t, "k:%d*" % (n % 10), "ttl=20ms", "write=around")
        assert t.call("CACHE", "RULE", "DEL", "k:%d*" % (n % 10)) == "OK"
        time.sleep(0.02)
    stop.set()
    for th in readers:
        th.join()
    assert not errors, errors[0]
