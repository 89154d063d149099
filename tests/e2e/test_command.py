"""COMMAND: what this server says about its commands is what redis-server says about them."""
import pytest

from rawconn import RespError

pytestmark = pytest.mark.sequential

# Those of later Redis versions: fields of a hash that expire.
LATER = set("hexpire hpexpire hexpireat hpexpireat hpersist httl hpttl hexpiretime hpexpiretime hgetdel hgetex hsetex".split())
OWN = {"cache", "cache|flush", "cache|help", "cache|inspect", "cache|rule", "warm"} | LATER


def tree(raw):
    """A reply with its types: (type, value); sets in a fixed order, maps as dicts of text to tree."""
    def read(at):
        end = raw.index(b"\r\n", at)
        kind, rest, at = raw[at:at + 1].decode(), raw[at + 1:end], end + 2
        if kind in "$=" and rest != b"-1":
            size = int(rest)
            return ("$", raw[at:at + size].decode()), at + size + 2
        if kind in "*~%>" and rest != b"-1":
            items = []
            for _ in range(int(rest) * (2 if kind == "%" else 1)):
                item, at = read(at)
                items.append(item)
            if kind == "%":
                return (kind, {items[i][1]: items[i + 1] for i in range(0, len(items), 2)}), at
            return (kind, sorted(items) if kind == "~" and all(isinstance(i[1], str) for i in items) else items), at
        return (kind, rest.decode()), at

    value, end = read(0)
    assert end == len(raw)
    return value


def info_of(conn, name):
    """COMMAND INFO of one command, comparable: subcommands as a dict, notes present but not their text."""
    kind, items = tree(conn.call("COMMAND", "INFO", name))
    assert (kind, len(items)) == ("*", 1)
    return comparable(items[0])


def comparable(row):
    kind, fields = row
    if kind != "*":
        return row
    specs = fields[8]
    for spec in specs[1]:
        if spec[0] == "%" and "notes" in spec[1]:
            spec[1]["notes"] = "a note"
    subs = fields[9]
    named = {sub[1][0][1]: comparable(sub) for sub in subs[1]}
    return kind, fields[:8] + [specs, (subs[0], named)]


def comparable_resp2(row):
    """The same of a RESP2 reply, where maps are arrays and sets have no type."""
    fields = row[1]
    flat = [sorted(f[1]) if f[0] == "*" and all(isinstance(i[1], str) for i in f[1]) else f for f in fields[:8]]
    subs = {s[1][0][1]: comparable_resp2(s) for s in fields[9][1]}
    return flat + [len(fields[8][1]), subs]


@pytest.fixture
def pair(tiercel, redis_server):
    t, r = tiercel(), redis_server()
    with t.raw() as ours, r.raw() as theirs:
        yield ours, theirs


def names(conn):
    return {n.decode() for n in conn.ask("COMMAND", "LIST")}


@pytest.mark.parametrize("proto", [2, 3])
def test_info_of_every_command(pair, proto):
    ours, theirs = pair
    mine = names(ours) - OWN
    assert len(mine) > 130
    for conn in pair:
        conn.call("HELLO", proto)
    for name in sorted(mine):
        if proto == 3:
            assert info_of(ours, name) == info_of(theirs, name), name
        else:
            rows = [tree(c.call("COMMAND", "INFO", name))[1][0] for c in pair]
            assert comparable_resp2(rows[0]) == comparable_resp2(rows[1]), name


def test_the_list_has_only_redis_names_and_our_own(pair):
    ours, theirs = map(names, pair)
    assert ours - theirs == OWN
    containers = {n.split("|")[0] for n in ours if "|" in n}
    assert not {n for n in theirs - ours if n.split("|")[0] in containers}
    count = pair[0].ask("COMMAND", "COUNT")
    assert count == len([n for n in ours if "|" not in n])
    assert count == len(pair[0].ask("COMMAND")) == len(pair[0].ask("COMMAND", "INFO"))


def shape(doc):
    """The parts of a COMMAND DOCS entry without its prose, which is our own."""
    out = {}
    for key, value in doc[1].items():
        if key in ("summary", "complexity", "replaced_by"):
            assert value[0] == "$" and value[1]
            out[key] = True
        elif key == "subcommands":
            out[key] = {k: shape(v) for k, v in value[1].items()}
        elif key != "history":
            out[key] = value
    return out


def test_docs_have_the_same_structure(pair):
    ours, theirs = pair
    for conn in pair:
        conn.call("HELLO", 3)
    for name in sorted(names(ours) - OWN):
        docs = [tree(c.call("COMMAND", "DOCS", name)) for c in pair]
        assert all(d[0] == "%" and list(d[1]) == [name] for d in docs)
        mine, redis = (shape(d[1][name]) for d in docs)
        redis.setdefault("complexity", mine.get("complexity"))
        mine.setdefault("complexity", redis["complexity"])
        assert mine == redis, name
    assert ours.ask("COMMAND", "DOCS", "nosuch") == {}


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("args", [
    "INFO nosuch", "INFO get nosuch get", "INFO client|id", "INFO get|x", "INFO CLIENT|ID", "COUNT x",
    "LIST FILTERBY PATTERN get*", "LIST FILTERBY MODULE none", "LIST FILTERBY ACLCAT nosuch",
    "LIST FILTERBY ACLCAT transaction", "LIST FILTERBY", "LIST x y z", "LIST FILTERBY X y",
    "GETKEYS get a", "GETKEYS mset a 1 b 2", "GETKEYS mset a 1 b", "GETKEYS ping x", "GETKEYS nosuch a",
    "GETKEYS get", "GETKEYS get a b", "GETKEYS object freq k", "GETKEYS object nosuch k", "GETKEYS memory usage k",
    "GETKEYS blpop a b 0", "GETKEYS lcs a b", "GETKEYS copy a b DB 3", "GETKEYS move a 3", "GETKEYS watch a b c",
    "GETKEYSANDFLAGS lmpop 2 a b left", "GETKEYS lmpop 0 a left", "GETKEYS lmpop 9 a left", "GETKEYS lmpop x a left",
    "GETKEYSANDFLAGS blmpop 0 1 a left count 2", "GETKEYSANDFLAGS lmove a b left right",
    "GETKEYSANDFLAGS rename a b", "GETKEYSANDFLAGS set a b get", "GETKEYSANDFLAGS set a b px 10",
    "GETKEYS sintercard 2 a b limit 3", "GETKEYS sintercard 3 a b", "GETKEYS sintercard x a", "GETKEYS sintercard 1 a",
    "GETKEYSANDFLAGS sintercard 2 a b", "GETKEYSANDFLAGS sinterstore d a b c", "GETKEYSANDFLAGS smove a b m",
    "GETKEYSANDFLAGS copy a b", "GETKEYSANDFLAGS mget a b", "GETKEYSANDFLAGS getex a",
    "GETKEYS zunion 2 a b withscores", "GETKEYS zunion 0 a", "GETKEYS zunion 3 a b", "GETKEYS zunion x a b",
    "GETKEYS zunionstore d 2 a b", "GETKEYS zunionstore d 5 a b", "GETKEYS zmpop 1 a min", "GETKEYS zmpop -1 a min",
    "GETKEYSANDFLAGS zinterstore d 2 a b weights 1 2", "GETKEYSANDFLAGS zrangestore a b 0 1",
    "GETKEYSANDFLAGS georadius k 1 2 3 m withdist", "GETKEYSANDFLAGS georadius k 1 2 3 m store a",
    "GETKEYS georadiusbymember k m 3 m store a storedist b", "GETKEYS georadiusbymember_ro k m 3 m", "INFO zremrangebyscore",
    "GETKEYS georadius k 1 2 3 m store",
    "GETKEYS xread streams a b 0 0", "GETKEYS xreadgroup group a b streams a b 0", "GETKEYSANDFLAGS xread count 1 streams s 0",
    "GETKEYS xread count 1 b c", "GETKEYS xreadgroup group streams b streams a b 0 0", "GETKEYS xgroup create a b 0",
    "nosuch", "GETKEYSANDFLAGS", "HELP x",
])
def test_the_same_reply(pair, proto, args):
    for conn in pair:
        conn.call("HELLO", proto)
    ours, theirs = (tree(c.call("COMMAND", *args.split())) for c in pair)
    if args.startswith("LIST"):
        ours, theirs = ((kind, sorted(v) if isinstance(v, list) else v) for kind, v in (ours, theirs))
        if isinstance(theirs[1], list):
            theirs = theirs[0], [v for v in theirs[1] if v in ours[1]]
    assert ours == theirs


@pytest.mark.parametrize("container", "COMMAND CLIENT CONFIG MEMORY SLOWLOG LATENCY OBJECT PUBSUB DEBUG XGROUP XINFO".split())
def test_help(tiercel, container):
    lines = tiercel().call(container, "HELP")
    assert lines[0] == "%s <subcommand> [<arg> [value] [opt] ...]. Subcommands are:" % container
    assert lines[-2:] == ["HELP", "    Prints this help."]
    assert all(len(line) < 200 for line in lines)


@pytest.mark.parametrize("args", [
    "nosuch a b", "client", "client nosuch", "object", "object nosuch k", "config nosuch", "memory nosuch", "get",
    "client|id", "slowlog nosuch", "latency nosuch", "client tracking on x", "GET a b", "gEt",
])
def test_errors_of_unknown_names(pair, args):
    ours, theirs = (c.ask(*args.split()) for c in pair)
    assert isinstance(ours, RespError)
    assert ours == theirs
