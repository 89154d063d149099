"use strict";
// ioredis: the everyday API.
const Redis = require("ioredis");
const { ask, blocked, port, refused, run, until } = require("./scenarios");

let open = [];
function client(options = {}) {
    const c = new Redis({ host: "127.0.0.1", port, ...options });
    c.on("error", () => {});
    open.push(c);
    return c;
}
const text = (x) => JSON.parse(JSON.stringify(x));
async function streamed(s) {
    const all = [];
    for await (const some of s) all.push(...some);
    return [...new Set(all)];
}

const scenarios = {
    async strings() {
        const c = client();
        return [await c.set("k", "v"), await c.set("k", "w", "EX", 100, "NX"), await c.set("k", "w", "XX", "GET"), await c.get("k"),
                await c.mset({ a: 1, b: "two", c: Buffer.from([0, 255, 10]) }), await c.mget("a", "b", "none"),
                (await c.getBuffer("c")).toString("hex"), await c.incr("a"), await c.incrby("a", 10), await c.incrbyfloat("a", 0.5),
                await refused(c.incr("b")), await c.append("b", "!"), await c.strlen("b"), await c.getrange("b", 0, 1),
                await c.setrange("b", 1, "WO"), await c.setex("e", 100, "x"), await c.ttl("e"), await c.getex("e", "PERSIST"),
                await c.ttl("e"), await c.getdel("e"), await c.setbit("bits", 7, 1), await c.bitcount("bits"),
                await c.bitfield("bits", "SET", "u8", 0, 200, "GET", "u4", 0), await c.exists("a", "b", "none"), await c.type("a"),
                await c.rename("a", "z"), await c.del("z", "none"), await c.pfadd("hll", "a", "b"), await c.pfcount("hll")];
    },

    async hashes() {
        const c = client();
        return [await c.hset("h", { a: 1, b: "2", c: 3 }), await c.hset("h", "d", 4), await c.hget("h", "a"), await c.hgetall("h"),
                await c.hgetall("none"), await c.hmget("h", "a", "x"), await c.hincrby("h", "a", 5), await c.hincrbyfloat("h", "a", 0.25),
                await c.hdel("h", "a", "x"), await c.hkeys("h"), await c.hvals("h"), await c.hlen("h"), await c.hexists("h", "b"),
                await c.hsetnx("h", "b", 9), await c.hstrlen("h", "b"), (await c.hrandfield("h", 10)).sort()];
    },

    async lists() {
        const c = client();
        return [await c.rpush("l", "a", "b", "c"), await c.lpush("l", ["z", "y"]), await c.lrange("l", 0, -1), await c.lindex("l", 1),
                await c.linsert("l", "BEFORE", "b", "B"), await c.lset("l", 0, "Y"), await c.lrem("l", 0, "c"), await c.lpos("l", "b"),
                await c.ltrim("l", 1, -1), await c.lpop("l"), await c.rpop("l", 2), await c.lmove("l", "m", "LEFT", "RIGHT"), await c.llen("l"),
                await refused(c.lpush("l")), await c.rpush("n", 3, 1, 2), await c.lmpop(2, "none", "n", "LEFT", "COUNT", 2)];
    },

    async sets() {
        const c = client();
        const sort = (a) => a.sort();
        return [await c.sadd("s", 1, 2, 3), await c.sadd("t", "2", "3", "four"), sort(await c.smembers("s")), await c.sismember("s", 2),
                await c.smismember("s", 1, 9), sort(await c.sinter("s", "t")), sort(await c.sunion("s", "t")), sort(await c.sdiff("s", "t")),
                await c.sinterstore("u", "s", "t"), await c.sintercard(2, "s", "t"), await c.smove("s", "t", 1), await c.scard("t"),
                await c.srem("t", "four", "none"), (await c.spop("t", 10)).length, await c.exists("t")];
    },

    async sortedSets() {
        const c = client();
        return [await c.zadd("z", 1, "a", 2.5, "b", "-inf", "low", "+inf", "high"), await c.zadd("z", "GT", "CH", 5, "a", 1, "b"),
                await c.zrange("z", 0, -1, "WITHSCORES"), await c.zrange("z", "(1", "+inf", "BYSCORE", "LIMIT", 0, 1), await c.zscore("z", "a"),
                await c.zincrby("z", 0.5, "a"), await c.zrank("z", "b"), await c.zrevrank("z", "b"), await c.zcount("z", "-inf", 3),
                await c.zrangebyscore("z", "-inf", "+inf", "WITHSCORES", "LIMIT", 1, 2), await c.zpopmin("z"), await c.zpopmax("z", 1),
                await c.zadd("y", 1, "a", 1, "c"), await c.zunionstore("x", 2, "z", "y", "WEIGHTS", 2, 1), await c.zinter(2, "z", "y", "WITHSCORES"),
                await c.zdiff(2, "z", "y"), await c.zrangebylex("y", "-", "+"), await c.zremrangebyscore("x", 0, 1), await c.zmscore("x", "a", "q"),
                await refused(c.zadd("z", "nan", "x"))];
    },

    async streams() {
        const c = client();
        const ids = [await c.xadd("s", "1-1", "f", "v"), await c.xadd("s", "1-2", "g", "w", "h", "x"), await c.xadd("s", "2-*", "f", "y")];
        const out = [ids, await c.xlen("s"), await c.xrange("s", "-", "+"), await c.xrevrange("s", "+", "-", "COUNT", 1),
                     await c.xgroup("CREATE", "s", "g", "0"), await refused(c.xgroup("CREATE", "s", "g", "0")),
                     await c.xreadgroup("GROUP", "g", "one", "COUNT", 2, "STREAMS", "s", ">"), await c.xack("s", "g", "1-1", "9-9"),
                     await c.xpending("s", "g"), (await c.xpending("s", "g", "-", "+", 10)).map((p) => [p[0], p[1], p[3]]),
                     await c.xclaim("s", "g", "two", 0, "1-2"), await c.xautoclaim("s", "g", "three", 0, "0", "COUNT", 1)];
        const waiting = client().xread("BLOCK", 5000, "STREAMS", "s", "$");
        await blocked(1, () => c.info("clients"));
        await c.xadd("s", "5-0", "late", "1");
        out.push(await waiting, await c.xdel("s", "1-1"), await c.xtrim("s", "MAXLEN", 1));
        const info = await c.xinfo("STREAM", "s");
        out.push(info[info.indexOf("last-generated-id") + 1], (await c.xinfo("GROUPS", "s")).length);
        return out;
    },

    async pubsub() {
        const [sub, pub] = [client(), client()];
        const got = [];
        sub.on("message", (ch, m) => got.push(["message", ch, m]));
        sub.on("pmessage", (p, ch, m) => got.push(["pmessage", p, ch, m]));
        const n = [await sub.subscribe("news", "other"), await sub.psubscribe("n?ws")];
        const refusal = await refused(sub.get("k"));
        n.push(await pub.publish("news", "hello"), await pub.publish("nobody", "x"), await pub.pubsub("NUMSUB", "news"));
        await until(() => got.length === 2, "both messages");
        n.push(await sub.unsubscribe("news", "other"), await sub.punsubscribe("n?ws"), await sub.set("k", "v"));
        const s = client();
        s.on("smessage", (ch, m) => got.push(["smessage", ch, m]));
        await s.ssubscribe("shard");
        n.push(await pub.spublish("shard", "one"));
        await until(() => got.length === 3, "the shard message");
        return { n, got, refusal };
    },

    async pipelines() {
        const c = client();
        const out = await c.pipeline().set("a", 1).incr("a").lpush("a", "x").get("a").hset("h", { f: "v" }).hgetall("h").exec();
        const p = c.pipeline();
        for (let i = 0; i < 5000; i++) p.set("key:" + i, "value " + i);
        const sets = await p.exec();
        const q = c.pipeline();
        for (let i = 0; i < 5000; i++) q.get("key:" + i);
        const gets = await q.exec();
        return { out: out.map(([e, r]) => [e && e.message, r]), set: sets.filter(([e, r]) => r === "OK").length,
                 got: gets.filter(([, r], i) => r === "value " + i).length };
    },

    async transactions() {
        const c = client();
        const d = client();
        const out = [(await c.multi().set("a", 1).incr("a").get("a").exec()).map(([, r]) => r)];
        await c.watch("a");
        await d.set("a", "5");
        out.push(await c.multi().set("a", "lost").exec(), await c.get("a"));
        await c.watch("a");
        out.push(await c.multi({ pipeline: true }).incr("a").exec());
        out.push((await c.multi().lpush("a", 1).set("b", 2).exec()).map(([e, r]) => [e && e.message, r]));
        await c.multi({ pipeline: false });
        await c.set("q", 1);
        await refused(c.call("nosuch"));
        out.push(await refused(c.exec()), await c.exists("q"));
        out.push(await c.ping());
        // Counters under contention.
        await c.set("n", 0);
        const add = async () => {
            const me = client();
            for (let done = 0; done < 20;) {
                await me.watch("n");
                const n = Number(await me.get("n"));
                if (await me.multi().set("n", n + 1).exec()) done++;
            }
        };
        await Promise.all([add(), add(), add(), add()]);
        out.push(await c.get("n"));
        return text(out);
    },

    async scripts() {
        const c = client({ scripts: { addto: { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], ARGV[1])" } } });
        c.defineCommand("pair", { numberOfKeys: 2, lua: "return {KEYS[1], KEYS[2], ARGV[1], #ARGV, false, {1.9, 'x'}}" });
        c.defineCommand("ro", { numberOfKeys: 1, lua: "return redis.call('GET', KEYS[1])", readOnly: true });
        c.defineCommand("bad", { numberOfKeys: 0, lua: "return redis.call('NOSUCH')" });
        const out = [await c.addto("n", 5), await c.addto("n", 6), await c.pair("a", "b", "c"), await c.ro("n"),
                     (await refused(c.bad())).replace(/[0-9a-f]{40}/g, "SHA"), await refused(c.evalsha("0".repeat(40), 0)), await c.eval("return {ok='FINE'}", 0),
                     await refused(c.eval("return redis.error_reply('MY error')", 0)), await c.script("EXISTS", "0".repeat(40))];
        await c.script("FLUSH");
        out.push(await c.addto("n", 1), (await c.pipeline().addto("n", 1).pair("x", "y", "z").exec()).map(([, r]) => r),
                 (await c.multi().addto("n", 1).exec()).map(([, r]) => r), await c.eval("return cjson.encode({1,2,{a=cjson.null}})", 0));
        return out;
    },

    async scans() {
        const c = client();
        const p = c.pipeline();
        for (let i = 0; i < 1000; i++) p.set("scan:" + i, i).hset("h", "f" + i, i).sadd("s", "m" + i).zadd("z", i, "m" + i);
        await p.set("other", 1).exec();
        return [(await streamed(c.scanStream({ match: "scan:*", count: 50 }))).length, (await streamed(c.scanStream({ type: "hash" }))),
                (await streamed(c.hscanStream("h", { match: "f1*" }))).filter((x) => x.startsWith("f")).length,
                (await streamed(c.sscanStream("s", { count: 20 }))).length, (await streamed(c.zscanStream("z"))).filter((x) => x.startsWith("m")).length];
    },

    async blocking() {
        const [a, b, c] = [client(), client(), client()];
        const out = [await a.blpop("none", 0.05)];
        const waits = [a.blpop("q1", "q2", 10), b.bzpopmin("z", 10)];
        await blocked(2, () => c.info("clients"));
        await c.rpush("q2", "x", "y");
        await c.zadd("z", 3, "m");
        out.push(await Promise.all(waits), await a.brpop("q2", 1));
        const moved = a.blmove("src", "dst", "LEFT", "RIGHT", 10);
        const popped = b.blmpop(10, 1, "other", "RIGHT", "COUNT", 5);
        await blocked(2, () => c.info("clients"));
        await c.multi().lpush("src", 1).lpush("other", 1, 2, 3).exec();
        out.push(await moved, await popped, await c.lrange("dst", 0, -1), await c.llen("other"));
        const id = await a.client("ID");
        const unblocked = a.brpop("never", 0);
        await until(async () => await c.client("UNBLOCK", id), "the client is blocked");
        out.push(await unblocked);
        return out;
    },

    async keyPrefix() {
        const c = client({ keyPrefix: "app:" });
        const plain = client();
        return [await c.set("a", 1), await c.mset("b", 2, "c", 3), await c.mget("a", "b"), await plain.get("app:a"), await c.zadd("z", 1, "m"),
                await c.zunionstore("y", 1, "z"), await c.eval("return KEYS[1]", 1, "k"), await c.xadd("x", "1-1", "f", "v"),
                (await c.xread("STREAMS", "x", "0"))[0][0], (await plain.keys("*")).sort(), await c.del("a", "b")];
    },

    async autoPipelining() {
        const c = client({ enableAutoPipelining: true });
        const before = (await client().info("commandstats")).length;
        const sets = await Promise.all(Array.from({ length: 500 }, (_, i) => c.set("k" + i, i)));
        const gets = await Promise.all(Array.from({ length: 500 }, (_, i) => c.get("k" + i)));
        return { sets: sets.filter((r) => r === "OK").length, sum: gets.map(Number).reduce((a, b) => a + b, 0), before: before > 0,
                 mixed: await Promise.all([c.incr("n"), refused(c.lpush("k0", 1)), c.multi().incr("n").exec()]) };
    },

    async databases() {
        const c = client({ db: 3, connectionName: "apps-test", readOnly: false });
        await c.set("k", "three");
        const d = client();
        return [await d.get("k"), await d.select(3), await d.get("k"), await c.client("GETNAME"), (await c.client("LIST")).includes("apps-test"),
                await d.flushdb(), await d.dbsize(), await c.call("OBJECT", "ENCODING", "none"), (await c.config("GET", "maxmemory-policy"))[0],
                (await c.info("server")).includes("redis_version"), (await c.time()).length, await c.echo("x"), await refused(c.select(99))];
    },

    async reconnects() {
        const c = client({ retryStrategy: () => 50, maxRetriesPerRequest: null });
        const sub = client({ retryStrategy: () => 50 });
        const got = [];
        sub.on("message", (ch, m) => got.push(m));
        await sub.subscribe("after");
        await c.set("kept", "yes");
        const waiting = client({ retryStrategy: () => 50, maxRetriesPerRequest: null }).blpop("queue", 0);
        await ask("restart");
        const kept = await c.get("kept");
        await until(async () => (await c.publish("after", "again")) === 1, "subscribed again");
        await until(() => got.length, "the message");
        await c.rpush("queue", "job");
        return { kept: kept === "yes" || (kept === null && "lost"), message: got[0], job: await waiting };
    },
};

run(scenarios, async () => {
    open.forEach((c) => c.disconnect());
    open = [];
    for (const db of [0, 3]) {
        const c = client({ db });
        await c.flushdb();
        c.disconnect();
    }
});
