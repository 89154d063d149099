"""Random commands. A grammar draws them from one seeded generator, so a seed is a whole run.

What depends on the clock is drawn so that both servers must agree: an expiry is a minute or
more away, or over already, and two relative ones are never close to one another.
"""
import random

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
SCORES = [b"0", b"-0", b"1", b"-1", b"inf", b"-inf", b"+inf", b"1e21", b"-1e21", b"3.0e-5", b"0.1", b"1e17", b"123456789012345678",
          b"99999999999999999", b"4611686018427387904", b"9223372036854775807", b"1e-320", b"1.7976931348623157e308",
          b"2.5", b"0x1p3", b"infinity", b"+5", b"007", b"1.", b".5"]
NOT_SCORES = [b"", b"abc", b"nan", b"-nan", b"1e400", b"1e-400", b" 1", b"1 ", b"1\x00", b"--1"]
NOT_BOUNDS = [b"", b"(", b"nan", b"(nan", b"abc", b" 1", b"1 ", b"1\x00x", b"((1", b"[1", b"1e400"]
EDGES = ((b"180", b"0.5"), (b"-180", b"0.5"), (b"-180", b"85.05112878"), (b"179.9999", b"-85.05112878"), (b"0", b"0"))
SAFE_TYPES = "sifclz"
# Keys that only certain commands change. x: places, no two of them at one place, so that distances are an order;
# y: sorted sets of one score only; w: small ones, for ranges by lex without LIMIT: of others Redis promises
# nothing; q: strings.
PURE_TYPES = "xywq"


def cased(rng, word):
    return rng.choice((word, word, word.lower(), word.capitalize()))


class Grammar:
    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.pool = {t: self._names(t, n) for t, n in zip(SAFE_TYPES + PURE_TYPES, (260, 60, 20, 30, 80, 50, 12, 6, 6, 2))}
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
            kinds = SAFE_TYPES
        names = self.pool[rng.choice(kinds)]
        return names[int(len(names) * rng.random() ** 1.5)]

    def any_key(self):
        return self.key("sssifcllzx")

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

    # -- commands

    def _table(self):
        rng = self.rng
        times = ["EX", "PX", "EXAT", "PXAT"]
        many = lambda make: [make() for _ in range(rng.choice((1, 1, 2, 3, 5, 12)))]
        two = lambda: rng.choice(("ss", "ll", "ssi", "sl"))
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
            (6, lambda: [b"KEYS", rng.choice((b"i*", b"l?", b"s[0-9]", b"*", b"c\\*", b"[^s]*", b"nothing"))]),
            (3, lambda: [b"RANDOMKEY"]),
            (12, lambda: [b"SELECT", self.odd_db()]),
            (2, lambda: [b"ECHO", self.value()]),
            (2, lambda: [b"PING"] + [self.small()] * rng.randint(0, 1)),
            (1, lambda: [rng.choice((b"NOSUCH", b"GETT", b"", b"object", b"lpushy\r\nx"))] + many(self.small)),
            (1, lambda: [b"OBJECT", b"HELP"]),
        ]

    # -- sorted sets (z) and places (x, which are sorted sets too)

    def score(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.4:
            return b"%d" % rng.randint(-5, 20)
        if how < 0.7:
            return b"%.3g" % rng.uniform(-100, 100)
        return rng.choice(SCORES) if how < 0.99 else rng.choice(NOT_SCORES)

    def member(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.7:
            return b"m%d" % rng.randint(0, 40)
        if how < 0.8:
            return b"%d" % rng.randint(-5, 300)
        if how < 0.97:
            return b"%04d" % rng.randint(0, 2000)
        return rng.choice((b"", b"x" * 64, b"x" * 65, b"\x00\xff", b"1.5", self.small()))

    def score_bound(self):
        rng = self.rng
        if rng.random() < 0.03:
            return rng.choice(NOT_BOUNDS)
        return rng.choice((b"", b"", b"(")) + rng.choice((self.score(), b"-inf", b"+inf"))

    def lex_bound(self):
        rng = self.rng
        if rng.random() < 0.03:
            return rng.choice((b"", b"a", b"--", b"+x", b"-\x00"))
        return rng.choice((b"-", b"+", b"[" + self.member(), b"(" + self.member()))

    def pure_key(self, kinds):
        return self.rng.choice(self.pool[self.rng.choice(kinds if self.rng.random() < 0.98 else "q")])

    def add_lex(self):
        """Members of y and w."""
        rng = self.rng
        if rng.random() < 0.3:
            return [b"ZADD", rng.choice(self.pool["w"])] + [x for _ in range(rng.choice((1, 3)))
                                                            for x in (self.score(), b"m%d" % rng.randint(0, 40))]
        return [b"ZADD", rng.choice(self.pool["y"])] + [x for _ in range(rng.choice((1, 2, 5, 60))) for x in (b"0", self.member())]

    def limit(self):
        rng = self.rng
        if rng.random() < 0.6:
            return []
        return [cased(rng, b"LIMIT"), rng.choice((b"0", b"1", b"3", self.index())), rng.choice((b"-1", b"0", b"2", b"5", self.index()))]

    def numkeys(self, kinds="zzzzx"):
        """The number of keys, and keys: mostly as many."""
        rng = self.rng
        keys = [self.key(kinds) for _ in range(rng.choice((1, 2, 2, 2, 3, 4)))]
        if rng.random() < 0.96:
            return [b"%d" % len(keys)] + keys
        return [rng.choice((b"0", b"-1", b"1", b"5", b"abc", b"9223372036854775807", b"-9223372036854775808"))] + keys

    def range_of(self):
        """ZRANGE's key, two arguments, and the option that says what they are."""
        rng, how = self.rng, self.rng.random()
        if how < 0.4:
            return [self.key("zzzzx"), self.index(), self.index()]
        if how < 0.7:
            return [self.key("zzzzx"), self.score_bound(), self.score_bound(), cased(rng, b"BYSCORE")]
        return [self.pure_key("y"), self.lex_bound(), self.lex_bound(), cased(rng, b"BYLEX")]

    def zrange_options(self):
        rng = self.rng
        out = self.limit() if rng.random() < 0.5 else []
        if rng.random() < 0.3:
            out.append(cased(rng, b"REV"))
        return out

    def with_scores(self):
        return [cased(self.rng, b"WITHSCORES")] if self.rng.random() < 0.5 else []

    def join_options(self, count):
        rng, out = self.rng, []
        if rng.random() < 0.4:
            out += [cased(rng, b"WEIGHTS")] + [self.score() for _ in range(count if rng.random() < 0.95 else count + 1)]
        if rng.random() < 0.4:
            out += [cased(rng, b"AGGREGATE"), rng.choice((b"SUM", b"min", b"Max", b"SUM", b"avg"))]
        return out

    def zadd(self):
        rng = self.rng
        flags = [w for w in (b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR") if rng.random() < 0.08]
        pairs = rng.choice((1, 1, 1, 2, 3, 8, 40 if rng.random() < 0.3 else 2))
        return flags + [x for _ in range(pairs) for x in (self.score(), self.member())]

    def _sorted_sets(self):
        rng, n, member = self.rng, self.key, self.member
        some = lambda make: [make() for _ in range(rng.choice((1, 1, 2, 3, 8)))]

        def zrange():
            return [b"ZRANGE"] + self.range_of() + self.zrange_options() + self.with_scores()

        def zrangestore():
            return [b"ZRANGESTORE", n("z")] + self.range_of() + self.zrange_options()

        def by_what():
            name, make = rng.choice(((b"ZRANGEBYSCORE", self.score_bound), (b"ZREVRANGEBYSCORE", self.score_bound),
                                     (b"ZRANGEBYLEX", self.lex_bound), (b"ZREVRANGEBYLEX", self.lex_bound)))
            by_score = make == self.score_bound
            return [name, n("zzzx") if by_score else self.pure_key("y"), make(), make()] + self.limit() + (
                self.with_scores() if by_score or rng.random() < 0.1 else [])

        def join():
            name = rng.choice((b"ZUNION", b"ZINTER", b"ZDIFF"))
            keys = self.numkeys()
            return [name] + keys + ([] if name == b"ZDIFF" else self.join_options(len(keys) - 1)) + self.with_scores()

        def joinstore():
            name = rng.choice((b"ZUNIONSTORE", b"ZINTERSTORE", b"ZDIFFSTORE"))
            keys = self.numkeys()
            return [name, n("z")] + keys + ([] if name == b"ZDIFFSTORE" else self.join_options(len(keys) - 1))

        def zmpop():
            return ([b"ZMPOP"] + self.numkeys() + [rng.choice((b"MIN", b"max", b"MAX", b"mid") if rng.random() < 0.1 else (b"MIN", b"max"))]
                    + rng.choice(([], [], [b"COUNT", rng.choice((b"1", b"2", b"10", self.index()))])))

        return [
            (60, lambda: [b"ZADD", n("zzzz")] + self.zadd()),
            (8, lambda: [b"ZINCRBY", n("z"), self.score(), member()]),
            (8, lambda: [b"ZSCORE", n("zzx"), member()]),
            (4, lambda: [b"ZMSCORE", n("z")] + some(member)),
            (4, lambda: [b"ZCARD", n("zx")]),
            (6, lambda: [b"ZCOUNT", n("zzx"), self.score_bound(), self.score_bound()]),
            (14, self.add_lex),
            (3, lambda: [rng.choice((b"ZRANGEBYLEX", b"ZREVRANGEBYLEX")), self.pure_key("w"), self.lex_bound(), self.lex_bound()]),
            (5, lambda: [b"ZLEXCOUNT", self.pure_key("yw"), self.lex_bound(), self.lex_bound()]),
            (8, lambda: [rng.choice((b"ZRANK", b"ZREVRANK")), n("zzx"), member()]),
            (16, zrange),
            (5, lambda: [b"ZREVRANGE", n("zzx"), self.index(), self.index()] + self.with_scores()),
            (12, by_what),
            (4, zrangestore),
            (8, lambda: [b"ZREM", n("zzx")] + some(member)),
            (2, lambda: [b"ZREMRANGEBYRANK", n("z"), self.index(), self.index()]),
            (2, lambda: [b"ZREMRANGEBYSCORE", n("z"), self.score_bound(), self.score_bound()]),
            (2, lambda: [b"ZREMRANGEBYLEX", self.pure_key("yw"), self.lex_bound(), self.lex_bound()]),
            (5, lambda: [rng.choice((b"ZPOPMIN", b"ZPOPMAX")), n("z")] + rng.choice(([], [], [self.index()]))),
            (4, zmpop),
            (3, lambda: [b"ZRANDMEMBER", n("z")] + rng.choice(([], [b"%d" % rng.randint(-50, 50)], [b"3", b"WITHSCORES"],
                                                              [b"-4", b"withscores"], [rng.choice(NOT_INTS)],
                                                              [b"-9223372036854775808"], [b"-1", b"x"]))),
            (3, lambda: [b"ZSCAN", n("zzx"), rng.choice((b"0", b"0", b"0", b"x"))]
                + rng.choice(([b"COUNT", b"100000"], [b"COUNT", b"99999", b"MATCH", b"m1*"], [b"COUNT", b"0"], [b"TYPE", b"zset"]))),
            (8, join),
            (8, joinstore),
            (3, lambda: [b"ZINTERCARD"] + self.numkeys() + rng.choice(([], [b"LIMIT", rng.choice((b"0", b"2", b"-1", b"x"))]))),
        ]

    def lonlat(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.6:
            return [b"%.6f" % rng.uniform(13, 16), b"%.6f" % rng.uniform(37, 39)]
        if how < 0.97:
            return [b"%.7f" % rng.uniform(-180, 180), b"%.7f" % rng.uniform(-85.05112878, 85.05112878)]
        return list(rng.choice(EDGES + ((b"0", b"85.06"), (b"181", b"1"), (b"x", b"1"), (b"nan", b"1"), (b"-180.0001", b"-86"))))

    def place(self):
        """A place with its name; those on an edge have one of their own."""
        lonlat = self.lonlat()
        name = b"edge%d" % EDGES.index(tuple(lonlat)) if tuple(lonlat) in EDGES else self.member()
        return lonlat + [name]

    def unit(self):
        rng = self.rng
        return cased(rng, rng.choice((b"M", b"km", b"KM", b"ft", b"mi"))) if rng.random() < 0.98 else b"yd"

    def distance(self):
        rng = self.rng
        if rng.random() < 0.02:
            return rng.choice((b"-1", b"abc", b"nan", b"", b"inf"))
        return b"%.4g" % 10 ** rng.uniform(-2, 7.5) if rng.random() < 0.3 else b"%d" % rng.choice((0, 1, 50, 200, 1000, 5000, 200000))

    def geo_options(self, store):
        rng, out = self.rng, []
        out += [cased(rng, w) for w in (b"WITHDIST", b"WITHHASH", b"WITHCOORD") if rng.random() < (0.02 if store else 0.25)]
        if rng.random() < 0.5:
            out.append(rng.choice((b"ASC", b"desc")))
        if rng.random() < 0.3:
            out += [cased(rng, b"COUNT"), rng.choice((b"1", b"3", b"10", b"10", b"0", b"-1", b"x") if rng.random() < 0.1 else (b"1", b"3", b"10"))]
        if rng.random() < 0.1:
            out.append(cased(rng, b"ANY"))
        return out

    def _geo(self):
        rng, member, geo = self.rng, self.member, lambda: self.pure_key("x")
        to = lambda: rng.choice(self.pool["x"])
        some = lambda make: [make() for _ in range(rng.choice((1, 1, 2, 3, 8)))]

        def geoadd():
            flags = [w for w in (b"NX", b"XX", b"CH") if rng.random() < 0.08]
            return [b"GEOADD", geo()] + flags + [x for _ in range(rng.choice((1, 2, 8, 20))) for x in self.place()]

        def shape():
            where = [b"FROMMEMBER", member()] if rng.random() < 0.5 else [b"FROMLONLAT"] + self.lonlat()
            what = ([b"BYRADIUS", self.distance(), self.unit()] if rng.random() < 0.5
                    else [b"BYBOX", self.distance(), self.distance(), self.unit()])
            out = where + what if rng.random() < 0.8 else what + where
            return out if rng.random() < 0.97 else out + rng.choice((where, what, [b"FROMMEMBER", b"m1"], [b"BYRADIUS", b"1", b"m"]))

        def radius():
            store = rng.random() < 0.25
            args = rng.choice((self.lonlat(), [member()]))
            name = b"GEORADIUS" if len(args) == 2 else b"GEORADIUSBYMEMBER"
            if rng.random() < 0.3:
                name += b"_RO"
            out = [name, geo()] + args + [self.distance(), self.unit()] + self.geo_options(store)
            return out + (rng.choice(([b"store", to()], [b"STOREDIST", self.key("z")])) if store else [])

        return [
            (14, geoadd),
            (4, lambda: [b"GEOPOS", geo()] + some(member)),
            (4, lambda: [b"GEOHASH", geo()] + some(member)),
            (4, lambda: [b"GEODIST", geo(), member(), member()] + ([self.unit()] if rng.random() < 0.5 else [])),
            (10, lambda: [b"GEOSEARCH", geo()] + shape() + self.geo_options(False)),
            (2, lambda: [b"GEOSEARCHSTORE", to(), geo()] + shape() + self.geo_options(True)),
            (2, lambda: [b"GEOSEARCHSTORE", self.key("z"), geo()] + shape() + self.geo_options(True) + [b"StoreDist"]),
            (1, lambda: [b"SET", rng.choice(self.pool["q"]), b"v"]),
            (8, radius),
        ]

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
        if how < 0.01 and len(cmd) > 1:
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
                [[b"MULTI"], self.one(), [b"SET", keys[0], self.value()], self.one(), [b"EXEC"]])

    def pipeline(self):
        """The commands of one write to the sockets."""
        rng, cmds = self.rng, []
        for _ in range(rng.choice((1, 1, 2, 3, 5, 10, 30, 80))):
            how = rng.random()
            if how < 0.02:
                cmds += self.transaction()
            elif how < 0.023:
                cmds.append(rng.choice(([b"EXEC"], [b"DISCARD"], [b"UNWATCH"])))
            else:
                cmds.append(self.one())
        return cmds
