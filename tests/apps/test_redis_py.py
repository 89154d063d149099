"""redis-py: the everyday API, from many threads and from asyncio."""
import asyncio
import threading
import time

import redis
import redis.asyncio
import redis.exceptions

import apps
from harness import scaled, wait_until

COUNTER = """
local n = redis.call('INCRBY', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], 100)
return n
"""


def refused(call, *args, **kw):
    try:
        return "no error", call(*args, **kw)
    except redis.RedisError as e:
        return type(e).__name__, str(e)


def values(c):
    out = [c.set("k", "v"), c.set("k", "w", nx=True), c.set("k", "w", xx=True, get=True, ex=100), c.ttl("k"), c.get("k"), c.get("none"),
           c.mset({"a": 1, "b": 2.5, "c": b"\x00\xff"}), c.mget(["a", "b", "none"]), c.incr("a", 5), c.incrbyfloat("b", 0.5),
           refused(c.incr, "k"), refused(c.lpush, "k", 1), c.append("k", "x"), c.getrange("k", 0, 0), c.setex("e", 50, "x"), c.getex("e", persist=True), c.ttl("e"),
           c.getdel("e"), c.exists("a", "b", "none"), c.type("a"), c.rename("a", "z"), c.delete("z", "none"), c.setbit("bits", 9, 1), c.bitcount("bits"),
           c.bitpos("bits", 1), c.bitfield("f").set("u8", 0, 255).incrby("u4", 0, 3).execute(), c.pfadd("p", *range(100)), c.pfcount("p"), c.expire("k", 10, nx=True),
           c.object("encoding", "k"), c.copy("k", "k2"), c.touch("k", "k2"), c.unlink("k2")]
    out += [c.hset("h", mapping={"f": 1, "g": "two"}), c.hset("h", "h", 3), c.hgetall("h"), c.hmget("h", "f", "x"), c.hincrby("h", "f", 4), c.hincrbyfloat("h", "f", 0.5),
            c.hdel("h", "g"), c.hkeys("h"), c.hexists("h", "g"), c.hsetnx("h", "f", 1), c.hlen("h"), c.hvals("h")]
    out += [c.rpush("l", 1, 2, 3), c.lpush("l", "z"), c.lrange("l", 0, -1), c.linsert("l", "after", "z", "y"), c.lpop("l", 2), c.lmove("l", "m", "RIGHT", "LEFT"), c.lpos("l", "2"),
            c.lrem("l", 0, "2"), c.blpop(["none", "l"], 1), c.llen("l"), c.brpop("none", 0.05), c.lmpop(2, "x", "m", direction="LEFT"), refused(c.lset, "none", 0, "x")]
    out += [c.sadd("s", 1, 2, 3), c.sadd("t", 3, 4), sorted(c.sunion("s", "t")), sorted(c.sinter("s", "t")), c.sdiffstore("d", "s", "t"), c.smismember("s", 1, 9), c.scard("d"),
            c.srem("s", 1), c.sintercard(2, ["s", "t"]), c.spop("none")]
    out += [c.zadd("z", {"a": 1, "b": 2, "c": float("inf")}), c.zadd("z", {"a": 5}, gt=True, ch=True), c.zrange("z", 0, -1, withscores=True), c.zrange("z", "-inf", "(5", byscore=True),
            c.zrangebyscore("z", 2, 5, withscores=True, start=0, num=1), c.zincrby("z", 1.5, "b"), c.zrevrank("z", "a"), c.zpopmin("z"), c.zscore("z", "c"), c.zcard("z"),
            c.zunionstore("y", {"z": 2, "none": 1}), c.zmscore("z", ["a", "q"]), c.zinter(["z", "y"], withscores=True), c.bzpopmax("z", 1), refused(c.zadd, "z", {"x": "nan"})]
    out += [c.geoadd("g", (13.361389, 38.115556, "p", 15.087269, 37.502669, "c")), c.geodist("g", "p", "c", "km"), c.geosearch("g", longitude=15, latitude=37, radius=200, unit="km", withdist=True)]
    return out


def streams(c):
    out = [c.xadd("s", {"f": 1}, id="1-1"), c.xadd("s", {"f": 2, "g": "x"}, id="1-2"), c.xadd("s", {"f": 3}, id="2-1", maxlen=3, approximate=False), c.xlen("s"), c.xrange("s"),
           c.xrevrange("s", count=1), c.xgroup_create("s", "g", id=0), refused(c.xgroup_create, "s", "g"), c.xreadgroup("g", "one", {"s": ">"}, count=2), c.xpending("s", "g"),
           c.xack("s", "g", "1-1"), c.xclaim("s", "g", "two", 0, ["1-2"]), c.xautoclaim("s", "g", "three", 0), c.xreadgroup("g", "one", {"s": ">"}, block=10), c.xread({"s": "0"}, count=1),
           c.xread({"s": "$"}, block=20), c.xinfo_groups("s"), c.xinfo_stream("s")["length"], c.xdel("s", "1-1"), c.xtrim("s", maxlen=1, approximate=False), c.xgroup_destroy("s", "g")]
    return out


def transactions(c):
    p = c.pipeline()
    out = [p.set("a", 1).incr("a").hset("h", "f", 1).hgetall("h").execute(), refused(p.set("a", "x").lpush("a", 1).execute), c.get("a"),
           p.set("a", 1).lpush("a", 1).get("a").execute(raise_on_error=False)[2]]
    with c.pipeline() as p:
        p.watch("a")
        c.set("a", 7)
        p.multi()
        p.set("a", 8)
        out.append(refused(p.execute))

    def double(p):
        n = int(p.get("n") or 1)
        p.multi()
        p.set("n", n + 1)

    errors = []

    def many():
        try:
            for _ in range(10):
                c.transaction(double, "n")
        except BaseException as e:
            errors.append(e)
    run_threads(4, many)
    assert not errors, errors
    p = c.pipeline(transaction=False)
    for i in range(2000):
        p.set("key:%d" % i, "value %d" % i)
    assert all(p.execute())
    for i in range(2000):
        p.get("key:%d" % i)
    got = p.execute()
    return out + [c.get("n"), sum(v == "value %d" % i for i, v in enumerate(got))]


def run_threads(n, target):
    threads = [threading.Thread(target=target, daemon=True) for _ in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(scaled(40))
        assert not t.is_alive()


def scripts(c):
    count = c.register_script(COUNTER)
    out = [count(keys=["n"], args=[5]), count(keys=["n"], args=[6]), c.ttl("n") > 90, c.script_exists(count.sha), c.eval("return {KEYS[1], ARGV[1], 3.7, false, 'x'}", 1, "k", "v"),
           refused(c.evalsha, "0" * 40, 0), refused(c.eval, "return redis.call('LPUSH', KEYS[1], 1)", 1, "n")[0], refused(c.eval, "return nosuch()", 0)[0], c.script_flush(), count(keys=["n"], args=[1])]
    p = c.pipeline()
    count(keys=["n"], args=[1], client=p)
    return out + [p.execute()]


def locks(c):
    held = []
    wrong = []

    def work():
        for _ in range(5):
            with c.lock("lock", timeout=10, sleep=0.005, blocking_timeout=30):
                held.append(1)
                if len(held) != 1:
                    wrong.append(len(held))
                held.pop()
                c.incr("done")
    run_threads(4, work)
    lock = c.lock("other", timeout=0.3)
    out = [len(wrong), c.get("done"), lock.acquire(), c.lock("other").acquire(blocking=False), lock.extend(0.2), lock.owned()]
    wait_until(lambda: not lock.locked(), what="the lock expires")
    return out + [refused(lock.release)[0], c.lock("other").acquire(blocking=False)]


def pubsub(c):
    got = []
    p = c.pubsub(ignore_subscribe_messages=True)
    p.subscribe(**{"news": lambda m: got.append((m["channel"], m["data"]))})
    p.psubscribe(**{"n*": lambda m: got.append((m["pattern"], m["data"]))})
    thread = p.run_in_thread(sleep_time=0.01, daemon=True)
    wait_until(lambda: c.pubsub_numsub("news") == [("news", 1)] and c.pubsub_numpat() == 1, what="it is subscribed")
    out = [c.publish("news", "one"), c.publish("other", "x"),
           [ch for ch in c.pubsub_channels() if ch != "__redis__:invalidate"]]  # an upstream's sidecars listen there
    wait_until(lambda: len(got) == 2, what="two messages")
    thread.stop()
    thread.join(5)
    plain = c.pubsub()
    plain.subscribe("x")
    out.append(plain.get_message(timeout=5))
    plain.ping()
    out.append(plain.get_message(timeout=5))
    plain.close()
    return out + sorted(got)


def scans(c):
    p = c.pipeline(transaction=False)
    for i in range(1000):
        p.set("scan:%d" % i, i).sadd("set", i).hset("hash", "f%d" % i, i).zadd("zset", {"m%d" % i: i})
    p.execute()
    return [len(set(c.scan_iter("scan:*", count=30))), sorted(c.scan_iter(_type="hash")), len(set(c.sscan_iter("set"))), len(dict(c.hscan_iter("hash", match="f9*"))),
            len(dict(c.zscan_iter("zset", count=7))), c.dbsize() >= 1003]


def pools(c, server):
    """Many threads on one pool, values checked, clients that are told to go, a server that is restarted."""
    pool = redis.BlockingConnectionPool(host="127.0.0.1", port=server.port, max_connections=10, timeout=30, health_check_interval=1, decode_responses=True,
                                        socket_keepalive=True, retry_on_timeout=True, client_name="pool")
    shared = redis.Redis(connection_pool=pool)
    wrong = []

    def work():
        me = threading.get_ident()
        for i in range(50):
            shared.set("t:%d:%d" % (me, i), i, ex=100)
            if shared.get("t:%d:%d" % (me, i)) != str(i):
                wrong.append(i)
            shared.incr("total")
    run_threads(12, work)
    out = [len(wrong), shared.get("total"), 0 < len([x for x in c.client_list() if x["name"] == "pool"]) <= 10]
    for x in c.client_list():
        if x["name"] == "pool":
            c.client_kill_filter(_id=x["id"])
    time.sleep(1.1)  # the health check finds the connection closed, and another is made
    out.append(shared.get("total"))
    server.restart()
    out.append(shared.get("total"))
    shared.close()
    pool.disconnect()
    return out


async def asynchronous(port):
    c = redis.asyncio.Redis(port=port, decode_responses=True, max_connections=50)
    try:
        await asyncio.gather(*(c.set("a:%d" % i, i) for i in range(40)))
        out = [sum(map(int, await c.mget(["a:%d" % i for i in range(40)])))]
        async with c.pipeline(transaction=True) as p:
            out.append(await p.set("x", 1).incr("x").execute())

        async def late():
            await asyncio.sleep(0.05)
            await c.rpush("q", "job")
        out.append((await asyncio.gather(c.blpop("q", 5), late()))[0])
        async with c.pubsub() as p:
            await p.subscribe("ch")
            await p.get_message(timeout=5)
            await c.publish("ch", "hello")
            out.append((await p.get_message(ignore_subscribe_messages=True, timeout=5))["data"])
        async with c.lock("lock", timeout=5):
            out.append(await c.lock("lock").acquire(blocking=False))
        out.append(len([k async for k in c.scan_iter("a:*")]))
        out.append(await c.register_script(COUNTER)(keys=["n"], args=[3]))
        out.append(await c.xadd("s", {"f": "v"}, id="1-1"))
        return out + [await c.xread({"s": 0}, block=10)]
    finally:
        await c.close()
        await c.connection_pool.disconnect()


def everything(server):
    c = server.client(decode_responses=True)
    out = {}
    for scenario in (values, streams, transactions, scripts, locks, pubsub, scans):
        c.flushdb()
        out[scenario.__name__] = scenario(c)
    c.flushdb()
    out["binary"] = server.client().set("k", b"\x00\xff"), server.client().get("k")
    out["asyncio"] = asyncio.run(asynchronous(server.port))
    out["pools"] = pools(c, server)
    return out


def test_same_outcome_as_redis(tiercel, redis_server):
    want = apps.compare(apps.on_each(apps.targets(tiercel, redis_server), everything))
    assert want["pools"] == [0, "600", True, "600", "600"] and want["transactions"][-2:] == ["41", 2000]
    assert want["locks"][:2] == [0, "20"]
