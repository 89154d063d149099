"""Commands about the server and its connections: the replies of redis-server where they can be the
same, and what they do."""
import os
import re
import time

import pytest

from harness import wait_until
from rawconn import RawConn, RespError, encode
from test_command import tree

pytestmark = pytest.mark.sequential


@pytest.fixture
def pair(tiercel, redis_server):
    t, r = tiercel(threads=2, maxmemory="100mb"), redis_server(enable_debug_command="yes")
    with t.raw() as ours, r.raw() as theirs:
        yield ours, theirs


def words(line):
    """A line of a test as arguments; '' is an empty one, <tab> a tab."""
    return [w.replace("<tab>", "\t").replace("''", "") for w in line.split()]


# Each line alone, on a fresh pair of connections in one test each: byte for byte.
SAME = """
PING | PING a | PING a b | ECHO | ECHO x | SELECT 15 | SELECT 16 | SELECT -1 | SELECT x | SELECT 99999999999
AUTH x | AUTH default x | AUTH foo x | AUTH a b c | RESET | QUIT | QUIT x
HELLO 1 | HELLO 4 | HELLO x | HELLO 2 AUTH | HELLO 2 AUTH a | HELLO 2 AUTH a b | HELLO 2 NOSUCH | HELLO 2 SETNAME
HELLO 2 SETNAME a<tab>b
CLIENT GETNAME | CLIENT SETNAME a<tab>b | CLIENT SETNAME '' | CLIENT SETNAME ok | CLIENT KILL 1.2.3.4:5
CLIENT KILL ID 0 | CLIENT KILL ID x | CLIENT KILL ID 99999 | CLIENT KILL TYPE nosuch | CLIENT KILL SKIPME maybe
CLIENT KILL NOSUCH x | CLIENT KILL USER nosuch | CLIENT KILL ID 1 ADDR | CLIENT KILL TYPE master
CLIENT KILL ADDR 1.2.3.4:5 LADDR 1.2.3.4:6 USER default
CLIENT LIST ID x | CLIENT LIST ID 99999 | CLIENT LIST ID | CLIENT LIST TYPE nosuch | CLIENT LIST TYPE normal x
CLIENT LIST TYPE replica | CLIENT LIST TYPE pubsub | CLIENT LIST NOSUCH | CLIENT PAUSE x | CLIENT PAUSE -1
CLIENT PAUSE 1 nosuch | CLIENT PAUSE 1 all x | CLIENT PAUSE 0 WRITE | CLIENT UNPAUSE | CLIENT REPLY nosuch
CLIENT REPLY ON | CLIENT NO-EVICT on | CLIENT NO-EVICT x | CLIENT UNBLOCK x | CLIENT UNBLOCK 99999
CLIENT UNBLOCK 1 nosuch | CLIENT UNBLOCK 1 TIMEOUT x | CLIENT UNBLOCK 99999 ERROR | CLIENT SETINFO LIB-NAME x
CONFIG GET | CONFIG GET nosuch | CONFIG GET port nosuch PORT | CONFIG SET maxmemory | CONFIG SET maxmemory 1gb x
CONFIG SET nosuch 1 | CONFIG SET maxmemory 1gb nosuch 1 | CONFIG SET maxmemory 1gb maxmemory 2gb
CONFIG SET maxmemory x | CONFIG SET databases 3 | CONFIG SET hz 20 | CONFIG REWRITE | CONFIG REWRITE x
CONFIG RESETSTAT | CONFIG SET maxmemory-policy allkeys-lfu | CONFIG SET appendfsync nosuch
CONFIG SET requirepass ''
MEMORY USAGE nosuch | MEMORY USAGE a b | MEMORY USAGE a SAMPLES | MEMORY USAGE a SAMPLES x | MEMORY USAGE a SAMPLES -1
MEMORY PURGE | MEMORY STATS x
LATENCY LATEST | LATENCY HISTORY nosuch | LATENCY GRAPH nosuch | LATENCY RESET | LATENCY RESET nosuch
LATENCY HISTOGRAM nosuch
SLOWLOG GET | SLOWLOG GET -2 | SLOWLOG GET x | SLOWLOG GET 1 2 | SLOWLOG LEN | SLOWLOG RESET | SLOWLOG LEN x
DEBUG | DEBUG SLEEP | DEBUG SLEEP x | DEBUG SLEEP 0.01 | DEBUG SLEEP 1 2 | DEBUG OBJECT | DEBUG OBJECT nosuch
DEBUG NOSUCH | DEBUG SET-ACTIVE-EXPIRE 1 | DEBUG SET-ACTIVE-EXPIRE
WAIT 0 0 | WAIT x 0 | WAIT 0 x | WAIT 0 -1 | WAIT 0 | LOLWUT VERSION x | TIME x
SHUTDOWN nosuch | SHUTDOWN ABORT | SHUTDOWN SAVE NOSAVE | SHUTDOWN ABORT NOW | INFO nosuch
"""


@pytest.mark.parametrize("proto", [2, 3])
def test_the_same_reply(pair, proto):
    ours, theirs = pair
    ports = ours.sock.getpeername()[1], theirs.sock.getpeername()[1]
    differ = []
    for line in re.split(r"[|\n]", SAME.strip()):
        replies = []
        for port in ports:
            with RawConn(port) as c:
                c.call("HELLO", proto)
                replies.append(c.call(*words(line)))
        if "port" in line:
            replies = [r.replace(b"%d" % p, b"PORT") for r, p in zip(replies, ports)]
        if replies[0] != replies[1]:
            differ.append((line, *replies))
    assert not differ, "\n".join("%s\n  %r\n  %r" % d for d in differ)


# ---- connections


def test_hello(pair):
    for args in [(), (2,), (3,), (3, "SETNAME", "me"), (3, "AUTH", "default", "any"), ()]:
        ours, theirs = (tree(c.call("HELLO", *args)) for c in pair)
        flat = [v[1] if isinstance(v[1], dict) else {k[1]: w for k, w in zip(v[1][::2], v[1][1::2])}
                for v in (ours, theirs)]
        for v in flat:
            assert int(v.pop("id")[1]) > 0
        assert ours[0] == theirs[0] and flat[0] == flat[1]
    assert pair[0].ask("CLIENT", "GETNAME") == b"me"


def test_password(tiercel):
    t = tiercel(requirepass="first")
    with t.raw() as c:
        assert c.ask("GET", "k") == RespError("NOAUTH Authentication required.")
        assert c.call("HELLO", 3).startswith(b"-NOAUTH HELLO must be called with the client already authenticated")
        for args in [("AUTH", "nope"), ("AUTH", "default", "nope"), ("AUTH", "other", "first"), ("AUTH", ""),
                     ("AUTH", "first" * 2), ("HELLO", 3, "AUTH", "default", "nope")]:
            assert c.ask(*args) == RespError("WRONGPASS invalid username-password pair or user is disabled."), args
        assert c.call("PING") == b"-NOAUTH Authentication required.\r\n"
        assert c.call("AUTH", "first") == b"+OK\r\n"
        assert c.call("RESET") == b"+RESET\r\n"
        assert c.call("PING") == b"-NOAUTH Authentication required.\r\n"
        assert c.ask("HELLO", 3, "AUTH", "default", "first")[b"proto"] == 3
        assert c.call("CONFIG", "SET", "requirepass", "second") == b"+OK\r\n"
        assert c.call("PING") == b"+PONG\r\n"
    with t.raw() as c:
        assert c.call("AUTH", "first").startswith(b"-WRONGPASS")
        assert c.call("AUTH", "second") == b"+OK\r\n"
        assert c.ask("CONFIG", "GET", "requirepass") in ([b"requirepass", b"second"], {b"requirepass": b"second"})


def test_reset_forgets_everything(tiercel):
    t = tiercel()
    with t.raw() as c, t.raw() as other:
        c.call("HELLO", 3, "SETNAME", "x")
        c.call("SELECT", 3)
        c.call("CLIENT", "NO-EVICT", "on")
        c.call("WATCH", "k")
        c.call("MULTI")
        c.call("SET", "k", 1)
        assert c.call("RESET") == b"+RESET\r\n"
        line = fields(c.ask("CLIENT", "INFO"))
        assert (line["name"], line["db"], line["resp"], line["flags"], line["multi"]) == ("", "0", "2", "N", "-1")
        assert other.ask("EXISTS", "k") == 0
        c.call("SUBSCRIBE", "a")
        assert c.call("RESET") == b"+RESET\r\n"
        assert c.call("GET", "k") == b"$-1\r\n"


def test_ping_of_a_subscriber(pair):
    for args in [(), ("x",)]:
        for proto in (2, 3):
            replies = []
            for c in pair:
                c.call("RESET")
                c.call("HELLO", proto)
                c.call("SUBSCRIBE", "ch")
                replies.append(c.call("PING", *args))
            assert replies[0] == replies[1]


def test_quit_closes(tiercel):
    with tiercel().raw() as c:
        c.send(b"PING\r\nQUIT\r\nPING\r\n")
        assert c.read_to_end() == b"+PONG\r\n+OK\r\n"


# ---- CLIENT


def fields(line):
    return dict(f.split("=", 1) for f in line.decode().strip().split(" "))


def test_client_list_has_the_fields_of_redis(pair):
    ours, theirs = (c.ask("CLIENT", "LIST") for c in pair)
    assert list(fields(ours)) == list(fields(theirs))
    mine = fields(ours)
    host, port = pair[0].sock.getsockname()
    assert mine["addr"] == "%s:%d" % (host, port)
    assert mine["laddr"] == "%s:%d" % pair[0].sock.getpeername()
    assert (mine["cmd"], mine["user"], mine["multi"], mine["flags"]) == ("client|list", "default", "-1", "N")


def test_client_list_over_all_threads(tiercel):
    t = tiercel(threads=3)
    conns = [t.raw() for _ in range(30)]
    try:
        ids = [c.ask("CLIENT", "ID") for c in conns]
        assert len(set(ids)) == 30
        for i, c in enumerate(conns):
            c.call("CLIENT", "SETNAME", "n%d" % i)
        lines = [fields(line) for line in conns[0].ask("CLIENT", "LIST").splitlines()]
        assert [int(line["id"]) for line in lines] == sorted(ids)
        assert {line["name"] for line in lines} == {"n%d" % i for i in range(30)}
        some = conns[7].ask("CLIENT", "LIST", "ID", ids[20], ids[3], 99999, ids[20]).splitlines()
        assert [fields(line)["name"] for line in some] == ["n20", "n3", "n20"]
        conns[5].call("SUBSCRIBE", "a", "b")
        conns[5].read_reply()  # one for each
        conns[5].call("PSUBSCRIBE", "p*")
        (sub,) = conns[0].ask("CLIENT", "LIST", "TYPE", "pubsub").splitlines()
        assert {k: fields(sub)[k] for k in ("name", "sub", "psub", "flags")} == {
            "name": "n5", "sub": "2", "psub": "1", "flags": "P"}
        assert len(conns[0].ask("CLIENT", "LIST", "TYPE", "normal").splitlines()) == 29
        conns[6].call("MULTI")
        conns[6].call("PING")
        (line,) = conns[0].ask("CLIENT", "LIST", "ID", ids[6]).splitlines()
        assert (fields(line)["multi"], fields(line)["flags"]) == ("1", "x")
    finally:
        for c in conns:
            c.close()


def closed(conn):
    try:
        conn.send(b"PING\r\n")
        return conn.read_to_end() == b""
    except OSError:
        return True


def test_client_kill(tiercel):
    t = tiercel(threads=3)
    conns = [t.raw() for _ in range(12)]
    ids = [c.ask("CLIENT", "ID") for c in conns]
    me = conns[0]
    assert me.ask("CLIENT", "KILL", "ID", ids[1]) == 1
    assert closed(conns[1])
    assert me.ask("CLIENT", "KILL", "ID", ids[1]) == 0
    assert me.ask("CLIENT", "KILL", "%s:%d" % conns[2].sock.getsockname()) == "OK"
    assert closed(conns[2])
    assert me.ask("CLIENT", "KILL", "ADDR", "%s:%d" % conns[3].sock.getsockname(), "ID", ids[4]) == 0
    assert me.ask("CLIENT", "KILL", "ADDR", "%s:%d" % conns[3].sock.getsockname()) == 1
    assert closed(conns[3])
    assert me.ask("CLIENT", "KILL", "ID", ids[0]) == 0
    conns[5].call("SUBSCRIBE", "x")
    assert me.ask("CLIENT", "KILL", "TYPE", "pubsub") == 1
    assert me.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") == 7
    assert me.call("PING") == b"+PONG\r\n"
    assert me.ask("CLIENT", "KILL", "ID", ids[0], "SKIPME", "no") == 1
    assert closed(me)
    for c in conns:
        c.close()


def test_client_reply(pair):
    steps = [("CLIENT", "REPLY", "SKIP"), ("SET", "k", 1), ("GET", "k"), ("CLIENT", "REPLY", "OFF"), ("INCR", "k"),
             ("CLIENT", "REPLY", "SKIP"), ("CLIENT", "REPLY", "ON"), ("GET", "k")]
    out = []
    for c in pair:
        c.send(b"".join(encode(*s) for s in steps))
        out.append([c.read_reply() for _ in range(3)])
    assert out[0] == out[1] == [b"$1\r\n1\r\n", b"+OK\r\n", b"$1\r\n2\r\n"]


def test_client_pause(tiercel):
    t = tiercel(threads=2)
    with t.raw() as a, t.raw() as b:
        b.call("SET", "k", 1)
        assert a.call("CLIENT", "PAUSE", 100000, "WRITE") == b"+OK\r\n"
        assert b.call("GET", "k") == b"$1\r\n1\r\n"
        b.send_command("SET", "k", 2)
        time.sleep(0.1)
        assert a.call("GET", "k") == b"$1\r\n1\r\n"
        assert a.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert b.read_reply() == b"+OK\r\n"
        begin = time.monotonic()
        a.call("CLIENT", "PAUSE", 200)
        assert b.call("GET", "k") == b"$1\r\n2\r\n"
        assert time.monotonic() - begin >= 0.15


@pytest.mark.parametrize("how,want", [("TIMEOUT", b"*-1\r\n"),
                                      ("ERROR", b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n")])
def test_client_unblock(tiercel, how, want):
    t = tiercel(threads=2)
    with t.raw() as a, t.raw() as b:
        id_ = b.ask("CLIENT", "ID")
        assert a.ask("CLIENT", "UNBLOCK", id_) == 0
        b.send_command("BLPOP", "list", 0)
        wait_until(lambda: "b" in fields(a.ask("CLIENT", "LIST", "ID", id_))["flags"])
        assert t.info("clients")["blocked_clients"] == 1
        assert a.ask("CLIENT", "UNBLOCK", id_, how) == 1
        assert b.read_reply() == want
        assert b.call("PING") == b"+PONG\r\n"


# ---- CONFIG


def test_config_set_reaches_every_thread(tiercel):
    t = tiercel(threads=3)
    conns = [t.raw() for _ in range(9)]
    for value in (b"11", b"12", b"13"):
        assert conns[0].ask("CONFIG", "SET", "maxmemory-samples", value, "timeout", "0") == "OK"
        for c in conns:
            assert c.ask("CONFIG", "GET", "maxmemory-samples") == [b"maxmemory-samples", value]
    assert conns[1].ask("CONFIG", "SET", "maxmemory-samples", 5, "hz", "x").args[0].startswith(
        "ERR CONFIG SET failed (possibly related to argument 'hz')")
    assert conns[2].ask("CONFIG", "GET", "maxmemory-samples") == [b"maxmemory-samples", b"13"]
    conns[3].call("MULTI")
    conns[3].call("CONFIG", "SET", "maxmemory-samples", 9)
    assert conns[3].ask("EXEC") == ["OK"]
    for c in conns:
        wait_until(lambda c=c: c.ask("CONFIG", "GET", "maxmemory-samples") == [b"maxmemory-samples", b"9"])
        c.close()


def test_config_get_patterns(tiercel):
    with tiercel().raw() as c:
        c.call("HELLO", 3)
        everything = c.ask("CONFIG", "GET", "*")
        assert len(everything) > 60 and everything[b"databases"] == b"16"
        assert set(c.ask("CONFIG", "GET", "maxm*", "MAXMEMORY", "*clients")) == {
            b"maxmemory", b"maxmemory-policy", b"maxmemory-samples", b"maxmemory-clients",
            b"maxmemory-eviction-tenacity", b"maxclients", b"tls-auth-clients"}


def test_settings_of_redis_are_known(tiercel, redis_server):
    """But those that ask for what is not there: to ignore them would be worse."""
    refused = {b"replicaof", b"slaveof"}
    with tiercel().raw() as ours, redis_server().raw() as theirs:
        names = [set(c.ask("CONFIG", "GET", "*")[::2]) for c in (ours, theirs)]
        assert names[1] - names[0] <= refused, sorted(names[1] - names[0] - refused)


def test_config_resetstat(tiercel):
    t = tiercel(threads=2)
    with t.raw() as c:
        c.call("GET", "k")
        c.call("NOSUCH")
        assert t.info("stats")["keyspace_misses"] == 1
        assert "errorstat_ERR" in t.info("errorstats")
        assert c.call("CONFIG", "RESETSTAT") == b"+OK\r\n"
        now = t.info("all")
        assert (now["keyspace_misses"], now["total_error_replies"]) == (0, 0)
        assert "errorstat_ERR" not in now and "cmdstat_get" not in now
        assert now["connected_clients"] >= 1


# ---- INFO


def section_fields(text):
    out, name = {}, None
    for line in text.decode().splitlines():
        if line.startswith("# "):
            name = line[2:]
            out[name] = []
        elif line:
            out[name].append(line.split(":")[0])
    return out


def test_info_has_the_fields_of_redis(pair):
    ours, theirs = pair
    for c in pair:
        c.call("SET", "k", "v", "EX", 100)
        c.call("NOSUCH")
    mine, redis = (section_fields(c.ask("INFO", "everything")) for c in (ours, theirs))
    assert set(redis) == set(mine) - {"Tiers"}
    for name, names in redis.items():
        if name in ("Commandstats", "Latencystats"):
            continue
        assert set(names) <= set(mine[name]), name
    db = ours.ask("INFO", "keyspace").decode().splitlines()
    assert db == ["# Keyspace", "db0:keys=1,expires=1,avg_ttl=0"]


@pytest.mark.parametrize("args", ["", "default", "all", "everything", "server clients", "CPU keyspace cpu", "nosuch",
                                  "commandstats errorstats", "default commandstats", "modules", "cluster nosuch"])
def test_info_sections(pair, args):
    for c in pair:
        c.call("NOSUCH")
    mine, redis = (list(section_fields(c.ask("INFO", *args.split()))) for c in pair)
    assert [s for s in mine if s != "Tiers"] == redis
    assert ("Tiers" in mine) == (args in ("", "default", "all", "everything", "default commandstats"))


def test_info_tiers_names(tiercel):
    names = """tier_memory_hits tier_memory_misses tier_memory_keys tier_memory_bytes tier_disk_hits tier_disk_misses
        tier_disk_keys tier_disk_bytes tier_disk_filter_negatives tier_demotions tier_promotions tier_upstream_state
        tier_upstream_requests tier_upstream_hits tier_upstream_misses tier_upstream_errors tier_upstream_unreadable tier_coalesced_misses
        tier_negative_hits tier_invalidations coherence_mode coherence_bound_ms compression_values
        compression_bytes_in compression_bytes_out"""
    assert set(names.split()) <= set(tiercel().tiers())


def test_commandstats_and_errorstats(pair):
    for c in pair:
        c.call("SET", "k", "x")
        c.call("SET", "k")
        c.call("INCR", "k")
        c.call("LPUSH", "k", "x")
        c.call("CONFIG", "GET", "port")
    mine, redis = (c.ask("INFO", "commandstats", "errorstats").decode() for c in pair)
    for name in ("set", "incr", "lpush", "config|get"):
        lines = [re.search(r"cmdstat_%s:calls=(\d+),.*rejected_calls=(\d+),failed_calls=(\d+)" % re.escape(name), text)
                 for text in (mine, redis)]
        assert lines[0].groups() == lines[1].groups(), name
    assert re.findall(r"errorstat_.*", mine) == re.findall(r"errorstat_.*", redis)


def test_errorstats_are_bounded(tiercel):
    t = tiercel()
    with t.raw() as c:
        for i in range(300):
            c.call("PING", "a", "b")
        assert t.info("errorstats")["errorstat_ERR"] == "count=300"


def test_ops_per_second(tiercel):
    t = tiercel()
    with t.raw() as c:
        def busy():
            c.pipeline(*[("PING",)] * 200)
            return t.info("stats")["instantaneous_ops_per_sec"] > 100
        wait_until(busy)


# ---- MEMORY, SLOWLOG, LATENCY


def test_memory_stats_has_the_fields_of_redis(pair):
    for c in pair:
        c.call("HELLO", 3)
        c.call("SET", "k", "v")
    mine, redis = (tree(c.call("MEMORY", "STATS"))[1] for c in pair)
    assert list(mine) == list(redis)
    assert {k: v[0] for k, v in mine.items()} == {k: v[0] for k, v in redis.items()}


def test_memory_usage(tiercel):
    with tiercel().raw() as c:
        c.call("SET", "k", os.urandom(10000))
        assert 10000 <= c.ask("MEMORY", "USAGE", "k") <= 13000
        assert c.ask("MEMORY", "USAGE", "k", "SAMPLES", "0") == c.ask("MEMORY", "USAGE", "k")
        assert b"No problem" in c.ask("MEMORY", "DOCTOR")
        assert b"data: " in c.ask("MEMORY", "MALLOC-STATS")


def test_slowlog(pair):
    long, many = "x" * 200, [str(i) for i in range(40)]
    for c in pair:
        c.call("CLIENT", "SETNAME", "me")
        c.call("CONFIG", "SET", "slowlog-log-slower-than", 0, "slowlog-max-len", 5)
        c.call("SLOWLOG", "RESET")
        c.call("SET", "k", long)
        c.call("DEL", *many)
        c.call("AUTH", "default", "secret")
        c.call("CONFIG", "SET", "requirepass", "")
        c.call("PING")
    entries = [[e[3] for e in c.ask("SLOWLOG", "GET", -1)] for c in pair]
    assert entries[0] == entries[1]
    assert any(b"(redacted)" in e for e in entries[0])
    for c in pair:
        assert c.ask("SLOWLOG", "LEN") == 5
        first = c.ask("SLOWLOG", "GET", 1)[0]
        assert len(first) == 6 and first[4:] == [b"%s:%d" % (b"127.0.0.1", c.sock.getsockname()[1]), b"me"]
        c.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
        assert c.call("SLOWLOG", "RESET") == b"+OK\r\n"
        assert c.ask("SLOWLOG", "GET") == []


def test_latency_histogram(tiercel):
    t = tiercel(threads=2)
    with t.raw() as a, t.raw() as b:
        for c in (a, b):
            c.call("HELLO", 3)
            for _ in range(10):
                c.call("SET", "k", 1)
            c.call("CONFIG", "GET", "port")
        got = a.ask("LATENCY", "HISTOGRAM", "set", "config", "nosuch")
        assert set(got) == {b"set", b"config|get"}
        assert got[b"set"][b"calls"] == 20
        counts = list(got[b"set"][b"histogram_usec"].items())
        assert counts == sorted(counts) and counts[-1][1] == 20
        assert b"hello" in a.ask("LATENCY", "HISTOGRAM")


def test_debug_sleep_keeps_only_its_client_waiting(tiercel):
    t = tiercel(threads=1)
    with t.raw() as a, t.raw() as b:
        begin = time.monotonic()
        a.send_command("DEBUG", "SLEEP", "0.5")
        a.send_command("PING")
        assert b.call("PING") == b"+PONG\r\n"
        assert time.monotonic() - begin < 0.4
        assert (a.read_reply(), a.read_reply()) == (b"+OK\r\n", b"+PONG\r\n")
        assert time.monotonic() - begin >= 0.45
    with t.raw() as gone:
        gone.send_command("DEBUG", "SLEEP", "100")
        time.sleep(0.05)
    assert t.call("PING") == "PONG"


def test_debug_object(tiercel):
    with tiercel().raw() as c:
        c.call("SET", "k", "value")
        assert re.fullmatch(r"Value at:0x[0-9a-f]+ refcount:1 encoding:embstr serializedlength:\d+ lru:\d+ "
                            r"lru_seconds_idle:\d+", c.ask("DEBUG", "OBJECT", "k"))


@pytest.mark.sequential
def test_digests_of_values_are_those_of_redis(tiercel, redis_server):
    with tiercel().raw() as ours, redis_server(enable_debug_command="yes").raw() as theirs:
        many = [str(i) for i in range(300)]
        for command in (("SET", "s", "text"), ("SET", "i", 12), ("RPUSH", "l", *many), ("SADD", "t", *many), ("SADD", "u", "a", "b"),
                        ("ZADD", "z", "1.5", "a", "-inf", "b"), ("ZADD", "y", *(x for m in many for x in (m + ".1", m))),
                        ("HSET", "h", "f", 1, "g", "v"), ("HSET", "g", *many), ("XADD", "x", "1-2", "f", "v", "f", "7"),
                        ("XADD", "x", "5-0", "g", "v"), ("SET", "e", "v", "EX", 1000)):
            assert ours.call(*command) == theirs.call(*command)
        ask = ("DEBUG", "DIGEST-VALUE", *"silt", "u", *"zyhgxe", "missing")
        assert ours.call(*ask) == theirs.call(*ask)
        assert len(set(ours.ask(*ask))) == 12


def test_active_expire_can_be_turned_off(tiercel):
    t = tiercel()
    with t.raw() as c:
        c.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        c.call("SET", "k", 1, "PX", 20)
        time.sleep(0.5)
        assert c.ask("DBSIZE") == 1
        c.call("DEBUG", "SET-ACTIVE-EXPIRE", 1)
        wait_until(lambda: c.ask("DBSIZE") == 0)


# ---- the end


@pytest.mark.parametrize("args", ["", "NOSAVE", "SAVE", "NOW", "NOSAVE NOW FORCE"])
def test_shutdown(tiercel, args):
    t = tiercel()
    with t.raw() as c:
        c.call("SET", "k", "v")
        t.expect_exit()
        c.send_command("SHUTDOWN", *args.split())
        assert c.read_to_end() == b""
    assert t.wait() == 0
    t.start()
    assert t.call("GET", "k") == (None if "NOSAVE" in args else b"v")
