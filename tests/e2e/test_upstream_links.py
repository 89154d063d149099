"""The connections to the upstream: what the sidecar promises while they are slow, half open, refused or limited."""
import threading
import time

import pytest
import redis

from harness import scaled, wait_until
from proxy import seen
from rawconn import encode

INVAL = seen("SUBSCRIBE")

pytestmark = pytest.mark.sequential


def is_fetch(connection):
    """It has asked for tracking."""
    return any(c[:2] == ("CLIENT", b"TRACKING") for c in connection.commands)


@pytest.fixture
def trio(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2)
    t.wait_tiers(tier_upstream_state="up", coherence_mode="tracking")
    return up, wire, t


# ---- the watchdog

def test_the_bound_does_not_depend_on_the_timeout(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, **{"upstream-timeout-ms": 30000})
    t.wait_tiers(tier_upstream_state="up")
    assert t.tiers()["coherence_bound_ms"] <= 1100


@pytest.mark.heavy
@pytest.mark.parametrize("which", ["inval", "fetch"])
@pytest.mark.timeout(60)
def test_a_half_open_connection_is_found_within_the_bound(tiercel, redis_server, proxy, which):
    """Copies end within the bound; the pair is replaced though it never says that it is broken, long before the timeout."""
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2, **{"upstream-timeout-ms": 20000})
    t.wait_tiers(tier_upstream_state="up", coherence_mode="tracking")
    clients = [t.client() for _ in range(8)]  # of both workers
    up.client().set("k", "old")
    assert {c.get("k") for c in clients} == {b"old"}
    bound = t.tiers()["coherence_bound_ms"] / 1000
    hung = set(filter(INVAL if which == "inval" else is_fetch, wire.connections))
    assert len(hung) == 2  # of two workers
    wire.hang(where=lambda c: c in hung)
    up.client().set("k", "new")
    start = time.monotonic()
    while time.monotonic() - start < bound + 3:
        begun = time.monotonic()
        for c in clients:
            try:
                value = c.get("k")
            except redis.exceptions.ResponseError as e:
                assert "UPSTREAM" in str(e)
                continue
            # Stale answers of an upstream that is away are another matter: see stale-if-error.
            if begun - start > bound + 0.05 and t.tiers()["coherence_mode"] == "tracking":
                assert value == b"new"
        time.sleep(0.02)
    wait_until(lambda: t.tiers()["coherence_mode"] == "tracking", timeout=10)
    assert {c.get("k") for c in clients} == {b"new"}
    wire.resume()


@pytest.mark.timeout(60)
def test_a_slow_upstream_fails_no_request_that_it_answers_in_time(tiercel, redis_server):
    """A script of 1.6 s there: the copies are suspects meanwhile, and current again afterwards."""
    up = redis_server()
    t = tiercel(upstream=up, threads=1, **{"upstream-timeout-ms": 5000, "stale-if-error-ms": 0})
    t.wait_tiers(tier_upstream_state="up", coherence_mode="tracking")
    c = t.client()
    up.client().set("k", "v")
    assert c.get("k") == b"v"
    fetches = t.tiers()["tier_upstream_requests"]
    slow = threading.Thread(target=lambda: up.client().eval(
        "local t = redis.call('TIME') local e = t[1] * 1000 + t[2] / 1000 + 1600 "
        "repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > e", 0))
    slow.start()
    time.sleep(0.1)
    answers = []
    threads = [threading.Thread(target=lambda f=f: answers.append(f(t.client())))
               for f in (lambda c: c.get("missing"), lambda c: c.set("w", "1"), lambda c: c.hset("h", "f", "1"))]
    for th in threads:
        th.start()
    wait_until(lambda: t.tiers()["coherence_mode"] == "none", timeout=2)
    assert "does not answer" in t.tiers()["coherence_reason"]
    for th in threads + [slow]:
        th.join()
    assert sorted(map(str, answers)) == ["1", "None", "True"]
    wait_until(lambda: t.tiers()["coherence_mode"] == "tracking", timeout=2)
    assert t.tiers()["coherence_reason"] == ""
    sent = t.tiers()["tier_upstream_requests"]
    assert c.get("k") == b"v" and t.tiers()["tier_upstream_requests"] == sent > fetches
    up.client().set("k", "later")
    wait_until(lambda: c.get("k") == b"later", timeout=2)


# ---- coherence modes

def test_ttl_mode_bounds_the_age_and_tells_the_true_expiry(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=1, coherence="ttl", **{"coherence-ttl-ms": 400})
    t.wait_tiers(coherence_mode="ttl", coherence_reason="")
    c, foreign = t.client(), up.client()
    foreign.set("k", "old", ex=100)
    assert c.get("k") == b"old" and 90 < c.ttl("k") <= 100
    for i in range(5):
        foreign.set("k", i)
        changed = time.monotonic()
        wait_until(lambda: c.get("k") == b"%d" % i, timeout=2, interval=0.01)
        assert time.monotonic() - changed < t.tiers()["coherence_bound_ms"] / 1000 + 0.3
    wire.reset_counts()
    for _ in range(100):
        c.get("k")
    assert wire.count("GET") <= 3
    assert not any(INVAL(x) for x in wire.connections)


def test_broadcast_keeps_the_prefixes_and_nothing_else(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2, coherence="broadcast", **{"coherence-prefixes": "a: b:"})
    t.wait_tiers(coherence_mode="broadcast")
    c, foreign = t.client(), up.client()
    foreign.mset({"a:1": "x", "b:1": "y", "c:1": "z"})
    time.sleep(scaled(0.2))  # both threads have been told of that
    for _ in range(3):
        assert c.mget("a:1", "b:1", "c:1") == [b"x", b"y", b"z"]
    counts = wire.count_keys("GET")
    assert (counts[b"a:1"], counts[b"b:1"], counts[b"c:1"]) == (1, 1, 3)
    for i in range(20):
        foreign.set("a:1", i)
        wait_until(lambda: c.get("a:1") == b"%d" % i, timeout=1, interval=0.001)
    assert c.set("b:1", "own") and c.get("b:1") == b"own"


def test_falls_back_and_says_why(tiercel, redis_server):
    up = redis_server()
    up.client().execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    t = tiercel(upstream="redis://plain:pw@127.0.0.1:%d" % up.port, threads=1, **{"coherence-ttl-ms": 300})
    t.wait_tiers(coherence_mode="ttl")
    assert "NOPERM" in t.tiers()["coherence_reason"] and t.tiers()["coherence_bound_ms"] <= 500
    up.client().execute_command("ACL", "SETUSER", "plain", "+client|tracking")
    up.client().execute_command("CLIENT", "KILL", "USER", "plain")
    t.wait_tiers(coherence_mode="tracking", coherence_reason="")


# ---- the breaker

@pytest.mark.timeout(60)
def test_an_upstream_that_says_nothing_is_left_alone(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=1, **{"upstream-timeout-ms": 300, "upstream-breaker-failures": 3})
    t.wait_tiers(tier_upstream_state="up")
    wire.hang()
    conns = [t.raw() for _ in range(4)]
    for c in conns:
        c.send(encode("SET", "k", "v"))
    for c in conns:
        assert c.read_reply().startswith(b"-UPSTREAM")
    wait_until(lambda: t.tiers()["tier_upstream_breaker"] in ("open", "half-open"), timeout=3)
    wire.reset_counts()
    begun = time.monotonic()
    for _ in range(100):
        conns[0].send(encode("BLPOP", "never", "0.1"))
        assert conns[0].read_reply().startswith(b"-UPSTREAMDOWN")
    assert time.monotonic() - begun < 10  # 30 s, would each wait for its timeout
    assert wire.count("BLPOP") == 0 and t.tiers()["tier_upstream_breaker_refused"] > 0
    wire.resume()
    wait_until(lambda: t.tiers()["tier_upstream_breaker"] == "closed", timeout=10)
    t.wait_tiers(tier_upstream_state="up")
    assert t.client().set("k", "v")
    for c in conns:
        c.close()


# ---- limits and secrets

def test_pins_and_subscriptions_have_limits_of_their_own(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, threads=1, **{"upstream-pins-max": 2, "upstream-subscriptions-max": 1})
    t.wait_tiers(tier_upstream_state="up")
    blocked = [t.raw() for _ in range(2)]
    for c in blocked:
        c.send(encode("BLPOP", "nothing", "0"))
    t.wait_tiers(tier_upstream_pins=2)
    third, subscriber, refused = t.raw(), t.raw(), t.raw()
    third.send(encode("BLPOP", "nothing", "0"))
    assert b"upstream-pins-max" in third.read_reply()
    subscriber.send(encode("SUBSCRIBE", "ch"))
    assert b"subscribe" in subscriber.read_reply()
    refused.send(encode("SUBSCRIBE", "ch"))
    assert b"upstream-subscriptions-max" in refused.read_reply()
    assert t.tiers()["tier_upstream_subscriptions"] == 1
    for c in blocked + [third, subscriber, refused]:
        c.close()


def test_a_rotated_secret_is_used_without_a_restart(tiercel, redis_server, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("app\none\n")
    up = redis_server()
    admin = up.client()
    admin.execute_command("ACL", "SETUSER", "app", "on", ">one", "~*", "&*", "+@all")
    t = tiercel(upstream=up, threads=2, **{"upstream-auth-file": secret})
    t.wait_tiers(tier_upstream_state="up")
    assert t.client().execute_command("SET", "k", "v")
    admin.execute_command("ACL", "SETUSER", "app", "resetpass", ">two")
    secret.write_text("app\ntwo\n")
    admin.execute_command("CLIENT", "KILL", "USER", "app")
    t.wait_tiers(tier_upstream_state="up", coherence_mode="tracking")
    assert t.client().get("k") == b"v"
