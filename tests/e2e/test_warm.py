"""WARM: loading keys before the traffic asks for them."""
import time

import pytest

from harness import parse, scaled, seen, wait_until


def fields(flat):
    """A STATUS reply as a dict."""
    if isinstance(flat, dict):
        pairs = flat.items()
    else:
        pairs = zip(flat[::2], flat[1::2])
    return {k.decode(): v.decode() if isinstance(v, bytes) else v for k, v in pairs}


def warm(t, *args, db=0):
    """WARM ... WAIT: the totals."""
    with t.raw(timeout=scaled(60)) as c:
        if db:
            c.call("SELECT", db)
        reply = c.ask("WARM", *args, "WAIT")
    assert isinstance(reply, list), reply
    out = fields(reply)
    assert out["seen"] == out["loaded"] + out["skipped"] + out["failed"], out
    return out


def status(t, job=None):
    return fields(t.call("WARM", "STATUS", *([job] if job is not None else [])))


def fill(server, n, name="price:%d", **options):
    p = server.client().pipeline(transaction=False)
    for i in range(n):
        p.set(name % i, "value of %d" % i, **options)
    p.execute()


@pytest.fixture
def pair(tiercel, redis_server, proxy):
    """An upstream, what is seen of it, and a server in front."""
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2)
    t.wait_tiers(tier_upstream_state="up")
    return up, wire, t


# ---- through an upstream

def test_match_loads_with_expiry(pair):
    up, wire, t = pair
    fill(up, 2000, ex=1000)
    fill(up, 100, name="other:%d")
    up.client().rpush("price:list", "not a string")
    begin = time.monotonic()
    got = warm(t, "MATCH", "price:*", "RATE", "5000")
    took = time.monotonic() - begin
    assert got["state"] == "done" and got["reason"] == ""
    assert (got["seen"], got["loaded"], got["failed"]) == (2000, 2000, 0)
    assert got["bytes"] > 2000 * 20 and got["eta_ms"] == 0
    assert took > 0.25, "2,000 keys at 5,000 a second, less the burst"
    wire.reset_counts()
    c = t.client()
    for i in range(2000):
        assert c.get("price:%d" % i) == b"value of %d" % i
    assert 990 < c.ttl("price:7") <= 1000
    assert wire.count("GET") == 0 and wire.count("PTTL") == 0
    again = warm(t, "MATCH", "price:*")
    assert (again["seen"], again["loaded"], again["skipped"]) == (2000, 0, 2000)
    # what was loaded is coherent
    up.client().set("price:7", "changed")
    wait_until(lambda: c.get("price:7") == b"changed", timeout=3)


def test_keys(pair):
    up, wire, t = pair
    fill(up, 10, name="k:%d")
    got = warm(t, "KEYS", *["k:%d" % i for i in range(12)], "k:0")
    assert got["seen"] == 13 and got["loaded"] == 10 and got["failed"] == 0
    assert got["skipped"] == 3, "two that are nowhere, one that was loaded already"
    wire.reset_counts()
    assert t.client().mget(["k:%d" % i for i in range(10)]) == [b"value of %d" % i for i in range(10)]
    assert wire.count("GET") == 0


def test_keys_with_names_of_options(pair):
    up, _, t = pair
    up.client().mset({"wait": "1", "rate": "2", "keys": "3"})
    assert warm(t, "KEYS", "rate", "keys", "wait")["loaded"] == 3, "only the last WAIT is the option"
    assert t.call("WARM", "KEYS", "WAIT") > 0, "a lone argument is a key"


def test_file(pair, tmp_path):
    up, _, t = pair
    fill(up, 5000, name="key %d")
    path = tmp_path / "keys.txt"
    path.write_bytes(b"".join(b"key %d%s" % (i, (b"\n", b"\r\n")[i % 2]) for i in range(4999)) + b"\n\n" +
                     b"x" * (2 << 20) + b"\nkey 4999")
    got = warm(t, "FILE", str(path), "RATE", "1000000")
    assert got["state"] == "done"
    assert got["loaded"] == 5000 and got["seen"] == 5001 and got["failed"] == 1, "the line of 2 MB failed"


def test_other_databases(pair):
    up, wire, t = pair
    up.client(db=3).mset({"a": "1", "b": "2"})
    up.client().set("c", "3")
    assert warm(t, "MATCH", "*", db=3)["loaded"] == 2
    wire.reset_counts()
    assert t.client(db=3).get("a") == b"1"
    assert wire.count("GET") == 0
    assert t.client(db=0).get("a") is None


def test_wrong_type_is_a_failed_key(pair):
    up, _, t = pair
    up.client().rpush("list", "e")
    got = warm(t, "KEYS", "list")
    assert (got["failed"], got["loaded"], got["state"]) == (1, 0, "done")


def test_many_loads_are_under_way(pair):
    up, wire, t = pair
    fill(up, 1000)
    wire.delay(down=0.05)
    begin = time.monotonic()
    assert warm(t, "MATCH", "*")["loaded"] == 1000
    assert time.monotonic() - begin < scaled(5), "1,000 keys one after another take 50 s"


def test_upstream_restart_in_the_middle(pair):
    up, wire, t = pair
    fill(up, 3000, name="k:%d")
    with t.raw(timeout=scaled(60)) as c:
        c.send_command("WARM", "KEYS", *["k:%d" % i for i in range(3000)], "RATE", "1500", "WAIT")
        time.sleep(0.5)
        wire.down()
        time.sleep(1)
        wire.up()
        got = fields(c.read_value())
    assert got["state"] == "done" and got["seen"] == 3000
    assert got["loaded"] >= 2500, "only what was under way failed"
    assert got["loaded"] + got["failed"] + got["skipped"] == 3000


def test_match_survives_an_upstream_restart(pair):
    up, wire, t = pair
    fill(up, 3000, name="k:%d")
    with t.raw(timeout=scaled(60)) as c:
        c.send_command("WARM", "MATCH", "*", "COUNT", "100", "RATE", "3000", "WAIT")
        time.sleep(0.3)
        wire.down()
        time.sleep(0.7)
        wire.up()
        got = fields(c.read_value())
    assert got["state"] == "done", got
    assert got["loaded"] + got["skipped"] + got["failed"] >= 3000


@pytest.mark.timeout(60)
def test_fails_when_the_upstream_stays_away(pair):
    up, wire, t = pair
    up.stop()
    begin = time.monotonic()
    got = warm(t, "KEYS", "a", "b")
    assert got["state"] == "failed" and "upstream" in got["reason"]
    assert time.monotonic() - begin < scaled(20)
    up.start()


def test_upstream_refuses_scan(pair):
    up, _, t = pair
    c = up.client()
    c.execute_command("ACL", "SETUSER", "default", "-scan")
    got = warm(t, "MATCH", "*")
    assert got["state"] == "failed" and "NOPERM" in got["reason"]


def test_stops_at_tracked_keys_max(tiercel, redis_server):
    up = redis_server()
    fill(up, 2000)
    t = tiercel(upstream=up, tracked_keys_max=500)
    got = warm(t, "MATCH", "*")
    assert got["state"] == "stopped" and got["reason"] == "tracked-keys-max"
    assert 300 < got["loaded"] <= 500


def test_stops_at_maxmemory(tiercel, redis_server):
    up = redis_server()
    p = up.client().pipeline(transaction=False)
    for i in range(4000):
        p.set("k:%d" % i, bytes((i * j) % 251 for j in range(2048)))
    p.execute()
    t = tiercel(upstream=up, maxmemory="4mb", compression="no")
    got = warm(t, "MATCH", "*")
    assert got["state"] == "stopped" and got["reason"] == "maxmemory", got
    assert 200 < got["loaded"] < 2000
    assert t.info("stats")["evicted_keys"] == 0 and t.tiers()["tier_demotions"] == 0


def test_small_budget_for_fetches_does_not_stop_it(tiercel, redis_server):
    """A value larger than the look-ahead's share of inflight-max-bytes."""
    up = redis_server()
    for i in range(20):
        up.client().set("k:%d" % i, "x" * 300000)
    t = tiercel(upstream=up, inflight_max_bytes="64kb", compression="no")
    assert warm(t, "MATCH", "*")["loaded"] == 20


# ---- without an upstream

def test_promotes_from_disk(tiercel, tmp_path):
    t = tiercel(threads=2)
    fill(t, 1000)
    t.restart()
    assert t.tiers()["tier_memory_keys"] == 0
    got = warm(t, "KEYS", "price:1", "price:2", "absent")
    assert (got["loaded"], got["skipped"], got["failed"]) == (2, 1, 0)
    path = tmp_path / "keys"
    path.write_text("".join("price:%d\n" % i for i in range(1000)))
    got = warm(t, "FILE", str(path))
    assert (got["seen"], got["loaded"], got["skipped"]) == (1000, 998, 2)
    before = t.tiers()["tier_disk_hits"]
    assert t.client().get("price:77") == b"value of 77"
    assert t.tiers()["tier_disk_hits"] == before


def test_errors(tiercel, tmp_path):
    t = tiercel()
    with t.raw() as c:
        def error(*args):
            return c.call("WARM", *args)

        assert error("MATCH", "*").startswith(b"-ERR WARM MATCH asks an upstream")
        assert b"No such file" in error("FILE", str(tmp_path / "absent"))
        assert b"not a regular file" in error("FILE", str(tmp_path))
        assert b"RATE is not a number" in error("KEYS", "a", "RATE", "fast")
        assert b"RATE is not a number" in error("KEYS", "a", "RATE", "0")
        assert error("KEYS") == b"-ERR syntax error\r\n"
        assert error("FILE", "a", "b") == b"-ERR syntax error\r\n"
        assert error("NOSUCH", "a") == b"-ERR syntax error\r\n"
        assert error() == b"-ERR wrong number of arguments for 'warm' command\r\n"
        assert error("STATUS", "99") == b"-ERR no such WARM job\r\n"
        assert error("STATUS") == b"-ERR no such WARM job\r\n"
        assert error("STATUS", "x") == b"-ERR the job's id is not a number\r\n"
        assert error("CANCEL", "99") == b"-ERR no such WARM job\r\n"
        assert error("LIST") == b"*0\r\n"
        assert any(b"MATCH" in line for line in map(str.encode, parse(error("HELP"))))
        c.call("MULTI")
        c.call("WARM", "KEYS", "a", "WAIT")
        assert c.call("EXEC").startswith(b"*1\r\n-ERR")


# ---- watching

def test_status_list_cancel(pair):
    up, _, t = pair
    fill(up, 1000, name="k:%d")
    job = t.call("WARM", "KEYS", *["k:%d" % i for i in range(1000)], "RATE", "100")
    now = wait_until(lambda: status(t, job)["loaded"] > 10 and status(t, job), what="it loads")
    assert now["state"] == "running" and now["id"] == job and now["elapsed_ms"] > 0
    assert 1000 < now["eta_ms"] < 30000
    assert list(now)[:9] == ["id", "state", "seen", "loaded", "skipped", "failed", "bytes", "elapsed_ms", "eta_ms"]
    assert [fields(j)["id"] for j in t.call("WARM", "LIST")] == [job]
    assert t.call("WARM", "CANCEL", job) == "OK"
    now = status(t)
    assert now["state"] == "cancelled" and now["loaded"] < 900 and now["eta_ms"] == 0
    time.sleep(0.2)
    assert status(t, job)["loaded"] <= now["loaded"] + 128, "what was under way still counts, no more"
    assert str(t.call("WARM", "CANCEL", job)) == "ERR the WARM job has ended already"


def test_status_is_a_map(tiercel):
    t = tiercel()
    with t.raw() as c:
        c.call("HELLO", "3")
        got = c.ask("WARM", "KEYS", "a", "WAIT")
        assert isinstance(got, dict) and fields(got)["state"] == "done"
        assert isinstance(c.ask("WARM", "STATUS"), dict)


def test_ended_jobs_stay_listed(tiercel):
    t = tiercel()
    ids = [warm(t, "KEYS", "k")["id"] for _ in range(20)]
    assert ids == sorted(ids) and len(set(ids)) == 20
    assert [fields(j)["id"] for j in t.call("WARM", "LIST")] == ids[-16:]


def test_a_client_that_leaves_does_not_cancel(pair):
    up, _, t = pair
    fill(up, 300, name="k:%d")
    with t.raw() as c:
        c.send_command("WARM", "MATCH", "*", "RATE", "300", "WAIT")
        wait_until(lambda: t.call("WARM", "LIST"), what="it runs")
    got = wait_until(lambda: status(t)["state"] != "running" and status(t), what="it ends")
    assert got["state"] == "done" and got["loaded"] == 300


def test_stopping_with_jobs_running(pair, tmp_path):
    up, wire, t = pair
    fill(up, 3000, name="k:%d")
    path = tmp_path / "keys"
    path.write_text("".join("k:%d\n" % i for i in range(3000)))
    t.call("WARM", "MATCH", "*", "RATE", "100")
    t.call("WARM", "FILE", str(path))
    t.call("WARM", "KEYS", "k:1", "k:2", "RATE", "1")
    wire.hang(where=seen("GET"))
    t.call("WARM", "MATCH", "*")
    time.sleep(0.1)
    assert t.stop() < scaled(15)


def test_warm_on_start(tiercel, redis_server):
    up = redis_server()
    fill(up, 200)
    t = tiercel(upstream=up, warm_on_start="MATCH price:* RATE 100000")
    wait_until(lambda: t.call("WARM", "LIST") and status(t)["state"] == "done", what="it was warmed")
    assert status(t)["loaded"] == 200
    assert t.tiers()["tier_memory_keys"] >= 200


def test_stopping_while_keys_are_promoted(tiercel, tmp_path):
    t = tiercel(threads=2)
    fill(t, 20000, name="k:%d")
    path = tmp_path / "keys"
    path.write_text("".join("k:%d\n" % i for i in range(20000)))
    for _ in range(3):
        t.restart()
        t.call("WARM", "FILE", str(path), "RATE", "20000")
        t.call("WARM", "FILE", str(path))
        time.sleep(0.02)
    t.restart()
    assert t.client().dbsize() == 20000
