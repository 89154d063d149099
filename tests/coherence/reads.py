"""Reads: what a version of a key would answer, and what came, in one form for RESP2 and RESP3."""
from rawconn import RespError

WRONG = "WRONGTYPE"
NAMES = {"s": "string", "h": "hash", "l": "list", "t": "set", "z": "zset", "x": "stream"}


def _typed(kind, empty, fn):
    def expect(value, _expire, args):
        if value is None:
            return empty
        return fn(value[1], args) if value[0] == kind else WRONG
    return expect


def _zorder(z):
    return tuple(sorted(z.items(), key=lambda e: (e[1], e[0])))


def _index(items, i):
    return items[i] if -len(items) <= i < len(items) else None


def _pairs(reply):
    if isinstance(reply, dict):
        return tuple(reply.items())
    if reply and isinstance(reply[0], list):
        return tuple(map(tuple, reply))
    return tuple(zip(reply[0::2], reply[1::2]))


def _same(reply):
    return reply


def _entries(reply):
    return tuple((e[0], tuple(e[1])) for e in reply)


def _number(reply):
    return None if reply is None else float(reply)


# name: (arguments after the key, what a version answers, what came)
READS = {
    "GET": ((), _typed("s", None, lambda v, a: v), _same),
    "STRLEN": ((), _typed("s", 0, lambda v, a: len(v)), _same),
    "GETRANGE": (("0", "5"), _typed("s", b"", lambda v, a: v[:6]), _same),
    "HGETALL": ((), _typed("h", frozenset(), lambda v, a: frozenset(v.items())), lambda r: frozenset(_pairs(r))),
    "HGET": (("f1",), _typed("h", None, lambda v, a: v.get(b"f1")), _same),
    "HMGET": (("f1", "f2"), _typed("h", (None, None), lambda v, a: (v.get(b"f1"), v.get(b"f2"))), tuple),
    "HLEN": ((), _typed("h", 0, lambda v, a: len(v)), _same),
    "LRANGE": (("0", "-1"), _typed("l", (), lambda v, a: v), tuple),
    "LINDEX": (("0",), _typed("l", None, lambda v, a: _index(v, 0)), _same),
    "LLEN": ((), _typed("l", 0, lambda v, a: len(v)), _same),
    "SMEMBERS": ((), _typed("t", frozenset(), lambda v, a: v), frozenset),
    "SCARD": ((), _typed("t", 0, lambda v, a: len(v)), _same),
    "SISMEMBER": (("m",), _typed("t", 0, lambda v, a: int(b"m" in v)), int),
    "ZRANGE": (("0", "-1", "WITHSCORES"), _typed("z", (), lambda v, a: _zorder(v)),
               lambda r: tuple((m, float(s)) for m, s in _pairs(r))),
    "ZSCORE": (("m1",), _typed("z", None, lambda v, a: v.get(b"m1")), _number),
    "ZCARD": ((), _typed("z", 0, lambda v, a: len(v)), _same),
    "XRANGE": (("-", "+"), _typed("x", (), lambda v, a: v), _entries),
    "XLEN": ((), _typed("x", 0, lambda v, a: len(v)), _same),
    "EXISTS": ((), lambda value, expire, a: int(value is not None), _same),
    "TYPE": ((), lambda value, expire, a: "none" if value is None else NAMES[value[0]], _same),
    # Only whether it has an expiry: the rest is a matter of milliseconds.
    "PTTL": ((), lambda value, expire, a: -2 if value is None else -1 if expire is None else 0,
             lambda r: r if r < 0 else 0),
}

WHOLE = {"s": "GET", "n": "GET", "h": "HGETALL", "l": "LRANGE", "t": "SMEMBERS", "z": "ZRANGE", "x": "XRANGE", "a": "TYPE"}
PARTS = {"s": ["STRLEN", "GETRANGE"], "n": ["STRLEN"], "h": ["HGET", "HMGET", "HLEN"], "l": ["LINDEX", "LLEN"],
         "t": ["SCARD", "SISMEMBER"], "z": ["ZSCORE", "ZCARD"], "x": ["XLEN"], "a": ["GET", "HGETALL", "LRANGE"]}
COMMON = ["EXISTS", "TYPE", "PTTL"]


def command(name, key):
    return (name, key) + READS[name][0]


def came(name, reply):
    """The reply in the form of expected(); an error that is not WRONGTYPE stays one."""
    if isinstance(reply, RespError):
        return WRONG if str(reply).startswith(WRONG) else reply
    return READS[name][2](reply)


def expected(name, value, expire):
    return READS[name][1](value, expire, READS[name][0])
