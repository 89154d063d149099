"""Random commands on sorted sets (keys z, y and w) and places (x): a part of the grammar."""

SCORES = [b"0", b"-0", b"1", b"-1", b"inf", b"-inf", b"+inf", b"1e21", b"-1e21", b"3.0e-5", b"0.1", b"1e17", b"123456789012345678",
          b"99999999999999999", b"4611686018427387904", b"9223372036854775807", b"1e-320", b"1.7976931348623157e308",
          b"2.5", b"0x1p3", b"infinity", b"+5", b"007", b"1.", b".5"]
NOT_SCORES = [b"", b"abc", b"nan", b"-nan", b"1e400", b"1e-400", b" 1", b"1 ", b"1\x00", b"--1"]
NOT_BOUNDS = [b"", b"(", b"nan", b"(nan", b"abc", b" 1", b"1 ", b"1\x00x", b"((1", b"[1", b"1e400"]
EDGES = ((b"180", b"0.5"), (b"-180", b"0.5"), (b"-180", b"85.05112878"), (b"179.9999", b"-85.05112878"), (b"0", b"0"))


class SortedSets:
    def cased(self, word):
        return self.rng.choice((word, word, word.lower(), word.capitalize()))

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
        return [self.cased(b"LIMIT"), rng.choice((b"0", b"1", b"3", self.index())), rng.choice((b"-1", b"0", b"2", b"5", self.index()))]

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
            return [self.key("zzzzx"), self.score_bound(), self.score_bound(), self.cased(b"BYSCORE")]
        return [self.pure_key("y"), self.lex_bound(), self.lex_bound(), self.cased(b"BYLEX")]

    def zrange_options(self):
        rng = self.rng
        out = self.limit() if rng.random() < 0.5 else []
        if rng.random() < 0.3:
            out.append(self.cased(b"REV"))
        return out

    def with_scores(self):
        return [self.cased(b"WITHSCORES")] if self.rng.random() < 0.5 else []

    def join_options(self, count):
        rng, out = self.rng, []
        if rng.random() < 0.4:
            out += [self.cased(b"WEIGHTS")] + [self.score() for _ in range(count if rng.random() < 0.95 else count + 1)]
        if rng.random() < 0.4:
            out += [self.cased(b"AGGREGATE"), rng.choice((b"SUM", b"min", b"Max", b"SUM", b"avg"))]
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
                                                              [b"-4", b"withscores"], [rng.choice((b"x", b"1.5", b"", b"9223372036854775808"))],
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
        return self.cased(rng.choice((b"M", b"km", b"KM", b"ft", b"mi"))) if rng.random() < 0.98 else b"yd"

    def distance(self):
        rng = self.rng
        if rng.random() < 0.02:
            return rng.choice((b"-1", b"abc", b"nan", b"", b"inf"))
        return b"%.4g" % 10 ** rng.uniform(-2, 7.5) if rng.random() < 0.3 else b"%d" % rng.choice((0, 1, 50, 200, 1000, 5000, 200000))

    def geo_options(self, store):
        rng, out = self.rng, []
        out += [self.cased(w) for w in (b"WITHDIST", b"WITHHASH", b"WITHCOORD") if rng.random() < (0.02 if store else 0.25)]
        if rng.random() < 0.5:
            out.append(rng.choice((b"ASC", b"desc")))
        if rng.random() < 0.3:
            out += [self.cased(b"COUNT"), rng.choice((b"1", b"3", b"10", b"10", b"0", b"-1", b"x") if rng.random() < 0.1 else (b"1", b"3", b"10"))]
        if rng.random() < 0.1:
            out.append(self.cased(b"ANY"))
        return out

    def _geo(self):
        rng, member, geo = self.rng, self.member, lambda: self.pure_key("x")
        to = lambda: rng.choice(self.pool["x"])
        some = lambda make: [make() for _ in range(rng.choice((1, 1, 2, 3, 8)))]

        def geoadd():
            flags = [w for w in (b"NX", b"XX", b"CH") if rng.random() < 0.08]
            return [b"GEOADD", to()] + flags + [x for _ in range(rng.choice((1, 2, 8, 20))) for x in self.place()]

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
