"""Commands on sets and hashes for the grammar, and what counts as the same reply to them: their elements have no order,
some are chosen by chance, and cursors are the servers' own."""
import collections

KINDS = {"h": 40, "t": 50, "p": 6}  # hashes, sets; "p": sets and hashes that random commands change, see popped()
POOLED = "ht"
ODD_COUNTS = [b"0", b"-1", b"9223372036854775807", b"-9223372036854775807", b"-9223372036854775808", b"x", b"1.5", b"",
              b"4611686018427387904"]


LIMITS = ((b"hash-max-listpack-entries", b"128"), (b"hash-max-listpack-value", b"64"), (b"set-max-intset-entries", b"512"))


def unlimited(count):
    """Counts that are refused here, and that redis-server would try to serve."""
    try:
        return int(count) < -1000000
    except ValueError:
        return False


class Draw:
    def __init__(self, grammar):
        self.g = grammar
        self.rng = grammar.rng

    def many(self, make, sizes=(1, 1, 2, 3, 5, 12)):
        return [make() for _ in range(self.rng.choice(sizes))]

    def field(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.55:
            return b"f%d" % rng.randint(0, 12)
        if how < 0.7:
            return b"%d" % rng.randint(-5, 300)
        if how < 0.97:
            return b"field:%d" % rng.randint(0, 400)
        return self.g.data(rng.choice((0, 1, 64, 65, 254, 255, 256, 300)))

    def value(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.4:
            return self.g.data(rng.randint(0, 40))
        if how < 0.7:
            return rng.choice((self.g.integer, self.g.float))()
        if how < 0.96:
            return b"%d" % rng.randint(-70000, 70000)
        return self.g.data(rng.choice((63, 64, 65, 66, 255, 5000)))

    def member(self):
        rng, how = self.rng, self.rng.random()
        if how < 0.7:
            return b"%d" % rng.randint(-20, 60)
        if how < 0.8:
            return b"%d" % rng.choice((rng.randint(-40000, 40000), rng.randint(-2**31 - 9, 2**31 + 9),
                                       rng.randint(-2**63, 2**63 - 1)))
        if how < 0.96:
            return b"m%d" % rng.randint(0, 40)
        return rng.choice((self.g.small, self.g.integer))()

    def numbers(self, sizes=(3, 20, 100, 400)):
        """Members that are an intset together, also one of many."""
        start, n = self.rng.randint(-300, 300), self.rng.choice(sizes)
        return [b"%d" % i for i in range(start, start + n)]

    def count(self):
        rng = self.rng
        if rng.random() < 0.1:
            return rng.choice(ODD_COUNTS)
        return b"%d" % (rng.randint(-30, 60) if rng.random() < 0.9 else rng.choice((-300, 200, 600, 5000)))

    def drawn(self, name, key, more=()):
        """SRANDMEMBER or HRANDFIELD."""
        count = self.count()
        if unlimited(count) and count not in (b"-9223372036854775807", b"-9223372036854775808"):
            count = b"-3"
        if count == b"-9223372036854775807" and not more:
            count = b"-9223372036854775808"
        return [name, key, count] + list(more)

    def pairs(self, sizes=(1, 1, 2, 3, 8)):
        return [x for _ in range(self.rng.choice(sizes)) for x in (self.field(), self.value())]

    def scan(self, name, key):
        rng = self.rng
        cmd = [name, key, rng.choice((b"0", b"0", b"0", b"0", b"5", b"x", b"", b"-1", b"18446744073709551616"))]
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            cmd += rng.choice(([b"MATCH", b"*1*"], [b"MATCH", b"f[0-5]"], [b"COUNT", b"3"], [b"count", b"100000"],
                               [b"COUNT", b"0"], [b"COUNT", b"x"], [b"MATCH"], [b"TYPE", b"set"]))
        return cmd

    def card(self):
        rng, keys = self.rng, [self.g.key("t") for _ in range(self.rng.choice((1, 2, 2, 3)))]
        numkeys = b"%d" % len(keys) if rng.random() < 0.9 else rng.choice((b"0", b"-1", b"x", b"99", b"1"))
        more = rng.choice(([], [], [b"LIMIT", b"%d" % rng.randint(0, 9)], [b"LIMIT", b"-1"], [b"limit", b"x"], [b"LIMIT"],
                           [b"LIMIT", b"1", b"limit", b"2"]))
        return [b"SINTERCARD", numkeys] + keys + more

    def limit(self):
        """The encodings' limits, mostly what they are by default."""
        name, default = self.rng.choice(LIMITS)
        return [b"CONFIG", b"SET", name, self.rng.choice((default, default, b"10", b"0"))]

    def commands(self):
        """Rows of (weight, how to make one)."""
        rng, n = self.rng, self.g.key
        h, t = (lambda: n("h")), (lambda: n("t"))
        pick = lambda *names: rng.choice(names)
        keys = lambda: self.many(t, (1, 2, 2, 2, 3, 4))
        return [
            (16, lambda: [pick(b"HSET", b"HSET", b"HMSET"), h()] + self.pairs()),
            (2, lambda: [b"HSET", h()] + self.pairs((60, 128, 200))),
            (1, lambda: [pick(b"HSET", b"HMSET"), h(), self.field(), self.value(), self.field()]),
            (4, lambda: [b"HSETNX", h(), self.field(), self.value()]),
            (10, lambda: [b"HGET", h(), self.field()]),
            (5, lambda: [b"HMGET", h()] + self.many(self.field)),
            (8, lambda: [pick(b"HGETALL", b"HKEYS", b"HVALS"), h()]),
            (5, lambda: [pick(b"HSTRLEN", b"HEXISTS"), h(), self.field()]),
            (3, lambda: [b"HLEN", h()]),
            (6, lambda: [b"HDEL", h()] + self.many(self.field)),
            (1, lambda: [b"HDEL", h()] + [b"field:%d" % i for i in range(400)]),
            (6, lambda: [b"HINCRBY", h(), self.field(), self.g.integer()]),
            (6, lambda: [b"HINCRBYFLOAT", h(), self.field(), self.g.float()]),
            (6, lambda: self.drawn(b"HRANDFIELD", h(), pick((), (b"WITHVALUES",), (b"withvalues",), (b"foo",)))),
            (1, lambda: [b"HRANDFIELD", h()]),
            (5, lambda: self.scan(b"HSCAN", h())),
            (16, lambda: [b"SADD", t()] + self.many(self.member)),
            (4, lambda: [b"SADD", t()] + self.numbers()),
            (8, lambda: [b"SREM", t()] + self.many(self.member)),
            (2, lambda: [b"SREM", t()] + self.numbers()),
            (4, lambda: [b"SMEMBERS", t()]),
            (6, lambda: [b"SISMEMBER", t(), self.member()]),
            (4, lambda: [b"SMISMEMBER", t()] + self.many(self.member)),
            (3, lambda: [b"SCARD", t()]),
            (6, lambda: self.drawn(b"SRANDMEMBER", t())),
            (1, lambda: [b"SRANDMEMBER", t()] + rng.choice(([], [], [b"1", b"2"]))),
            (3, lambda: [b"SPOP", t(), pick(b"100000", b"100000", b"0", b"-1", b"x", b"9223372036854775808")]),
            (6, lambda: [b"SMOVE", t(), t(), self.member()]),
            (5, lambda: self.scan(b"SSCAN", t())),
            (12, lambda: [pick(b"SINTER", b"SUNION", b"SDIFF")] + keys()),
            (8, lambda: [pick(b"SINTERSTORE", b"SUNIONSTORE", b"SDIFFSTORE"), t()] + keys()),
            (5, self.card),
            (1, self.limit),
        ]

    def popped(self):
        """Members removed by chance are others on each side: the key is gone before anybody looks."""
        rng, key = self.rng, self.g.key("p")
        numbers = rng.random() < 0.5
        members = self.numbers((3, 20, 400, 700)) if numbers else self.many(self.member, (2, 5, 30, 700))
        count = rng.choice(([], [b"%d" % rng.choice((0, 1, 2, len(members) // 4, len(members) // 2, len(members) - 1,
                                                   len(members) * 5 // 6, len(members), 1000))]))
        # What is left of others than numbers may be only numbers.
        encoding = [[b"OBJECT", b"ENCODING", key]] if numbers else []
        return [[b"MULTI"], [b"DEL", key], [b"SADD", key] + members, [b"SPOP", key] + count, [b"SCARD", key],
                *encoding, [b"DEL", key], [b"EXEC"]]


# -- replies

WHOLE = {b"SPOP"}  # without a count it removes what comes
UNORDERED = {b"SMEMBERS", b"SINTER", b"SUNION", b"SDIFF", b"HKEYS", b"HVALS"}
BY_CHANCE = {b"SPOP", b"SRANDMEMBER", b"HRANDFIELD"}


def counts(items):
    return collections.Counter(tuple(i) if isinstance(i, list) else i for i in items)


def pairs(items):
    return list(zip(items[::2], items[1::2]))


def same_by_chance(cmd, a, b):
    """Both have as many elements; all of them, when that is all there are, else each different from the others."""
    if isinstance(a, bytes) or isinstance(b, bytes):
        return isinstance(a, bytes) and isinstance(b, bytes) and a[:1] == b[:1] == b"$"
    if len(a) != len(b) or a[0] != b[0]:
        return False
    if len(cmd) > 2 and cmd[2].startswith(b"-"):
        return True
    one = [pairs(x[1:]) if len(cmd) > 3 and not isinstance(x[1], list) else x[1:] for x in (a, b)]
    return max(counts(one[1]).values()) == 1


def same_scan(cmd, a, b):
    """A walk that is done at once shows the same; of others, cursors tell nothing."""
    if not (isinstance(a, list) and isinstance(b, list) and len(a) == len(b) == 3):
        return False
    if cmd[2] != b"0" or a[1] != b"$0" or b[1] != b"$0":
        return True
    items = [x[2][1:] for x in (a, b)]
    if cmd[0].upper() == b"HSCAN":
        items = [pairs(i) for i in items]
    return counts(items[0]) == counts(items[1])


def same(cmd, a, b):
    """Are these different replies as good as equal? None: not one of these commands."""
    name = cmd[0].upper()
    if name in BY_CHANCE:
        return same_by_chance(cmd, a, b)
    if name in (b"SSCAN", b"HSCAN"):
        return same_scan(cmd, a, b)
    if not (isinstance(a, list) and isinstance(b, list) and a[0] == b[0]):
        return None
    if name in UNORDERED:
        return counts(a[1:]) == counts(b[1:])
    if name == b"HGETALL":
        return counts(pairs(a[1:])) == counts(pairs(b[1:]))
    return None


def walk(connection, encode, parse, name, key, count):
    """A whole HSCAN or SSCAN, sorted."""
    cursor, found = b"0", []
    while True:
        reply = parse(connection.exchange(encode([name, key, cursor, b"COUNT", count]), 1)[0])
        if not isinstance(reply, list):
            return reply
        cursor = reply[1][1:]
        found += pairs(reply[2][1:]) if name == b"HSCAN" else reply[2][1:]
        if cursor == b"0":
            return sorted(set(found))
