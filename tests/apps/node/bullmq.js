"use strict";
// BullMQ: queues, workers, schedulers, flows and events.
const { fork } = require("child_process");
const Redis = require("ioredis");
const { FlowProducer, Queue, QueueEvents, UnrecoverableError, Worker } = require("bullmq");
const { port, run, sleep, until } = require("./scenarios");

const connection = { host: "127.0.0.1", port, maxRetriesPerRequest: null };

if (process.env.STALL) {
    // A worker that takes a job and never ends it; it is killed.
    new Worker("stall", () => { process.send("active"); return new Promise(() => {}); },
               { connection, lockDuration: 400, stalledInterval: 300 });
    return;
}

let open = [];
const keep = (x) => { open.push(x); x.on("error", (e) => { x.lastError = e; }); return x; };
const queue = (name, options = {}) => keep(new Queue(name, { connection, ...options }));
const worker = (name, fn, options = {}) => keep(new Worker(name, fn, { connection, drainDelay: 1, ...options }));
const counts = (q) => q.getJobCounts("waiting", "active", "delayed", "prioritized", "waiting-children", "completed",
                                     "failed", "paused");

async function completed(q, n) {
    await until(async () => (await q.getCompletedCount()) >= n, n + " completed jobs of " + q.name);
}

const scenarios = {
    async delayed() {
        const q = queue("delayed");
        const order = [];
        for (const delay of [900, 300, 600, 0]) await q.add("d", { delay }, { delay });
        const before = await counts(q);
        const start = Date.now();
        worker("delayed", async (job) => { order.push(job.data.delay); });
        await completed(q, 4);
        return { order, before, after: await counts(q), early: Date.now() - start < 700 };
    },

    async delayChanged() {
        const q = queue("changed");
        const job = await q.add("d", {}, { delay: 3600000 });
        const promoted = await q.add("p", {}, { delay: 3600000 });
        const seen = [];
        worker("changed", async (j) => { seen.push(j.name); });
        await job.changeDelay(200);
        await promoted.promote();
        await completed(q, 2);
        return { seen, state: await job.getState() };
    },

    async schedulers() {
        const q = queue("repeat");
        const seen = [];
        await q.upsertJobScheduler("every", { every: 200, limit: 4 }, { name: "tick", data: { n: 1 } });
        await q.upsertJobScheduler("cron", { pattern: "0 0 1 1 *", tz: "UTC" }, { name: "yearly" });
        const kept = (await q.getJobSchedulers()).map((s) => [s.key, s.name, s.every, s.pattern]);
        worker("repeat", async (job) => { seen.push([job.name, job.data]); });
        await completed(q, 4);
        await sleep(300);
        const removed = [await q.removeJobScheduler("cron"), await q.removeJobScheduler("none")];
        return { seen, kept: kept.sort(), removed, left: await q.getJobSchedulersCount(), counts: await counts(q) };
    },

    async prioritised() {
        const q = queue("prio");
        const seen = [];
        for (const [name, priority] of [["c", 10], ["a", 1], ["d", 10], ["b", 2], ["first", 0]])
            await q.add(name, {}, { priority });
        const changed = await q.add("e", {}, { priority: 30 });
        await q.add("lifo", {}, { lifo: true });
        await changed.changePriority({ priority: 1 });
        const before = await counts(q);
        worker("prio", async (job) => { seen.push(job.name); });
        await completed(q, 7);
        return { seen, before };
    },

    async rateLimited() {
        const q = queue("limited");
        const at = [];
        await q.addBulk(Array.from({ length: 9 }, (_, i) => ({ name: "j", data: { i } })));
        worker("limited", async () => { at.push(Date.now()); }, { limiter: { max: 3, duration: 400 }, concurrency: 5 });
        await completed(q, 9);
        return { slow: at[8] - at[0] >= 700, n: at.length };
    },

    async rateLimitedByHand() {
        const q = queue("byhand");
        let runs = 0;
        const w = worker("byhand", async () => {
            runs++;
            if (runs === 1) {
                await w.rateLimit(300);
                throw Worker.RateLimitError();
            }
        });
        const job = await q.add("j", {});
        await completed(q, 1);
        return { runs, attempts: (await q.getJob(job.id)).attemptsMade };
    },

    async flows() {
        const flow = keep(new FlowProducer({ connection }));
        const q = queue("parents");
        const kids = queue("kids");
        const tree = await flow.add({
            name: "sum", queueName: "parents", data: {},
            children: [
                { name: "k", queueName: "kids", data: { v: 1 } },
                { name: "k", queueName: "kids", data: { v: 2 }, children: [
                    { name: "k", queueName: "kids", data: { v: 40 } }, { name: "k", queueName: "kids", data: { v: 2 } }] },
                { name: "fails", queueName: "kids", data: { v: 0 }, opts: { ignoreDependencyOnFailure: true } },
            ],
        });
        const state = await tree.job.getState();
        const sum = (values) => Object.values(values).reduce((a, b) => a + b, 0);
        const work = async (job) => {
            if (job.name === "fails") throw new Error("no");
            return (job.data.v || 0) + sum(await job.getChildrenValues());
        };
        worker("kids", work, { concurrency: 3 });
        worker("parents", work);
        await completed(q, 1);
        const job = await q.getJob(tree.job.id);
        const dead = await flow.add({
            name: "p", queueName: "parents", data: {},
            children: [{ name: "fails", queueName: "kids", data: {}, opts: { failParentOnFailure: true } }],
        });
        await until(async () => (await dead.job.getState()) === "failed", "the parent fails");
        const all = await flow.getFlow({ id: tree.job.id, queueName: "parents" });
        return { state, value: job.returnvalue, dependencies: Object.values((await job.getDependencies()).processed).sort(),
                 ignored: Object.values(await job.getIgnoredChildrenFailures()), children: all.children.length,
                 parents: await counts(q), kids: await counts(kids),
                 reason: (await q.getJob(dead.job.id)).failedReason.replace(/[0-9a-f-]{36}/g, "ID") };
    },

    async retries() {
        const q = queue("retry");
        const tries = {};
        const at = [];
        worker("retry", async (job) => {
            tries[job.name] = (tries[job.name] || 0) + 1;
            if (job.name === "backoff") at.push(Date.now());
            if (job.name === "fatal") throw new UnrecoverableError("fatal");
            if (job.name === "never" || tries[job.name] < 3) throw new Error("try " + tries[job.name]);
            return tries[job.name];
        });
        await q.add("backoff", {}, { attempts: 3, backoff: { type: "exponential", delay: 100 } });
        await q.add("fixed", {}, { attempts: 5, backoff: { type: "fixed", delay: 50 } });
        await q.add("never", {}, { attempts: 2 });
        await q.add("fatal", {}, { attempts: 5 });
        await completed(q, 2);
        await until(async () => (await q.getFailedCount()) === 2, "two failed");
        const failed = (await q.getFailed()).map((j) => [j.name, j.attemptsMade, j.failedReason, j.stacktrace.length]);
        const never = (await q.getFailed()).find((j) => j.name === "never");
        tries.never = 0;
        const before = { ...tries };
        await never.retry("failed");
        await until(async () => tries.never > 0 && (await never.getState()) === "failed", "it was tried again");
        return { failed: failed.sort(), before, apart: at[1] - at[0] >= 90 && at[2] - at[1] >= 180, counts: await counts(q) };
    },

    async stalled() {
        const q = queue("stall");
        const job = await q.add("j", { n: 1 });
        const child = fork(__filename, [String(port)], { env: { ...process.env, STALL: "1" }, stdio: ["ignore", "ignore", "inherit", "ipc"] });
        await new Promise((resolve) => child.once("message", resolve));
        const state = await job.getState();
        child.kill("SIGKILL");
        const stalled = [];
        const w = worker("stall", async (j) => "saved " + j.data.n, { stalledInterval: 300, lockDuration: 400 });
        w.on("stalled", (id) => stalled.push(id));
        await completed(q, 1);
        return { state, id: stalled[0] === job.id, value: (await q.getJob(job.id)).returnvalue };
    },

    async pauseResume() {
        const q = queue("paused");
        const seen = [];
        const w = worker("paused", async (job) => { seen.push(job.name); });
        await q.pause();
        await q.addBulk([{ name: "a" }, { name: "b" }]);
        await q.add("c", {}, { priority: 5 });
        await sleep(200);
        const held = { seen: seen.length, paused: await q.isPaused(), counts: await counts(q) };
        await q.resume();
        await completed(q, 3);
        await w.pause();
        await q.add("d");
        await sleep(100);
        const local = [await q.getWaitingCount(), w.isPaused()];
        w.resume();
        await completed(q, 4);
        return { held, local, seen };
    },

    async events() {
        const q = queue("events");
        const e = keep(new QueueEvents("events", { connection, lastEventId: "0" }));
        await e.waitUntilReady();
        const seen = [];
        for (const name of ["added", "waiting", "active", "progress", "completed", "failed", "delayed", "removed", "drained"])
            e.on(name, (args) => seen.push([name, args && args.jobId]));
        worker("events", async (job) => {
            await job.updateProgress(50);
            await job.log("half");
            if (job.name === "bad") throw new Error("bad");
            return { ok: job.data };
        });
        const good = await q.add("good", { x: [1, "two", null] }, { jobId: "good" });
        const value = await good.waitUntilFinished(e, 10000);
        const bad = await q.add("bad", {}, { jobId: "bad" });
        const error = await bad.waitUntilFinished(e, 10000).catch((x) => x.message);
        await (await q.getJob("bad")).remove();
        await until(() => seen.some(([n]) => n === "removed"), "the event of the removal");
        const logs = await q.getJobLogs("good");
        return { value, error, logs, progress: (await q.getJob("good")).progress,
                 good: seen.filter(([, id]) => id === "good").map(([n]) => n), bad: seen.filter(([, id]) => id === "bad").map(([n]) => n) };
    },

    async removal() {
        const q = queue("removal");
        const jobs = await q.addBulk(Array.from({ length: 20 }, (_, i) => ({ name: "j", data: { i }, opts: i > 14 ? { delay: 60000 } : {} })));
        await jobs[3].remove();
        await jobs[16].remove();
        const afterRemove = await counts(q);
        const page = (await q.getJobs(["waiting"], 0, 4, true)).map((j) => j.data.i);
        const cleaned = (await q.clean(0, 100, "delayed")).length;
        worker("removal", async () => 1, { removeOnComplete: { count: 5 } });
        await until(async () => (await q.getWaitingCount()) + (await q.getActiveCount()) === 0, "all are done");
        await sleep(100);
        const afterWork = await counts(q);
        await q.add("x", {}, { delay: 60000 });
        await q.drain(true);
        const drained = await counts(q);
        await q.pause();
        await q.obliterate({ force: true });
        const c = new Redis(connection);
        const left = await c.keys("bull:removal:*");
        c.disconnect();
        return { afterRemove, page, cleaned, afterWork, drained, left };
    },

    async deduplication() {
        const q = queue("dedup");
        const ids = [];
        for (let i = 0; i < 3; i++) ids.push((await q.add("j", { i }, { deduplication: { id: "one", ttl: 5000 } })).id);
        const same = [(await q.add("s", {}, { jobId: "mine" })).id, (await q.add("s", {}, { jobId: "mine" })).id];
        const removed = await q.removeDeduplicationKey("one");
        ids.push((await q.add("j", {}, { deduplication: { id: "one" } })).id);
        return { distinct: new Set(ids).size, same, removed, counts: await counts(q) };
    },

    async steps() {
        const q = queue("steps");
        const seen = [];
        const { DelayedError } = require("bullmq");
        worker("steps", async (job, token) => {
            seen.push(job.data.step);
            if (job.data.step < 2) {
                await job.updateData({ step: job.data.step + 1 });
                await job.moveToDelayed(Date.now() + 100, token);
                throw new DelayedError();
            }
            return "end";
        });
        const job = await q.add("j", { step: 0 });
        await completed(q, 1);
        return { seen, value: (await q.getJob(job.id)).returnvalue };
    },

    async fourWorkers() {
        const q = queue("many");
        const n = Number(process.env.JOBS || 300);
        const seen = new Map();
        for (let i = 0; i < 4; i++)
            worker("many", async (job) => {
                seen.set(job.id, (seen.get(job.id) || 0) + 1);
                if (job.data.i % 7 === 0) await sleep(2);
                if (job.data.i % 50 === 0 && job.attemptsMade === 0) throw new Error("once more");
                return job.data.i * 2;
            }, { concurrency: 8, metrics: { maxDataPoints: 10 } });
        for (let i = 0; i < n; i += 50)
            await q.addBulk(Array.from({ length: 50 }, (_, k) => ({ name: "j", data: { i: i + k, pad: "x".repeat(1000) }, opts: { attempts: 2 } })));
        await completed(q, n);
        const jobs = await q.getCompleted(0, -1);
        const runs = [...seen.values()].reduce((a, b) => a + b, 0);
        const metrics = await q.getMetrics("completed");
        return { jobs: jobs.length, wrong: jobs.filter((j) => j.returnvalue !== j.data.i * 2).length, runs,
                 counts: await counts(q), counted: metrics.meta.count, version: await q.getVersion() };
    },
};

run(scenarios, async () => {
    const c = new Redis(connection);
    await Promise.all(open.map((x) => x.close(true).catch(() => {})));
    open = [];
    await c.flushdb();
    c.disconnect();
});
