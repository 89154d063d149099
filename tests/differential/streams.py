"""Random commands on streams. IDs are explicit and few, so that they meet; times of delivery are long ago or just now, and
what depends on the clock is compared by judge()."""
BAD_IDS = [b"", b"abc", b"1-2-3", b"-1", b"1-", b"-", b"+", b"$", b">", b"1-*", b"18446744073709551616", b"1.5", b" 7", b"+7-+3",
           b"007-1", b"1\x00-3", b"5-18446744073709551615", b"18446744073709551615-18446744073709551615", b"0-0", b"0",
           b"(5", b"(-", b"(18446744073709551615-18446744073709551615", b"(0-0", b"("]
GROUPS = [b"g0", b"g1", b"g2", b"", b"7"]
CONSUMERS = [b"alice", b"bob", b"carol", b"", b"42"]
CLOCKED = {b"XPENDING", b"XINFO"}


def table(g):
    rng, n = g.rng, g.key
    key = lambda: n("e")
    group = lambda: rng.choice(GROUPS[:3] if rng.random() < 0.95 else GROUPS + [b"none"])
    consumer = lambda: rng.choice(CONSUMERS[:3] if rng.random() < 0.95 else CONSUMERS)

    def ident():
        how = rng.random()
        if how < 0.06:
            return rng.choice(BAD_IDS)
        ms = rng.randint(1, 60)
        return b"%d" % ms if how < 0.2 else b"%d-%d" % (ms, rng.randint(0, 9))

    def top():
        """For XADD: mostly a later one, so that streams grow."""
        how = rng.random()
        if how < 0.5:
            g.stream_ms = getattr(g, "stream_ms", 60) + rng.choice((0, 0, 0, 1, 1, 300, 70000))
            return b"%d-*" % g.stream_ms
        if how < 0.6:
            return b"%d-%d" % (getattr(g, "stream_ms", 60) + 1, rng.randint(0, 300))
        return b"%d-*" % rng.randint(1, 60) if how < 0.75 else ident()

    def any_id():
        return ident() if rng.random() < 0.7 else b"%d-%d" % (
            max(0, getattr(g, "stream_ms", 60) - rng.choice((0, 0, 1, 2, 300))), rng.randint(0, 9))

    ids = lambda: [any_id() for _ in range(rng.choice((1, 1, 2, 4, 12)))]
    number = lambda: rng.choice((b"0", b"1", b"2", b"3", b"5", b"10", b"10", b"100", g.index()))

    def fields():
        how = rng.random()
        if how < 0.6:
            names = [b"a", b"b"]
        else:
            names = [rng.choice((b"a", b"b", b"12", b"", b"field")) for _ in range(rng.randint(1, 4))]
        return [x for name in names for x in (name, g.small() if rng.random() < 0.95 else g.value())]

    def trim():
        how = rng.random()
        out = [rng.choice((b"MAXLEN", b"maxlen")), number()] if how < 0.6 else [b"MINID", any_id()]
        if rng.random() < 0.4:
            out.insert(1, rng.choice((b"~", b"~", b"=")))
        if rng.random() < 0.25:
            out += [b"LIMIT", number()]
        return out

    def add():
        out = [b"XADD", key()]
        if rng.random() < 0.1:
            out.append(b"NOMKSTREAM")
        if rng.random() < 0.1:
            out += trim()
        return out + [top()] + fields()

    def bound():
        how = rng.random()
        return (b"-" if how < 0.2 else b"+") if how < 0.4 else (b"(" if how < 0.5 else b"") + any_id()

    def count():
        return [b"COUNT", number()] if rng.random() < 0.5 else []

    def block():
        return [b"BLOCK", rng.choice((b"1", b"1", b"1", b"-1", b"x", b"1.5"))] if rng.random() < 0.05 else []

    def read():
        keys = [key() for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        out = [b"XREAD"] + count() + block() + [b"STREAMS"] + keys
        return out + [rng.choice((b"0", b"$", any_id(), any_id())) for _ in keys]

    def read_group():
        keys = [key() for _ in range(rng.choice((1, 1, 1, 1, 2)))]
        out = [b"XREADGROUP", b"GROUP", group(), consumer()] + count() + block()
        if rng.random() < 0.1:
            out.append(b"NOACK")
        return out + [b"STREAMS"] + keys + [rng.choice((b">", b">", b">", b"0", any_id(), b"$")) for _ in keys]

    def claim():
        out = [b"XCLAIM", key(), group(), consumer(), rng.choice((b"0", b"0", b"0", b"100000000", b"-5", b"x"))] + ids()
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            out += rng.choice(([b"FORCE"], [b"FORCE"], [b"JUSTID"], [b"IDLE", b"1000000000"], [b"TIME", b"1000000000000"],
                               [b"RETRYCOUNT", number()], [b"LASTID", any_id()], [b"IDLE", b"-9223372036854775808"],
                               [b"TIME", b"-7"], [b"idle", b"x"], [b"foo"]))
        return out

    def autoclaim():
        out = [b"XAUTOCLAIM", key(), group(), consumer(), rng.choice((b"0", b"0", b"100000000", b"-5", b"x")), bound()]
        if rng.random() < 0.5:
            out += [b"COUNT", rng.choice((b"1", b"2", b"10", b"0", b"-1", b"x", b"576460752303423487", b"9223372036854775807"))]
        return out + ([b"JUSTID"] if rng.random() < 0.3 else [])

    def pending():
        out = [b"XPENDING", key(), group()]
        if rng.random() < 0.7:
            out += [b"IDLE", rng.choice((b"0", b"100000000", b"x"))] if rng.random() < 0.3 else []
            out += [bound(), bound(), number()]
            out += [consumer()] if rng.random() < 0.5 else []
        return out

    def create():
        out = [b"XGROUP", b"CREATE", key(), group(), rng.choice((b"0", b"0", b"$", any_id()))]
        out += [b"MKSTREAM"] if rng.random() < 0.3 else []
        return out + ([b"ENTRIESREAD", number()] if rng.random() < 0.2 else [])

    def setid():
        out = [b"XSETID", key(), rng.choice((any_id(), top()))]
        out += [b"ENTRIESADDED", rng.choice((number(), b"1000"))] if rng.random() < 0.3 else []
        return out + ([b"MAXDELETEDID", any_id()] if rng.random() < 0.3 else [])

    return [
        (60, add),
        (6, lambda: [b"XLEN", key()]),
        (12, lambda: [rng.choice((b"XRANGE", b"XREVRANGE")), key(), bound(), bound()] + count()),
        (8, lambda: [b"XRANGE", key(), b"-", b"+"] + count()),
        (14, lambda: [b"XDEL", key()] + ids()),
        (5, lambda: [b"XTRIM", key()] + trim()),
        (12, read),
        (40, read_group),
        (12, lambda: [b"XACK", key(), group()] + ids()),
        (14, claim),
        (8, autoclaim),
        (12, pending),
        (16, create),
        (2, lambda: [b"XGROUP", b"DESTROY", key(), group()]),
        (5, lambda: [b"XGROUP", b"SETID", key(), group(), rng.choice((b"$", b"0", b"-", any_id()))] +
         ([b"ENTRIESREAD", number()] if rng.random() < 0.3 else [])),
        (4, lambda: [b"XGROUP", rng.choice((b"CREATECONSUMER", b"DELCONSUMER")), key(), group(), consumer()]),
        (10, lambda: [b"XINFO", b"STREAM", key()] + rng.choice(([], [b"FULL"], [b"FULL", b"COUNT", number()]))),
        (6, lambda: [b"XINFO", b"GROUPS", key()]),
        (6, lambda: [b"XINFO", b"CONSUMERS", key(), group()]),
        (4, setid),
    ]


def same(a, b, near):
    """Replies that are equal but for the times in them, where near() takes two for one."""
    if not isinstance(a, list) or not isinstance(b, list) or len(a) != len(b):
        return a == b
    return all(x == y or (near(int(x[1:]), int(y[1:])) if is_time(a, i, x, y) else same(x, y, near))
               for i, (x, y) in enumerate(zip(a, b)))


def is_time(items, i, x, y):
    if not all(isinstance(v, bytes) and v[:1] == b":" for v in (x, y)):
        return False
    pending = len(items) == 5 and i == 3  # the kind of reply, ID, consumer, time, count
    return pending or items[i - 1] in (b"$idle", b"$seen-time") or min(int(x[1:]), int(y[1:])) > 10 ** 11
