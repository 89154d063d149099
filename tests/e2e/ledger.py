"""What clients wrote to a server, and what may be there after it was killed.

Each Writer is one connection with keys of its own, and keeps a Ledger: per key the states that it went through, per
request when it was sent and answered. All values tell whose they are, which, how long, and their checksum. Every
reply is checked while it runs; so are the values that are left at the end (Ledger.settle()).
"""
import random
import socket
import threading
import time
import zlib

from harness import scaled
from rawconn import encode

POOL = random.Random(1).randbytes(1 << 20)
LONG_MS = 5000000
CLOCK_MS = scaled(50)  # a server may take the time of its loop's turn
EARLY_MS = 1000  # without a journal, what has less to live is not worth a write, and may be dropped
JOURNAL = ("always", "everysec")  # modes with one, from the start
ORDERED = (*JOURNAL, "switch", "stop")  # what is there is what was answered, in order
STRINGS, OTHER_DB, COUNTERS, APPENDED, LISTS = 150, 40, 40, 20, 20
EXPIRING, MOVED, GROUPS, PAIRS, FLUSHED = 60, 20, 15, 15, 40


class Wrong(AssertionError):
    pass


def blob(label, seq, size):
    """A value of about that size that tells whose it is; every second one does not compress."""
    head = b"%s#%d#%d#" % (label, seq, size)
    n = max(0, size - len(head) - 8)
    at = seq * 7919 % (len(POOL) - n)
    body = POOL[at:at + n] if seq & 1 else (b"%08x" % seq * (n // 8 + 1))[:n]
    return head + body + b"%08x" % zlib.crc32(head + body)


def describe(value):
    """A value for a message: whose it is if it tells, and whether it is whole."""
    if isinstance(value, list):
        return "[%s]" % ", ".join(describe(v) for v in value[:5])
    if not isinstance(value, bytes) or len(value) < 20:
        return repr(value)
    whole = b"%08x" % zlib.crc32(value[:-8]) == value[-8:]
    return "%r... (%d bytes, checksum %s)" % (value[:30], len(value), "right" if whole else "wrong")


def pick_size(rng):
    r = rng.random()
    if r < 0.5:
        return rng.randrange(10, 200)
    if r < 0.8:
        return rng.randrange(200, 4200)
    return rng.randrange(4000, 20000) if r < 0.96 else rng.randrange(30000, 200000)


class State:
    """What a key held at one time. parts: None, an int (a counter), or a tuple of (label, seq, size), of which a list
    or a string is made. expiry: None, or [earliest, latest, ttl] in ms of the wall clock; latest None: not answered."""

    __slots__ = ("parts", "is_list", "expiry")

    def __init__(self, parts=None, is_list=False, expiry=None):
        self.parts = parts if isinstance(parts, int) else parts or None
        self.is_list = is_list
        self.expiry = expiry

    def value(self):
        if self.parts is None:
            return None
        if isinstance(self.parts, int):
            return b"%d" % self.parts
        blobs = [blob(*p) for p in self.parts]
        return blobs if self.is_list else b"".join(blobs)

    def __str__(self):
        parts = self.parts if not isinstance(self.parts, tuple) else ["%s#%d#%d" % (p[0].decode(), *p[1:])
                                                                        for p in self.parts]
        return "%s%s" % (parts, " until %s" % self.expiry if self.expiry else "")

    def matches(self, seen, early_ms=0):
        """early_ms: what has only so long to live may be gone."""
        if seen.absent:
            return self.parts is None or (self.expiry is not None and
                                          self.expiry[0] - early_ms <= seen.until + CLOCK_MS)
        if self.parts is None or self.value() != seen.value:
            return False
        if self.expiry is None:
            return seen.pttl is None or seen.pttl == -1
        lo, hi, _ = self.expiry
        if hi is not None and seen.since > hi + CLOCK_MS:
            return False
        return seen.pttl is None or (seen.pttl >= lo - seen.until - CLOCK_MS and
                                     (hi is None or seen.pttl <= hi - seen.since + CLOCK_MS))


class Seen:
    """What a read brought, and between which times (wall clock ms) it ran."""

    __slots__ = ("value", "pttl", "since", "until", "absent")

    def __init__(self, value, pttl, since, until):
        self.value, self.pttl, self.since, self.until = value, pttl, since, until
        self.absent = value is None or value == []

    def __str__(self):
        return "%s, PTTL %s" % (describe(self.value), self.pttl)


class Key:
    def __init__(self, db, name, is_list=False):
        self.db, self.name, self.is_list = db, name, is_list
        self.label = b"%d/%s" % (db, name)
        self.base = self.now = State()
        self.history = []  # (op, state) since the start of the server

    def __str__(self):
        return self.label.decode()


class Op:
    """A request, or a transaction."""

    __slots__ = ("index", "sent", "acked")

    def __init__(self, index):
        self.index, self.sent, self.acked = index, None, None


class Ledger:
    def __init__(self, number, databases=16):
        self.number = number
        self.keys = {}
        self.seq = 0
        self.ops = []
        self.lost = self.kept = 0
        w = b"%d:" % number
        self.strings = self.add(0, b"s" + w, STRINGS)
        self.other = self.add(1, b"s" + w, OTHER_DB)
        self.counters = self.add(0, b"c" + w, COUNTERS)
        self.appended = self.add(0, b"a" + w, APPENDED)
        self.lists = self.add(0, b"l" + w, LISTS, True)
        self.expiring = self.add(0, b"e" + w, EXPIRING)
        self.moved = list(zip(self.add(0, b"v" + w, MOVED), self.add(1, b"v" + w, MOVED)))
        self.groups = [self.add(0, b"m%d-" % i + w, 4) for i in range(GROUPS)]
        self.pairs = [(self.add(0, b"xs%d-" % i + w, 2), self.add(0, b"xc%d-" % i + w, 2),
                       self.add(0, b"xl%d-" % i + w, 1, True)) for i in range(PAIRS)]
        self.flush_db = 2 + number % (databases - 2)
        self.flushed = self.add(self.flush_db, b"f" + w, FLUSHED)

    def add(self, db, prefix, n, is_list=False):
        keys = [Key(db, prefix + b"%d" % i, is_list) for i in range(n)]
        self.keys.update({(k.db, k.name): k for k in keys})
        return keys

    def next(self):
        self.seq += 1
        return self.seq

    # -- after the kill

    def settle(self, seen, mode, killed, killed_wall_ms, saved_at=None, in_order=True):
        """Compares what is there (seen[db, name]) with what may be, and goes on from it. Returns what is wrong.
        killed, saved_at: monotonic times; saved_at: when a SAVE was sent that said OK. in_order: what is there must be
        as at one point of a writer's requests."""
        wrong = []
        kept = -1  # the last request that must be there
        for op in self.ops if mode in ORDERED else ():
            if op.acked is None or (mode == "everysec" and op.acked > killed - 1.5):
                break
            kept = op.index
        spans = []
        for key in self.keys.values():
            for _, state in key.history:
                if state.expiry and state.expiry[1] is None:
                    state.expiry[1] = killed_wall_ms + state.expiry[2]
            got = seen[key.db, key.name]
            found, text = self._judge(key, got, mode, kept, killed, saved_at)
            if text:
                wrong.append(text)
            elif key.history:
                spans.append((key, [(a, b) for a, b, _ in found]))
            if found and key.history:
                self.lost += found[-1][2] is not key.now
                self.kept += found[-1][2] is key.now
            key.base = found[-1][2] if found and not seen[key.db, key.name].absent else State(is_list=key.is_list)
            key.now = key.base
        if mode in ORDERED and not wrong:
            wrong += self._whole(spans) or (self._one_point(spans, kept) if in_order else [])
        for key in self.keys.values():
            key.history = []
        self.ops = []
        return wrong

    def _judge(self, key, got, mode, kept, killed, saved_at):
        """([(from, to, state)]: between which requests it was what it is now, and that state), or what is wrong."""
        steps = [(-1, key.base)] + [(op.index, state) for op, state in key.history]
        ends = [op for op, _ in key.history] + [None]
        found, late = [], []
        early_ms = 0 if mode in JOURNAL else EARLY_MS
        for (start, state), end in zip(steps, ends):
            if state.matches(got, early_ms):
                if mode not in ORDERED:
                    allowed = end is None or end.acked is None or end.acked > max(killed - 0.5, saved_at or 0)
                else:
                    allowed = end is None or end.index > kept
                (found if allowed else late).append((start, end.index if end else len(self.ops), state))
        if found:
            return found, None
        untouched = not key.history or (saved_at is not None and key.history[-1][0].sent < saved_at and
                                        key.history[-1][0].acked is not None and key.history[-1][0].acked < saved_at)
        if mode not in ORDERED and got.absent and not untouched:
            return [(-1, len(self.ops), State())], None
        what = ("lost: nothing is there" if got.absent else
                "an old value is back" if late else "never was so, or too long ago")
        recent = ["#%d%s %s" % (op.index, "" if op.acked is None else ", answered %.3f s before the kill," %
                                (killed - op.acked), state) for op, state in key.history[-4:]]
        return [], "%s: %s (%s)\n    is    %s\n    base  %s\n    then  %s\n    requests up to #%d must be there" % (
            key, what, mode, got, key.base, "\n          ".join(recent) or "nothing", kept)

    def _whole(self, spans):
        """A request or transaction that changed several keys is there, or none of it."""
        with_it, without = {}, {}
        for key, ranges in spans:
            for op, _ in key.history:
                if all(a >= op.index for a, _ in ranges):
                    with_it.setdefault(op.index, key)
                elif all(b <= op.index for _, b in ranges):
                    without.setdefault(op.index, key)
        return ["writer %d: request #%d is there in part: %s has it, %s has not" % (
            self.number, i, with_it[i], without[i]) for i in sorted(set(with_it) & set(without))][:3]

    def _one_point(self, spans, kept):
        """All keys are as they were at one point of the writer's requests."""
        events = {}
        for _, ranges in spans:
            for a, b in ranges:
                a, b = max(a, kept), max(b, kept)
                events[a] = events.get(a, 0) + 1
                events[b] = events.get(b, 0) - 1
        depth = 0
        for at in sorted(events):
            depth += events[at]
            if depth == len(spans):
                return []
        if not spans:
            return []
        first = max(spans, key=lambda s: min(a for a, _ in s[1]))
        last = min(spans, key=lambda s: max(b for _, b in s[1]))
        return ["writer %d: kept out of order\n    %s is as at requests %s\n    %s is as at requests %s, "
                "then came %s" % (self.number, first[0], first[1], last[0], last[1], ", ".join(
                    "#%d %s" % (op.index, state) for op, state in last[0].history if op.index >= last[1][-1][1])[:300])]


def read_reply(file):
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    kind, rest = line[:1], line[1:-2]
    if kind == b":":
        return int(rest)
    if kind == b"$":
        if rest == b"-1":
            return None
        data = file.read(int(rest) + 2)
        if len(data) != int(rest) + 2:
            raise EOFError
        return data[:-2]
    if kind == b"*":
        return [read_reply(file) for _ in range(int(rest))]
    return line[:-2].decode()


class Writer(threading.Thread):
    """One connection that writes and reads until it ends or `stop` is set."""

    def __init__(self, ledger, port, seed, stop, mode, deepest=12):
        super().__init__(daemon=True)
        self.early_ms = 0 if mode in JOURNAL else EARLY_MS
        self.ledger, self.port, self.stop, self.deepest = ledger, port, stop, deepest
        self.rng = random.Random(seed)
        self.db = 0
        self.out = []
        self.expected = []  # (check, op or None), one per reply
        self.problem = None
        self.answered = 0
        self.wall = self.op = None
        kinds = [(self.set, 24), (self.remove, 5), (self.rename, 2), (self.set_other, 6), (self.count, 12),
                 (self.append, 8), (self.push, 8), (self.pop, 6), (self.expiring, 10), (self.move, 3),
                 (self.mset, 4), (self.transaction, 6), (self.flush, 5), (self.read, 26)]
        self.kinds = [k for k, _ in kinds]
        self.weights = [n for _, n in kinds]

    # -- the wire

    def run(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=scaled(30)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sock = sock
                self.file = sock.makefile("rb", 65536)
                while not self.stop.is_set():
                    self.turn()
        except (EOFError, ConnectionError):
            pass  # killed
        except Exception as e:  # shown by the main thread
            self.problem = "writer %d: %s: %s" % (self.ledger.number, type(e).__name__, e)

    def turn(self):
        self.out, self.expected = [], []
        for _ in range(1 if self.rng.random() < 0.4 else self.rng.randrange(1, self.deepest)):
            self.op = None
            self.wall = time.time() * 1000
            self.rng.choices(self.kinds, self.weights)[0]()
        self.sent = time.time() * 1000
        self.sock.sendall(b"".join(self.out))
        for check, op, last in self.expected:
            reply = read_reply(self.file)
            text = check(reply)
            if text:
                raise Wrong(text)
            if op is not None and last:
                op.acked = time.monotonic()
                self.answered += 1

    def put(self, args, want, last=True, read=False):
        """want: the reply, a function that says what is wrong with it, or None: anything but an error."""

        def check(reply, args=args):
            if isinstance(reply, str) and reply[0] == "-" or (want is not None and reply != want):
                return "%s said %s, not %s" % (b" ".join(args[:2]).decode(), describe(reply), describe(want))
            return None

        self.out.append(encode(*args))
        self.expected.append((want if callable(want) else check, None if read else self.op, last))

    def select(self, db):
        if self.db != db:
            self.put((b"SELECT", b"%d" % db), "+OK", read=True)
            self.db = db

    def begin(self, db=0):
        self.select(db)
        self.op = Op(len(self.ledger.ops))
        self.op.sent = time.monotonic()
        self.ledger.ops.append(self.op)

    def change(self, key, state):
        key.now = state
        key.history.append((self.op, state))

    def expiry(self, ttl):
        """An expiry that begins now; its latest time is known with the reply."""
        return [self.wall + ttl, None, ttl]

    def settle_expiry(self, state, want=None):
        def check(reply):
            if isinstance(reply, str) and reply[0] == "-" or (want is not None and reply != want):
                return "an expiry was answered by %s" % describe(reply)
            state.expiry[1] = time.time() * 1000 + state.expiry[2]
            return None

        return check

    def new(self, key, size=None, expiry=None):
        return State(((key.label, self.ledger.next(), size or pick_size(self.rng)),), key.is_list, expiry)

    # -- what it does

    def set(self, keys=None):
        key = self.rng.choice(keys or self.ledger.strings)
        self.begin(key.db)
        state = self.new(key)
        self.put((b"SET", key.name, state.value()), "+OK")
        self.change(key, state)

    def set_other(self):
        if self.rng.random() < 0.2:
            self.remove(self.ledger.other)
        else:
            self.set(self.ledger.other)

    def remove(self, keys=None):
        key = self.rng.choice(keys or self.ledger.strings)
        self.begin(key.db)
        if self.rng.random() < 0.7:
            self.put((b"DEL", key.name), int(key.now.parts is not None))
        else:
            self.put((b"GETDEL", key.name), key.now.value() if key.now.parts else lambda r: r and "GETDEL of nothing")
        self.change(key, State())

    def rename(self):
        a, b = self.rng.sample(self.ledger.strings, 2)
        if a.now.parts is None:
            return
        self.begin()
        if self.rng.random() < 0.5:
            self.put((b"RENAME", a.name, b.name), "+OK")
            self.change(b, a.now)
            self.change(a, State())
        else:
            self.put((b"COPY", a.name, b.name, b"REPLACE"), 1)
            self.change(b, a.now)

    def count(self):
        key = self.rng.choice(self.ledger.counters)
        self.begin()
        if self.rng.random() < 0.03:
            self.put((b"DEL", key.name), int(key.now.parts is not None))
            self.change(key, State())
            return
        by = self.rng.randrange(1, 1000)
        state = State((key.now.parts or 0) + by)
        self.put((b"INCRBY", key.name, b"%d" % by), state.parts)
        self.change(key, state)

    def append(self):
        key = self.rng.choice(self.ledger.appended)
        self.begin()
        size = self.rng.randrange(30, 1500)
        part = (key.label, self.ledger.next(), size)
        if key.now.parts and len(key.now.parts) > 30:
            self.put((b"SET", key.name, blob(*part)), "+OK")
            self.change(key, State((part,)))
            return
        state = State((key.now.parts or ()) + (part,))
        self.put((b"APPEND", key.name, blob(*part)), len(state.value()))
        self.change(key, state)

    def push(self):
        key = self.rng.choice(self.ledger.lists)
        parts = [(key.label, self.ledger.next(), self.rng.randrange(20, 400))
                 for _ in range(self.rng.randrange(1, 6))]
        self.begin()
        if len(key.now.parts or ()) > 60:
            self.put((b"DEL", key.name), 1)
            self.change(key, State(is_list=True))
            return
        left = self.rng.random() < 0.3
        if left:
            state = State(tuple(reversed(parts)) + (key.now.parts or ()), True)
        else:
            state = State((key.now.parts or ()) + tuple(parts), True)
        self.put((b"LPUSH" if left else b"RPUSH", key.name, *[blob(*p) for p in parts]), len(state.parts))
        self.change(key, state)

    def pop(self):
        key = self.rng.choice(self.ledger.lists)
        if key.now.parts is None:
            return
        self.begin()
        if self.rng.random() < 0.7:
            self.put((b"LPOP", key.name), blob(*key.now.parts[0]))
            self.change(key, State(key.now.parts[1:], True))
        else:
            self.put((b"RPOP", key.name), blob(*key.now.parts[-1]))
            self.change(key, State(key.now.parts[:-1], True))

    def expiring(self):
        key = self.rng.choice(self.ledger.expiring)
        now = key.now
        ttl = LONG_MS if self.rng.random() < 0.5 else self.rng.randrange(30, 2500)
        stays = now.parts is not None and (now.expiry is None or now.expiry[2] == LONG_MS)
        r = self.rng.random()
        self.begin()
        if r < 0.5 or not stays:
            state = self.new(key, expiry=self.expiry(ttl))
            value = state.value()
            ms = b"%d" % ttl
            command = self.rng.choice(((b"SET", key.name, value, b"PX", ms), (b"PSETEX", key.name, ms, value)))
            self.put(command, self.settle_expiry(state, "+OK"))
        elif r < 0.75:
            state = State(now.parts, expiry=self.expiry(ttl))
            self.put((b"PEXPIRE", key.name, b"%d" % ttl), self.settle_expiry(state, 1))
        elif r < 0.85:
            state = State(now.parts)
            self.put((b"PERSIST", key.name), int(now.expiry is not None))
        else:
            state = self.new(key) if r < 0.95 else State()
            self.put((b"SET", key.name, state.value()) if state.parts else (b"DEL", key.name),
                     "+OK" if state.parts else 1)
        self.change(key, state)

    def move(self):
        here, there = self.rng.choice(self.ledger.moved)
        if self.rng.random() < 0.5:
            here, there = there, here
        if here.now.parts is None:
            self.set([here])
            return
        self.begin(here.db)
        gone = there.now.parts is None
        self.put((b"MOVE", here.name, b"%d" % there.db), int(gone))
        if gone:
            self.change(there, here.now)
            self.change(here, State())

    def mset(self):
        group = self.rng.choice(self.ledger.groups)
        self.begin()
        if self.rng.random() < 0.2:
            self.put((b"DEL", *[k.name for k in group]), sum(k.now.parts is not None for k in group))
            for k in group:
                self.change(k, State())
            return
        args = [b"MSET"]
        for k in group:
            state = self.new(k)
            args += [k.name, state.value()]
            self.change(k, state)
        self.put(args, "+OK")

    def transaction(self):
        (a, b), (c, d), (e,) = self.rng.choice(self.ledger.pairs)
        self.begin()
        self.put((b"MULTI",), "+OK", last=False)
        kind = self.rng.randrange(4)
        if kind == 0:
            states = [self.new(a), self.new(b)]
            commands = [(b"SET", k.name, s.value()) for k, s in zip((a, b), states)]
            changes, want = list(zip((a, b), states)), ["+OK", "+OK"]
        elif kind == 1:
            n = self.rng.randrange(1, 100)
            states = [State((c.now.parts or 0) + n), State((d.now.parts or 0) - n)]
            commands = [(b"INCRBY", c.name, b"%d" % n), (b"DECRBY", d.name, b"%d" % n)]
            changes, want = list(zip((c, d), states)), [s.parts for s in states]
        elif kind == 2:
            part = (e.label, self.ledger.next(), self.rng.randrange(20, 3000))
            state = State(((e.now.parts or ()) + (part,)), True)
            commands = [(b"RPUSH", e.name, blob(*part)), (b"DEL", a.name)]
            changes, want = [(e, state), (a, State())], [len(state.parts), int(a.now.parts is not None)]
        else:
            state = self.new(b)
            commands = [(b"DEL", e.name), (b"SET", b.name, state.value())]
            changes, want = [(e, State(is_list=True)), (b, state)], [int(e.now.parts is not None), "+OK"]
        for command in commands:
            self.put(command, "+QUEUED", last=False)
        if self.rng.random() < 0.1:
            self.put((b"DISCARD",), "+OK")
            return
        self.put((b"EXEC",), want)
        for key, state in changes:
            self.change(key, state)

    def flush(self):
        if self.rng.random() < 0.95:
            self.set(self.ledger.flushed)
            return
        self.begin(self.ledger.flush_db)
        self.put((b"FLUSHDB",), "+OK")
        for key in self.ledger.flushed:
            self.change(key, State())

    def read(self):
        key = self.rng.choice(list(self.ledger.keys.values()))
        state = key.now
        self.select(key.db)

        def check(reply):
            seen = Seen(reply, None, self.sent, time.time() * 1000)
            return None if state.matches(seen, self.early_ms) else "%s is %s, not %s" % (key, describe(reply), state)

        self.put((b"LRANGE", key.name, b"0", b"-1") if key.is_list else (b"GET", key.name), check, read=True)


def observe(port, ledgers):
    """What is there now: {(db, name): Seen}, and what is wrong with DBSIZE, KEYS and SCAN."""
    wrong = []
    seen = {}
    keys = [k for ledger in ledgers for k in ledger.keys.values()]
    with socket.create_connection(("127.0.0.1", port), timeout=scaled(30)) as sock:
        file = sock.makefile("rb", 65536)

        def ask(commands):
            sock.sendall(b"".join(encode(*c) for c in commands))
            return [read_reply(file) for _ in commands]

        for db in sorted({k.db for k in keys}):
            mine = [k for k in keys if k.db == db]
            ask([(b"SELECT", b"%d" % db)])
            size, names = ask([(b"DBSIZE",), (b"KEYS", b"*")])
            scanned, cursor = set(), b"0"
            while True:
                cursor, some = ask([(b"SCAN", cursor, b"COUNT", b"500")])[0]
                scanned.update(some)
                if cursor == b"0":
                    break
            for at in range(0, len(mine), 50):
                some = mine[at:at + 50]
                since = time.time() * 1000
                replies = ask([c for k in some for c in (
                    (b"PTTL", k.name),
                    (b"LRANGE", k.name, b"0", b"-1") if k.is_list else (b"GET", k.name))])
                until = time.time() * 1000
                for k, pttl, value in zip(some, replies[::2], replies[1::2]):
                    seen[k.db, k.name] = Seen(value, pttl, since, until)
            present = {k.name for k in mine if not seen[db, k.name].absent}
            sure = {n for n in present if seen[db, n].pttl == -1 or seen[db, n].pttl > 10000}
            for what, found in (("KEYS", names), ("SCAN", scanned)):
                if len(found) != len(set(found)):
                    wrong.append("%s in database %d names keys twice" % (what, db))
                extra, missing = set(found) - present, sure - set(found)
                extra = {n for n in extra if not n.startswith(b"e")}  # may have expired since
                if extra or missing:
                    wrong.append("%s in database %d: %s are not there, %s are missing" % (
                        what, db, sorted(extra)[:5], sorted(missing)[:5]))
            unsure = sum(k.name.startswith(b"e") for k in mine)
            if not len(sure) <= size <= len(present) + unsure:
                wrong.append("DBSIZE of database %d says %d of %d to %d keys" % (
                    db, size, len(sure), len(present) + unsure))
    return seen, wrong
