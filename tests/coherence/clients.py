"""The load: clients that write and read, at the upstream and through the sidecars, and note what they saw and when.

Each process runs some threads, each thread is one connection after another. What a client notes:

    ("r", connection, sequence, target, start, end, (db, key), name, what came)
    ("w", connection, sequence, target, start, end, [(db, key), proof...])     an acknowledged write

A proof tells which version of the key the write made: ("has", argument), ("took", element), ("is", value), or ("any",)
where only the time can tell. Errors are counted by their first words; what no fault explains is kept.
"""
import collections
import multiprocessing
import os
import random
import threading
import time

import reads
from rawconn import RawConn, RespError, encode

COUNTS = {"s": 120, "n": 60, "h": 80, "l": 60, "t": 60, "z": 60, "x": 40, "a": 20}  # 500 keys
HOT = 4            # of each kind: half of the operations
DBS = (0, 0, 0, 3)  # of a connection
BALLAST, BALLAST_SIZE = 300, 16000  # what pushes copies out of memory: never written, not judged
MEMBERS = 24       # past this a collection is deleted
SPAWN = multiprocessing.get_context("spawn")  # a fork would hold the sockets of the proxies
HANG = 20          # seconds after which a silent connection is a failure
EXPECTED = ("UPSTREAMDOWN", "UPSTREAMTIMEOUT", "UPSTREAMBUSY", "LOADING", "MASTERDOWN")


def all_keys():
    return [b"%s:%d" % (kind.encode(), i) for kind, n in COUNTS.items() for i in range(n)]


class Skip(Exception):
    """The connection is of no use any more; that happens while faults are injected."""


class Client:
    def __init__(self, number, target, port, seed, shared, options):
        self.number, self.target, self.port = number, target, port
        self.rng = random.Random("%s/%d" % (seed, number))
        self.shared = shared
        self.options = options
        self.ops, self.errors, self.odd = [], collections.Counter(), []
        self.sequence = 0
        self.made = 0
        self.connections = 0
        self.conn = None
        self.writes = 0.75 if target == "up" else 0.3
        self.tokens = 0
        kinds = [k for k, n in COUNTS.items() for _ in range(n)]
        self.kinds = kinds

    # -- connections

    def connect(self):
        self.close()
        while not self.shared.stop.is_set():
            try:
                self.conn = RawConn(self.port, timeout=HANG)
                self.db = self.rng.choice(DBS)
                self.made += 1
                self.name = (self.number, self.made)
                if self.rng.random() < 0.4:
                    reply = self.conn.ask("HELLO", "3")
                    if isinstance(reply, RespError):
                        raise OSError
                if self.db and self.conn.ask("SELECT", self.db) != "OK":
                    raise OSError
                return True
            except (OSError, EOFError):
                self.close()
                time.sleep(0.02)
        return False

    def close(self):
        if self.conn:
            self.conn.close()
            self.conn = None

    def token(self):
        self.tokens += 1
        return b"w%d.%d;" % (self.number, self.tokens)

    def key(self, kind=None):
        kind = kind or self.rng.choice(self.kinds)
        n = COUNTS[kind]
        i = self.rng.randrange(HOT) if self.rng.random() < 0.5 else self.rng.randrange(n)
        return kind, b"%s:%d" % (kind.encode(), i)

    # -- talking

    def ask(self, *commands):
        """Sends them at once. Replies with the time of each."""
        try:
            self.conn.send(b"".join(encode(*c) for c in commands))
            return [(self.conn.read_value(), time.time()) for _ in commands]
        except TimeoutError:
            self.odd.append("no answer within %d s to %r through %s" % (HANG, commands, self.target))
            raise Skip from None
        except (OSError, EOFError):
            self.errors["closed"] += 1
            raise Skip from None

    def bad(self, reply, command):
        """Whether it is an error; counts it."""
        if not isinstance(reply, RespError):
            return False
        word = str(reply).split(" ")[0]
        self.errors[word] += 1
        if word not in EXPECTED:
            self.odd.append("%r answered %s through %s" % (command, reply, self.target))
        return True

    def note_read(self, start, end, key, name, reply, command):
        value = reads.came(name, reply)
        if isinstance(value, RespError):
            self.bad(value, command)
            return
        self.sequence += 1
        self.ops.append(("r", self.name, self.sequence, self.target, start, end, (self.db, key), name, value))

    def note_write(self, start, end, proofs):
        self.sequence += 1
        self.ops.append(("w", self.name, self.sequence, self.target, start, end,
                         [((self.db, p[0]),) + tuple(p[1:]) for p in proofs]))

    # -- reads

    def read_of(self, kind, key):
        x = self.rng.random()
        name = reads.WHOLE[kind] if x < 0.65 else self.rng.choice(reads.PARTS[kind] if x < 0.85 else reads.COMMON)
        return key, name, reads.command(name, key)

    def read(self):
        n = 1 if self.rng.random() < 0.8 else self.rng.randrange(2, 9)
        wanted = [self.read_of(*self.key()) for _ in range(n)]
        if self.rng.random() < 0.2:
            key = b"b:%d" % self.rng.randrange(BALLAST)
            self.ask(("GET", key))
        if n > 1 and self.rng.random() < 0.3:
            keys = [self.key("s")[1] for _ in range(n)]
            start = time.time()
            (reply, end), = self.ask(("MGET", *keys))
            if not self.bad(reply, ("MGET",)):
                for k, v in zip(keys, reply):
                    self.note_read(start, end, k, "GET", v, "MGET")
            return
        start = time.time()
        for (key, name, command), (reply, end) in zip(wanted, self.ask(*[w[2] for w in wanted])):
            self.note_read(start, end, key, name, reply, command)

    # -- writes

    def write(self):
        kind, key = self.key()
        commands, proofs = getattr(self, "write_" + kind)(key)
        start = time.time()
        replies = self.ask(*commands)
        failed = [r for (r, _), c in zip(replies, commands) if self.bad(r, c)]
        if commands[0][0] == "MULTI" and failed:
            raise Skip  # what has become of the rest is not worth finding out
        reply, end = replies[-1]
        done = [] if failed else proofs(reply)
        if done:
            self.note_write(start, end, done)
        if self.rng.random() < 0.5:  # what it wrote itself, at once, and the one it wrote with
            key, name, command = self.read_of(kind, key)
            start = time.time()
            (reply, end), = self.ask(command)
            self.note_read(start, end, key, name, reply, command)

    @staticmethod
    def acked(*proofs):
        """An acknowledged write did this, whatever its reply."""
        return lambda reply: list(proofs)

    @staticmethod
    def counted(*proofs):
        """It did if its reply is not 0 or nil."""
        return lambda reply: list(proofs) if reply not in (0, None, []) else []

    def common(self, kind, key):
        """What works on every type; None: let it be something else."""
        x = self.rng.random()
        if x < 0.06:
            return [("DEL" if x < 0.03 else "UNLINK", key)], self.counted((key, "any"))
        if x < 0.10:
            return [("PEXPIRE", key, self.rng.choice((1, 20, 300, 2000, 20000)))], self.counted((key, "any"))
        if x < 0.12:
            return [("PERSIST", key)], self.counted((key, "any"))
        if x < 0.14:
            other = self.key(kind)[1]
            if other != key:
                return [("COPY", key, other, "REPLACE")], self.counted((other, "any"))
        if x < 0.155:
            mark, other = self.token(), self.key("s")[1]
            if other != key:
                return [("EVAL", "redis.call('SET',KEYS[1],ARGV[1]) redis.call('DEL',KEYS[2]) return 1", 2, other, key,
                         mark)], self.acked((other, "has", mark))
        if x < 0.157 and self.db == 3:
            return [("FLUSHDB",)], self.acked()
        return None

    def set_to(self, key):
        mark = self.token()
        return mark, self.acked((key, "has", mark))

    def write_s(self, key):
        common = self.common("s", key)
        if common:
            return common
        mark, proofs = self.set_to(key)
        other = self.key("s")[1]
        x = self.rng.randrange(13)
        if x < 3:
            return [("SET", key, mark)], proofs
        if x == 3:
            return [("SET", key, mark, "PX", self.rng.choice((20, 200, 1500, 8000)))], proofs
        if x < 6:
            return [("APPEND", key, mark)], lambda reply: [(key, "has", mark)]
        if x == 6:
            return [("GETSET", key, mark)], proofs
        if x == 7:
            return [("GETDEL", key)], self.counted((key, "any"))
        if x == 8:
            return [("SET", key, mark, "NX")], lambda reply: [(key, "has", mark)] if reply == "OK" else []
        if x == 9 and other != key:
            return [("MULTI",), ("SET", key, b"-"), ("APPEND", other, mark), ("SET", key, mark), ("EXEC",)], \
                self.acked((key, "has", mark), (other, "has", mark))
        if x == 10:
            return [("EVAL", "return redis.call('SET',KEYS[1],ARGV[1])", 1, key, mark)], proofs
        if x == 11:  # a key that the script does not declare
            return [("EVAL", "return redis.call('SET',ARGV[2],ARGV[1])", 0, mark, key)], \
                proofs if self.options["undeclared"] else self.acked()
        if other != key:
            return [("MSET", key, mark, other, mark)], self.acked((key, "has", mark), (other, "has", mark))
        return [("SETEX", key, 2, mark)], proofs

    def write_n(self, key):
        common = self.common("n", key) if self.rng.random() < 0.3 else None
        if common and common[0][0][0] in ("DEL", "UNLINK", "PEXPIRE", "PERSIST"):
            return common
        x = self.rng.randrange(5)
        is_value = lambda reply: [(key, "is", b"%d" % (reply if isinstance(reply, int) else reply[-1]))]  # noqa: E731
        if x < 2:
            return [("INCR", key)], is_value
        if x == 2:
            return [("INCRBY", key, self.rng.randrange(1, 50))], is_value
        if x == 3:
            return [("MULTI",), ("INCR", key), ("INCR", key), ("EXEC",)], is_value
        return [("EVAL", "return redis.call('INCR',KEYS[1])", 1, key)], is_value

    def write_h(self, key):
        common = self.common("h", key)
        if common:
            return common
        mark, proofs = self.set_to(key)
        field = "f%d" % self.rng.randrange(MEMBERS)
        x = self.rng.randrange(7)
        if x < 3:
            return [("HSET", key, "f1" if x == 0 else field, mark)], proofs
        if x == 3:
            return [("HSET", key, field, mark, "f2", mark)], proofs
        if x == 4:
            return [("HINCRBY", key, "n%d" % self.rng.randrange(3), 1)], self.acked((key, "any"))
        if x == 5:
            return [("HDEL", key, field)], self.counted((key, "any"))
        return [("EVAL", "redis.call('HSET',ARGV[1],'f1',ARGV[2]) return 1", 0, key, mark)], \
            proofs if self.options["undeclared"] else self.acked()

    def took(self, key):
        def proofs(reply):
            items = reply if isinstance(reply, list) else [reply]
            return [(key, "took", i) for i in items if isinstance(i, bytes)]
        return proofs

    def write_l(self, key):
        common = self.common("l", key)
        if common:
            return common
        mark, proofs = self.set_to(key)
        other = self.key("l")[1]
        x = self.rng.randrange(12)
        if x < 5:
            return [("RPUSH" if x < 3 else "LPUSH", key, mark)], proofs
        if x == 5:
            return [("LPOP", key)], self.took(key)
        if x == 6:
            return [("RPOP", key, 3)], self.took(key)
        if x == 7:
            return [("BLPOP", key, other, "0.05")], \
                lambda reply: [(reply[0], "took", reply[1])] if reply else []
        if x == 8 and other != key:
            return [("LMOVE", key, other, "LEFT", "RIGHT")], self.took(key)
        if x == 9:
            return [("MULTI",), ("RPUSH", key, mark), ("LTRIM", key, 0, MEMBERS), ("RPUSH", key, b"x" + mark), ("EXEC",)], \
                self.acked((key, "has", b"x" + mark))
        if x == 10 and other != key:  # an error where there is nothing; its effect is one version of each
            return [("EVAL", "if redis.call('EXISTS',KEYS[1]) == 0 then return 0 end redis.call('RENAME',KEYS[1],KEYS[2]) return 1",
                     2, key, other)], self.counted((key, "any"), (other, "any"))
        return [("LTRIM", key, 0, 5)], self.acked()

    def write_t(self, key):
        common = self.common("t", key)
        if common:
            return common
        mark, proofs = self.set_to(key)
        other = self.key("t")[1]
        x = self.rng.randrange(8)
        if x < 3:
            return [("SADD", key, mark)], proofs
        if x == 3:
            return [("SADD", key, "m", mark)], proofs
        if x == 4:
            return [("SREM", key, "m")], self.counted((key, "any"))
        if x == 5:
            return [("SPOP", key)], self.took(key)
        if x == 6:
            return [("SPOP", key, 4)], self.acked()
        return [("EVAL", "redis.call('SADD',KEYS[1],ARGV[1]) redis.call('SREM',KEYS[2],'m') return 1", 2, key, other, mark)], proofs

    def write_z(self, key):
        common = self.common("z", key)
        if common:
            return common
        mark, proofs = self.set_to(key)
        x = self.rng.randrange(8)
        if x < 2:
            return [("ZADD", key, self.rng.randrange(100), mark)], proofs
        if x < 4:
            return [("ZINCRBY", key, 1, "m%d" % self.rng.randrange(3))], self.acked((key, "any"))
        if x == 4:
            return [("ZREM", key, "m1")], self.counted((key, "any"))
        if x == 5:
            return [("ZPOPMIN", key, 2)], self.counted((key, "any"))
        if x == 6:
            return [("BZPOPMIN", key, "0.05")], self.counted((key, "any"))
        return [("MULTI",), ("ZADD", key, 5, mark), ("ZINCRBY", key, 2, "m1"), ("EXEC",)], proofs

    def write_x(self, key):
        common = self.common("x", key)
        if common:
            return common
        mark, proofs = self.set_to(key)
        x = self.rng.randrange(6)
        if x < 4:
            return [("XADD", key, "MAXLEN", MEMBERS, "*", "f", mark)], proofs
        if x == 4:
            return [("XTRIM", key, "MAXLEN", 5)], self.counted((key, "any"))
        return [("EVAL", "local e = redis.call('XRANGE',KEYS[1],'-','+','COUNT',1) if #e > 0 then return redis.call('XDEL',KEYS[1],e[1][1]) end return 0",
                 1, key)], self.counted((key, "any"))

    def write_a(self, key):
        mark, proofs = self.set_to(key)
        other = self.rng.choice((("SET", key, mark), ("HSET", key, "f1", mark), ("RPUSH", key, mark)))
        return [("MULTI",), ("DEL", key), other, ("EXEC",)], proofs

    # -- the run

    def run(self):
        told = 0
        while not self.shared.stop.is_set():
            if not self.conn and not self.connect():
                return
            try:
                if self.rng.random() < self.writes:
                    self.write()
                else:
                    self.read()
                if self.rng.random() < 0.002:
                    self.close()
            except Skip:
                self.close()
            if len(self.ops) > told:
                with self.shared.done.get_lock():
                    self.shared.done.value += len(self.ops) - told
                told = len(self.ops)
                pause = self.shared.pause.value
            else:
                pause = 0.01  # an error, most often: so would be the next
            if pause:
                time.sleep(pause * self.rng.random())


class Shared:
    def __init__(self):
        self.stop = SPAWN.Event()
        self.done = SPAWN.Value("q", 0)
        self.pause = SPAWN.Value("d", 0.0)


def _process(clients, shared, pipe):
    threads = [threading.Thread(target=c.run) for c in clients]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    ops, errors, odd = [], collections.Counter(), []
    for c in clients:
        c.close()
        ops += c.ops
        errors.update(c.errors)
        odd += c.odd
    pipe.send((ops, errors, odd))
    pipe.close()


class Load:
    """Clients in some processes, until finish()."""

    def __init__(self, targets, per_target, processes, seed, options):
        self.shared = Shared()
        clients, n = [], 0
        for target, port in targets.items():
            for _ in range(per_target[target]):
                clients.append(Client(n, target, port, seed, self.shared, options))
                n += 1
        self.running = []
        for i in range(processes):
            pipe, end = SPAWN.Pipe(duplex=False)
            p = SPAWN.Process(target=_process, args=(clients[i::processes], self.shared, end), daemon=True)
            p.start()
            end.close()
            self.running.append((p, pipe))

    @property
    def done(self):
        return self.shared.done.value

    def finish(self, limit=60):
        self.shared.stop.set()
        ops, errors, odd = [], collections.Counter(), []
        for p, pipe in self.running:
            if not pipe.poll(limit):
                p.kill()
                raise AssertionError("clients do not end")
            o, e, x = pipe.recv()
            ops += o
            errors.update(e)
            odd += x
            p.join(10)
        self.running = []
        return ops, errors, odd

    def close(self):
        for p, _ in self.running:
            p.kill()
            p.join()


def fill_ballast(port):
    with RawConn(port) as c:
        for i in range(BALLAST):
            c.call("SET", b"b:%d" % i, os.urandom(BALLAST_SIZE))
