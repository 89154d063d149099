"""SORT for the grammar: what it sorts, and the keys that BY and GET lead to, which mostly are on disk."""

KINDS = {"j": 12}  # lists and sets of what SORT likes
POOLED = "j"
ELEMENTS = 60
NAMES = {"W": [b"wt_%d" % i for i in range(ELEMENTS)], "H": [b"wh_%d" % i for i in range(ELEMENTS)]}
ODD = [b"", b"abc", b"inf", b"-Infinity", b"nan", b" 3", b"3 ", b"0x10", b"+5", b"1e5", b"\xff\xfe"]


def decided(by, alpha):
    """Words that are equal stand in any order, and so do members of sets that are not sorted."""
    return not (by and alpha) and by not in (b"nosort", b"#")


class Draw:
    def __init__(self, grammar):
        self.g = grammar
        self.rng = grammar.rng

    def number(self, odd=0.002):
        rng, how = self.rng, self.rng.random()
        if how < odd:
            return rng.choice(ODD)
        if how < 0.9:
            return b"%d" % rng.randrange(ELEMENTS)
        return rng.choice((b"-7", b"2.5", b"-0.25", b"1e3", b"01", b"9223372036854775807", b"-1000"))

    def elements(self):
        many = self.rng.choice((1, 3, 20, 60))
        return [self.number() for _ in range(many)]

    def weight(self):
        rng = self.rng
        if rng.random() < 0.7:
            return self.number(0.01)
        return rng.choice((self.g.small, self.g.integer))()

    def limit(self):
        rng = self.rng
        if rng.random() < 0.05:
            return [b"LIMIT", self.g.index(), rng.choice((b"x", b"", b"1.5", self.g.index()))]
        return [b"LIMIT", b"%d" % rng.randrange(-2, 30), b"%d" % rng.randrange(-2, 30)]

    def options(self, by, alpha):
        rng = self.rng
        out = [[b"BY", by]] if by else []
        if alpha:
            out.append([rng.choice((b"ALPHA", b"alpha"))])
        if rng.random() < 0.4:
            out.append([rng.choice((b"DESC", b"desc", b"ASC"))])
        limit = rng.random() < 0.4
        if limit:
            out.append(self.limit())
        if limit and not decided(by, alpha):
            return [w for option in out for w in option]
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
            out.append([rng.choice((b"GET", b"get")), rng.choice((b"wt_*", b"wh_*->f", b"wh_*->g", b"#", b"nothing", b"w*_", b"j*->f",
                                                                 b"wt_*->", b"wh_*->f->g", b"*", b"##"))])
        rng.shuffle(out)
        return [w for option in out for w in option]

    def pattern(self):
        return self.rng.choice((None, None, b"wt_*", b"wt_*", b"wh_*->f", b"wh_*->g", b"nosort", b"wt_*->f", b"#", b"*_wt"))

    def sort(self):
        rng, key = self.rng, self.g.key("jjjjjl")
        by, alpha = self.pattern(), rng.random() < 0.4
        options = self.options(by, alpha)
        if rng.random() < 0.02:
            options.append(rng.choice((b"LIMIT", b"BY", b"GET", b"STORE", b"foo", b"", b"DESC")))
        name = rng.choice((b"SORT", b"SORT", b"SORT_RO"))
        if rng.random() < 0.4 and (decided(by, alpha) or name == b"SORT_RO"):
            options += [b"STORE", self.g.key("j")]
        return [name, key] + options

    def sorted_set(self):
        """Redis makes sorted sets large ones to sort them, so nobody may look at them then."""
        rng, key = self.rng, self.g.key("j")
        members = {self.number() for _ in range(rng.choice((1, 5, 40, 200)))}
        add = [x for i, m in enumerate(sorted(members)) for x in (b"%d" % (i * 7 % 31), m)]
        cmds = [[b"MULTI"], [b"DEL", key], [b"ZADD", key] + add]
        for _ in range(3):
            by = self.pattern()
            cmds.append([rng.choice((b"SORT", b"SORT_RO")), key] + self.options(by, rng.random() < 0.3))
        cmds.append([b"SORT", key] + self.options(b"nosort", False) + [b"STORE", self.g.key("j")])
        return cmds + [[b"DEL", key], [b"EXEC"]]

    def script(self):
        """Sets have an order in scripts."""
        rng, key = self.rng, self.g.key("j")
        body = b"return redis.call(unpack(ARGV))" if rng.random() < 0.5 else b"redis.call('incr', 'i1') return redis.call(unpack(ARGV))"
        return [b"EVAL", body, b"0", b"SORT", key] + self.options(rng.choice((b"nosort", b"wt_*", None)), False)

    def commands(self):
        rng, j = self.rng, lambda: self.g.key("j")
        return [
            (5, lambda: [b"RPUSH", j()] + self.elements()),
            (5, lambda: [b"SADD", j()] + self.elements()),
            (4, lambda: [b"DEL", j()]),
            (6, lambda: [b"SET", rng.choice(NAMES["W"]), self.weight()]),
            (2, lambda: [b"MSET"] + [x for w in rng.sample(NAMES["W"], 20) for x in (w, self.weight())]),
            (4, lambda: [b"HSET", rng.choice(NAMES["H"]), b"f", self.weight(), rng.choice((b"g", b"f->g")), self.weight()]),
            (1, lambda: [b"DEL", rng.choice(NAMES["W"] + NAMES["H"])]),
            (1, lambda: [b"RPUSH", rng.choice(NAMES["W"] + NAMES["H"]), b"x"]),
            (25, self.sort),
            (3, self.script),
        ]


def same(cmd, a, b):
    """Are these different replies as good as equal? None: not one of these commands."""
    words = [w.upper() for w in cmd]
    if words[0] not in (b"SORT", b"SORT_RO") or not (isinstance(a, list) and isinstance(b, list)):
        return None
    unordered = b"NOSORT" in words or b"#" in words or (b"BY" in words and b"ALPHA" in words)
    if not unordered or a[0] != b[0] or len(a) != len(b):
        return None
    return True if b"LIMIT" in words else sorted(map(repr, a)) == sorted(map(repr, b))


# redis-server's SORT takes an ERANGE that an earlier command has left in errno for its own; reading a good number clears it.
CLEARS_ERRNO = [b"GEOSEARCH", b"no places", b"FROMLONLAT", b"1", b"1", b"BYRADIUS", b"1", b"m"]


def with_clean_errno(cmds):
    out = []
    for cmd in cmds:
        if cmd[0].upper() in (b"SORT", b"SORT_RO") or cmd[3:4] == [b"SORT"]:
            out.append(CLEARS_ERRNO)
        out.append(cmd)
    return out
