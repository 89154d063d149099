"""Functions: libraries, what they may do, where they are kept.

Most of it is compared with redis-server, byte by byte."""
import pathlib
import threading

import pytest

from harness import Redis, Tiercel, wait_until

NAMED = "redis.register_function{function_name='f', callback=function(keys, args) %s end%s}"

HEADERS = ["", "x", "#!lua", "#!lua\n", "#!lua \n", "#!js name=l\n", "#!js name=a-b\n", "#!LUA NAME=l\n", "#!lua name=l", "#!lua name=\n",
           "#!lua name=l name=b\n", "#!lua foo=a name=b\n", "#!lua name=a-b\n", "#!lua   name=l   \n", "#!lua name=\"l\"\n",
           "#!lua name='a b'\n", "#!lua name=\"l\n", " #!lua name=l\n", "#! lua name=l\n", "#!\n", "#!lua name=a\0b\n", "#!lua name\n"]
LOADS = [
    "foo(", "return 1", "error('x')", "x=1", "local x = y", "redis.call('get','a')", "redis.pcall('get','a')", "redis.setresp(3)",
    "redis.log(2,'x')", "redis.log(2)", "redis.foo()", "redis.x=1", "string.rep('x', 3)", "return ('x'):rep(3)", "_G.x=1", "KEYS[1]=2",
    "\x1bLua", "pcall(redis.register_function, 'p')", "local z = redis.REPL_ALL", "while true do end",
    "local n = ('x'):rep(2) redis.register_function(n, function() return n end)",
    "redis.register_function()", "redis.register_function(1)", "redis.register_function('a')", "redis.register_function('a',1)",
    "redis.register_function(1,function() end)", "redis.register_function('a-b',function() end)",
    "redis.register_function('',function() end)", "redis.register_function('a',function() end,1)",
    "redis.register_function('a',function() end) redis.register_function('a',function() end)",
    "redis.register_function(function() end,'a')", "redis.register_function('a',redis.log)",
    "redis.register_function{}", "redis.register_function{function_name='a'}", "redis.register_function{callback=function() end}",
    "redis.register_function{function_name=1,callback=function() end}", "redis.register_function{function_name={},callback=function() end}",
    "redis.register_function{function_name='a',callback=1}", "redis.register_function{function_name='a',callback=function() end,description=1}",
    "redis.register_function{function_name='a',callback=function() end,description={}}",
    "redis.register_function{function_name='a',callback=function() end,flags=1}",
    "redis.register_function{function_name='a',callback=function() end,flags={1}}",
    "redis.register_function{function_name='a',callback=function() end,flags={'foo'}}",
    "redis.register_function{function_name='a',callback=function() end,flags={'NO-writes','allow-oom','allow-stale','no-cluster'}}",
    "redis.register_function{FUNCTION_NAME='a',callback=function() end,description='a\\0b',flags={}}",
    "redis.register_function{function_name='a',callback=function() end,foo=1}",
    "redis.register_function{function_name='a',callback=function() end,[true]=1}",
    "redis.register_function{[1]='a',callback=function() end}", "redis.register_function({function_name='a',callback=function() end},1)",
]
BODIES = [
    "return {keys, args, #keys}", "return KEYS", "return ARGV", "x=1", "return x", "error('boo')", "error({err='foo bar'})", "error(12)",
    "return redis.call('set','a')", "return redis.call('nocmd')", "return redis.pcall('incr','a','b')",
    "redis.call('set','x','y') return redis.call('incr','x')", "return redis.pcall('incr','x')", "return redis.error_reply('my err')",
    "return {err='x y'}", "return redis.status_reply('ok')", "return {pcall(redis.call, 'incr', 'x')}",
    "local t={} for k in pairs(_G) do t[#t+1]=k end table.sort(t) return t",
    "local t={} for k in pairs(redis) do t[#t+1]=k end table.sort(t) return t",
    "return redis.register_function('a',function() end)", "redis.setresp(3) return redis.call('hgetall','nokey')",
    "return redis.setresp(4)", "redis.breakpoint()", "return redis.replicate_commands()", "return redis.sha1hex('')", "_G.x=1",
    "string.x=1", "redis.x=1", "rawset(_G,'x',1)", "setmetatable(_G,{})", "keys[1]=3 return keys[1]", "return redis.call('eval','x',0)",
    "return redis.call('fcall','f',0)", "return redis.call('function','flush')", "return cjson.encode({1})", "return {double=1.5}",
    "return redis.call('set', keys[1], args[1])", "return redis.call('get', keys[1])", "return {map={a=1}}", "return nil",
]
COMMANDS = [
    ("FCALL",), ("FCALL", "f"), ("FCALL", "f", "0"), ("FUNCTION",), ("FUNCTION", "foo"), ("FUNCTION", "LOAD"), ("FUNCTION", "STATS"),
    ("FUNCTION", "LOAD", "#!lua name=a\nredis.register_function('f', function() return 1 end)"),
    ("FUNCTION", "LOAD", "#!lua name=a\nredis.register_function('f', function() return 1 end)"),
    ("FUNCTION", "LOAD", "REPLACE", "#!lua name=a\nredis.register_function('f', function() return 2 end)"),
    ("FUNCTION", "LOAD", "FOO", "#!lua name=a\nredis.register_function('f', function() return 2 end)"),
    ("FUNCTION", "LOAD", "#!lua name=b\nredis.register_function('F', function() return 1 end)"),
    ("FCALL", "f", "0"), ("FCALL", "F", "0"), ("FCALL", "f", "x"), ("FCALL", "f", "-1"), ("FCALL", "f", "2", "a"), ("FCALL_RO", "f", "0"),
    ("FUNCTION", "LIST"), ("FUNCTION", "LIST", "WITHCODE"), ("FUNCTION", "LIST", "LIBRARYNAME", "A*"), ("FUNCTION", "LIST", "LIBRARYNAME"),
    ("FUNCTION", "LIST", "WITHCODE", "WITHCODE"), ("FUNCTION", "LIST", "LIBRARYNAME", "a", "WITHCODE", "x"), ("FUNCTION", "LIST", "foo"),
    ("FUNCTION", "DELETE", "none"), ("FUNCTION", "FLUSH", "foo"), ("FUNCTION", "FLUSH", "sync", "async"), ("FUNCTION", "STATS", "x"),
    ("FUNCTION", "KILL"), ("FUNCTION", "DUMP"), ("FUNCTION", "DUMP", "x"), ("FUNCTION", "RESTORE"), ("FUNCTION", "RESTORE", "abc"),
    ("FUNCTION", "RESTORE", "abc", "foo"), ("FUNCTION", "RESTORE", "abc", "flush", "x"), ("FUNCTION", "STATS"),
    ("COMMAND", "GETKEYS", "FCALL", "f", "2", "a", "b", "c"), ("COMMAND", "GETKEYSANDFLAGS", "FCALL_RO", "f", "1", "a"),
    ("MULTI",), ("FCALL", "f", "0"), ("FUNCTION", "DELETE", "a"), ("FCALL", "f", "0"),
    ("FUNCTION", "LOAD", "#!lua name=c\nredis.register_function('g', function(k, a) return redis.call('incr', a[1]) end)"),
    ("FCALL", "g", "0", "n"), ("EXEC",), ("FCALL", "g", "0", "n"),
    ("FUNCTION", "FLUSH", "async"), ("FUNCTION", "LIST"), ("FCALL", "g", "0", "n"), ("FUNCTION", "DUMP"),
]


def compare(servers, commands, proto=2):
    different = []
    with servers[0].raw() as a, servers[1].raw() as b:
        for c in (a, b):
            c.call("HELLO", proto)
        for command in commands:
            want, got = (c.call(*command) for c in (a, b))
            if want != got:
                different.append("%r: %r, not %r" % (command, got[:300], want[:300]))
    assert not different, "\n".join(different)


@pytest.fixture
def servers(tiercel, redis_server):
    return redis_server(), tiercel(threads=2)


@pytest.mark.sequential
@pytest.mark.parametrize("proto", [2, 3])
def test_as_redis(servers, proto):
    loads = [h + "redis.register_function('f', function() end)" for h in HEADERS] + ["#!lua name=l\n" + x for x in LOADS]
    commands = []
    for source in loads:
        commands += [("FUNCTION", "LOAD", "REPLACE", source), ("FUNCTION", "LIST"), ("FUNCTION", "FLUSH")]
    for body in BODIES:
        for flags in ("", ", flags={'no-writes'}"):
            commands += [("FUNCTION", "LOAD", "REPLACE", "#!lua name=l\n" + NAMED % (body, flags)),
                         ("FCALL", "f", "1", "k", "a1", "2"), ("FCALL_RO", "f", "1", "k", "a1", "2"), ("DEL", "x")]
    compare(servers, commands, proto)


@pytest.mark.sequential
@pytest.mark.parametrize("proto", [2, 3])
def test_commands_as_redis(servers, proto):
    compare(servers, COMMANDS, proto)


@pytest.mark.sequential
def test_what_a_library_keeps(servers):
    source = ("#!lua name=l\nlocal r, register = redis, redis.register_function\n"
              "register('late', function() return register('x', function() end) end)\n"
              "register('call', function() return r.call('get', 'a') end)\n"
              "register('same', function() r.log(1, 'a') return r == redis end)")
    compare(servers, [("FUNCTION", "LOAD", source)] + [("FCALL", f, "0") for f in ("late", "call", "same")])


@pytest.mark.sequential
def test_full_memory(servers):
    commands = []
    for flags in ("", "'no-writes'", "'allow-oom'", "'no-writes','allow-oom'", "'allow-stale'"):
        for body in ("return redis.call('get', 'a')", "return redis.call('set', 'a', 1)"):
            commands += [("FUNCTION", "LOAD", "REPLACE", "#!lua name=l\n" + NAMED % (body, ", flags={%s}" % flags)),
                         ("CONFIG", "SET", "maxmemory", "1"), ("FCALL", "f", "0"), ("FCALL_RO", "f", "0"),
                         ("FCALL", "f", "x"), ("FUNCTION", "LOAD", "x"), ("CONFIG", "SET", "maxmemory", "0")]
    compare(servers, [("CONFIG", "SET", "maxmemory-policy", "noeviction")] + commands)


def load(s, name, body, *options):
    assert s.call("FUNCTION", "LOAD", *options, "#!lua name=%s\nredis.register_function('%s', function(keys, args) %s end)" % (name, name, body)) == name.encode()


@pytest.mark.sequential
def test_restore(servers):
    policies = ((), ("FLUSH",), ("APPEND",), ("REPLACE",))
    for i, source in enumerate(servers):
        target = servers[1 - i]
        for s in servers:
            s.call("FUNCTION", "FLUSH")
        for name in ("one", "two", "three"):
            load(source, name, "local long = '%s' return '%s'" % ("x" * 5000, name))
        with source.raw() as r:
            payload = r.call("FUNCTION", "DUMP").split(b"\r\n", 1)[1][:-2]
        with target.raw() as r:
            assert r.call("FUNCTION", "RESTORE", payload) == b"+OK\r\n"
            for name in ("one", "two", "three"):
                assert r.call("FCALL", name, "0") == b"$%d\r\n%s\r\n" % (len(name), name.encode())
        commands = []
        for before in ("one", "four"):
            for policy in policies:
                commands += [("FUNCTION", "FLUSH"), ("FUNCTION", "LOAD", "#!lua name=%s\nredis.register_function('TWO', function() end)" % before),
                             ("FUNCTION", "RESTORE", payload, *policy), ("FUNCTION", "STATS")]
                commands += [("FCALL", name, "0") for name in ("one", "two", "three")]
        commands += [("FUNCTION", "RESTORE", payload[:-1] + b"?"), ("FUNCTION", "RESTORE", payload[:-1])]
        compare(servers, commands)


@pytest.mark.parametrize("threads", [1, 3])
def test_kill(tiercel, threads):
    t = tiercel(threads=threads, busy_reply_threshold=100)
    load(t, "endless", "while true do end")
    load(t, "written", "redis.call('set', keys[1], 1) local e = tonumber(args[1]) for i = 1, e do end return 'done'")
    busy = b"-BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.\r\n"
    with t.raw() as other, t.raw() as c:
        other.call("PING")
        c.send_command("FCALL", "endless", "1", "k", "a")
        wait_until(lambda: other.call("GET", "x").startswith(b"-BUSY"), what="BUSY")
        assert other.call("GET", "x") == busy
        assert other.call("FUNCTION", "LIST") == busy
        assert other.call("SCRIPT", "KILL") == busy
        stats = t.call("FUNCTION", "STATS")
        running = stats[1] if isinstance(stats, list) else stats[b"running_script"]
        assert running[:4] == [b"name", b"endless", b"command", [b"FCALL", b"endless", b"1", b"k", b"a"]] and running[5] >= 100
        assert other.call("FUNCTION", "KILL") == b"+OK\r\n"
        assert c.read_reply() == b"-ERR Script killed by user with SCRIPT KILL... script: endless, on @user_function:2.\r\n"
        assert other.call("FUNCTION", "KILL").startswith(b"-NOTBUSY")
        c.send_command("EVAL", "while true do end", "0")
        wait_until(lambda: other.call("GET", "x").startswith(b"-BUSY"), what="BUSY")
        assert other.call("FUNCTION", "KILL") == other.call("FUNCTION", "STATS") == busy.replace(b"FUNCTION", b"SCRIPT")
        assert other.call("SCRIPT", "KILL") == b"+OK\r\n"
        assert c.read_reply().startswith(b"-ERR Script killed")
        c.send_command("FCALL", "written", "1", "k", "40000000")
        wait_until(lambda: other.call("GET", "x").startswith(b"-BUSY"), what="BUSY")
        assert other.call("FUNCTION", "KILL").startswith(b"-UNKILLABLE")
        assert c.read_reply() == b"$4\r\ndone\r\n"


# ---- where they are kept

def test_kept_with_the_data(tiercel):
    t = tiercel(threads=2)
    load(t, "one", "return 1")
    load(t, "two", "return 2")
    t.kill9()
    t.start()
    assert t.call("FCALL", "one", "0") == 1 and t.call("FCALL", "two", "0") == 2
    assert t.info("memory")["number_of_libraries"] == t.info("memory")["number_of_functions"] == 2
    t.call("FUNCTION", "DELETE", "one")
    load(t, "two", "return 22", "REPLACE")
    t.restart()
    assert t.call("FCALL", "two", "0") == 22 and t.call("FUNCTION", "STATS")[3][1][1] == 1
    t.call("FUNCTION", "FLUSH")
    t.kill9()
    t.start()
    assert t.call("FUNCTION", "LIST") == []


@pytest.mark.sequential
def test_a_file_that_cannot_be_written(tiercel):
    t = tiercel()
    load(t, "one", "return 1")
    file = t.dir / "functions.rdb"
    file.unlink()
    file.mkdir()
    with t.raw() as c:
        for command in (("DELETE", "one"), ("FLUSH",), ("LOAD", "#!lua name=two\nredis.register_function('two', function() end)")):
            assert c.call("FUNCTION", *command).startswith(b"-ERR the functions cannot be written to their file")
        assert c.call("FCALL", "one", "0") == b":1\r\n" and c.call("FCALL", "two", "0").startswith(b"-ERR Function not found")
        file.rmdir()
        assert c.call("FUNCTION", "DELETE", "one") == b"+OK\r\n"


@pytest.mark.sequential
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_refused(damage):
    t = Tiercel()
    try:
        t.start()
        load(t, "one", "return 1")
        t.stop()
        path = t.dir / "functions.rdb"
        data = bytearray(path.read_bytes())
        data[20] ^= damage == "flipped"
        path.write_bytes({"cut": data[:-5], "flipped": data, "empty": b""}[damage])
        t.start(wait=False)
        assert t.process.wait(timeout=20) != 0
        assert "functions.rdb" in t.log_tail()
    finally:
        t.remove()


@pytest.mark.sequential
@pytest.mark.parametrize("disk", [True, False])
def test_first_start_takes_those_of_a_dump(disk):
    redis, t = Redis(), Tiercel(disk=disk)
    try:
        redis.start()
        load(redis, "one", "return 1")
        load(redis, "two", "return 2")
        redis.call("SET", "k", "v")
        redis.call("SAVE")
        t.dir.mkdir(exist_ok=True)
        (t.dir / "dump.rdb").write_bytes(pathlib.Path(redis.client().config_get("dir")["dir"], "dump.rdb").read_bytes())
        t.start()
        assert t.call("FCALL", "one", "0") == 1 and t.call("FCALL", "two", "0") == 2 and t.call("GET", "k") == b"v"
        t.call("FUNCTION", "DELETE", "one")
        t.restart()
        assert t.call("FUNCTION", "STATS")[3][1][1] == (1 if disk else 2)
        t.stop()
    finally:
        redis.remove()
        t.remove()


# ---- keys that are not in memory, many clients

def test_keys_on_disk(tiercel):
    t = tiercel(maxmemory="2mb", threads=2)
    value = lambda i: "%d" % i + "v" * 400
    c = t.client()
    for start in range(0, 12000, 1000):
        p = c.pipeline(transaction=False)
        for i in range(start, start + 1000):
            p.set("k:%d" % i, value(i))
        p.execute()
    assert t.tiers()["tier_disk_keys"] > 3000
    load(t, "declared", "return redis.call('get', keys[1])")
    load(t, "undeclared", "return redis.call('get', args[1])")
    load(t, "many", "local n = 0 for i = args[1], args[1] + 300 do n = n + #redis.call('get', 'k:' .. i) end redis.call('incr', 'runs') return n")
    for i in range(0, 12000, 97):
        assert t.call("FCALL", "declared", "1", "k:%d" % i) == value(i).encode()
        other = (i + 5000) % 12000
        assert t.call("FCALL", "undeclared", "0", "k:%d" % other) == value(other).encode()
    for i in range(0, 11000, 1000):
        assert t.call("FCALL", "many", "0", str(i)) == sum(400 + len(str(k)) for k in range(i, i + 301))
    assert t.call("GET", "runs") == b"11"


def test_called_while_they_are_replaced(tiercel):
    """Whoever calls finds one version or the next, on every loop, and after LOAD's reply no older one."""
    t = tiercel(threads=4)
    load(t, "version", "return 0")
    newest, wrong, done = [0], [], threading.Event()

    def call():
        with t.raw() as c:
            while not done.is_set():
                before = newest[0]
                reply = c.call("FCALL", "version", "0")
                if not reply.startswith(b":") or not before <= int(reply[1:]) <= newest[0] + 1:
                    wrong.append((before, reply, newest[0]))
                    return

    callers = [threading.Thread(target=call) for _ in range(8)]
    for th in callers:
        th.start()
    for i in range(1, 101):
        load(t, "version", "return %d" % i, "REPLACE")
        newest[0] = i
        if i % 10 == 0:
            load(t, "other", "return 1", "REPLACE")
    done.set()
    for th in callers:
        th.join()
    assert not wrong
