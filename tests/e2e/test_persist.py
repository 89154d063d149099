"""SAVE and its kin, INFO persistence, the settings of durability, CACHE INSPECT, and what is said of a disk that fails:
replies against redis-server where it has them."""
import json
import re
import time
import urllib.error
import urllib.request

import pytest

import shims
from harness import free_port, scaled, wait_until
from rawconn import RawConn, RespError, encode

NO_DISK = RespError("ERR there is no disk tier to save to: the server runs with disk no")


def words(line):
    return [w.replace("''", "") for w in line.split()]


def fill(server, n, size=1000, prefix="fill"):
    p = server.client().pipeline(transaction=False)
    for i in range(n):
        p.set("%s:%d" % (prefix, i), ("%07d" % i) * (size // 7))
    p.execute()


def idle(server):
    """Waits until nothing is being saved."""
    def ended():
        now = server.info("persistence")
        busy = "rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled"
        return not any(now[name] for name in busy) and now
    return wait_until(ended, what="the end of the save")


# ---- replies

# Each line alone, on fresh connections: byte for byte.
SAME = """
SAVE | SAVE x | BGSAVE x | BGSAVE SCHEDULE x | BGSAVE SCHEDULE | BGSAVE schedule | BGREWRITEAOF | BGREWRITEAOF x
LASTSAVE x | CONFIG SET appendonly maybe | CONFIG SET appendfsync sometimes | CONFIG SET appendonly yes
CONFIG SET appendfsync always | CONFIG SET appendfsync EVERYSEC appendonly no | CONFIG GET appendfsync
CONFIG SET appendfsync no | CONFIG GET append*sync | CONFIG SET appendonly no appendonly yes
"""


@pytest.mark.parametrize("proto", [2, 3])
def test_the_same_reply(tiercel, redis_server, proto):
    servers = tiercel(), redis_server()
    differ = []
    for line in re.split(r"[|\n]", SAME.strip()):
        replies = []
        for server in servers:
            with server.raw() as c:
                c.call("HELLO", proto)
                replies.append(c.call(*words(line)))
            idle(server)
        if replies[0] != replies[1]:
            differ.append((line, *replies))
    assert not differ, "\n".join("%s\n  %r\n  %r" % d for d in differ)


def batch(server, *lines):
    """The replies to requests that are sent at once."""
    with server.raw() as c:
        c.send(b"".join(encode(*words(line)) for line in lines))
        return [c.read_reply() for _ in lines]


def test_one_at_a_time(tiercel, redis_server):
    t, r = tiercel(threads=1), redis_server(rdb_key_save_delay=100)
    for server in (t, r):
        fill(server, 5000)
    for lines in (["BGSAVE", "BGSAVE", "SAVE", "BGSAVE SCHEDULE", "BGREWRITEAOF"],
                  ["BGREWRITEAOF", "BGREWRITEAOF", "BGSAVE", "BGSAVE SCHEDULE"]):
        replies = [batch(server, *lines) for server in (t, r)]
        assert replies[0] == replies[1], lines
        for server in (t, r):
            idle(server)
            time.sleep(0.1)
            now = idle(server)
            assert now["rdb_last_bgsave_status"] == now["aof_last_bgrewrite_status"] == "ok"
    now = t.info("persistence")
    assert (now["rdb_saves"], now["aof_rewrites"]) == (4, 2)


def test_save_behind_a_rewrite_waits_for_its_own(tiercel):
    t = tiercel(threads=1)
    fill(t, 2000)
    assert batch(t, "BGREWRITEAOF", "SET k v", "SAVE", "SAVE", "PING")[1:] == [b"+OK\r\n", b"+OK\r\n", b"+OK\r\n",
                                                                             b"+PONG\r\n"]
    assert idle(t)["rdb_saves"] == 3
    t.kill9()
    t.start()
    assert t.call("GET", "k") == b"v"


def test_within_a_transaction(tiercel, redis_server):
    for lines in (["MULTI", "SET a 1", "BGSAVE", "BGREWRITEAOF", "LASTSAVE", "EXEC"], ["MULTI", "SAVE", "EXEC"],
                  ["MULTI", "BGSAVE x", "EXEC"], ["MULTI", "BGSAVE SCHEDULE x", "EXEC"]):
        replies = []
        for server in (tiercel(), redis_server()):
            got = batch(server, *lines)
            replies.append([re.sub(rb":\d+", b":TIME", g) for g in got])
        assert replies[0] == replies[1], lines
    t = tiercel()
    assert batch(t, "MULTI", "SET a 1", "BGSAVE", "EXEC")[-1] == b"*2\r\n+OK\r\n+Background saving scheduled\r\n"
    wait_until(lambda: t.info("persistence")["rdb_saves"] == 1, what="the scheduled save")
    t.kill9()
    t.start()
    assert t.call("GET", "a") == b"1"


def test_save_holds_up_nobody_else(tiercel):
    t = tiercel(threads=1)
    fill(t, 20000)
    with t.raw() as a, t.raw() as b:
        a.send(encode("SAVE") + encode("PING"))
        asked = 0
        a.sock.setblocking(False)
        while True:
            try:
                first = a.sock.recv(1)
                break
            except BlockingIOError:
                start = time.monotonic()
                assert b.call("PING") == b"+PONG\r\n"
                assert time.monotonic() - start < scaled(0.5)
                asked += 1
        a.sock.setblocking(True)
        rest = b""
        while len(first + rest) < len(b"+OK\r\n+PONG\r\n"):
            rest += a.sock.recv(100)
        assert first + rest == b"+OK\r\n+PONG\r\n" and asked > 0


def test_clients_that_go_while_they_wait(tiercel):
    t = tiercel(threads=2)
    for i in range(20):
        t.call("SET", "k%d" % i, "v" * 3000)
        conns = [t.raw() for _ in range(3)]
        for c in conns:
            c.send(encode("BGREWRITEAOF") + encode("SAVE") if i % 2 else encode("SAVE"))
        for c in conns[:2]:
            c.close()
        assert conns[2].read_reply().startswith((b"+", b"-ERR Background"))
        conns[2].close()
    idle(t)
    wait_until(lambda: t.call("SAVE") == "OK", what="those of clients that went are over")


def test_saved_is_saved(tiercel):
    t = tiercel()
    started = t.call("LASTSAVE")
    assert abs(started - time.time()) < scaled(5)
    fill(t, 100)
    t.call("RPUSH", "list", "a", "b")
    assert t.info("persistence")["rdb_changes_since_last_save"] == 101
    wait_until(lambda: time.time() >= started + 1)
    assert t.call("SAVE") == "OK"
    now = t.info("persistence")
    assert now["rdb_changes_since_last_save"] == 0 and now["rdb_saves"] == 1 and now["rdb_last_bgsave_time_sec"] == 0
    assert t.call("LASTSAVE") == now["rdb_last_save_time"] > started
    t.call("CONFIG", "RESETSTAT")
    t.call("SET", "unsaved", "1")
    assert t.info("persistence")["rdb_changes_since_last_save"] == 1
    t.kill9()
    t.start()
    assert t.call("DBSIZE") == 101 and t.call("LRANGE", "list", "0", "-1") == [b"a", b"b"]
    assert t.info("persistence")["rdb_last_load_keys_loaded"] == 101


# ---- INFO, settings

def fields(server):
    with server.raw() as c:
        return [line.split(b":")[0].decode() for line in c.ask("INFO", "persistence").splitlines()]


def test_info_has_the_fields_of_redis(tiercel, redis_server):
    t, r = tiercel(), redis_server()
    assert fields(t) == fields(r)
    for server in (t, r):
        assert server.call("CONFIG", "SET", "appendonly", "yes") == "OK"
        now = idle(server)
        assert now["aof_enabled"] == 1 and now["aof_last_write_status"] == "ok"
        assert server.call("SET", "k", "v") == "OK"
    assert fields(t) == fields(r)
    assert {k: type(v) for k, v in t.info("persistence").items()} == {
        k: type(v) for k, v in r.info("persistence").items()}
    for server in (t, r):
        assert server.call("CONFIG", "SET", "appendonly", "no") == "OK"
        assert server.info("persistence")["aof_enabled"] == 0
    assert fields(t) == fields(r)


def test_appendonly_is_in_force_at_once(tiercel):
    t = tiercel()
    t.call("SET", "before", "1")
    t.call("CONFIG", "SET", "appendfsync", "always", "appendonly", "yes")
    idle(t)
    t.call("SET", "after", "2")
    assert t.tiers()["tier_journal_writes"] >= 1
    t.kill9()
    t.options["appendonly"] = True
    t.start()
    assert t.info("persistence")["aof_enabled"] == 1
    assert (t.call("GET", "before"), t.call("GET", "after")) == (b"1", b"2")


def test_without_a_disk_tier(tiercel):
    t = tiercel(disk=False)
    assert [t.call(c) for c in ("SAVE", "BGSAVE", "BGREWRITEAOF")] == [NO_DISK] * 3
    assert t.call("BGSAVE", "x") == RespError("ERR syntax error")
    assert abs(t.call("LASTSAVE") - time.time()) < scaled(20)
    assert batch(t, "MULTI", "BGSAVE", "EXEC")[-1] == b"*1\r\n-%s\r\n" % str(NO_DISK).encode()
    assert t.call("CONFIG", "SET", "appendonly", "yes") == RespError(
        "ERR CONFIG SET failed (possibly related to argument 'appendonly') - "
        "appendonly yes needs the disk tier, and disk is no")
    assert t.call("CONFIG", "GET", "appendonly") == [b"appendonly", b"no"]
    assert t.call("CONFIG", "SET", "appendfsync", "always") == "OK"
    now = t.info("persistence")
    assert now["aof_enabled"] == 0 and now["rdb_saves"] == 0 and now["rdb_last_bgsave_status"] == "ok"
    assert t.call("SET", "k", "v") == "OK"
    assert inspect(t, "k")["tier"] == b"memory"


def test_appendonly_needs_the_disk_at_the_start(tiercel):
    t = tiercel()
    t.stop()
    t.options.update(disk=False, appendonly=True)
    t.start(wait=False)
    t.expect_exit()
    assert t.wait() == 1
    assert "appendonly yes needs the disk tier, and disk is no" in t.log_tail()


def test_limits_of_values_on_disk(tiercel):
    t = tiercel()
    assert t.call("CONFIG", "GET", "disk-m*-value") == [b"disk-min-value", b"0", b"disk-max-value", b"536870912"]
    assert t.call("CONFIG", "SET", "disk-min-value", "100", "disk-max-value", "1mb") == "OK"
    assert t.call("CONFIG", "GET", "disk-max-value") == [b"disk-max-value", b"1048576"]
    now = t.tiers()
    for name in ("size", "expiring", "unread"):
        assert now["tier_admission_" + name] == 0
    assert now["tier_disk_hit_bytes"] == now["tier_disk_carried_keys"] == 0


# ---- CACHE INSPECT

def inspect(server, key, db=0):
    with server.raw() as c:
        c.call("HELLO", 3)
        c.call("SELECT", db)
        found = c.ask("CACHE", "INSPECT", key)
        return found and {k.decode(): v for k, v in found.items()}


def test_inspect_in_memory(tiercel):
    t = tiercel()
    t.call("SET", "k", "value", "PX", "100000")
    got = inspect(t, "k")
    assert 90000 < got.pop("expires_at_ms") - time.time() * 1000 < 101000
    assert 0 <= got.pop("idle_ms") < scaled(5000)
    assert 5 < got.pop("memory_bytes") < 100
    assert got == {
        "tier": b"memory", "state": b"resident", "origin": b"local", "type": b"string", "encoding": b"embstr",
        "size": 5, "dirty": 1, "pending_write": 0, "pinned": 0, "memory_stored_size": 5, "memory_codec": b"none", "freq": None,
        "disk_version": None, "disk_stored_size": None, "disk_codec": None, "disk_age_s": None}
    t.call("SET", "big", "x" * 10000)
    got = inspect(t, "big")
    assert (got["size"], got["memory_codec"], got["encoding"], got["expires_at_ms"]) == (10000, b"zstd", b"raw", -1)
    assert got["memory_stored_size"] < 100
    t.call("SET", "n", "12345")
    assert (inspect(t, "n")["encoding"], inspect(t, "n")["size"]) == (b"int", 5)
    t.call("RPUSH", "l", "a", "bb", "ccc")
    got = inspect(t, "l")
    assert (got["type"], got["encoding"]) == (b"list", b"quicklist") and 6 <= got["size"] < 40  # of its serial form
    t.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
    t.call("SET", "k", "v")
    got = inspect(t, "k")
    assert got["idle_ms"] is None and got["freq"] > 0


def test_inspect_what_is_nowhere(tiercel):
    t = tiercel()
    for proto, null in ((2, b"$-1\r\n"), (3, b"_\r\n")):
        with t.raw() as c:
            c.call("HELLO", proto)
            assert c.call("CACHE", "INSPECT", "k") == null
    t.call("SET", "k", "v", "PX", "30")
    t.call("SET", "saved", "v", "PX", "300")
    t.call("SAVE")
    wait_until(lambda: inspect(t, "k") is None)
    wait_until(lambda: inspect(t, "saved") is None)
    t.call("SET", "k", "v")
    assert inspect(t, "k", db=1) is None and inspect(t, "k")["tier"] == b"memory"
    t.call("FLUSHALL")
    assert inspect(t, "k") is None
    assert inspect(t, "") is None


def test_inspect_over_the_tiers(tiercel):
    t = tiercel()
    t.call("SET", "k", "x" * 5000, "PX", "1000000")
    t.call("RPUSH", "l", "a", "bb")
    expires = inspect(t, "k")["expires_at_ms"]
    t.call("SAVE")
    both = inspect(t, "k")
    assert (both["tier"], both["state"], both["dirty"], both["disk_codec"]) == (b"memory+disk", b"resident", 0, b"zstd")
    assert both["disk_version"] > 0 and 0 < both["disk_stored_size"] < 200 and both["disk_age_s"] <= scaled(5)
    t.restart()
    for _ in range(3):  # looking brings nothing into memory
        got = inspect(t, "k")
        assert (got["tier"], got["state"], got["origin"], got["type"]) == (b"disk", b"on-disk", b"local", b"string")
        assert (got["size"], got["encoding"], got["expires_at_ms"]) == (5000, b"raw", expires)
        assert got["memory_bytes"] is got["idle_ms"] is None and got["dirty"] == 0
        assert {k: got[k] for k in ("disk_version", "disk_stored_size", "disk_codec")} == {
            k: both[k] for k in ("disk_version", "disk_stored_size", "disk_codec")}
    assert inspect(t, "l")["type"] == b"list" and 3 <= inspect(t, "l")["size"] < 40
    now, stats = t.tiers(), t.info("stats")
    assert (now["tier_memory_keys"], now["tier_promotions"], now["tier_disk_hits"]) == (0, 0, 0)
    assert stats["keyspace_hits"] == stats["keyspace_misses"] == 0
    assert t.call("GET", "k") == b"x" * 5000
    got = inspect(t, "k")
    assert (got["tier"], got["dirty"]) == (b"memory+disk", 0)
    t.call("APPEND", "k", "y")
    got = inspect(t, "k")
    assert (got["tier"], got["dirty"], got["size"], got["disk_version"]) == (b"memory", 1, 5001, None)
    t.call("SAVE")
    assert inspect(t, "k")["disk_version"] > both["disk_version"]


def test_inspect_does_not_touch(tiercel):
    t = tiercel()
    t.call("SET", "k", "v")
    for _ in range(5):
        time.sleep(0.1)
        idle_ms = inspect(t, "k")["idle_ms"]
    assert idle_ms >= 400
    assert t.info("stats")["keyspace_hits"] == 0 and t.tiers()["tier_memory_hits"] == 0


def test_inspect_a_pending_write(tiercel):
    t = tiercel(disk_commit_ms=100, appendonly=True, threads=1)
    with t.raw() as c:
        c.send(encode("HELLO", 3) + encode("SET", "k", "v") + encode("CACHE", "INSPECT", "k"))
        c.read_reply(), c.read_reply()
        got = dict(zip(*[iter(_flat(c.read_reply()))] * 2))
    assert (got["tier"], got["pending_write"]) == ("memory", 1) and got["disk_version"] > 0
    wait_until(lambda: inspect(t, "k")["tier"] == b"memory+disk")
    now = inspect(t, "k")
    assert (now["pending_write"], now["dirty"], now["disk_version"]) == (0, 0, got["disk_version"])


def _flat(raw):
    """The strings and numbers of a map's bytes."""
    out = []
    for line in raw.split(b"\r\n")[1:-1]:
        if line[:1] in b":_":
            out.append(int(line[1:]) if line[:1] == b":" else None)
        elif line[:1] != b"$":
            out.append(line.decode())
    return out


def test_inspect_copies_of_an_upstream(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, threads=1, negative_ttl_ms=60000, upstream_timeout_ms=200)
    t.wait_tiers(tier_upstream_state="up")
    up.call("SET", "k", "v")
    assert inspect(t, "k") is None and up.calls("get") == 0
    assert t.call("GET", "k") == b"v" and t.call("GET", "none") is None
    got = inspect(t, "k")
    assert (got["tier"], got["state"], got["origin"], got["dirty"]) == (b"memory", b"resident", b"upstream", 0)
    got = inspect(t, "none")
    assert (got["tier"], got["state"], got["type"], got["size"]) == (b"none", b"negative", None, None)
    up.kill9()
    wait_until(lambda: inspect(t, "k")["state"] == b"suspect")
    assert t.call("GET", "k") == b"v"


def test_inspect_a_damaged_record(tiercel):
    t = tiercel()
    value = b"0123456789abcdef" * 30
    t.call("SET", "k", value)
    t.stop()
    path = t.dir / "tiercel.mdb"
    data = path.read_bytes()
    assert data.count(value) == 1
    path.write_bytes(data.replace(value, value[::-1]))
    t.start()
    got = inspect(t, "k")
    assert (got["tier"], got["state"], got["size"], got["disk_codec"]) == (b"disk", b"damaged", None, None)
    assert t.call("GET", "k") is None and inspect(t, "k") is None
    assert t.tiers()["tier_disk_corrupt"] > 0


def test_inspect_as_a_command(tiercel):
    t = tiercel()
    with t.raw() as c:
        assert c.ask("COMMAND", "GETKEYS", "CACHE", "INSPECT", "k") == [b"k"]
        assert c.ask("COMMAND", "GETKEYSANDFLAGS", "CACHE", "INSPECT", "k") == [[b"k", ["RO"]]]
        assert c.ask("CACHE", "INSPECT") == RespError("ERR wrong number of arguments for 'cache|inspect' command")
        assert c.ask("CACHE", "INSPECT", "a", "b") == RespError(
            "ERR wrong number of arguments for 'cache|inspect' command")
        assert c.ask("CACHE") == RespError("ERR wrong number of arguments for 'cache' command")
        assert c.ask("CACHE", "NOSUCH") == RespError("ERR unknown subcommand 'NOSUCH'. Try CACHE HELP.")
        assert c.ask("CACHE", "HELP")[0].startswith("CACHE <subcommand>")
        c.ask("MULTI")
        assert c.ask("CACHE", "INSPECT", "k") == RespError("ERR Command not allowed inside a transaction")
        assert c.ask("EXEC").args[0].startswith("EXECABORT")
        c.call("HELLO", 3)
        doc = c.ask("COMMAND", "DOCS", "CACHE")[b"cache"]
        assert doc[b"group"] == b"cache" and b"cache|inspect" in doc[b"subcommands"]
        (arg,) = doc[b"subcommands"][b"cache|inspect"][b"arguments"]
        assert (arg[b"name"], arg[b"type"]) == (b"key", b"key")


def test_clients_that_go_while_a_record_is_read(tiercel):
    t = tiercel(threads=2)
    fill(t, 200, prefix="k")
    t.restart()
    for i in range(30):
        with t.raw() as c:
            c.send(b"".join(encode("CACHE", "INSPECT", "k:%d" % (n % 200)) for n in range(i * 10, i * 10 + 10)))
    assert inspect(t, "k:1")["tier"] == b"disk"


# ---- a disk that fails

def ready(t):
    try:
        with urllib.request.urlopen("http://127.0.0.1:%d/readyz" % t.http_port, timeout=10) as r:
            return r.status, json.load(r)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def test_a_disk_that_fails_is_told(tiercel, tmp_path):
    faults = shims.FailWrites(tmp_path)
    try:
        t = tiercel(dir=tmp_path, env=faults.env, http_port=free_port())
        disk = ready(t)[1]["disk"]
        assert disk.pop("bytes") > 0
        assert disk == {"state": "ok", "reason": "", "on": True, "healthy": True, "problem": "", "keys": 0}
        assert "tier_disk_problem" not in t.tiers()
        t.call("SET", "k", "v")
        faults.fail("write EIO", "sync EIO")
        reply = t.call("SAVE")
        assert isinstance(reply, RespError) and str(reply).startswith("ERR saving failed: "), reply
        wait_until(lambda: not ready(t)[1]["disk"]["healthy"])
        status, told = ready(t)
        assert status == 200 and told["ready"] and told["disk"]["problem"]
        now = t.tiers()
        assert now["tier_disk_healthy"] == 0 and now["tier_disk_problem"] == told["disk"]["problem"]
        now = t.info("persistence")
        assert now["rdb_last_bgsave_status"] == "err" and now["rdb_saves"] == 0
        assert t.call("GET", "k") == b"v"
        faults.fail()
        wait_until(lambda: ready(t)[1]["disk"]["healthy"], timeout=scaled(20))
        assert t.call("SAVE") == "OK"
        assert t.info("persistence")["rdb_last_bgsave_status"] == "ok"
    finally:
        faults.remove()


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_many_small_commits_take_no_memory(tiercel):
    """A key that is never changed keeps the oldest block; what came after it and is gone is not remembered for ever."""
    t = tiercel(threads=1, maxmemory="3mb", appendonly="yes", appendfsync="always", disk_max_size="256mb")
    with t.raw() as c:
        c.ask("SET", "cold", "x")
        begin, used = time.monotonic(), []
        while t.tiers()["tier_disk_commits"] < 15000 and time.monotonic() < begin + scaled(40):
            for i in range(500):
                assert c.ask("SET", "k:%d" % (i % 20), "v") == "OK"
            used.append(t.info("memory")["used_memory"])
        assert used[-1] < used[0] + 400_000, used  # 48 bytes a commit were 720 KB
        assert c.ask("GET", "cold") == b"x"
    t.restart()
    assert t.client().get("cold") == b"x" and t.client().dbsize() == 21
