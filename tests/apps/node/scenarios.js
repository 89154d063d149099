"use strict";
// usage of a file of scenarios: node FILE PORT [NAME...]
// Each scenario returns what came of it; a line of JSON for each goes to the standard output.
// await ask("restart") has the test restart the server.
const readline = require("readline");

const port = Number(process.argv[2]);
const lines = [];
const waiting = [];
const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => (waiting.length ? waiting.shift()(line) : lines.push(line)));

function ask(what) {
    process.stdout.write(JSON.stringify({ ask: what }) + "\n");
    return lines.length ? Promise.resolve(lines.shift()) : new Promise((resolve) => waiting.push(resolve));
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(predicate, what, ms = 20000) {
    const deadline = Date.now() + ms;
    for (;;) {
        const value = await predicate();
        if (value) return value;
        if (Date.now() > deadline) throw new Error("not within " + ms + " ms: " + (what || predicate));
        await sleep(10);
    }
}

// Waits until n clients are blocked; info is the text of INFO clients.
const blocked = (n, info) => until(async () => Number(/blocked_clients:(\d+)/.exec(await info())[1]) >= n, n + " blocked clients");

// The error's text where one is expected.
async function refused(promise) {
    try {
        return { unexpected: await promise };
    } catch (e) {
        return e.message;
    }
}

async function hang(ms = 25000) {
    await sleep(ms);
    throw new Error("still running after " + ms + " ms");
}

async function run(scenarios, before) {
    const names = process.argv.slice(3);
    for (const name of names.length ? names : Object.keys(scenarios)) {
        const out = { name };
        try {
            await before();
            out.result = await Promise.race([scenarios[name](), hang()]);
        } catch (e) {
            out.error = e.stack || String(e);
        }
        process.stdout.write(JSON.stringify(out) + "\n");
    }
    input.close();
    // Connections that a scenario left open would keep the process.
    process.exit(0);
}

module.exports = { port, ask, blocked, sleep, until, refused, run };
