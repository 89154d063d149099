#!/usr/bin/env python3
"""Sends the same random commands to Tiercel, under a memory limit that keeps objects moving
between memory and disk, and to redis-server, and compares the bytes of the replies.

usage: differential.py [--commands N] [--seed S] [--maxmemory 8mb] [--threads 2] [--appendonly] [--no-restart]
                       [--redis PATH] [--against-redis] [--sidecar] [--local] [-v]

Every 1,000 commands the whole key space is compared, and at the end once more after Tiercel was stopped
and started. With --sidecar there is a second redis-server behind Tiercel, and nothing but what the client
sends tells it apart from the first. With --local there is one, too, and a rule that makes all keys local: then only what
is about the whole key space, or needs no key, is left out, for that is the upstream's. What may differ is in accepted.txt. Needs the standard library only; the
binary is build/tiercel, or TIERCEL_BIN.
"""
import argparse
import collections
import os
import pathlib
import random
import re
import sys
import time

for own in (os.path.dirname(os.path.abspath(__file__)), "../e2e"):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), own))

import sets_hashes  # noqa: E402
import sorting  # noqa: E402
from events import Events  # noqa: E402
import streams  # noqa: E402
from grammar import Grammar  # noqa: E402
from wire import Connection, Gone, encode, parse, redis_server, tiercel_server  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
DATABASES = 16
CHECK_EVERY = 1000
EVENTS_EVERY = 20  # exchanges after which the notifications are compared
HISTORY = 16       # earlier commands shown with a mismatch
CLOCK_S = 2        # tolerance of times in seconds
CLOCK_MS = 50      # and in milliseconds, plus how long the slowest exchange took
CLOCK = {b"TTL": 1000, b"EXPIRETIME": 1000, b"PTTL": 1, b"PEXPIRETIME": 1}


def unordered(reply):
    """Libraries, and functions in them, come as a hash table has them."""
    return sorted(map(unordered, reply), key=repr) if isinstance(reply, list) else reply


class Mismatch(Exception):
    pass


def shown(data, limit=160):
    """Bytes for people: shortened, with their length."""
    if len(data) <= limit:
        return repr(bytes(data))
    return "%r... (%d bytes)" % (bytes(data[:limit]), len(data))


def shown_command(args):
    return " ".join(shown(a, 60) for a in args[:8]) + (" ... (%d arguments)" % len(args) if len(args) > 8 else "")


def load_accepted(name="accepted.txt"):
    """Rows of `COMMAND | redis's reply | tiercel's reply | reason`; replies are regular expressions."""
    rows = []
    for line in (HERE / name).read_text().splitlines():
        if line and not line.startswith("#"):
            command, redis, tiercel, reason = [f.strip() for f in line.split(" | ")]
            assert reason, line
            rows.append((command.encode().split(), re.compile(redis.encode()), re.compile(tiercel.encode())))
    assert len(rows) <= 15
    return rows


THEIRS = {b"KEYS", b"SCAN", b"RANDOMKEY", b"DBSIZE", b"SWAPDB", b"FLUSHALL", b"FLUSHDB", b"FUNCTION", b"FCALL",
          b"FCALL_RO", b"PUBLISH", b"SCRIPT"}
SCRIPTS = {b"EVAL", b"EVAL_RO", b"EVALSHA", b"EVALSHA_RO"}


def without_theirs(cmds):
    """Leaves out what a server whose keys are all local hands to its upstream nevertheless; and makes transactions local,
    which their first command decides, but not where it names no key."""
    def theirs(c):
        name = c[0].upper()
        return name in THEIRS or (name in SCRIPTS and not (len(c) > 3 and c[2].isdigit() and 0 < int(c[2]) <= len(c) - 3))
    first = [b"EXISTS", b"~first"]
    return [x for c in cmds if not theirs(c) for x in ([c, first] if c[0].upper() == b"MULTI" else [c])]


COPY = b"~copy"  # a name that is not in the grammar


class Differential:
    def __init__(self, redis, tiercel, seed, check_every=CHECK_EVERY, verbose=False, behind=None, local=False):
        """behind: the redis-server that Tiercel is a sidecar of; local: of which it hands nothing on."""
        self.servers = (redis, tiercel)
        self.behind = None if local else behind
        self.local = local
        self.grammar = Grammar(seed)
        self.rng = random.Random(seed * 7919 + 1)
        self.check_every = check_every
        self.verbose = verbose
        self.accepted = load_accepted("accepted_sidecar.txt" if self.behind else "accepted.txt")
        self.compared = 0   # replies found equal
        self.checked = 0    # values found equal by whole comparisons
        self.sent = 0       # random commands
        self.slowest_ms = 0
        self.names = frozenset(self.grammar.all_keys) | {COPY}
        self.sorted = set()        # see note_sorted()
        self.still_sorted = set()  # those that OBJECT ENCODING tells apart
        self.log = collections.deque(maxlen=20000)
        self.connect()

    def connect(self):
        protos = (2, 2, 3, 3) if not self.behind or self.passes_resp3() else (2, 2, 2, 2)
        self.pairs = [(Connection(self.servers[0], proto), Connection(self.servers[1], proto)) for proto in protos]
        self.inspector = (Connection(self.servers[0], 2), Connection(self.servers[1], 2))
        self.events = Events(self.servers, self.behind)
        self.settings = (self.inspector[0], Connection(self.behind, 2) if self.behind else self.inspector[1])

    def passes_resp3(self):
        """Does the sidecar hand on the upstream's RESP3?"""
        c = Connection(self.servers[1], 3)
        reply = c.exchange(encode([b"EVAL", b"return {map={}}", b"0"]), 1)[0]
        c.close()
        return reply.startswith(b"%")

    def disconnect(self):
        self.events.close()
        for pair in self.pairs + [self.inspector, self.settings]:
            for connection in pair:
                connection.close()

    # -- one exchange

    def both(self, pair, cmds, data=None):
        """The replies of both servers to the same bytes."""
        data = data or b"".join(encode(c) for c in cmds)
        replies = []
        for connection in pair:
            begin = time.monotonic()
            replies.append(connection.exchange(data, len(cmds)))
            self.slowest_ms = max(self.slowest_ms, (time.monotonic() - begin) * 1000)
        return replies

    def run_pipeline(self):
        which, other = self.rng.sample(range(len(self.pairs)), 2)
        if self.rng.random() < 0.03:
            for connection, cmds in zip((which, other, which), self.grammar.watched()):
                self.run_commands(connection, without_theirs(cmds) if self.local else cmds)
        else:
            cmds = self.grammar.pipeline()
            if self.behind:
                cmds = self.set_apart(cmds)
            if self.local:
                cmds = without_theirs(cmds)
            self.run_commands(which, cmds)

    def set_apart(self, cmds):
        """A sidecar answers CONFIG itself: what is set for the upstream's sake is set there, before the rest."""
        for c in cmds:
            if c[0].upper() == b"CONFIG":
                self.log.append((-1, c))
                self.exchange_and_compare(self.settings, [c], encode(c))
        return [c for c in cmds if c[0].upper() != b"CONFIG"]

    def run_commands(self, which, cmds):
        if not cmds:
            return
        for c in cmds:
            self.log.append((which, c))
        data = b"".join(self.form(c) for c in cmds)
        self.exchange_and_compare(self.pairs[which], cmds, data)
        self.sent += len(cmds)

    def form(self, cmd):
        """A command as bytes; now and then inline, where it can be."""
        if self.rng.random() < 0.02 and all(re.fullmatch(rb"[\w.:*-]+", a) for a in cmd):
            return b" ".join(cmd) + self.rng.choice((b"\r\n", b"\n", b" \r\n", b"\r\n\r\n"))
        return encode(cmd)

    def exchange_and_compare(self, pair, cmds, data):
        try:
            redis, tiercel = self.both(pair, cmds, data)
        except Gone as e:
            raise Mismatch("%s\nwhile it ran:\n%s" % (e, "\n".join("    " + shown_command(c) for c in cmds))) from None
        queued = []
        for i, cmd in enumerate(cmds):
            self.note_sorted(cmd)
            if redis[i] != tiercel[i]:
                self.judge(cmd, redis[i], tiercel[i], queued, cmds[i + 1:])
            if redis[i] == b"+QUEUED\r\n":
                queued.append(cmd)
            elif cmd[0].upper() in (b"EXEC", b"DISCARD"):
                queued = []
            self.compared += 1

    # -- comparing

    def judge(self, cmd, redis, tiercel, queued, behind):
        a, b = parse(redis), parse(tiercel)
        same = self.same(cmd, a, b)
        if not same and cmd[0].upper() == b"EXEC" and isinstance(a, list) and isinstance(b, list):
            same = len(a) == len(b) == len(queued) + 1 and all(
                x == y or self.same(c, x, y) for c, x, y in zip(queued, a[1:], b[1:]))
        if not same:
            self.report(cmd, redis, tiercel, queued, behind)

    def same(self, cmd, a, b):
        """Are two different replies to a command as good as equal?"""
        name = cmd[0].upper()
        if name == b"KEYS" and isinstance(a, list) and isinstance(b, list):
            return sorted(a[1:]) == sorted(b[1:])
        of_collection = sets_hashes.same(cmd, a, b)
        if of_collection is not None:
            return of_collection
        if sorting.same(cmd, a, b):
            return True
        if name == b"ZRANDMEMBER":
            return self.same_draw(cmd, a, b)
        if name == b"ZSCAN" and isinstance(a, list) and isinstance(b, list):
            return a[1] == b[1] and sorted(zip(a[2][1::2], a[2][2::2])) == sorted(zip(b[2][1::2], b[2][2::2]))
        if name == b"FUNCTION" and cmd[1].upper() == b"LIST" and isinstance(a, list) and isinstance(b, list):
            return unordered(a) == unordered(b)
        if name == b"RANDOMKEY":
            return a[:1] == b[:1] == b"$" and a != b"$-1" and b != b"$-1"
        if name in streams.CLOCKED:
            return streams.same(a, b, self.same_moment)
        if name in CLOCK and isinstance(a, bytes) and isinstance(b, bytes) and a[:1] == b[:1] == b":":
            return self.same_time(int(a[1:]), int(b[1:]), CLOCK[name])
        return self.accepts(cmd, a, b)

    def accepts(self, cmd, a, b):
        """What accepted.txt has. A row of SORTED is for each element of replies about keys that SORT has named."""
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(x == y or self.accepts([b"SORTED"] + cmd, x, y) for x, y in zip(a, b))
        words = [w.upper() for w in cmd]
        for row in self.accepted if isinstance(a, bytes) and isinstance(b, bytes) else ():
            if row[0] == [b"SORTED"]:
                named = not self.sorted.isdisjoint(cmd)
            else:
                named = words[:len(row[0])] == row[0]
            if named and row[1].fullmatch(a) and row[2].fullmatch(b):
                if row[0] == [b"OBJECT", b"ENCODING"]:
                    self.still_sorted.add(cmd[2])
                return True
        return False

    def note_sorted(self, cmd):
        """Names of keys that SORT may have changed in Redis, or that may have got such a value."""
        if any(w.upper() in (b"SORT", b"SORT_RO") for w in cmd) or not self.sorted.isdisjoint(cmd):
            self.sorted.update(self.names.intersection(cmd))

    @staticmethod
    def same_draw(cmd, a, b):
        """Random members: as many, and all of them where all are asked for."""
        if not isinstance(a, list) or not isinstance(b, list):
            return isinstance(a, bytes) and isinstance(b, bytes) and a[:1] == b[:1] == b"$" and b"$-1" not in (a, b)
        return a[0] == b[0] and len(a) == len(b) and all(isinstance(x, list) == isinstance(y, list) for x, y in zip(a, b))
    def same_moment(self, a, b):
        """When something was delivered to a consumer, or how long ago."""
        return abs(a - b) <= CLOCK_MS + self.slowest_ms and min(a, b) >= 0

    def same_time(self, a, b, unit_ms):
        if a < 0 or b < 0:
            return a == b
        return abs(a - b) <= (CLOCK_S if unit_ms == 1000 else CLOCK_MS + self.slowest_ms)

    def report(self, cmd, redis, tiercel, queued, behind):
        lines = ["command %d: %s" % (self.sent, shown_command(cmd)), "    redis:   " + shown(redis, 400),
                 "    tiercel: " + shown(tiercel, 400)]
        at = next((k for k, (x, y) in enumerate(zip(redis, tiercel)) if x != y), min(len(redis), len(tiercel)))
        if at > 300:
            lines.append("    from byte %d on: %s, %s" % (at, shown(redis[at:], 60), shown(tiercel[at:], 60)))
        if queued:
            lines += ["  queued:"] + ["    " + shown_command(c) for c in queued]
        log = list(self.log)[:len(self.log) - len(behind) - 1] if cmd[0] != b"(check)" else list(self.log)
        keys = {k for c in queued + [cmd] for k in c[1:] if k in self.grammar.all_keys}
        if b"KEYS" in cmd[:3] and redis[:1] == tiercel[:1] == b"*":
            names = [{k[1:] for k in parse(r)[1:]} for r in (redis, tiercel)]
            keys = names[0] ^ names[1]
            lines = [lines[0]] + ["    only %s has: %s" % (server.name, " ".join(shown(k, 60) for k in sorted(mine - other)))
                                  for server, mine, other in zip(self.servers, names, names[::-1])]
        related = [(w, c) for w, c in log if keys.intersection(c[1:]) or c[0].upper() in (b"FLUSHALL", b"FLUSHDB", b"SWAPDB",
                                                                                        b"SELECT")]
        lines.append("  before, with the same keys (connection, command):")
        lines += ["    %d %s" % (w, shown_command(c)) for w, c in related[-HISTORY:]]
        lines.append("  before:")
        lines += ["    %d %s" % (w, shown_command(c)) for w, c in log[-4:]]
        raise Mismatch("\n".join(lines))

    def compare_events(self):
        if self.local:  # events are the upstream's
            return
        difference = self.events.difference()
        if difference:
            log = list(self.log)[-4 * HISTORY:]
            raise Mismatch("\n".join([difference, "  before:"] + ["    %d %s" % (w, shown_command(c)) for w, c in log]))

    # -- the whole key space

    def check(self, what, cmds, same=None):
        """Compares the replies to commands of our own, and returns redis's."""
        try:
            redis, tiercel = self.both(self.inspector, cmds)
        except Gone as e:
            raise Mismatch("%s, comparing %s" % (e, what)) from None
        for cmd, a, b in zip(cmds, redis, tiercel):
            if a != b and not (same and same(cmd, a, b)) and not self.same(cmd, parse(a), parse(b)):
                self.report([b"(check)", what.encode()] + cmd, a, b, [], [])
            self.checked += 1
        return redis

    def compare_all(self):
        keys = self.grammar.all_keys
        self.still_sorted.clear()
        touch = [[b"EXISTS"] + keys[i:i + 50] for i in range(0, len(keys), 50)]
        total = 0
        for db in range(DATABASES):
            what = "database %d" % db
            # Redis counts expired keys until it comes across them.
            replies = self.check(what, [[b"SELECT", b"%d" % db]] + touch + ([] if self.local else [[b"DBSIZE"], [b"KEYS", b"*"]]))
            if self.local:
                replies = self.inspector[0].exchange(encode([b"DBSIZE"]) + encode([b"KEYS", b"*"]), 2)
            names = sorted(k[1:] for k in parse(replies[-1])[1:])
            if replies[-2] != b":%d\r\n" % len(names):
                raise Mismatch("database %d of redis has %d keys and says %r" % (db, len(names), replies[-2]))
            total += len(names)
            for i in range(0, len(names), 40):
                self.compare_values(what, names[i:i + 40])
        if not self.local:
            self.compare_scan()
        return total

    def compare_values(self, what, names):
        types = self.check(what, [[b"TYPE", k] for k in names])
        read = {b"+string\r\n": lambda k: [b"GET", k], b"+list\r\n": lambda k: [b"LRANGE", k, b"0", b"-1"],
                b"+hash\r\n": lambda k: [b"HGETALL", k], b"+set\r\n": lambda k: [b"SMEMBERS", k],
                b"+zset\r\n": lambda k: [b"ZRANGE", k, b"0", b"-1", b"WITHSCORES"],
                b"+stream\r\n": lambda k: [b"XINFO", b"STREAM", k, b"FULL", b"COUNT", b"0"]}
        self.check(what, [read[t](k) for t, k in zip(types, names)])
        self.check(what, [[b"PTTL", k] for k in names])
        self.check(what, [[b"OBJECT", b"ENCODING", k] for k in names])
        self.compare_walks(types, names)
        self.compare_dumps(types, names, read)

    def compare_walks(self, types, names):
        """A whole HSCAN or SSCAN gives the same on both sides."""
        for kind, key in zip(types, names):
            name = {b"+hash\r\n": b"HSCAN", b"+set\r\n": b"SSCAN"}.get(kind)
            if name and self.rng.random() < 0.2:
                count = self.rng.choice((b"1", b"10", b"1000"))
                a, b = (sets_hashes.walk(c, encode, parse, name, key, count) for c in self.inspector)
                if a != b:
                    raise Mismatch("%s %s: redis has %s, tiercel has %s" % (name.decode(), shown(key), a, b))
                self.checked += 1

    def compare_dumps(self, types, names, read):
        """What one side dumps the other restores, to the same value in the same encoding."""
        for kind, key in zip(types, names):
            if self.rng.random() > 0.1:
                continue
            dumps = [parse(c.exchange(encode([b"DUMP", key]), 1)[0])[1:] for c in self.inspector]
            for restored in (dumps, dumps[::-1]):
                for connection, dump in zip(self.inspector, restored):
                    reply = connection.exchange(encode([b"RESTORE", COPY, b"0", dump, b"REPLACE"]), 1)[0]
                    if reply != b"+OK\r\n":
                        raise Mismatch("%s does not restore %s of %s: %s" % (
                            connection.server.name, kind.decode().strip(), shown(key), shown(reply)))
                self.check("dumped", [[b"EXISTS", COPY], read[kind](COPY), [b"OBJECT", b"ENCODING", COPY]])
            for connection in self.inspector:
                connection.exchange(encode([b"DEL", COPY]), 1)

    def compare_scan(self):
        """A whole SCAN of some database with random options gives the same set on both sides."""
        rng, found = self.rng, []
        options = rng.choice(([], [b"COUNT", b"3"], [b"COUNT", b"1000"], [b"MATCH", b"s*"], [b"TYPE", b"list"],
                              [b"MATCH", b"*1*", b"COUNT", b"50", b"TYPE", b"string"]))
        db = b"%d" % rng.choice((0, 0, 1, 2, 3))
        for connection in self.inspector:
            connection.exchange(encode([b"SELECT", db]), 1)
            cursor, names = b"0", set()
            while True:
                reply = parse(connection.exchange(encode([b"SCAN", cursor] + options), 1)[0])
                if not isinstance(reply, list):
                    raise Mismatch("SCAN %s: %s says %s" % (shown_command(options), connection.server.name, reply))
                cursor = reply[1][1:]
                names.update(k[1:] for k in reply[2][1:])
                if cursor == b"0":
                    break
            found.append(names)
        if found[0] != found[1]:
            raise Mismatch("SCAN %s in database %s: only redis has %s, only tiercel has %s" % (
                shown_command(options), db.decode(), sorted(found[0] - found[1])[:5], sorted(found[1] - found[0])[:5]))
        self.checked += 1

    def short_expiries(self):
        """Keys that expire soon are there before and gone after."""
        keys = [self.grammar.key("sil") for _ in range(6)]
        make = [[b"SELECT", b"0"]] + [c for k in keys for c in (
            [b"DEL", k], [self.rng.choice((b"RPUSH", b"APPEND")), k, self.grammar.small()], [b"PEXPIRE", k, b"150"])]
        make += [[b"PSETEX", keys[0], b"150", b"v"], [b"SET", keys[1], b"v", b"PX", b"150"]]
        self.log.extend((-1, c) for c in make)
        self.check("short expiries", make)
        time.sleep(0.3)
        self.check("after short expiries", [c for k in keys for c in ([b"TTL", k], [b"EXISTS", k], [b"TYPE", k])])

    # -- all of it

    def run(self, commands):
        next_check = self.check_every
        exchanges = 0
        while self.sent < commands:
            self.run_pipeline()
            exchanges += 1
            if exchanges % EVENTS_EVERY == 0:
                self.compare_events()
            if self.sent >= next_check or self.sent >= commands:
                next_check += self.check_every
                self.short_expiries()
                total = self.compare_all()
                self.sorted = set(self.still_sorted)
                self.compare_events()
                if not self.local:
                    self.events.toggle()
                if self.verbose:
                    print("%6d commands, %5d keys and %6d events equal, redis uses %s, slowest exchange %d ms" % (
                        self.sent, total, self.events.compared, self.redis_memory(), self.slowest_ms), flush=True)
                    if self.behind:
                        print("    of copies: " + ", ".join("%s %d" % kv for kv in self.copies().items()), flush=True)

    def copies(self):
        """What the sidecar has answered from copies, and what it had to do for them."""
        info = self.inspector[1].exchange(encode([b"INFO", b"tiers"]), 1)[0]
        return {name: int(re.search(b"%s:(\\d+)" % name.encode(), info).group(1)) for name in (
            "tier_memory_hits", "tier_disk_hits", "tier_negative_hits", "tier_demotions", "tier_upstream_requests")}

    def redis_memory(self):
        info = self.inspector[0].exchange(encode([b"INFO", b"memory"]), 1)[0]
        return re.search(rb"used_memory_human:(\S+)", info).group(1).decode()

    def restart_and_compare(self, kill=False):
        for connection in self.settings:  # what a start sets, for values that are restored then
            for name, value in sets_hashes.LIMITS:
                connection.exchange(encode([b"CONFIG", b"SET", name, value]), 1)
        self.disconnect()
        if kill:
            self.servers[1].kill()
        else:
            self.servers[1].stop()
        self.servers[1].start()
        if self.behind:
            await_upstream(self.servers[1])
        self.connect()
        self.compare_all()


def await_upstream(sidecar):
    """Until it has found its upstream."""
    c = Connection(sidecar, 2)
    deadline = time.monotonic() + 30
    while b"tier_upstream_state:up" not in c.exchange(encode([b"INFO", b"tiers"]), 1)[0]:
        if time.monotonic() > deadline:
            raise Gone("%s does not find its upstream" % sidecar.name)
        time.sleep(0.02)
    c.close()


def run(commands, seed, binary=None, maxmemory="8mb", threads=2, restart=True, redis="redis-server", out=sys.stdout,
        verbose=False, appendonly=False, sidecar=False, local=False):
    """Returns how many replies and values were equal, and the text of the mismatch or None.
    appendonly: with appendfsync always, and kill -9 in place of the orderly restart. sidecar: with a redis-server behind it;
    local: with one that gets no keys."""
    left = redis_server(redis)
    behind = redis_server(redis) if sidecar or local else None
    right = tiercel_server(binary, maxmemory, threads, appendonly, behind, local) if binary else redis_server(redis)
    test = None
    try:
        left.start()
        if behind:
            behind.start()
        right.start()
        if behind:
            await_upstream(right)
        test = Differential(left, right, seed, verbose=verbose, behind=behind, local=local)
        test.run(commands)
        if restart and binary:
            test.restart_and_compare(kill=appendonly)
        if local:
            c = Connection(behind, 2)
            if c.exchange(encode([b"INFO", b"keyspace"]), 1)[0].count(b"keys="):
                raise Mismatch("keys have come to the upstream")
            c.close()
        test.disconnect()
        right.stop()
        left.stop()
        if behind:
            behind.stop()
    except (Mismatch, Gone) as e:
        dead = right.process is not None and right.process.poll() is not None
        text = "seed %d, after %d commands: %s" % (seed, test.sent if test else 0, e)
        if dead:
            text += "\n%s ended with %s\n%s" % (right.name, right.process.returncode, right.log_tail())
        return test.compared + test.checked if test else 0, text
    finally:
        left.remove()
        right.remove()
        if behind:
            behind.remove()
    return test.compared + test.checked, None


def main():
    parser = argparse.ArgumentParser(description="Compares Tiercel with redis-server, reply by reply.")
    parser.add_argument("--commands", type=int, default=30000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--maxmemory", default="8mb")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--appendonly", action="store_true", help="appendfsync always, and kill -9 at the end")
    parser.add_argument("--no-restart", action="store_true", help="no comparison after a stop and start")
    parser.add_argument("--redis", default="redis-server", metavar="PATH")
    parser.add_argument("--sidecar", action="store_true", help="with a redis-server behind Tiercel")
    parser.add_argument("--local", action="store_true", help="with a redis-server behind Tiercel, and all keys local")
    parser.add_argument("--against-redis", action="store_true", help="two redis-servers: tests the test")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big")
    root = HERE.parent.parent
    binary = None if args.against_redis else os.environ.get("TIERCEL_BIN", str(root / "build" / "tiercel"))
    print("seed %d" % seed, flush=True)
    begin = time.monotonic()
    passed, failure = run(args.commands, seed, binary, args.maxmemory, args.threads, not args.no_restart, args.redis,
                          verbose=args.verbose, appendonly=args.appendonly, sidecar=args.sidecar, local=args.local)
    if failure:
        print(failure)
    print("%.1f s" % (time.monotonic() - begin))
    print("%d passed, %d failed" % (passed, 1 if failure else 0))
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
