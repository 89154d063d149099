"use strict";
// node-redis: the everyday API, with RESP2 and, where PROTO is 3, with RESP3.
const redis = require("redis");
const { ask, blocked, port, refused, run, until } = require("./scenarios");

const RESP = Number(process.env.PROTO || 2);
let open = [];
const all = { RESP, unstableResp3: true, socket: { host: "127.0.0.1", port, reconnectStrategy: 50 } };
const base = redis.createClient(all); // createClient() builds a class every time, duplicate() does not
async function client(options = {}) {
    const c = options.scripts ? redis.createClient({ ...all, ...options }) : base.duplicate(options);
    c.on("error", () => {});
    open.push(c);
    return c.connect();
}
async function streamed(it) {
    const all = [];
    for await (const some of it) all.push(...(Array.isArray(some) ? some : [some]));
    return all;
}
const sort = (a) => [...a].sort();

const scenarios = {
    async strings() {
        const c = await client();
        return [await c.set("k", "v"), await c.set("k", "w", { EX: 100, NX: true }), await c.set("k", "w", { GET: true }), await c.get("k"),
                await c.mSet({ a: "1", b: "two" }), await c.mGet(["a", "b", "none"]), await c.incr("a"), await c.incrByFloat("a", 0.5),
                await refused(c.incr("b")), await c.append("b", "!"), await c.getRange("b", 0, 1), await c.setEx("e", 100, "x"), await c.ttl("e"),
                await c.getEx("e", { type: "PERSIST" }), await c.getDel("e"), await c.setBit("bits", 7, 1), await c.bitCount("bits"),
                await c.exists(["a", "b"]), await c.type("a"), await c.rename("a", "z"), await c.del("z"), await c.pfAdd("hll", ["a", "b"]), await c.pfCount("hll"),
                await c.copy("k", "k2"), await c.expire("k2", 50), await c.persist("k2"), await c.objectEncoding("k"), await c.memoryUsage("none"),
                await c.lcsIdx("k", "b")];
    },

    async hashes() {
        const c = await client();
        return [await c.hSet("h", { a: 1, b: "2" }), await c.hSet("h", "c", 3), await c.hGet("h", "a"), { ...await c.hGetAll("h") }, { ...await c.hGetAll("none") },
                await c.hmGet("h", ["a", "x"]), await c.hIncrBy("h", "a", 5), await c.hIncrByFloat("h", "a", 0.25), await c.hDel("h", "a"), sort(await c.hKeys("h")),
                await c.hVals("h"), await c.hLen("h"), await c.hExists("h", "b"), await c.hRandFieldCountWithValues("h", 5)];
    },

    async lists() {
        const c = await client();
        return [await c.rPush("l", ["a", "b", "c"]), await c.lPush("l", "z"), await c.lRange("l", 0, -1), await c.lPos("l", "b"), await c.lMove("l", "m", "LEFT", "RIGHT"),
                await c.lPopCount("l", 2), await c.lRem("l", 0, "c"), await c.lLen("l"), await c.lmPop("m", "LEFT"), await c.rPop("none")];
    },

    async sets() {
        const c = await client();
        return [await c.sAdd("s", ["1", "2", "3"]), await c.sAdd("t", ["2", "3", "four"]), sort(await c.sMembers("s")), await c.sIsMember("s", "2"), await c.smIsMember("s", ["1", "9"]),
                sort(await c.sInter(["s", "t"])), sort(await c.sUnion(["s", "t"])), await c.sInterCard(["s", "t"]), await c.sPop("none"), (await c.sRandMemberCount("s", 2)).length];
    },

    async sortedSets() {
        const c = await client();
        return [await c.zAdd("z", [{ score: 1, value: "a" }, { score: 2.5, value: "b" }, { score: Infinity, value: "high" }, { score: -Infinity, value: "low" }]),
                (await c.zRangeWithScores("z", 0, -1)).map((x) => [x.value, String(x.score)]), await c.zScore("z", "b"), await c.zScore("z", "none"), await c.zIncrBy("z", 0.5, "a"),
                await c.zmScore("z", ["a", "none"]), await c.zRank("z", "b"), await c.zRange("z", "(1", "3", { BY: "SCORE" }), String((await c.zPopMin("z")).score), await c.zPopMax("none"),
                await c.zUnionStore("y", ["z", "none"]), await c.zCount("y", 0, 3), await c.zInterWithScores(["y", "z"]).then((a) => a.map((x) => [x.value, String(x.score)])),
                (await c.zmPop("y", "MIN")).members, await c.zRandMember("none"), await c.geoAdd("g", [{ member: "p", longitude: 13.361389, latitude: 38.115556 }, { member: "c", longitude: 15.087269, latitude: 37.502669 }]),
                await c.geoDist("g", "p", "c", "km"), (await c.geoPos("g", ["p", "x"])), await c.geoSearch("g", { longitude: 15, latitude: 37 }, { radius: 200, unit: "km" })];
    },

    async streams() {
        const c = await client();
        const late = await client();
        const out = [await c.xAdd("s", "1-1", { f: "v" }), await c.xAdd("s", "1-2", { g: "w", h: "x" }), await c.xLen("s"), await c.xRange("s", "-", "+"),
                     await c.xGroupCreate("s", "g", "0"), await refused(c.xGroupCreate("s", "g", "0")), await c.xReadGroup("g", "one", { key: "s", id: ">" }, { COUNT: 1 }),
                     await c.xAck("s", "g", "1-1"), await c.xReadGroup("g", "one", { key: "s", id: ">" }), await c.xPending("s", "g"), await c.xAutoClaim("s", "g", "two", 0, "0"),
                     (await c.xInfoGroups("s")).map((g) => [g.name, g.consumers, g.pending]), await c.xRead({ key: "none", id: "0" })];
        const waiting = late.xRead({ key: "s", id: "$" }, { BLOCK: 5000 });
        await blocked(1, () => c.info("clients"));
        await c.xAdd("s", "5-0", { late: "1" });
        out.push(await waiting, await c.xTrim("s", "MAXLEN", 1));
        return out;
    },

    async pubsub() {
        const [sub, pub] = [await client(), await client()];
        const got = [];
        await sub.subscribe("news", (m, ch) => got.push(["message", ch, m]));
        await sub.pSubscribe("n?ws", (m, ch) => got.push(["pmessage", ch, m]));
        await sub.sSubscribe("shard", (m, ch) => got.push(["smessage", ch, m]));
        // With RESP3 a connection that subscribes takes commands as any other.
        const both = RESP === 3 ? await sub.set("k", "v") : "OK";
        const n = [await pub.publish("news", "hello"), await pub.sPublish("shard", "x"), await pub.publish("nobody", "y"), { ...await pub.pubSubNumSub(["news"]) }];
        await until(() => got.length === 3, "the messages");
        await sub.unsubscribe("news");
        await sub.pUnsubscribe("n?ws");
        await sub.sUnsubscribe("shard");
        const channels = (await pub.pubSubChannels()).filter((name) => name !== "__redis__:invalidate"); // an upstream's sidecars listen there
        return { n, got: sort(got), both, after: await sub.ping(), channels };
    },

    async transactions() {
        const c = await client();
        const d = await client();
        const out = [await c.multi().set("a", "1").incr("a").get("a").exec(), await c.multi().hSet("h", { x: "1" }).hGetAll("h").exec().then((r) => [r[0], { ...r[1] }])];
        await c.watch("a");
        await d.set("a", "5");
        out.push(await refused(c.multi().set("a", "lost").exec()), await c.get("a"));
        out.push(await c.multi().lPush("a", "1").set("b", "2").exec().catch((e) => e.replies.map(String)));
        out.push(await refused(c.multi().addCommand(["NOSUCH"]).set("q", "1").exec()), await c.exists("q"));
        out.push((await c.multi().set("p", "1").incr("p").execAsPipeline()));
        return out;
    },

    async pipelines() {
        const c = await client();
        const sets = await Promise.all(Array.from({ length: 1000 }, (_, i) => c.set("k" + i, String(i))));
        const gets = await Promise.all(Array.from({ length: 1000 }, (_, i) => c.get("k" + i)));
        return { sets: sets.filter((r) => r === "OK").length, sum: gets.map(Number).reduce((a, b) => a + b, 0) };
    },

    async scripts() {
        const c = await client({ scripts: { addto: redis.defineScript({
            SCRIPT: "return redis.call('INCRBY', KEYS[1], ARGV[1])", NUMBER_OF_KEYS: 1,
            parseCommand: (parser, key, n) => { parser.pushKey(key); parser.push(String(n)); }, transformReply: (r) => r }) } });
        return [await c.addto("n", 5), await c.addto("n", 6), await c.eval("return {KEYS[1], ARGV[1], 1.9, false}", { keys: ["k"], arguments: ["v"] }),
                await refused(c.evalSha("0".repeat(40))), await refused(c.eval("return redis.error_reply('MY error')")),
                await c.eval("redis.setresp(3); return redis.call('HGETALL', 'none')"), await c.eval("return {double=2.5}").catch(String),
                await c.scriptExists("0".repeat(40)), (await c.scriptLoad("return 1")).length];
    },

    async scans() {
        const c = await client();
        for (let i = 0; i < 500; i += 100)
            await Promise.all(Array.from({ length: 100 }, (_, k) => Promise.all([c.set("scan:" + (i + k), "1"), c.hSet("h", "f" + (i + k), "v"), c.sAdd("s", "m" + (i + k)), c.zAdd("z", { score: k, value: "m" + (i + k) })])));
        return [new Set(await streamed(c.scanIterator({ MATCH: "scan:*", COUNT: 50 }))).size, (await streamed(c.hScanIterator("h"))).length, new Set(await streamed(c.sScanIterator("s"))).size,
                new Set((await streamed(c.zScanIterator("z"))).map((x) => x.value)).size];
    },

    async blocking() {
        const [a, b, c] = [await client(), await client(), await client()];
        const out = [await a.blPop("none", 0.05)];
        const waits = [a.blPop(["q1", "q2"], 10), b.bzPopMin("z", 10)];
        await blocked(2, () => c.info("clients"));
        await c.rPush("q2", ["x", "y"]);
        await c.zAdd("z", { score: 3, value: "m" });
        out.push(await Promise.all(waits), await a.blMove("q2", "dst", "LEFT", "RIGHT", 1), await a.blmPop(0.05, "none", "LEFT"));
        return out;
    },

    async pool() {
        const pool = redis.createClientPool({ RESP, socket: { host: "127.0.0.1", port } }, { maximum: 8 });
        pool.on("error", () => {});
        await pool.connect();
        await Promise.all(Array.from({ length: 200 }, (_, i) => pool.incrBy("n", i)));
        const out = [await pool.get("n"), await pool.execute(async (c) => { await c.watch("n"); return c.multi().incr("n").exec(); })];
        pool.destroy();
        return out;
    },

    async connection() {
        const c = await client({ name: "apps-test", database: 2 });
        await c.set("k", "two");
        const d = await c.duplicate().connect();
        open.push(d);
        return [await d.get("k"), await c.clientGetName(), (await c.clientInfo()).db, await c.dbSize(), await c.configGet("maxmemory-samples"),
                (await c.hello(RESP)).proto, (await c.info("server")).includes("redis_version"), (await c.commandInfo(["get"]))[0].arity, await c.echo("x")];
    },

    async reconnects() {
        const c = await client();
        const sub = await client();
        const got = [];
        await sub.subscribe("after", (m) => got.push(m));
        await c.set("kept", "yes");
        await ask("restart");
        const kept = await c.get("kept");
        await until(async () => (await c.publish("after", "again")) === 1, "subscribed again");
        await until(() => got.length, "the message");
        return { kept: kept === "yes" || (kept === null && "lost"), message: got[0] };
    },
};

run(scenarios, async () => {
    open.forEach((c) => c.isOpen && c.destroy());
    open = [];
    for (const database of [0, 2]) {
        const c = await client({ database });
        await c.flushDb();
        c.destroy();
    }
    open = [];
});
