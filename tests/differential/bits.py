"""Commands on bitmaps and HyperLogLogs for the grammar. Their values are compared byte by byte, as all strings are."""

KINDS = {"b": 20, "v": 12}  # bitmaps, HyperLogLogs
POOLED = "bv"


class Draw:
    def __init__(self, grammar):
        self.g = grammar
        self.rng = grammar.rng

    def offset(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.6:
            return b"%d" % rng.randrange(300)
        if how < 0.93:
            return b"%d" % rng.randrange(20000)
        return rng.choice((b"-1", b"x", b"", b"4294967296000", b"4611686018427387904", b"#3", b"#-1", b"1.5"))

    def field(self):
        """A type and an offset of BITFIELD."""
        rng = self.rng
        kind = rng.choice("iu") + str(rng.choice((1, 2, 5, 8, 16, 31, 32, 33, 63, 64, rng.randrange(1, 65))))
        if rng.random() < 0.04:
            kind = rng.choice(("x8", "i", "u64", "i8x", "I8", "i0", "i65", ""))
        return [kind.encode(), rng.choice((b"%d" % rng.randrange(200), b"#%d" % rng.randrange(20), self.offset()))]

    def number(self):
        rng = self.rng
        return rng.choice((b"0", b"1", b"-1", b"%d" % rng.randrange(-300, 300), b"%d" % 2 ** 62, b"%d" % -2 ** 62,
                           b"%d" % 2 ** 31, b"%d" % 2 ** 40, b"x"))

    def bitfield(self):
        rng, out = self.rng, []
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.4:
                out += [b"OVERFLOW", rng.choice((b"WRAP", b"sat", b"FAIL", b"FAIL", b"x"))]
            how = rng.random()
            if how < 0.3:
                out += [b"GET"] + self.field()
            elif how < 0.97:
                out += [rng.choice((b"SET", b"INCRBY"))] + self.field() + [self.number()]
            else:
                out += [b"GET", b"u8"]
        return [b"BITFIELD", self.g.key("b")] + out

    def span(self):
        """A range with a unit, perhaps."""
        index = self.g.index
        unit = self.rng.choice((b"BIT", b"byte", b"BYTE", b"x"))
        return self.rng.choice(([], [index()], [index(), index()], [index(), index(), unit], [b"1", b"2", b"BIT", b"x"]))

    def elements(self):
        rng = self.rng
        many = rng.choice((0, 1, 1, 2, 10, 200))
        return [rng.choice((b"%d" % rng.randrange(2000), b"e%d" % rng.randrange(40), self.g.data(rng.randrange(30))))
                for _ in range(many)]

    def commands(self):
        rng, n = self.rng, self.g.key
        b, v = (lambda: n("b")), (lambda: n("v"))
        return [
            (10, lambda: [b"SETBIT", b(), self.offset(), rng.choice((b"0", b"1", b"1", b"1", b"2", b"x"))]),
            (4, lambda: [b"GETBIT", b(), self.offset()]),
            (5, lambda: [b"BITCOUNT", b()] + self.span()),
            (5, lambda: [b"BITPOS", b(), rng.choice((b"0", b"1", b"1", b"2", b"x"))] + self.span()),
            (5, lambda: [b"BITOP", rng.choice((b"AND", b"or", b"XOR", b"NOT", b"NOPE")), b()] +
             [b() for _ in range(rng.choice((1, 1, 2, 3)))]),
            (8, self.bitfield),
            (2, lambda: [b"BITFIELD_RO", b(), b"GET"] + self.field() + rng.choice(([], [], [b"SET", b"u8", b"0", b"1"]))),
            (2, lambda: [b"SET", b(), rng.choice((b"", b"\xff" * rng.randrange(70), b"\0" * rng.randrange(20), b"12345"))]),
            (2, lambda: [b"GET", rng.choice((b, v))()]),
            (10, lambda: [b"PFADD", v()] + self.elements()),
            (5, lambda: [b"PFCOUNT"] + [v() for _ in range(rng.choice((1, 1, 2, 3)))]),
            (2, lambda: [b"PFDEBUG", rng.choice((b"DECODE", b"decode", b"ENCODING", b"GETREG", b"TODENSE", b"x")), v()]),
            (4, lambda: [b"PFMERGE", v()] + [v() for _ in range(rng.choice((0, 1, 2, 3)))]),
        ]
