"""Many connections that behave badly: nothing breaks, nothing leaks, and hits go on when the upstream is away."""
import os
import signal
import time

import pytest

from harness import SANITIZE, scaled, wait_until
from load import Load

SEED = int(os.environ.get("LOAD_SEED", time.time()))
THREADS = int(os.environ.get("LOAD_THREADS", 2))
CI = (int(os.environ.get("LOAD_CONNECTIONS", 300)), int(os.environ.get("LOAD_SECONDS", 20)))
FULL = (1000, 60)


def end(t, load):
    """Gauges return to 0; then it is stopped in the middle of the load, in order."""
    load.pause()
    quiet = {"tier_inflight_bytes": 0, "tier_demoting_bytes": 0, "tier_disk_queue_bytes": 0}
    t.wait_tiers(timeout=20, **quiet)
    assert t.info("clients")["blocked_clients"] == 0
    wait_until(lambda: t.info("clients")["connected_clients"] == 1 + len(load.conns), timeout=20,
               what="closed connections are forgotten")
    load.run(2)
    load.abandon()
    t.expect_running = False
    t.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + scaled(20)
    while t.alive():
        assert time.monotonic() < deadline, "it does not stop"
        load.turn(time.monotonic() + 0.05)
    assert t.process.returncode == 0
    t.check_log()


def standalone(tiercel, connections, seconds):
    limit = 6 << 20
    t = tiercel(threads=THREADS, maxmemory=limit, disk_stall_ms=60000)
    load = Load(t.port, connections, SEED)
    load.memory_limit = limit
    try:
        load.prepare()
        load.run(seconds)
        tiers = t.tiers()
        assert tiers["tier_demotions"] > 100 or tiers["tier_disk_keys"] > 100, "nothing moved: %s" % tiers
        assert load.memory_most < limit * 1.5, "memory went up to %d" % load.memory_most
        if not SANITIZE:
            assert t.rss_anon() < 200 << 20, "RssAnon is %d MB" % (t.rss_anon() >> 20)
        end(t, load)
    finally:
        load.close()
        print("seed %d: %s" % (SEED, load.summary()))
    assert load.checked > 100


def with_upstream(tiercel, redis_server, connections, seconds):
    up = redis_server(maxclients=10000)
    t = tiercel(threads=THREADS, maxmemory="64mb", upstream=up, upstream_timeout_ms=int(scaled(500)))
    t.wait_tiers(tier_upstream_state="up")
    load = Load(t.port, connections, SEED, upstream=True)
    load.memory_limit = 64 << 20

    def keep():
        """From now on the copies stay: nothing is under way any more that drops them all."""
        load.flushes = False
        load.pause()
        for name in load.names:
            t.call("GET", name)
        load.resume()

    def away():
        load.away = True

    def kill():
        assert up.call("SAVE") == "OK"  # it comes back with what it had
        up.kill9()
        away()

    def back():
        load.away = False

    def restart():
        up.start()
        back()

    def pause():
        up.pause()
        away()

    def resume():
        up.resume()
        back()

    try:
        load.prepare()
        for name in load.names:
            t.call("GET", name)
        load.run(seconds, [(seconds * share, what) for share, what in (
            (0.20, keep), (0.30, kill), (0.55, restart), (0.75, pause), (0.85, resume))])
        assert load.hot_while_away > 50, "hits while the upstream was away: %d" % load.hot_while_away
        assert load.memory_most < 1.5 * load.memory_limit
        t.wait_tiers(timeout=10, tier_upstream_state="up")
        with t.raw() as c:
            for name in load.names:
                load.is_value(name)(c.call("GET", name))
        end(t, load)
    finally:
        load.close()
        print("seed %d: %s, %d hits while the upstream was away" % (SEED, load.summary(), load.hot_while_away))


@pytest.mark.sanitize
def test_standalone(tiercel):
    standalone(tiercel, *CI)


@pytest.mark.sanitize
def test_upstream(tiercel, redis_server):
    with_upstream(tiercel, redis_server, *CI)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_standalone_1000(tiercel):
    standalone(tiercel, *FULL)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_upstream_1000(tiercel, redis_server):
    with_upstream(tiercel, redis_server, *FULL)
