"""The upstream stopped, and killed, under load: what is held is served, the rest gets an error in time, memory stays
bounded, and afterwards nothing old is left."""
import threading
import time

import pytest

from harness import SANITIZE, RespError, scaled, wait_until

KEYS = 400
TIMEOUT_MS = 500


def fill(up, generation):
    p = up.client().pipeline(transaction=False)
    for i in range(KEYS):
        p.set("k:%d" % i, "%d of %d" % (i, generation))
    p.execute()


class Reader(threading.Thread):
    """Reads keys that are held, or such as are not, one after another; counts what came and the longest wait."""

    def __init__(self, server, misses):
        super().__init__(daemon=True)
        self.server, self.misses = server, misses
        self.end = threading.Event()
        self.good = self.errors = 0
        self.longest = 0.0
        self.strange = []

    def run(self):
        n = 0
        with self.server.raw() as c:
            while not self.end.is_set():
                n += 1
                key = "absent:%d:%d" % (id(self), n) if self.misses else "k:%d" % (n * 7 % KEYS)
                begin = time.monotonic()
                reply = c.ask("GET", key)
                self.longest = max(self.longest, time.monotonic() - begin)
                if isinstance(reply, RespError):
                    self.errors += 1
                    if not str(reply).startswith(("UPSTREAM", "LOADING")):
                        self.strange.append(reply)
                    time.sleep(0.01)
                elif not self.misses and (reply is None or b" of " not in reply):
                    self.strange.append(reply)
                else:
                    self.good += 1

    def finish(self):
        self.end.set()
        self.join(scaled(30))
        assert not self.is_alive(), "a reader hangs"


def outage(tiercel, redis_server, how, seconds, clients):
    up = redis_server()
    fill(up, 1)
    t = tiercel(upstream=up, threads=2, upstream_timeout_ms=TIMEOUT_MS)
    t.wait_tiers(tier_upstream_state="up")
    c = t.client()
    assert c.mget("k:%d" % i for i in range(KEYS)) == [b"%d of 1" % i for i in range(KEYS)]

    hits = [Reader(t, misses=False) for _ in range(4)]
    misses = [Reader(t, misses=True) for _ in range(4)]
    for r in hits + misses:
        r.start()
    time.sleep(0.5)
    for r in hits + misses:
        assert r.good and not r.errors, "before: %d good, %d errors, %s" % (r.good, r.errors, r.strange[:3])
        r.longest = 0
    up.pause() if how == "stop" else up.kill9()
    # Many that ask for what is not held, again and again, and do not wait.
    begin = time.monotonic()
    while t.tiers()["tier_upstream_state"] == "up" and time.monotonic() < begin + scaled(10):
        time.sleep(0.02)
    before_rss, before = t.rss_anon(), [r.good for r in hits]
    crowd = [t.raw() for _ in range(clients)]
    request = b"".join(b"*2\r\n$3\r\nGET\r\n$9\r\nnone:%04d\r\n" % i for i in range(20))
    most = 0
    while time.monotonic() < begin + seconds:
        for x in crowd:
            x.send(request)
        for x in crowd:
            for _ in range(20):
                reply = x.read_reply()
                assert reply.startswith((b"-UPSTREAM", b"$-1")), reply
        most = max(most, t.rss_anon())
    tiers = t.tiers()
    for x in crowd:
        x.close()
    served = [r.good - b for r, b in zip(hits, before)]
    print("%s for %.1f s: %s stale or held answers, longest wait %.3f s; misses: %s errors, longest wait %.3f s; memory %+d KB; %s" % (
        how, seconds, served, max(r.longest for r in hits), [r.errors for r in misses], max(r.longest for r in misses),
        (most - before_rss) // 1024, {k: v for k, v in tiers.items() if "stale" in k or "pins" in k}))
    assert all(n > 50 for n in served), "hits go on: %s" % served
    assert not any(r.errors for r in hits), "a hit failed: %s" % [r.errors for r in hits]
    assert all(r.errors for r in misses), "misses get errors"
    assert tiers["tier_stale_hits"] > 0
    # A sanitizer keeps what was freed for a while.
    assert SANITIZE or most - before_rss < (64 << 20) + clients * 32768, "memory grew by %d KB" % ((most - before_rss) // 1024)

    if how == "stop":
        changed = threading.Thread(target=fill, args=(up, 2))  # waits until it goes on
        changed.start()
        up.resume()
        changed.join()
    else:
        up.start()
        fill(up, 2)
    t.wait_tiers(tier_upstream_state="up", timeout=30)
    bound = t.tiers()["coherence_bound_ms"] / 1000

    def converged():
        return t.client().mget("k:%d" % i for i in range(KEYS)) == [b"%d of 2" % i for i in range(KEYS)]

    wait_until(converged, timeout=bound + 2, what="every key has its new value")
    for r in hits + misses:
        r.finish()
        assert not r.strange, r.strange[:3]
        # A deadline to find out, one of the request itself, and a machine that is busy.
        assert r.longest < scaled(5 + 4 * TIMEOUT_MS / 1000), "a reply took %.1f s" % r.longest
    for _ in range(8):  # both threads
        assert converged()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_outage(tiercel, redis_server, how):
    outage(tiercel, redis_server, how, 3, 200)


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_long_outage(tiercel, redis_server, how):
    outage(tiercel, redis_server, how, 60, 4000)


@pytest.mark.timeout(60)
def test_connections_at_the_upstream_are_bounded(tiercel, redis_server):
    """Blocking commands have a connection each: past the limit they get an error, and all end with their clients."""
    up = redis_server()
    t = tiercel(upstream=up, threads=1, upstream_pins_max=50)
    t.wait_tiers(tier_upstream_state="up")
    waiting = [t.raw() for _ in range(120)]
    try:
        for i, c in enumerate(waiting):
            c.send_command("BLPOP", "none:%d" % i, 0)
        refused = 0
        for c in waiting:
            refused += not c.silent_for(0.02) and c.read_reply().startswith(b"-UPSTREAMBUSY")
        assert refused == 70
        assert up.info("clients")["connected_clients"] <= 50 + 8
        assert t.call("SET", "k", "v") == "OK" and t.call("GET", "k") == b"v"
    finally:
        for c in waiting:
            c.close()
    wait_until(lambda: up.info("clients")["blocked_clients"] == 0, what="nobody waits there any more")


@pytest.mark.timeout(60)
def test_a_client_killed_in_blpop_loses_no_element(tiercel, redis_server):
    """Elements arrive while clients that wait for them go. One may be on its way to a client that has just gone, as with
    redis-server itself; it is never taken for one that had gone before."""
    up = redis_server()
    t = tiercel(upstream=up, threads=2)
    t.wait_tiers(tier_upstream_state="up")
    push = up.client()
    for i in range(40):
        gone, stays = t.raw(), t.raw()
        gone.send_command("BLPOP", "jobs", 0)
        wait_until(lambda: up.info("clients")["blocked_clients"] == 1, what="the first one waits there")
        stays.send_command("BLPOP", "jobs", 0)
        wait_until(lambda: up.info("clients")["blocked_clients"] == 2, what="both wait there")
        gone.close()
        wait_until(lambda: up.info("clients")["blocked_clients"] == 1, what="the upstream knows that it left")
        push.rpush("jobs", "job:%d" % i)
        assert stays.read_value() == [b"jobs", b"job:%d" % i]
        stays.close()
    assert push.llen("jobs") == 0
