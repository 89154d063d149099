"""Random commands. A grammar draws them from one seeded generator, so a seed is a whole run.

What depends on the clock is drawn so that both servers must agree: an expiry is a minute or
more away, or over already, and two relative ones are never close to one another.
"""
import hashlib
import random

import bits
import sets_hashes
import sorting
import streams
from grammar_zset import SortedSets

MODULES = (sets_hashes, bits, sorting)
NOW_S = 1700000000  # some time in the past
INTS = [b"0", b"1", b"-1", b"7", b"42", b"-100", b"9999", b"10000", b"2147483648", b"-9223372036854775808",
        b"9223372036854775807", b"9223372036854775806", b"-9223372036854775807"]
NOT_INTS = [b"", b"abc", b"1.5", b" 1", b"1 ", b"+5", b"007", b"-0", b"9223372036854775808", b"-9223372036854775809",
            b"99999999999999999999", b"1e3", b"0x10", b"1\x00", b"\xff"]
FLOATS = [b"0", b"1.5", b"-2.25", b"3.0e3", b"0.1", b"-0.0", b"1e-5", b"1e-30", b"1e300", b"-1e300", b"123456789.987654321",
          b"0x1p3", b"1e4000", b"10", b"-10"]
NOT_FLOATS = [b"", b"abc", b"nan", b"inf", b"-inf", b"1.5x", b" 1", b"1 ", b"1e5000", b"--1", b"1\x00"]
BAD_TIMES = [b"0", b"-1", b"-9223372036854775808", b"9223372036854775807", b"9223372036854775", b"-9223372036854775",
             b"9223372036854776", b"abc", b"", b"1.5", b"99999999999999999999"]
INDEXES = [b"0", b"-1", b"1", b"-2", b"3", b"-100", b"100", b"1000000", b"9223372036854775807",
           b"-9223372036854775808"]
WORDS = [b"NX", b"XX", b"GT", b"LT", b"GET", b"KEEPTTL", b"PERSIST", b"REPLACE", b"foo", b"", b"bad\r\n", b"a\r\nb"]
SAFE_TYPES = "sifclze"
# Keys that only certain commands change. x: places, no two of them at one place, so that distances are an order;
# y: sorted sets of one score only; w: small ones, for ranges by lex without LIMIT: of others Redis promises
# nothing; q: strings, or not there: no command makes a set of them.
PURE_TYPES = "xywq"
# Lua, kinds of its keys, makers of its arguments (v: any value, n: a number, k: a key that is not in KEYS).
SCRIPTS = [
    (b"return redis.call('get', KEYS[1])", "s", ""),
    (b"return redis.call('set', KEYS[1], ARGV[1])", "s", "v"),
    (b"return redis.call('incrby', KEYS[1], ARGV[1])", "i", "n"),
    (b"local n = redis.call('incr', KEYS[1]) if n == 1 then redis.call('expire', KEYS[1], 100000) end if n > tonumber(ARGV[1]) then "
     b"return 0 end return n", "i", "n"),
    (b"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", "s", "v"),
    (b"local v = redis.call('lpop', KEYS[1]) if v then redis.call('rpush', KEYS[2], v) end return v", "ll", ""),
    (b"for i = 1, #KEYS do redis.call('append', KEYS[i], ARGV[i]) end return redis.call('mget', unpack(KEYS))", "sss", "vvv"),
    (b"return {redis.call('type', KEYS[1]), redis.call('exists', KEYS[2]), redis.call('llen', KEYS[3])}", "sll", ""),
    (b"local r = redis.pcall('incr', KEYS[1]) if type(r) == 'table' then return r.err end return r", "s", ""),
    (b"redis.call('set', KEYS[1], ARGV[1]) redis.call('rename', KEYS[1], KEYS[2]) return redis.call('strlen', KEYS[2])", "ss", "v"),
    (b"redis.call('del', unpack(KEYS)) return redis.call('rpush', KEYS[1], unpack(ARGV))", "ll", "vvn"),
    (b"return redis.call('copy', KEYS[1], KEYS[2], 'replace')", "ss", ""),
    (b"local a, b = KEYS[1], KEYS[2] return {redis.call('getset', a, ARGV[1]), redis.call('get', b)}", "ss", "v"),
    (b"return redis.call('get', ARGV[1])", "", "k"),
    (b"redis.call('append', ARGV[1], ARGV[3]) return redis.call('mget', ARGV[1], ARGV[2])", "", "kkv"),
    (b"redis.call('select', ARGV[1]) redis.call('incr', KEYS[1]) return redis.call('get', ARGV[2])", "i", "dk"),
    (b"return {#redis.call('keys', 'i*'), redis.call('exists', ARGV[1])}", "", "k"),
    (b"redis.setresp(3) return {redis.call('get', KEYS[1]) == nil, cjson.encode(redis.call('lrange', KEYS[2], 0, 5)) ~= nil}", "sl", ""),
    (b"redis.call('lpush', KEYS[1], ARGV[1]) return nothing", "l", "v"),
    (b"return cmsgpack.unpack(cmsgpack.pack({ARGV[1], redis.call('strlen', KEYS[1])}))", "s", "n"),
]

# The same as functions, each in a library of its own: lib3 has f3.
LIBRARIES = [b"#!lua name=lib%d\nredis.register_function{function_name='f%d', callback=function(keys, args) %s end%s}" % (
    i, i, body.replace(b"KEYS", b"keys").replace(b"ARGV", b"args"), b", flags={'no-writes'}" if i in (7, 16) else b"")
    for i, (body, _, _) in enumerate(SCRIPTS)]


def cased(rng, word):
    return rng.choice((word, word, word.lower(), word.capitalize()))


class Grammar(SortedSets):
    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.pool = {t: self._names(t, n) for t, n in zip(SAFE_TYPES + PURE_TYPES, (260, 60, 20, 30, 80, 50, 40, 12, 6, 6, 2))}
        for more in MODULES:
            self.pool.update((t, self._names(t, n)) for t, n in more.KINDS.items())
        self.pool.update(sorting.NAMES)
        self.all_keys = sorted(k for keys in self.pool.values() for k in keys)
        self.noise = rng.randbytes(300000)
        self.text = b"".join(rng.choice((b"falcon ", b"lure ", b"jess ", b"price=%d;" % i, b"\r\n"))
                             for i in range(20000))
        self.commands = []
        for weight, make in self._table():
            self.commands += [make] * weight

    def _names(self, kind, n):
        rng, names = self.rng, set()
        while len(names) < n:
            prefix = kind.encode() + b"%d" % len(names)
            how = rng.random()
            if how < 0.7:
                names.add(prefix)
            elif how < 0.9:
                names.add(prefix + b":" + rng.randbytes(rng.randint(0, 40)))
            else:
                names.add(prefix + b"/" * rng.randint(200, 2000))
        return sorted(names) + ([b"k", b"", b"a b", b"*[x]?\\"] if kind == "s" else [])

    # -- arguments

    def key(self, kinds="s"):
        """A name that probably holds the kind of value that is wanted."""
        rng = self.rng
        if rng.random() < 0.07:
            kinds = SAFE_TYPES + "".join(more.POOLED for more in MODULES)
        names = self.pool[rng.choice(kinds)]
        return names[int(len(names) * rng.random() ** 1.5)]

    def any_key(self):
        return self.key("sssifcllhtbvzxe")

    def data(self, size):
        source = self.rng.choice((self.noise, self.text))
        start = self.rng.randrange(len(source) - size)
        return source[start:start + size]

    def value(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.06:
            return b""
        if how < 0.18:
            return rng.choice(INTS + NOT_INTS)
        if how < 0.50:
            return self.data(rng.randint(1, 60))
        if how < 0.75:
            return self.data(rng.randint(60, 2000))
        if how < 0.97:
            return self.data(rng.randint(2000, 60000))
        return self.data(rng.randint(60000, 102400))

    def small(self):
        return self.data(self.rng.randint(0, 300)) if self.rng.random() < 0.7 else self.rng.choice(INTS + FLOATS)

    def letters(self):
        return bytes(self.rng.choice(b"abcd") for _ in range(self.rng.randint(0, 60)))

    def integer(self):
        rng = self.rng
        if rng.random() < 0.7:
            return b"%d" % rng.randint(-1000, 1000)
        return rng.choice(INTS if rng.random() < 0.6 else NOT_INTS)

    def float(self):
        return self.rng.choice(FLOATS if self.rng.random() < 0.9 else NOT_FLOATS)

    def index(self):
        rng = self.rng
        if rng.random() < 0.03:
            return rng.choice(NOT_INTS)
        return rng.choice(INDEXES) if rng.random() < 0.5 else b"%d" % rng.randint(-40, 40)

    def time(self, unit):
        """A time for an option or command that counts in `unit`: EX, PX, EXAT or PXAT."""
        rng = self.rng
        if rng.random() < 0.12:
            return rng.choice(BAD_TIMES)
        past = rng.random() < 0.15
        seconds = rng.randint(1, NOW_S) if past else rng.randint(4000000000, 9000000000)
        relative = rng.randint(60, 1000000000)
        return b"%d" % {"EX": relative, "PX": relative * 1000 + rng.randint(0, 999), "EXAT": seconds,
                        "PXAT": seconds * 1000 + rng.randint(0, 999)}[unit]

    def db(self):
        return b"%d" % self.rng.choice((0, 0, 0, 0, 1, 1, 2, 3, self.rng.randint(0, 15)))

    def odd_db(self):
        if self.rng.random() < 0.9:
            return self.db()
        return self.rng.choice((b"16", b"-1", b"abc", b"3000000000", b"99999999999999999999", b""))

    def options(self, names):
        """Up to three options; mostly none or one, so that most commands are valid."""
        rng, out = self.rng, []
        for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 1, 2, 2, 3))):
            name = rng.choice(names)
            out.append(cased(rng, name.encode()))
            if name in ("EX", "PX", "EXAT", "PXAT"):
                out.append(self.time(name))
            elif name == "DB":
                out.append(self.odd_db())
        if rng.random() < 0.02:
            out.append(rng.choice(WORDS))
        return out

    def script(self):
        rng = self.rng
        which = rng.randrange(len(SCRIPTS))
        body, kinds, args = SCRIPTS[which]
        keys = [self.key(k) for k in kinds]
        make = {"v": self.small, "n": self.integer, "k": self.any_key, "d": self.db}
        name = b"EVAL" if rng.random() < 0.8 else b"EVAL_RO"
        if rng.random() < 0.2:
            name, body = name.replace(b"EVAL", b"EVALSHA"), hashlib.sha1(body).hexdigest().encode()
        if rng.random() < 0.4:
            name = name.replace(b"EVALSHA", b"FCALL").replace(b"EVAL", b"FCALL")
            body = b"f%d" % which if rng.random() < 0.9 else b"F%d" % which
            if rng.random() < 0.3:
                return self.library(which)
        count = b"%d" % len(keys) if rng.random() < 0.98 else rng.choice((b"-1", b"100", b"x", b"1"))
        return [name, body, count] + keys + [make[a]() for a in args]

    def library(self, which):
        rng = self.rng
        source, name = LIBRARIES[which], b"lib%d" % which
        return rng.choice((
            [b"FUNCTION", b"LOAD", b"REPLACE", source], [b"FUNCTION", b"LOAD", source], [b"FUNCTION", b"LOAD", b"REPLACE", source],
            [b"FUNCTION", b"LOAD", source.replace(b"name=lib", b"name=other")], [b"FUNCTION", b"LOAD", source[:-rng.randrange(1, 40)]],
            [b"FUNCTION", b"LIST", b"LIBRARYNAME", name, b"WITHCODE"], [b"FUNCTION", b"LIST", b"LIBRARYNAME", name],
            [b"FUNCTION", b"STATS"], [b"FUNCTION", b"DELETE", name if rng.random() < 0.3 else b"none"],
            [b"FUNCTION", rng.choice((b"FLUSH", b"KILL", b"LOAD", b"foo")), rng.choice(WORDS)]))

    # -- commands

    def _table(self):
        rng = self.rng
        times = ["EX", "PX", "EXAT", "PXAT"]
        many = lambda make: [make() for _ in range(rng.choice((1, 1, 2, 3, 5, 12)))]
        two = lambda: rng.choice(("ss", "ll", "ssi", "sl", "hh", "tt", "ht", "ee"))
        read_any, n = self.any_key, self.key

        def pairs():
            return [x for _ in range(rng.choice((1, 2, 3, 8))) for x in (n("ssif"), self.value())]

        def expire(unit):
            return [rng.choice((read_any, n))(), self.time(unit)] + self.options(["NX", "XX", "GT", "LT"])

        def lcs():
            keys = [n("cccccccccc"), n("c")]
            out = [rng.choice(("LEN", "IDX", "WITHMATCHLEN", "IDX")).encode() for _ in range(rng.randint(0, 2))]
            if rng.random() < 0.3:
                out += [b"MINMATCHLEN", rng.choice((b"1", b"2", b"3", b"0", b"-1", b"x"))]
            return [k if k[:1] == b"c" else b"c0" for k in keys] + out

        def rename():
            kinds = two()
            return [n(kinds), n(kinds)]

        return self._sorted_sets() + self._geo() + [
            (60, lambda: [b"GET", n("ssif")]),
            (70, lambda: [b"SET", n("s"), self.value()]),
            (12, lambda: [b"SET", n("i"), self.integer()]),
            (4, lambda: [b"SET", n("f"), self.float()]),
            (8, lambda: [b"SET", n("c"), self.letters()]),
            (25, lambda: [b"SET", n("ssif"), self.value()] + self.options(times + ["NX", "XX", "GET", "KEEPTTL"])),
            (8, lambda: [b"SETNX", n("s"), self.value()]),
            (6, lambda: [b"SETEX", n("s"), self.time("EX"), self.value()]),
            (6, lambda: [b"PSETEX", n("s"), self.time("PX"), self.value()]),
            (8, lambda: [b"GETSET", n("si"), self.value()]),
            (8, lambda: [b"GETDEL", n("ssi")]),
            (10, lambda: [b"GETEX", n("si")] + self.options(times + ["PERSIST"])),
            (16, lambda: [b"APPEND", n("sic"), self.small()]),
            (8, lambda: [b"STRLEN", n("si")]),
            (10, lambda: [b"SETRANGE", n("si"), rng.choice((b"0", b"3", b"70", b"%d" % rng.randint(0, 20000), b"-1",
                                                            b"536870912", b"9223372036854775807", b"x")),
                          self.small()]),
            (10, lambda: [rng.choice((b"GETRANGE", b"SUBSTR")), n("si"), self.index(), self.index()]),
            (12, lambda: [rng.choice((b"INCR", b"DECR")), n("iiiiif")]),
            (12, lambda: [rng.choice((b"INCRBY", b"DECRBY")), n("iiiiif"), self.integer()]),
            (10, lambda: [b"INCRBYFLOAT", n("ffi"), self.float()]),
            (14, lambda: [b"MGET"] + many(read_any)),
            (8, lambda: [b"MSET"] + pairs()),
            (5, lambda: [b"MSETNX"] + pairs()),
            (6, lambda: [b"LCS"] + lcs()),
            (10, lambda: [rng.choice((b"DEL", b"UNLINK"))] + many(read_any)),
            (10, lambda: [rng.choice((b"EXISTS", b"TOUCH"))] + many(read_any)),
            (8, lambda: [b"TYPE", read_any()]),
            (6, lambda: [b"EXPIRE"] + expire("EX")),
            (6, lambda: [b"PEXPIRE"] + expire("PX")),
            (6, lambda: [b"EXPIREAT"] + expire("EXAT")),
            (6, lambda: [b"PEXPIREAT"] + expire("PXAT")),
            (12, lambda: [rng.choice((b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME")), read_any()]),
            (8, lambda: [b"PERSIST", read_any()]),
            (8, lambda: [rng.choice((b"RENAME", b"RENAMENX"))] + rename()),
            (8, lambda: [b"COPY"] + rename() + self.options(["DB", "REPLACE", "DB"])),
            (6, lambda: [b"MOVE", read_any(), self.odd_db()]),
            (8, lambda: [b"OBJECT", rng.choice((b"ENCODING", b"ENCODING", b"REFCOUNT", b"IDLETIME", b"FREQ", b"foo")),
                         read_any()]),
            (20, lambda: [rng.choice((b"LPUSH", b"RPUSH"))] + [n("l")] + many(self.small)),
            (6, lambda: [rng.choice((b"LPUSHX", b"RPUSHX"))] + [n("l")] + many(self.small)),
            (3, lambda: [b"RPUSH", n("l"), self.value()]),
            (10, lambda: [rng.choice((b"LPOP", b"RPOP")), n("l")]),
            (8, lambda: [rng.choice((b"LPOP", b"RPOP")), n("l"), self.index()]),
            (6, lambda: [b"LLEN", n("l")]),
            (12, lambda: [b"LRANGE", n("l"), self.index(), self.index()]),
            (48, self.list_command),
            *streams.table(self),
            (6, lambda: [b"KEYS", rng.choice((b"i*", b"l?", b"s[0-9]", b"*", b"c\\*", b"[^s]*", b"nothing"))]),
            (3, lambda: [b"RANDOMKEY"]),
            (12, lambda: [b"SELECT", self.odd_db()]),
            (40, self.script),
            (2, lambda: [b"ECHO", self.value()]),
            (2, lambda: [b"PING"] + [self.small()] * rng.randint(0, 1)),
            (1, lambda: [rng.choice((b"NOSUCH", b"GETT", b"", b"object", b"lpushy\r\nx"))] + many(self.small)),
            (1, lambda: [b"OBJECT", b"HELP"]),
        ] + [row for more in MODULES for row in more.Draw(self).commands()]

    # -- lists

    def element(self):
        """One of a few that repeat, or any."""
        return self.rng.choice((b"a", b"b", b"7", b"-1000", b"x" * 70)) if self.rng.random() < 0.6 else self.small()

    def count(self):
        return b"%d" % self.rng.randint(1, 4) if self.rng.random() < 0.8 else self.index()

    def list_command(self):
        rng, key = self.rng, self.key("l")
        end = lambda: cased(rng, rng.choice((b"LEFT", b"RIGHT") if rng.random() < 0.97 else WORDS))
        timeout = lambda: rng.choice((b"0.001", b"0.02", b"0.001") if rng.random() < 0.9 else
                                     (b"-1", b"x", b"nan", b"inf", b"1e400", b"", b"-2.5"))

        def push():
            return [rng.choice((b"LPUSH", b"RPUSH")), key] + [self.element() for _ in range(rng.choice((1, 3, 30)))]

        def linsert():
            where = rng.choice((b"BEFORE", b"AFTER") if rng.random() < 0.97 else WORDS)
            return [b"LINSERT", key, cased(rng, where), self.element(), self.element()]

        def lpos():
            out = [b"LPOS", key, self.element()]
            for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
                out += [cased(rng, rng.choice((b"RANK", b"COUNT", b"MAXLEN"))), rng.choice((b"0", b"1", self.index()))]
            return out + ([rng.choice(WORDS)] if rng.random() < 0.03 else [])

        def mpop():
            keys = [self.key("l") for _ in range(rng.choice((1, 1, 2, 4)))]
            number = b"%d" % len(keys) if rng.random() < 0.95 else self.index()
            out = [number] + keys + [end()]
            if rng.random() < 0.6:
                out += [b"COUNT", self.count()]
            return out + ([rng.choice(WORDS)] if rng.random() < 0.03 else [])

        return rng.choice((
            push, push, push, linsert, linsert, lpos, lpos,
            lambda: [b"LINDEX", key, self.index()],
            lambda: [b"LSET", key, self.index(), self.element()],
            lambda: [b"LREM", key, self.count() if rng.random() < 0.5 else b"-%d" % rng.randint(0, 3), self.element()],
            lambda: [b"LTRIM", key, self.index(), self.index()],
            lambda: [b"LMOVE", key, self.key("l"), end(), end()],
            lambda: [b"LMOVE", key, key, end(), end()],
            lambda: [b"RPOPLPUSH", key, self.key("l")],
            lambda: [b"LMPOP"] + mpop(),
            lambda: [b"BLMPOP", timeout()] + mpop(),
            lambda: [b"BLMOVE", key, self.key("l"), end(), end(), timeout()],
            lambda: [b"BRPOPLPUSH", key, self.key("l"), timeout()],
            lambda: [rng.choice((b"BLPOP", b"BRPOP"))] + [self.key("l") for _ in range(rng.choice((1, 2)))] + [timeout()],
        ))()

    def rare(self):
        """Commands on whole databases."""
        rng = self.rng
        return rng.choice((
            lambda: [b"SWAPDB", self.odd_db(), self.odd_db()],
            lambda: [b"SWAPDB", b"2", b"3"],
            lambda: [b"FLUSHDB"] + rng.choice(([], [b"ASYNC"], [b"SYNC"], [b"foo"])),
            lambda: [b"FLUSHALL", b"bar"],
        ))()

    def one(self):
        """A command, now and then maimed."""
        rng = self.rng
        cmd = self.commands[rng.randrange(len(self.commands))]() if rng.random() < 0.9995 else self.rare()
        cmd[0] = cased(rng, cmd[0])
        how = rng.random()
        if how < 0.01 and len(cmd) > 1 and cmd[0].upper() not in sets_hashes.WHOLE:
            del cmd[rng.randint(1, len(cmd) - 1):]
        elif how < 0.02:
            cmd.append(rng.choice(WORDS))
        return cmd

    def transaction(self):
        rng = self.rng
        cmds = [[b"WATCH", self.any_key()] for _ in range(rng.choice((0, 0, 1, 2)))]
        if cmds and rng.random() < 0.3:
            cmds.append(self.one())
        cmds.append([b"MULTI"])
        cmds += [self.one() for _ in range(rng.randint(0, 6))]
        if rng.random() < 0.05:
            cmds.append(rng.choice(([b"MULTI"], [b"WATCH", b"k"], [b"EXEC", b"x"])))
        cmds.append([b"EXEC" if rng.random() < 0.9 else b"DISCARD"])
        return cmds

    def watched(self):
        """A transaction that watches keys, and what another connection does meanwhile: now and
        then a change of them, and always enough to have them leave memory."""
        rng = self.rng
        keys = [self.any_key() for _ in range(rng.choice((1, 1, 3)))]
        db, churn = self.db(), [[b"SELECT", self.db()]]
        for _ in range(rng.choice((10, 100, 300))):
            churn.append([b"GET", self.key("s")] if rng.random() < 0.8 else [b"STRLEN", self.key("s")])
        if rng.random() < 0.4:
            churn.append(self.one())
        if rng.random() < 0.3:
            churn += [[b"SELECT", db], rng.choice(([b"APPEND", keys[0], b"x"], [b"PERSIST", keys[0]],
                                                  [b"DEL", keys[-1]], [b"LPUSH", keys[0], b"x"],
                                                  [b"EXPIRE", keys[0], b"100000"], [b"SETNX", keys[0], b"x"]))]
        return ([[b"SELECT", db], [b"WATCH"] + keys, [b"TYPE", keys[0]]], churn,
                sorting.with_clean_errno([[b"MULTI"], self.one(), [b"SET", keys[0], self.value()], self.one(), [b"EXEC"]]))

    def pipeline(self):
        """The commands of one write to the sockets."""
        rng, cmds = self.rng, []
        for _ in range(rng.choice((1, 1, 2, 3, 5, 10, 30, 80))):
            how = rng.random()
            if how < 0.02:
                cmds += self.transaction()
            elif how < 0.03:
                cmds += sets_hashes.Draw(self).popped()
            elif how < 0.035:
                cmds += sorting.Draw(self).sorted_set()
            elif how < 0.038:
                cmds.append(rng.choice(([b"EXEC"], [b"DISCARD"], [b"UNWATCH"])))
            else:
                cmds.append(self.one())
        return sorting.with_clean_errno(cmds)
