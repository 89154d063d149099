"""A load of many connections that behave badly, from one process, with plain sockets.

    load = Load(server.port, connections=300, seed=1, mode="standalone")
    load.prepare()                        # the keys whose values are checked
    load.run(20, [(5, up.kill9), (10, up.start)])
    load.finish()                         # takes the rest of the replies, closes

Every reply must be well-formed, of a kind that its command has, and in its place: ECHO with a number of its own
is strewn among the commands. Keys `w:*` and `big:*` never change, so what is read of them is known.
"""
import collections
import errno
import heapq
import random
import resource
import selectors
import socket
import struct
import time

from harness import scaled
from rawconn import RawConn, encode, parse

WARM = 200   # keys w:0...
HOT = 50     # of them asked for all the time
BIG = 10     # keys big:0...
BIG_SIZE = 200000
STRINGS = 3000
LISTS = 40
COUNTERS = 200
CHANNELS = 20
SPARE_DB = 9  # FLUSHDB and SWAPDB happen there

# What a reply may begin with; RESP3 has more kinds.
STATUS, INT, BULK, ARRAY = b"+", b":", b"$_=", b"*_%~"
ANY = b"+:-$_=*%~,#("
NONE = None  # no reply

USUAL_ERRORS = (b"-ERR no such key", b"-ERR source and destination objects are the same")
UPSTREAM_ERRORS = (b"-UPSTREAM", b"-LOADING", b"-EXECABORT", b"-ERR a subscribed connection cannot", *USUAL_ERRORS)
STANDALONE_ERRORS = (b"-ERR WARM MATCH", *USUAL_ERRORS)


class Wrong(AssertionError):
    pass


def raise_fd_limit(want):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(want, hard), hard))


def reply_end(buf, at):
    """Where the reply that begins at `at` ends, -1 while it is not all there."""
    todo = 1
    while todo:
        nl = buf.find(b"\r\n", at)
        if nl < 0:
            return -1
        kind = buf[at]
        todo -= 1
        if kind in b"+-:_,#(":
            at = nl + 2
        elif kind in b"$=!":
            n = int(buf[at + 1:nl])
            at = nl + 2
            if n >= 0:
                at += n + 2
                if at > len(buf):
                    return -1
                if buf[at - 2:at] != b"\r\n":
                    raise Wrong("a bulk string without its end: %r" % bytes(buf[nl - 20:nl + 20]))
        elif kind in b"*~>":
            todo += max(int(buf[at + 1:nl]), 0)
            at = nl + 2
        elif kind in b"%":
            todo += 2 * int(buf[at + 1:nl])
            at = nl + 2
        else:
            raise Wrong("not RESP: %r" % bytes(buf[at:at + 80]))
    return at


class Conn:
    """One client. Its role decides what it sends and how it reads."""

    def __init__(self, load, role):
        self.load = load
        self.role = role
        self.rng = load.rng
        self.out = bytearray()
        self.held = b""          # the second half of a request that waits
        self.buf = bytearray()
        self.expects = collections.deque()
        self.sent_at = 0
        self.id = None
        self.may_die = role in ("junk", "killer")
        self.may_close = False
        self.slow = role == "slow"
        self.db = SPARE_DB if role == "mixed" and self.rng.random() < 0.15 else 0
        self.resp3 = role == "mixed" and self.rng.random() < 0.2
        self.subscribed = False
        self.interest = 0
        self.sock = socket.socket()
        self.sock.setblocking(False)
        if self.slow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", load.port))
        self.first = True
        self.open = True
        self.last = []

    # -- sending

    def put(self, args, kinds, check=None):
        self.out += encode(*args)
        if kinds is not NONE:
            self.expects.append((kinds, check, args))

    def watch(self):
        want = 0
        if not self.slow:
            want |= selectors.EVENT_READ
        if self.out:
            want |= selectors.EVENT_WRITE
        if want == self.interest:
            return
        sel = self.load.sel
        if not want:
            sel.unregister(self.sock)
        elif not self.interest:
            sel.register(self.sock, want, self)
        else:
            sel.modify(self.sock, want, self)
        self.interest = want

    def write(self):
        try:
            while self.out:
                n = self.sock.send(self.out[:262144])
                self.load.bytes_out += n
                del self.out[:n]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            self.lost(e)
            return
        self.watch()

    # -- receiving

    def read(self, most=262144):
        try:
            data = self.sock.recv(most)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self.lost(e)
            return
        if not data:
            self.lost(None)
            return
        self.load.bytes_in += len(data)
        self.buf += data
        at = 0
        while at < len(self.buf):
            end = reply_end(self.buf, at)
            if end < 0:
                break
            self.reply(bytes(self.buf[at:end]))
            if not self.open:
                return
            at = end
        del self.buf[:at]
        if not self.expects and not self.out and not self.held:
            self.load.idle(self)

    def reply(self, text):
        load = self.load
        load.replies += 1
        if text[0] == 62 or (self.role == "sub" and text[0] == 42):
            load.pushes += 1
            return
        if not self.expects:
            if self.may_die or (self.role == "sub" and text.startswith(load.tolerated)):
                return
            raise Wrong("%s: a reply to nothing: %r after %r" % (self.role, text[:200], self.last))
        kinds, check, args = self.expects.popleft()
        self.sent_at = time.monotonic()
        self.may_close |= text.startswith(b"-UPSTREAM")  # in a transaction that is what follows
        if text[0] == 45 and b"-" not in kinds:
            load.errors[text.split(b" ", 1)[0]] += 1
            if not text.startswith(load.tolerated):
                raise Wrong("%s: %s said %r" % (self.role, shown(args), text[:300]))
            return
        if text[0] not in kinds:
            raise Wrong("%s: %s got %r; next are %s" % (self.role, shown(args), text[:200],
                                                        [shown(e[2]) for e in list(self.expects)[:3]]))
        if check:
            check(text)

    # -- the end

    def close(self, reset=False):
        if not self.open:
            return
        self.open = False
        if self.interest:
            self.load.sel.unregister(self.sock)
            self.interest = 0
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def lost(self, why):
        self.close()
        if self.load.upstream:  # a transaction whose upstream went; a reset can outrun the error that says so
            self.may_close |= any(args[0] in (b"WATCH", b"MULTI") for _, _, args in self.expects)
            self.may_close |= self.subscribed
        if not self.may_die and not self.may_close and not self.load.stopping:
            raise Wrong("%s: the server closed the connection (%s), waiting for %s, %d bytes unread: %r" % (
                self.role, why, [shown(e[2]) for e in list(self.expects)[:3]], len(self.buf), bytes(self.buf[:100])))
        self.load.replace(self)


def shown(args):
    return " ".join(repr(a) if len(str(a)) <= 40 else "<%d>" % len(a) for a in args)


class Load:
    def __init__(self, port, connections, seed, upstream=False, flushes=True):
        raise_fd_limit(connections + 2000)
        self.port = port
        self.rng = random.Random(seed)
        self.upstream = upstream
        self.flushes = flushes   # FLUSHDB, SWAPDB: they drop every copy of an upstream's keys
        self.tolerated = UPSTREAM_ERRORS if upstream else STANDALONE_ERRORS
        self.sel = selectors.DefaultSelector()
        self.timers = []
        self.count = 0
        self.replies = self.pushes = self.bytes_in = self.bytes_out = self.lost_conns = self.checked = 0
        self.errors = collections.Counter()
        self.stopping = False
        self.paused = False
        self.memory_limit = None
        self.memory_most = 0
        self.away = False        # the upstream is: hot keys are still served
        self.hot_while_away = 0
        self.noise = self.rng.randbytes(BIG_SIZE)
        self.conns = set()
        self.connections = connections
        self.warm = {b"w:%d" % i: (b"%d:" % i) + self.value(self.rng.choice((10, 100, 900, 2000))) for i in range(WARM)}
        self.warm.update({b"big:%d" % i: (b"%d:" % i) + self.noise[i:] for i in range(BIG)})
        self.names = sorted(self.warm)
        self.hot = [b"w:%d" % i for i in range(HOT)]

    def value(self, size):
        start = self.rng.randrange(len(self.noise) - size + 1)
        if self.rng.random() < 0.3:
            return (b"%d compressible " % start * (size // 8 + 1))[:size]
        return self.noise[start:start + size]

    def size(self):
        r = self.rng.random()
        if r < 0.7:
            return self.rng.randint(1, 100)
        if r < 0.92:
            return self.rng.randint(100, 2000)
        return self.rng.randint(2000, 20000) if r < 0.985 else self.rng.randint(20000, BIG_SIZE)

    def prepare(self, port=None):
        with RawConn(port or self.port, timeout=scaled(30)) as c:
            for name, value in self.warm.items():
                assert c.call("SET", name, value) == b"+OK\r\n"

    # -- what is checked

    def is_value(self, name):
        want = self.warm[name]

        def check(text):
            self.checked += 1
            if text != b"$%d\r\n%s\r\n" % (len(want), want):
                raise Wrong("GET %r: %r..., not %r..." % (name, text[:80], want[:60]))
        return check

    def are_values(self, names):
        want = b"*%d\r\n" % len(names) + b"".join(b"$%d\r\n%s\r\n" % (len(self.warm[n]), self.warm[n]) for n in names)

        def check(text):
            self.checked += 1
            if text != want:
                raise Wrong("MGET of %d keys: %r..., not %r..." % (len(names), text[:80], want[:60]))
        return check

    def echo(self, conn):
        self.count += 1
        n = b"%d" % self.count

        def check(text):
            if text != b"$%d\r\n%s\r\n" % (len(n), n):
                raise Wrong("%s: ECHO %s in the place of %r" % (conn.role, n, text[:100]))
        conn.put((b"ECHO", n), BULK, check)

    # -- the commands

    def mixed(self, c):
        """A pipeline of anything."""
        r = self.rng
        c.last = []
        if c.first:
            c.first = False
            if c.resp3:
                c.put((b"HELLO", b"3"), ARRAY)
            if c.db:
                c.put((b"SELECT", b"%d" % c.db), STATUS)
            if r.random() < 0.3:
                c.put((b"CLIENT", b"ID"), INT, lambda text: setattr(c, "id", int(text[1:])))
        depth = r.choice((1, 1, 2, 5, 10, 30)) if r.random() < 0.99 else 300
        for _ in range(depth):
            x = r.random()
            if x < 0.06:
                self.echo(c)
            elif x < 0.9:
                self.data(c)
            elif x < 0.94:
                self.transaction(c)
            elif x < 0.97:
                self.waiting(c)
            elif x < 0.985 and c.resp3:
                self.subscribing(c)
            else:
                self.server(c)
        self.echo(c)

    def string(self):
        return b"s:%d" % int(STRINGS * self.rng.random() ** 2)

    def counter(self):
        return b"c:%d" % self.rng.randrange(COUNTERS)

    def list(self):
        return b"l:%d" % self.rng.randrange(LISTS)

    def data(self, c, plain=True):
        """One command on keys. Without `plain` (in a transaction) the reply is another."""
        r = self.rng
        x = r.random()

        def put(kinds, *args, check=None):
            c.put(args, kinds if plain else STATUS + b"-", check if plain else None)
        if x < 0.25:
            put(BULK, b"GET", self.string())
        elif x < 0.35:
            name = r.choice(self.names if r.random() < 0.1 else self.hot)
            put(BULK, b"GET", name, check=self.is_value(name) if not c.db and not self.upstream else None)
        elif x < 0.55:
            put(STATUS, b"SET", self.string(), self.value(self.size()))
        elif x < 0.60:
            put(STATUS, b"SET", self.string(), self.value(self.size()), b"PX", b"%d" % r.randint(1, 3000))
        elif x < 0.66:
            if r.random() < 0.5:
                put(ARRAY, b"MGET", *[self.string() for _ in range(r.choice((2, 10, 100)))])
            else:
                names = r.sample(self.hot, r.randint(1, 20))
                put(ARRAY, b"MGET", *names,
                    check=self.are_values(names) if not c.db and not self.upstream and not c.resp3 else None)
        elif x < 0.70:
            put(INT, r.choice((b"DEL", b"UNLINK")), *[self.string() for _ in range(r.randint(1, 5))])
        elif x < 0.76:
            put(INT, r.choice((b"INCR", b"DECR")), self.counter())
        elif x < 0.80:
            put(INT, b"EXPIRE", r.choice((self.string, self.counter, self.list))(), b"%d" % r.choice((-1, 1, 5, 1000)))
        elif x < 0.84:
            put(INT, r.choice((b"LPUSH", b"RPUSH")), self.list(), *[self.value(r.randint(1, 300)) for _ in range(3)])
        elif x < 0.87:
            put(BULK, r.choice((b"LPOP", b"RPOP")), self.list())
        elif x < 0.88:
            put(ARRAY, b"LRANGE", self.list(), b"0", b"20")
        elif x < 0.90:
            put(INT, b"APPEND", b"a:%d" % r.randrange(100), self.value(r.randint(1, 2000)))
        elif x < 0.91:
            put(INT, b"DEL", b"a:%d" % r.randrange(100), self.list())
        elif x < 0.93:
            put(BULK, b"GETDEL", self.string())
        elif x < 0.94:
            put(INT, b"EXISTS", self.string(), self.counter(), self.list())
        elif x < 0.95:
            put(INT, b"PTTL", self.string())
        elif x < 0.96:
            put(STATUS, b"TYPE", self.list())
        elif x < 0.97:
            put(STATUS, b"RENAME", self.string(), self.string())
        elif x < 0.98:
            put(INT, b"COPY", self.string(), self.string(), b"DB", b"%d" % r.choice((0, SPARE_DB)), b"REPLACE")
        elif x < 0.985:
            put(STATUS, b"MSET", *[a for _ in range(5) for a in (self.string(), self.value(self.size()))])
        elif x < 0.99:
            put(INT, b"PUBLISH", b"ch:%d" % r.randrange(CHANNELS), self.value(r.randint(1, 1000)))
        else:
            put(BULK, b"GETRANGE", b"big:%d" % r.randrange(BIG), b"100", b"5000")

    def transaction(self, c):
        r = self.rng
        if r.random() < 0.5:
            c.put((b"WATCH", self.string(), self.counter()), STATUS)
            self.data(c)
        c.put((b"MULTI",), STATUS)
        for _ in range(r.randint(0, 5)):
            self.data(c, plain=False)
        if r.random() < 0.8:
            c.put((b"EXEC",), ARRAY)
        else:
            c.put((b"DISCARD",), STATUS)

    def waiting(self, c):
        lists = [self.list() for _ in range(self.rng.randint(1, 3))]
        c.put((self.rng.choice((b"BLPOP", b"BRPOP")), *lists, self.rng.choice((b"0.01", b"0.05", b"0.3"))), ARRAY)

    def subscribing(self, c):
        """RESP3: all of its replies are pushes."""
        channel = b"ch:%d" % self.rng.randrange(CHANNELS)
        c.subscribed = True
        if self.upstream:
            return  # there a subscribed connection cannot block or open transactions: see sub()
        c.put((self.rng.choice((b"SUBSCRIBE", b"UNSUBSCRIBE")), channel), NONE)

    def server(self, c):
        r = self.rng
        x = r.random()
        if x < 0.15:
            c.put((b"SCAN", b"%d" % r.getrandbits(64), b"COUNT", b"%d" % r.choice((1, 10, 200))), ARRAY)
        elif x < 0.20:
            c.put((b"KEYS", r.choice((b"w:*", b"l:*", b"c:?", b"nothing"))), ARRAY)
        elif x < 0.25:
            c.put((b"DBSIZE",), INT)
        elif x < 0.30:
            c.put((b"RANDOMKEY",), BULK)
        elif x < 0.35:
            c.put((b"INFO", r.choice((b"tiers", b"all", b"memory", b"commandstats"))), BULK)
        elif x < 0.40:
            c.put((b"CLIENT", b"LIST"), BULK)
        elif x < 0.45:
            c.put((b"CLIENT", b"SETNAME", b"name-%d" % r.randrange(100)), STATUS)
        elif x < 0.48:
            c.put((b"CLIENT", b"INFO"), BULK)
        elif x < 0.50:
            c.put((b"CLIENT", b"UNBLOCK", b"%d" % r.randrange(1, 3000)), INT)
        elif x < 0.52:
            c.put((b"CLIENT", b"PAUSE", b"%d" % r.randint(1, 30), r.choice((b"WRITE", b"ALL"))), STATUS)
        elif x < 0.54:
            c.put((b"CLIENT", b"REPLY", b"SKIP"), NONE)
            c.put((b"GET", r.choice(self.hot)), NONE)
        elif x < 0.62:
            limit = self.memory_limit
            name, value = r.choice(((b"maxmemory", b"%d" % (limit // r.choice((1, 2)))),
                                    (b"maxmemory-samples", b"%d" % r.randint(1, 10)),
                                    (b"maxmemory-policy", b"allkeys-" + r.choice((b"lru", b"lfu", b"random"))),
                                    (b"slowlog-log-slower-than", b"%d" % r.choice((0, 100, 10000))),
                                    (b"hz", b"%d" % r.choice((10, 100))),
                                    (b"compression", r.choice((b"no", b"zstd")))))
            if self.upstream and name == b"maxmemory":
                name, value = b"maxmemory-samples", b"5"
            c.put((b"CONFIG", b"SET", name, value), STATUS)
        elif x < 0.65:
            c.put((b"CONFIG", b"GET", b"max*"), ARRAY)
        elif x < 0.68:
            c.put((b"WARM", b"KEYS", *[self.string() for _ in range(30)]), ANY)
        elif x < 0.70:
            c.put((b"WARM", b"KEYS", *[r.choice(self.hot) for _ in range(30)], b"WAIT"), ANY)
        elif x < 0.72:
            c.put((b"WARM", b"MATCH", b"w:*", b"RATE", b"10000"), ANY)
        elif x < 0.74:
            c.put((b"WARM", r.choice((b"STATUS", b"LIST"))), ANY)
        elif x < 0.76:
            c.put((b"WARM", b"CANCEL", b"%d" % r.randrange(1, 50)), ANY)
        elif x < 0.80:
            c.put((b"SLOWLOG", b"GET", b"5"), ARRAY)
        elif x < 0.82:
            c.put((b"SLOWLOG", b"RESET"), STATUS)
        elif x < 0.84:
            c.put((b"LATENCY", b"HISTOGRAM", b"get"), ARRAY)
        elif x < 0.86:
            c.put((b"MEMORY", b"STATS"), ARRAY)
        elif x < 0.88:
            c.put((b"MEMORY", b"USAGE", self.string()), INT + BULK)
        elif x < 0.90:
            c.put((b"OBJECT", b"ENCODING", self.string()), BULK)
        elif x < 0.92:
            c.put((b"PUBSUB", r.choice((b"CHANNELS", b"NUMSUB"))), ARRAY)
        elif x < 0.94:
            c.put((b"COMMAND", b"COUNT"), INT)
        elif x < 0.96 and self.flushes and c.db:
            c.put((b"FLUSHDB", r.choice((b"SYNC", b"ASYNC"))), STATUS)
        elif x < 0.98 and self.flushes:
            c.put((b"SWAPDB", b"8", b"%d" % SPARE_DB), STATUS)
        else:
            c.put((b"CONFIG", b"RESETSTAT"), STATUS)

    def killer(self, c):
        victims = [v for v in self.conns if v.id and v.open]
        if victims and self.rng.random() < 0.7:
            v = self.rng.choice(victims)
            v.may_die = True
            c.put((b"CLIENT", b"KILL", b"ID", b"%d" % v.id), INT)
        else:
            c.put((b"CLIENT", b"KILL", b"TYPE", b"pubsub", b"ID", b"%d" % 1), INT)
        self.echo(c)

    def sub(self, c):
        r = self.rng
        c.subscribed = True
        for _ in range(r.randint(1, 4)):
            if r.random() < 0.6:
                c.put((b"SUBSCRIBE", *[b"ch:%d" % r.randrange(CHANNELS) for _ in range(3)]), NONE)
            elif r.random() < 0.5:
                c.put((b"PSUBSCRIBE", b"ch:%d*" % r.randrange(3)), NONE)
            else:
                c.put((b"UNSUBSCRIBE", b"ch:%d" % r.randrange(CHANNELS)), NONE)

    def hot_reader(self, c):
        """Keys that are cached: they must come whether the upstream is there or not."""
        away = self.away
        for name in self.rng.sample(self.hot, 5):
            check = self.is_value(name)

            def counted(text, check=check):
                check(text)
                self.hot_while_away += away and self.away
            c.put((b"GET", name), BULK + b"-", counted)
        self.echo(c)

    def slow_reader(self, c):
        for _ in range(self.rng.randint(1, 8)):
            name = b"big:%d" % self.rng.randrange(BIG)
            c.put((b"GET", name), BULK, self.is_value(name) if not self.upstream else None)
        self.echo(c)

    def junk(self, c):
        r = self.rng
        c.out += r.choice((b"*1\r\n+x\r\n", b"*-5\r\nPING\r\n", b"*2\r\n$3\r\nGET\r\n$-9\r\n", b"PING\r\nECHO x\r\n",
                           b"*3000000\r\n", b"\r\n\r\n\r\n", b"GET '\r\n", self.noise[:r.randint(1, 200)],
                           b"*1\r\n$600000000\r\n"))

    def monitor(self, c):
        def check(text):
            used = int(text.split(b"tier_memory_bytes:", 1)[1].split(b"\r\n", 1)[0])
            self.memory_most = max(self.memory_most, used)
        c.put((b"INFO", b"tiers"), BULK, check)

    # -- the life of connections

    def roles(self):
        n = self.connections
        many = {"sub": n // 20, "slow": n // 30, "killer": max(1, n // 150), "junk": n // 50, "hot": max(2, n // 50),
                "monitor": 1}
        many["mixed"] = n - sum(many.values())
        return [role for role, k in many.items() for _ in range(k)]

    def make(self, role):
        c = Conn(self, role)
        self.conns.add(c)
        self.at(time.monotonic() + self.rng.random() * 0.2, c, "act")
        return c

    def replace(self, c):
        self.conns.discard(c)
        self.lost_conns += 1
        if not self.stopping:
            self.make(c.role)

    def at(self, when, c, what):
        self.count += 1
        heapq.heappush(self.timers, (when, self.count, c, what))

    def idle(self, c):
        """All replies came: think, then go on."""
        pause = {"killer": 0.3, "junk": 0.2, "monitor": 0.1, "hot": 0.02, "sub": 0.3}.get(c.role, 0.05)
        if not self.paused and c.role != "slow":
            self.at(time.monotonic() + self.rng.random() * 2 * pause, c, "act")

    def act(self, c):
        if self.paused or c.expects or c.out or c.held:
            return
        getattr(self, {"hot": "hot_reader", "slow": "slow_reader"}.get(c.role, c.role))(c)
        c.sent_at = time.monotonic()
        r = self.rng.random()
        if c.role == "mixed" and r < 0.10 and len(c.out) > 2:
            cut = self.rng.randrange(1, len(c.out))
            if r < 0.02:        # goes in mid-request
                del c.out[cut:]
                self.at(c.sent_at + self.rng.random() * 0.05, c, "drop")
            elif r < 0.04:      # goes in mid-reply
                self.at(c.sent_at + self.rng.random() * 0.02, c, "drop")
            else:               # sends the rest later
                c.held = bytes(c.out[cut:])
                del c.out[cut:]
                self.at(c.sent_at + self.rng.random() * 0.2, c, "rest")
        elif c.role in ("junk", "sub"):
            self.at(c.sent_at + self.rng.random() * (0.3 if c.role == "junk" else 5), c, "drop")
            if c.role == "sub" and self.rng.random() < 0.7:
                self.at(c.sent_at + self.rng.random(), c, "act")
        elif c.role == "slow":
            self.at(c.sent_at + 0.05, c, "sip")
        c.write()

    def timer(self, c, what, now):
        if not c.open:
            return
        if what == "act":
            self.act(c)
        elif what == "rest":
            c.out += c.held
            c.held = b""
            c.sent_at = now
            c.write()
        elif what == "drop":
            c.close(reset=self.rng.random() < 0.5)
            self.replace(c)
        elif what == "sip":
            c.read(self.rng.choice((1000, 20000, 100000)))
            if c.open and c.expects:
                self.at(now + 0.05, c, "sip")
            elif c.open and not self.paused:
                self.at(now + 0.05, c, "act")

    def turn(self, until):
        now = time.monotonic()
        next_at = min(until, self.timers[0][0] if self.timers else until)
        for key, mask in self.sel.select(max(0, min(next_at - now, 0.05))):
            c = key.data
            if c.open and mask & selectors.EVENT_WRITE:
                c.write()
            if c.open and mask & selectors.EVENT_READ:
                c.read()
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, _, c, what = heapq.heappop(self.timers)
            self.timer(c, what, now)

    def check_stuck(self):
        limit = scaled(30)
        now = time.monotonic()
        for c in self.conns:
            if c.expects and not c.held and c.role not in ("slow", "junk") and now - c.sent_at > limit:
                raise Wrong("%s: no reply to %s for %d s, %d behind it" % (
                    c.role, shown(c.expects[0][2]), now - c.sent_at, len(c.expects) - 1))

    def run(self, seconds, events=()):
        """Goes on for so long; events: (second, function)."""
        begin = time.monotonic()
        events = sorted(events, key=lambda e: e[0])
        self.resume()
        checked = begin
        while time.monotonic() < begin + seconds:
            if events and time.monotonic() >= begin + events[0][0]:
                before = time.monotonic()
                events.pop(0)[1]()
                begin += time.monotonic() - before
            self.turn(min(begin + seconds, begin + events[0][0] if events else begin + seconds))
            if time.monotonic() > checked + 1:
                checked = time.monotonic()
                self.check_stuck()
        for _, f in events:
            f()

    def resume(self):
        """Begins, or goes on after pause()."""
        if self.conns and not self.paused:
            return
        self.paused = False
        for c in list(self.conns):
            self.at(time.monotonic() + self.rng.random() * 0.1, c, "act")
        missing = collections.Counter(self.roles()) - collections.Counter(c.role for c in self.conns)
        for role in missing.elements():
            self.make(role)

    def pause(self, timeout=30):
        """Sends nothing new and takes the replies that are due."""
        self.paused = True
        for c in list(self.conns):
            if c.role in ("junk", "sub"):
                c.close()
                self.conns.discard(c)
        end = time.monotonic() + scaled(timeout)
        while True:
            due = [c for c in self.conns if c.open and (c.expects or c.held or c.out)]
            if not due:
                return
            if time.monotonic() > end:
                c = due[0]
                raise Wrong("%d connections wait for replies: %s for %s" % (
                    len(due), c.role, shown(c.expects[0][2]) if c.expects else "the rest"))
            self.turn(time.monotonic() + 0.05)

    def abandon(self):
        """The server stops now: whatever comes is right."""
        self.stopping = True

    def close(self):
        self.stopping = True
        for c in list(self.conns):
            c.close()
        self.conns.clear()
        self.sel.close()

    def summary(self):
        return "%d replies, %d pushes, %d checked, %d MB in, %d MB out, %d connections lost, errors %s" % (
            self.replies, self.pushes, self.checked, self.bytes_in >> 20, self.bytes_out >> 20, self.lost_conns,
            dict(self.errors))
