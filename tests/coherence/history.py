"""What the upstream did, in its own order: the truth that reads are judged by.

A process (Recorder) follows the upstream as a replica does. So it gets the effects of all that was executed, in the
order of execution: expiry as DEL, SPOP as SREM, a script's writes within MULTI and EXEC. Nothing a client was told
takes part in it; a write of unknown outcome is there, or is not.

When an effect took place lies between two times: the recorder writes the time into a key of its own, again and again,
so what follows such a stamp in the stream is younger (`lo`); and it is older than its arrival here (`hi`).

replay() turns the stream into a Timeline for each key. A value is None (absent) or (type, content):
("s", bytes) ("h", dict) ("l", tuple) ("t", frozenset) ("z", dict of scores) ("x", tuple of entries).
"""
import bisect
import collections
import multiprocessing
import select
import socket
import time

from rawconn import RawConn, encode

STAMP_KEY, STAMP_DB, STAMP_EVERY = b"__stamp", 9, 0.02
MARK_KEY = b"__mark"
SPAWN = multiprocessing.get_context("spawn")  # a fork would hold the sockets of others


# ---- recording

class Recorder:
    """A process that is a replica of the server at `port`. connect() again after each restart of that server."""

    def __init__(self, port):
        self.pipe, end = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_record, args=(port, end), daemon=True)
        self.process.start()
        end.close()

    def _ask(self, what, limit=30):
        self.pipe.send(what)
        if not self.pipe.poll(limit):
            raise AssertionError("the recorder does not answer")
        out = self.pipe.recv()
        if isinstance(out, Exception):
            raise out
        return out

    def connect(self):
        """Everything that is executed from now on will be in the history."""
        self._ask("connect")

    def offset(self):
        """How much of the upstream's stream has arrived, in its master_repl_offset."""
        return self._ask("offset")

    def finish(self):
        """Chunks of (arrival, bytes); None between two lives of the upstream."""
        out = self._ask("finish", 120)
        self.process.join(10)
        return out

    def close(self):
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _follow(port):
    """Connects as a replica; returns (socket, offset) with the snapshot read and dropped."""
    c = RawConn(port)
    c.call("REPLCONF", "listening-port", "1")
    c.call("REPLCONF", "capa", "psync2")
    c.send(encode("PSYNC", "?", "-1"))
    line = c.read_line()
    if not line.startswith(b"+FULLRESYNC"):
        raise AssertionError("the upstream does not take replicas: %r" % line)
    offset = int(line.split()[2])
    while True:
        line = c.read_line().strip(b"\r\n")
        if line.startswith(b"$"):
            break
    c.read_exact(int(line[1:]))
    return c, offset


def _record(port, pipe):
    chunks, replica, stamps, start, got = [], None, None, 0, 0
    due = 0.0
    while True:
        watched = [pipe] + [x.sock for x in (replica, stamps) if x]
        ready = select.select(watched, [], [], STAMP_EVERY / 2)[0]
        try:
            if replica and replica.sock in ready:
                data = replica.sock.recv(1 << 20)
                if data:
                    chunks.append((time.time(), data))
                    got += len(data)
                else:
                    replica.close()
                    replica = None
            if stamps:
                if stamps.sock in ready and not stamps.sock.recv(1 << 16):
                    stamps.close()
                    stamps = None
                elif time.monotonic() >= due:
                    due = time.monotonic() + STAMP_EVERY
                    stamps.sock.send(encode("SET", STAMP_KEY, repr(time.time())))
        except (ConnectionError, socket.timeout, TimeoutError):
            if replica and replica.sock in ready:
                replica.close()
                replica = None
            if stamps:
                stamps.close()
                stamps = None
        if pipe not in ready:
            continue
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            if what == "connect":
                if chunks:
                    chunks.append(None)
                replica, start = _follow(port)
                got = len(replica.buf)
                if got:
                    chunks.append((time.time(), bytes(replica.buf)))
                    replica.buf.clear()
                stamps = RawConn(port)
                stamps.call("SELECT", STAMP_DB)
                pipe.send(None)
            elif what == "offset":
                pipe.send(start + got)
            else:
                pipe.send(chunks)
                return
        except Exception as e:  # pylint: disable=broad-except
            pipe.send(e)


def _commands(chunks):
    """(arrival, arguments) of each command of the stream; (None, None) where a new life of the upstream begins."""
    lives = [[]]
    for c in chunks:
        if c is None:
            lives.append([])
        else:
            lives[-1].append(c)
    for n, life in enumerate(lives):
        if n:
            yield None, None
        data, ends, times, at = b"".join(c[1] for c in life), [], [], 0
        for when, part in life:
            at += len(part)
            ends.append(at)
            times.append(when)
        at = 0
        while at < len(data):
            if data[at:at + 1] == b"\n":  # keeps the connection alive
                at += 1
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            args, count, at = [], int(data[at + 1:end]), end + 2
            for _ in range(count):
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                size = int(data[at + 1:end])
                args.append(data[end + 2:end + 2 + size])
                at = end + 4 + size
            if len(args) < count or at > len(data):
                break  # cut in the middle: it was the last thing that life said
            yield times[bisect.bisect_left(ends, at)], args


# ---- replaying

class Timeline:
    """The versions of one key. Version 0 is its absence at the beginning."""

    def __init__(self):
        self.lo = [0.0]
        self.hi = [0.0]
        self.value = [None]
        self.expire = [None]  # wall time in seconds
        self.first = {}       # an argument -> the first version whose effect had it
        self.removed = {}     # an element -> the version that took it away

    def add(self, lo, hi, value, expire):
        self.lo.append(lo)
        self.hi.append(hi)
        self.value.append(value)
        self.expire.append(expire if value is not None else None)
        return len(self.value) - 1

    def after(self, when):
        """The first version that may be younger than `when`; None: there is none."""
        i = bisect.bisect_left(self.hi, when)
        return i if i < len(self.hi) else None


class _World:
    def __init__(self):
        self.keys = collections.defaultdict(Timeline)
        self.now = {}     # (db, key) -> [value, expire]
        self.stamp = 0.0
        self.marks = {}   # name -> (the state at that moment: key -> value, expire), with its lo and hi

    def get(self, at, kind, empty):
        value = self.now.get(at, (None, None))[0]
        if value is None:
            return empty
        if value[0] != kind:
            raise AssertionError("%s is a %s there, not a %s" % (at, value[0], kind))
        return value[1]

    def put(self, at, kind, content):
        if kind != "s" and kind != "x" and not content:
            self.now.pop(at, None)
        else:
            self.now[at] = [(kind, content), self.now.get(at, (None, None))[1]]


def _zpop(scores, count, last):
    order = sorted(scores, key=lambda m: (scores[m], m), reverse=last)
    return order[:count]


def _apply(w, db, args):
    """Executes one effect. Returns the keys it changed, and {key: elements that went}."""
    name = args[0].upper().decode()
    at = (db, args[1]) if len(args) > 1 else None
    gone = {}

    if name == "SET":
        options = [a.upper() for a in args[3:]]
        expire = None
        if b"PXAT" in options:
            expire = int(args[3 + options.index(b"PXAT") + 1]) / 1000
        elif b"KEEPTTL" in options:
            expire = w.now.get(at, (None, None))[1]
        w.now[at] = [("s", args[2]), expire]
    elif name in ("MSET", "MSETNX"):
        for k, v in zip(args[1::2], args[2::2]):
            w.now[db, k] = [("s", v), None]
        return [(db, k) for k in args[1::2]], gone
    elif name in ("INCR", "DECR", "INCRBY", "DECRBY"):
        by = int(args[2]) if len(args) > 2 else 1
        w.put(at, "s", b"%d" % (int(w.get(at, "s", b"0")) + (by if name[0] == "I" else -by)))
    elif name == "APPEND":
        w.put(at, "s", w.get(at, "s", b"") + args[2])
    elif name in ("DEL", "UNLINK"):
        for k in args[1:]:
            w.now.pop((db, k), None)
        return [(db, k) for k in args[1:]], gone
    elif name == "PEXPIREAT":
        if at in w.now:
            w.now[at] = [w.now[at][0], int(args[2]) / 1000]
    elif name == "PERSIST":
        if at in w.now:
            w.now[at] = [w.now[at][0], None]
    elif name in ("RENAME", "RENAMENX"):
        w.now[db, args[2]] = w.now.pop(at)
        return [at, (db, args[2])], gone
    elif name == "COPY":
        w.now[db, args[2]] = list(w.now[at])
        return [(db, args[2])], gone
    elif name in ("HSET", "HMSET", "HSETNX"):
        w.put(at, "h", {**w.get(at, "h", {}), **dict(zip(args[2::2], args[3::2]))})
    elif name == "HINCRBY":
        h = w.get(at, "h", {})
        w.put(at, "h", {**h, args[2]: b"%d" % (int(h.get(args[2], 0)) + int(args[3]))})
    elif name == "HDEL":
        w.put(at, "h", {f: v for f, v in w.get(at, "h", {}).items() if f not in args[2:]})
    elif name in ("LPUSH", "LPUSHX"):
        w.put(at, "l", tuple(reversed(args[2:])) + w.get(at, "l", ()))
    elif name in ("RPUSH", "RPUSHX"):
        w.put(at, "l", w.get(at, "l", ()) + tuple(args[2:]))
    elif name in ("LPOP", "RPOP"):
        items, n = w.get(at, "l", ()), int(args[2]) if len(args) > 2 else 1
        gone[at] = items[:n] if name == "LPOP" else items[-n:]
        w.put(at, "l", items[n:] if name == "LPOP" else items[:-n])
    elif name in ("LMOVE", "RPOPLPUSH"):
        to = (db, args[2])
        source, sink = (args[3].upper(), args[4].upper()) if name == "LMOVE" else (b"RIGHT", b"LEFT")
        items = w.get(at, "l", ())
        x = items[0] if source == b"LEFT" else items[-1]
        w.put(at, "l", items[1:] if source == b"LEFT" else items[:-1])
        items = w.get(to, "l", ())
        w.put(to, "l", (x,) + items if sink == b"LEFT" else items + (x,))
        gone[at] = (x,)
        return [at, to], gone
    elif name == "LTRIM":
        first, last = int(args[2]), int(args[3])
        items = w.get(at, "l", ())
        w.put(at, "l", items[first:last + 1] if last >= 0 else items[first:len(items) + last + 1])
    elif name == "LSET":
        items = list(w.get(at, "l", ()))
        items[int(args[2])] = args[3]
        w.put(at, "l", tuple(items))
    elif name == "SADD":
        w.put(at, "t", w.get(at, "t", frozenset()) | frozenset(args[2:]))
    elif name == "SREM":
        gone[at] = args[2:]
        w.put(at, "t", w.get(at, "t", frozenset()) - frozenset(args[2:]))
    elif name == "SMOVE":
        to = (db, args[2])
        w.put(at, "t", w.get(at, "t", frozenset()) - {args[3]})
        w.put(to, "t", w.get(to, "t", frozenset()) | {args[3]})
        gone[at] = (args[3],)
        return [at, to], gone
    elif name == "ZADD":
        w.put(at, "z", {**w.get(at, "z", {}), **{m: float(s) for s, m in zip(args[2::2], args[3::2])}})
    elif name == "ZINCRBY":
        z = w.get(at, "z", {})
        w.put(at, "z", {**z, args[3]: z.get(args[3], 0.0) + float(args[2])})
    elif name in ("ZREM", "ZPOPMIN", "ZPOPMAX"):
        z = w.get(at, "z", {})
        out = args[2:] if name == "ZREM" else _zpop(z, int(args[2]) if len(args) > 2 else 1, name == "ZPOPMAX")
        gone[at] = out
        w.put(at, "z", {m: s for m, s in z.items() if m not in out})
    elif name == "XADD":
        rest, most = list(args[2:]), None
        if rest[0].upper() == b"NOMKSTREAM":
            rest.pop(0)
        if rest[0].upper() == b"MAXLEN":
            rest.pop(0)
            if rest[0] in (b"=", b"~"):
                rest.pop(0)
            most = int(rest.pop(0))
            if rest[0].upper() == b"LIMIT":
                del rest[:2]
        entries = w.get(at, "x", ()) + ((rest[0], tuple(rest[1:])),)
        w.put(at, "x", entries if most is None else entries[len(entries) - min(most, len(entries)):])
    elif name == "XDEL":
        w.put(at, "x", tuple(e for e in w.get(at, "x", ()) if e[0] not in args[2:]))
    elif name == "XTRIM":
        entries, most = w.get(at, "x", ()), int(args[4] if args[3] in (b"=", b"~") else args[3])
        w.put(at, "x", entries[len(entries) - min(most, len(entries)):])
    elif name in ("FLUSHDB", "FLUSHALL"):
        keys = [k for k in w.now if k[0] == db or name == "FLUSHALL"]
        for k in keys:
            del w.now[k]
        return keys, gone
    else:
        raise AssertionError("the history has a command that it does not know: %r" % args[:4])
    return [at], gone


def _commit(w, when, batch):
    """A command, or all of a transaction: one new version of each key that it changed."""
    changed, noted, gone = {}, collections.defaultdict(set), collections.defaultdict(list)
    for db, args in batch:
        keys, out = _apply(w, db, args)
        for k in keys:
            changed[k] = True
            noted[k].update(args[2:])
        for k, items in out.items():
            gone[k].extend(items)
    for k in changed:
        value, expire = w.now.get(k, (None, None))
        t = w.keys[k]
        i = t.add(w.stamp, when, value, expire)
        for a in noted[k]:
            t.first.setdefault(a, i)
        for a in gone[k]:
            t.removed.setdefault(a, i)


def replay(chunks):
    """({(db, key): Timeline}, {mark: {(db, key): value}}): see mark()."""
    w = _World()
    db, batch = 0, None
    for when, args in _commands(chunks):
        if args is None:
            db, batch = 0, None
            w.stamp = 0.0 if not w.stamp else w.stamp
            continue
        name = args[0].upper()
        if name == b"SELECT":
            db = int(args[1])
        elif name == b"MULTI":
            batch = []
        elif name == b"EXEC":
            _commit(w, when, batch)
            batch = None
        elif name in (b"PING", b"REPLCONF", b"PUBLISH", b"SPUBLISH"):
            pass
        elif len(args) > 1 and args[1] == STAMP_KEY:
            w.stamp = max(w.stamp, float(args[2]))
        elif len(args) > 1 and args[1] == MARK_KEY:
            # While it was away what expired was not told; who asks finds nothing.
            for k in [k for k, v in w.now.items() if v[1] is not None and v[1] <= w.stamp]:
                del w.now[k]
            w.marks[args[2]] = {k: v[0] for k, v in w.now.items()}
        elif batch is None:
            _commit(w, when, [(db, args)])
        else:
            batch.append((db, args))
    return w.keys, w.marks
