"""Scripts: what they return, what they may do, and what happens to those that do not end.

Most of it is compared with redis-server, byte by byte."""
import threading
import time

import pytest

from harness import wait_until

# Each is sent as EVAL script 1 k a1 a2, on fresh servers that have the same keys.
VALUES = [
    "return", "return nil", "return 1", "return -1", "return 3.99", "return -3.99", "return 1e30", "return 0/0", "return 1/0",
    "return true", "return false", "return 'x'", "return ''", "return {}", "return {1,'a',{2,{3}},false,true,nil,5}",
    "return {ok='fine'}", "return {ok='a\\r\\nb'}", "return {err='MY error'}", "return {err='-x y'}", "return {err=''}",
    "return {err='a\\r\\nb'}", "return {ok=1}", "return {err=1}", "return {double=1.5}", "return {double=0.1}",
    "return {map={a=1}}", "return {set={a=true}}", "return {big_number='12345678901234567890'}",
    "return {verbatim_string={format='txt',string='hello'}}", "return {verbatim_string={string='hello'}}",
    "return function() end", "return KEYS", "return ARGV", "return {KEYS[1],ARGV[1],ARGV[2],#ARGV}", "return redis",
    "return {math.random(),math.random(10),math.random(5,9)}", "math.randomseed(7) return tostring(math.random())",
    "return tostring(math.random())", "return #string.rep('ab',1000)", "return {string.byte('abc',1,-1)}",
    "local t={5,2,8} table.sort(t) return t", "local t={} for k in pairs(redis) do t[#t+1]=k end table.sort(t) return t",
    "local t={} for k in pairs(string) do t[#t+1]=k end table.sort(t) return t", "return type(getmetatable(_G))",
    "return tostring(getmetatable('').__index==string)", "return {pcall(function() error('x') end)}",
    "return {pcall(function() error({err='E x'}) end)}", "local f=loadstring('return 7') return f()",
    "local f=load(function() return nil end) return type(f)", "return select('#',unpack({1,2,3}))",
    "local c=coroutine.wrap(function() coroutine.yield(1) coroutine.yield(redis.call('get','s')) end) c() return c()",
    "return redis.sha1hex('')", "return redis.sha1hex(12)", "return redis.status_reply('FINE')",
    "return redis.error_reply('x')", "return redis.error_reply('-x')", "return redis.error_reply('-CODE x')",
    "return redis.error_reply('')", "return redis.error_reply(1)", "return redis.status_reply({})",
    "return redis.replicate_commands()", "return redis.breakpoint()", "return redis.debug('x')", "redis.set_repl(redis.REPL_ALL)",
    "return {redis.REDIS_VERSION,redis.REDIS_VERSION_NUM,redis.LOG_WARNING,redis.REPL_ALL}", "return redis.log(redis.LOG_DEBUG,'x')",
    "return redis.acl_check_cmd('get','x')", "local x={} for i=1,100 do x={x} end return x",
]
CALLS = [
    "return redis.call('get','s')", "return redis.call('get','none')", "return redis.call('set','s2',ARGV[1])",
    "return redis.call('set','n',1.5) and redis.call('get','n')", "return redis.call('set','n',0.1) and redis.call('get','n')",
    "return redis.call('set','n',1e20) and redis.call('get','n')", "return redis.call('set','n',-0.0) and redis.call('get','n')",
    "return redis.call('lrange','l',0,-1)", "return redis.call('mget','s','none','i')", "return redis.call('incr','i')",
    "return redis.call('ping')", "return redis.call('ping').ok", "return type(redis.call('get','none'))",
    "return redis.call('echo','x')", "return redis.call('exists','s','none')", "return redis.call('type','l')",
    "redis.call('select',3) redis.call('set','there',1) return redis.call('dbsize')", "return redis.call('get','there')",
    "return redis.call('incr','s')", "return redis.pcall('incr','s')", "return redis.pcall('incr','s').err",
    "return {pcall(redis.call,'incr','s')}", "return redis.call('nosuch')", "return redis.pcall('nosuch')",
    "return redis.call('get')", "return redis.call()", "return redis.pcall()", "return redis.call({})", "return redis.call(true)",
    "return redis.call('get','s',nil)", "return redis.call('eval','x',0)", "return redis.call('multi')",
    "return redis.call('subscribe','x')", "return redis.call('blpop','none',0)", "return redis.call('script','kill')",
    "return redis.call('client','id')", "return redis.call('config','get','maxmemory')", "return redis.call('object','foo','s')",
    "return redis.call('object')", "return redis.call('auth','x')", "return redis.call('wait',0,0)",
    "return redis.call('object','encoding','s')", "return redis.call('publish','c','m')", "return redis.call('lpush','s','x')",
    "redis.call('set','w',1) error('after')", "return redis.call('keys','nothing*')", "return redis.call('del','w','s2','n')",
    "local v = {} for i=1,2000 do redis.call('rpush','big',i) end return redis.call('llen','big')",
    "return redis.call('lrange','big',0,-1)", "return redis.call('rename','big','big2')", "return redis.call('rename','none','x')",
    "redis.setresp(3) return redis.call('get','none')", "redis.setresp(3) return redis.call('config','get','x')",
    "redis.setresp(3) return {redis.call('get','none')==nil,true,false}", "redis.setresp(3) return true",
    "redis.setresp(3) return redis.call('command','info','get')[1][1]",
    "return redis.call('set',KEYS[1],string.rep('v',20000)) and #redis.call('get',KEYS[1])", "return redis.call('getdel',KEYS[1])",
]
ERRORS = [
    "return (", "return 1)", "foo bar", "x=1", "return x", "error('boom')", "error({err='My Err'})", "error({err='My', x=1})",
    "error()", "error(nil)", "error(12)", "error('a',0)", "local a; a.b.c=1", "return 'a'+1", "return {1}..'x'", "\n\nreturn nope",
    "string.foo=1", "redis.call=1", "rawset(_G,'a',1)", "table.insert(_G,1)", "setmetatable(_G,{})", "getmetatable('').__index=1",
    "KEYS={}", "return print", "return dofile", "return os", "return io", "return require", "return debug", "return loadfile",
    "return getfenv", "return setfenv", "return newproxy", "return module", "return package",
    "return loadstring(string.dump(function() return 5 end))()", "local f,e=loadstring(string.dump(function() end)) return e",
    "local f,e=loadstring('return )') return e", "local function f() return f()+1 end return f()", "return redis.sha1hex()",
    "return redis.sha1hex(1,2)", "return redis.log()", "return redis.log(10,'x')", "return redis.log('a','x')",
    "return redis.setresp()", "return redis.setresp(1)", "return redis.setresp(2,3)", "return redis.set_repl()",
    "return redis.set_repl(99)", "return redis.acl_check_cmd('getx','x')", "return redis.acl_check_cmd()",
    "return coroutine.yield(1)", "return string.rep()", "return ('x'):bad()", "return #nil", "return nil..'x'",
    "#!lua\nreturn 1", "#!lua", "#!lua ", "#!lua x=1\nreturn 1", "#!lua name=foo\nreturn 1", "#!lua flags=bad\nreturn 1",
    "#!lua flags=\nreturn 1", "#!lua flags=,no-writes\nreturn 1", "#!lua flags=no-writes,\nreturn 1", "#!foo\nreturn 1",
    "#!lua flags=no-writes\nreturn redis.call('set','a',1)", "#!lua flags=no-writes,allow-oom,allow-stale,no-cluster\nreturn 1",
    "#!lua flags=allow-cross-slot-keys flags=no-writes\nreturn 1", "#x\nreturn 1", "#!lua\n\nerror('x')", "#!lua\nreturn )",
]
LIBRARIES = [
    "return cjson.encode({1,2,{a='x/y'}})", "return {cjson.encode({}),cjson.encode(1.5),cjson.encode(cjson.null),cjson.encode(1e17)}",
    "return cjson.encode('\\n\\1\\127\"')", "return cjson.decode('[1,2,{\"a\":null},true,\"x\"]')", "return cjson.decode('{bad')",
    "return cjson.encode({[1]=1,[1000]=2})", "return cjson.encode(function() end)",
    "local t={} for i=1,1001 do t={t} end return cjson.encode(t)", "return cjson.decode(string.rep('[',1001))",
    "return cmsgpack.pack(1,-1,127,128,-32,-33,255,256,65535,65536,4294967295,4294967296,-128,-129,-32768,-32769,-2147483648,"
    "-2147483649,1.5,0.1,1e300,true,false,nil,'abc',{1,2},{a=1},{},{1,nil,3})",
    "return cmsgpack.pack(string.rep('a',31),string.rep('a',32),string.rep('a',300))", "return cmsgpack.unpack(cmsgpack.pack({1,{2,'x'}}))",
    "return {cmsgpack.unpack('\\1\\2\\3')}", "return {cmsgpack.unpack_one('\\1\\2\\3')}", "return {cmsgpack.unpack_one('\\1\\2\\3',1)}",
    "return {cmsgpack.unpack_limit('\\1\\2\\3',2)}", "return {cmsgpack.unpack_limit('\\1\\2\\3',2,1)}", "return cmsgpack.unpack('\\147')",
    "return cmsgpack.unpack('\\193')", "return cmsgpack.unpack('')", "return cmsgpack.unpack()", "return cmsgpack.pack()",
    "return cmsgpack.pack(function() end)", "return cmsgpack.unpack_one('abc',10)", "return cmsgpack.unpack_one('abc',-1)",
    "return cmsgpack.unpack_limit('abc',-1)", "local x={} x[1]=x return cmsgpack.pack(x)",
    "return cmsgpack.unpack(string.char(0xca,0x3f,0xc0,0,0))*2", "return cmsgpack.unpack('\\221\\255\\255\\255\\255')",
    "return struct.pack('>HhIilLbBxfd',1,-2,3,-4,5,6,-7,8,1.5,2.5)", "return struct.pack('<i3I2c3sc0',-5,513,'abc','zzz','')",
    "return {struct.unpack('>HhI',struct.pack('>HhI',1,-2,3))}", "return {struct.unpack('<sBc3',struct.pack('<sBc3','hello',7,'abc'))}",
    "return {struct.unpack('Bc0',struct.pack('Bc0',3,'abc'))}", "return {struct.unpack('!8 Bd',struct.pack('!8 Bd',3,1.5))}",
    "return struct.size('>HhIi!8Bd')", "return struct.size('s')", "return struct.size('c0')", "return struct.size('i33')",
    "return struct.size('!3')", "return struct.unpack('I','a')", "return struct.unpack('s','a')", "return struct.unpack('c0','a')",
    "return struct.unpack('c5','a')", "return struct.unpack('B','a',5)", "return struct.unpack('B','a',0)", "return struct.pack('c5','a')",
    "return struct.pack('i','a')", "return struct.pack('T i7',5,6)", "return struct.pack('=I',5)", "return struct.size('c99999999999')",
    "return {bit.band(7,3),bit.tohex(255),bit.bnot(0),bit.rol(1,31),bit.bswap(1),bit.arshift(-8,1)}", "return bit.band('x')",
]


def prepare(c):
    for cmd in (("FLUSHALL",), ("SCRIPT", "FLUSH"), ("SET", "s", "text"), ("SET", "i", "5"), ("RPUSH", "l", "a", "b", "c"), ("SET", "k", "v")):
        c.call(*cmd)


@pytest.mark.parametrize("scripts", [VALUES, CALLS, ERRORS, LIBRARIES], ids=["values", "calls", "errors", "libraries"])
@pytest.mark.parametrize("proto", [2, 3])
def test_as_redis(tiercel, redis_server, scripts, proto):
    servers = (redis_server(), tiercel(threads=2))
    different = []
    with servers[0].raw() as a, servers[1].raw() as b:
        for c in (a, b):
            prepare(c)
            c.call("HELLO", proto)
        for script in scripts:
            for command in ("EVAL", "EVAL_RO"):
                want, got = (c.call(command, script, 1, "k", "a1", "2") for c in (a, b))
                if want != got:
                    different.append("%s %r: %r, not %r" % (command, script, got[:300], want[:300]))
    assert not different, "\n".join(different)


def test_commands_as_redis(tiercel, redis_server):
    sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"  # return 1
    commands = [
        ("EVAL",), ("EVAL", "return 1"), ("EVAL", "return 1", "abc"), ("EVAL", "return 1", "2", "a"), ("EVAL", "return 1", "-1"),
        ("EVALSHA", "abc", "0"), ("EVALSHA", "f" * 40, "0"), ("EVALSHA", "f" * 40, "x"), ("EVALSHA", sha, "0"), ("SCRIPT",),
        ("SCRIPT", "foo"), ("SCRIPT", "LOAD"), ("SCRIPT", "LOAD", "return 1"), ("EVALSHA", sha, "0"), ("EVALSHA", sha.upper(), "0"),
        ("EVALSHA_RO", sha, "0"), ("SCRIPT", "LOAD", "return )"), ("SCRIPT", "LOAD", "#!lua flags=zz\nreturn 1"), ("SCRIPT", "EXISTS"),
        ("SCRIPT", "EXISTS", sha, "x", sha.upper(), "f" * 40), ("SCRIPT", "FLUSH", "foo"), ("SCRIPT", "FLUSH", "sync", "x"),
        ("SCRIPT", "FLUSH", "sync"), ("SCRIPT", "EXISTS", sha), ("EVALSHA", sha, "0"), ("SCRIPT", "FLUSH", "async"), ("SCRIPT", "FLUSH"),
        ("SCRIPT", "KILL"), ("SCRIPT", "DEBUG", "foo"), ("SCRIPT", "DEBUG", "no"), ("EVAL_RO", "#!lua\nreturn 1", "0"),
        ("EVAL_RO", "#!lua flags=no-writes\nreturn 1", "0"), ("COMMAND", "GETKEYS", "EVAL", "x", "2", "a", "b", "c"),
        ("COMMAND", "GETKEYS", "EVAL", "x", "0", "a"), ("COMMAND", "GETKEYSANDFLAGS", "EVAL_RO", "x", "1", "a"),
        ("COMMAND", "GETKEYS", "EVALSHA", "x", "9", "a"), ("MULTI",), ("EVAL", "return redis.call('incr',KEYS[1])", "1", "n"),
        ("EVAL", "return redis.call('incr','n')", "0"), ("EVALSHA", "f" * 40, "0"), ("EVAL", "return redis.call('keys','*')", "0"),
        ("SCRIPT", "LOAD", "return 5"), ("EXEC",), ("WATCH", "n"), ("EVAL", "redis.call('incr','n')", "0"), ("MULTI",), ("GET", "n"), ("EXEC",),
    ]
    servers = (redis_server(), tiercel())
    with servers[0].raw() as a, servers[1].raw() as b:
        for command in commands:
            want, got = (c.call(*command) for c in (a, b))
            assert got == want, command


def test_exec_with_resp3_and_blocked(tiercel):
    """What a script pushes is given to those who wait, after it has ended."""
    t = tiercel(threads=2)
    got = []
    waiting = threading.Thread(target=lambda: got.append(t.call("BLPOP", "q", "10")))
    waiting.start()
    wait_until(lambda: t.info("clients")["blocked_clients"] == 1, what="a blocked client")
    assert t.call("EVAL", "redis.call('rpush',KEYS[1],'a') redis.call('rpush',KEYS[1],'b') return redis.call('llen',KEYS[1])", 1, "q") == 2
    waiting.join()
    assert got == [[b"q", b"a"]]
    assert t.call("LRANGE", "q", "0", "-1") == [b"b"]


# ---- keys that are not in memory

def two_tiers(tiercel, **options):
    t = tiercel(maxmemory="2mb", threads=2, **options)
    c = t.client()
    for start in range(0, 12000, 1000):
        p = c.pipeline(transaction=False)
        for i in range(start, start + 1000):
            p.set("k:%d" % i, "%d" % i + "v" * 400)
        p.execute()
    assert t.tiers()["tier_disk_keys"] > 3000
    return t


def test_keys_on_disk(tiercel):
    t = two_tiers(tiercel)
    with t.raw() as c:
        for i in range(0, 12000, 97):
            want = b"$405\r\n" if False else ("%d" % i + "v" * 400).encode()
            declared = c.call("EVAL", "return redis.call('get', KEYS[1])", "1", "k:%d" % i)
            assert want in declared, i
            undeclared = c.call("EVAL", "return redis.call('get', ARGV[1])", "0", "k:%d" % ((i + 5000) % 12000))
            assert ("%d" % ((i + 5000) % 12000) + "v" * 400).encode() in undeclared, i
        # Many of them, and after a write: it is not begun again then.
        for i in range(0, 11000, 500):
            reply = c.call("EVAL", "local n = 0 redis.call('incr', 'runs') for i = ARGV[1], ARGV[1] + 300 do "
                           "n = n + #redis.call('get', 'k:' .. i) end return n", "0", str(i))
            assert reply == b":%d\r\n" % sum(400 + len(str(k)) for k in range(i, i + 301)), i
        assert c.call("GET", "runs") == b"$2\r\n22\r\n"
        # And before one.
        for i in range(0, 11000, 500):
            reply = c.call("EVAL", "local n = 0 for i = ARGV[1], ARGV[1] + 300 do n = n + #redis.call('get', 'k:' .. i) end "
                           "redis.call('incr', 'runs') return n", "0", str(i))
            assert reply == b":%d\r\n" % sum(400 + len(str(k)) for k in range(i, i + 301)), i
        assert c.call("GET", "runs") == b"$2\r\n44\r\n"


def test_many_clients_and_keys(tiercel):
    """Transfers between accounts, some of them on disk, leave the sum as it was."""
    t = two_tiers(tiercel)
    c = t.client()
    for i in range(50):
        c.set("account:%d" % i, 100)
    c.set("filler", "x" * 100000)
    scripts = ["local a, b = KEYS[1], KEYS[2] redis.call('decr', a) redis.call('incr', b) return 1",
               "redis.call('decr', KEYS[1]) redis.call('incr', KEYS[2]) return 1",
               "redis.call('decr', ARGV[1]) redis.call('get', 'k:' .. ARGV[3]) redis.call('incr', ARGV[2]) return 1"]

    def work(n):
        with t.raw() as r:
            for k in range(300):
                a, b = (n * 7 + k) % 50, (n + k * 11 + 1) % 50
                keys = ["account:%d" % a, "account:%d" % b]
                s = (n + k) % 3
                args = ["EVAL", scripts[s]] + (["0"] + keys + [str(k * 37 % 12000)] if s == 2 else ["2"] + keys)
                assert r.call(*args) == b":1\r\n"

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert sum(int(c.get("account:%d" % i)) for i in range(50)) == 5000


# ---- scripts that take too long, or too much

ENDLESS = ["while true do end", "while true do pcall(function() while true do end end) end",
           "local f = coroutine.wrap(function() while true do pcall(function() while true do end end) end end) while true do pcall(f) end"]


@pytest.mark.parametrize("threads", [1, 2])
def test_kill(tiercel, threads):
    t = tiercel(threads=threads, lua_time_limit=100)
    with t.raw() as other:
        other.call("PING")
        for script in ENDLESS:
            with t.raw() as c:
                c.send_command("EVAL", script, "0")
                wait_until(lambda: other.call("GET", "x").startswith(b"-BUSY"), what="BUSY")
                assert t.call("SCRIPT", "KILL") == "OK"
                assert c.read_reply().startswith(b"-ERR Script killed by user with SCRIPT KILL... script: ")
            assert other.call("GET", "x") == b"$-1\r\n"
        assert other.call("SCRIPT", "KILL").startswith(b"-NOTBUSY")
        with t.raw() as c:
            c.send_command("EVAL", "redis.call('set', KEYS[1], 1) local e = tonumber(ARGV[1]) for i = 1, e do end return 'done'", "1", "x", "40000000")
            wait_until(lambda: other.call("GET", "y").startswith(b"-BUSY"), what="BUSY")
            assert other.call("SCRIPT", "KILL").startswith(b"-UNKILLABLE")
            assert c.read_reply() == b"$4\r\ndone\r\n"
        assert other.call("GET", "x") == b"$1\r\n1\r\n"


def test_shutdown_while_busy(tiercel):
    t = tiercel(threads=2, lua_time_limit=100)
    c = t.raw()
    c.send_command("EVAL", "redis.call('set', KEYS[1], 1) while true do end", "1", "x")
    with t.raw() as other:
        wait_until(lambda: other.call("GET", "x").startswith(b"-BUSY"), what="BUSY")
        assert other.call("SHUTDOWN").startswith(b"-BUSY")
        other.send_command("SHUTDOWN", "NOSAVE")
        t.expect_running = False
        wait_until(lambda: not t.alive(), what="the end")
    c.close()


BOMBS = ["local t = {} while true do t[#t + 1] = string.rep('x', 1000000) .. #t end", "return string.rep('x', 1e9 * 4)",
         "local s = 'x' while true do s = s .. s end", "local t = {} for i = 1, 1e9 do t[i] = i end", "local t = {} while true do t = {t} end",
         "local s = string.rep('x', 1e7) local t = {} for i = 1, 5000 do t[i] = s end return cjson.encode(t)",
         "local s = string.rep('x', 1e7) local t = {} for i = 1, 5000 do t[i] = s end return cmsgpack.pack(t)",
         "return string.find(string.rep('a', 400000), string.rep('a?', 400000) .. 'b')", "return string.rep('', 2e9)",
         "local function f() return f() + 1 end return f()", "local x = {} for i = 1, 1e6 do x = {x} end return cjson.encode(x)",
         "local s = string.rep('(', 1e6) return loadstring('return ' .. s)", "return table.concat({1, 2}, string.rep('x', 6e7))",
         "return setmetatable({}, {__index = function(t, k) return t[k] end}).x", "while true do collectgarbage('stop') local s = {} for i = 1, 1e8 do s = {s, s} end end"]


@pytest.mark.heavy
def test_bombs(tiercel):
    t = tiercel(threads=2, maxmemory="100mb")
    with t.raw() as c:
        for script in BOMBS:
            reply = c.call("EVAL", script, "0")
            assert reply[:1] in b"-$", (script, reply[:100])
            assert c.call("EVAL", "return 1", "0") == b":1\r\n", script
    assert t.info("memory")["used_memory_vm_eval"] < 20 << 20


def test_state_is_not_shared(tiercel):
    """What a script does to its surroundings another one does not see."""
    t = tiercel(threads=1)
    with t.raw() as c:
        for script in ("KEYS.x = 1", "ARGV[5] = 'y'", "local s = getmetatable('') s.__index = nil", "math.randomseed(99)",
                       "local _, g = pairs(_G) g.evil = 1", "rawset(string, 'format', nil)", "table.insert(redis, 1)",
                       "table.sort(_G)", "setmetatable(redis, {})", "__redis__err__handler = nil", "string.dump = nil",
                       "collectgarbage('stop')", "redis.setresp(3)", "next(_G)", "redis.call('select', 5)"):
            c.call("EVAL", script, "0")
        assert c.call("EVAL", "return {tostring(KEYS.x), tostring(ARGV[5]), ('%d'):format(3), #tostring(math.random()), type(redis.call), "
                      "type(redis.call('get', 'x'))}", "0") == \
            b"*6\r\n$3\r\nnil\r\n$3\r\nnil\r\n$1\r\n3\r\n:16\r\n$8\r\nfunction\r\n$7\r\nboolean\r\n"
        assert b"evil" in c.call("EVAL", "return evil", "0")


def test_cache(tiercel):
    t = tiercel(threads=2)
    with t.raw() as c:
        sha = c.call("SCRIPT", "LOAD", "return ARGV[1]").split(b"\r\n")[1].decode()
        assert t.info("memory")["number_of_cached_scripts"] == 1
        for _ in range(8):  # on whatever worker
            with t.raw() as other:
                assert other.call("EVALSHA", sha, "0", "x") == b"$1\r\nx\r\n"
        for i in range(200):
            c.call("EVAL", "return %d" % i, "0")
        assert t.info("memory")["number_of_cached_scripts"] == 201
        assert t.info("memory")["used_memory_vm_eval"] > 10000
        c.call("SCRIPT", "FLUSH")
        assert t.info("memory")["number_of_cached_scripts"] == 0
        for _ in range(4):
            with t.raw() as other:
                assert other.call("EVALSHA", sha, "0", "x").startswith(b"-NOSCRIPT")
        c.call("SCRIPT", "LOAD", "return ARGV[1]")
    t.stop()
    t.start()
    assert str(t.call("EVALSHA", sha, "0", "x")).startswith("NOSCRIPT")


@pytest.mark.heavy
def test_out_of_memory(tiercel):
    t = tiercel(maxmemory="4mb", maxmemory_policy="noeviction", disk="no")
    c = t.client()
    with t.raw() as r:
        i = 0
        while not r.call("SET", "f:%d" % i, "x" * 10000).startswith(b"-OOM"):
            i += 1
        assert r.call("EVAL", "return redis.call('set','a',1)", "0").startswith(
            b"-OOM command not allowed when used memory > 'maxmemory'. script: ")
        assert r.call("EVAL", "#!lua\nreturn 1", "0") == b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
        assert r.call("EVAL", "#!lua flags=allow-oom\nreturn redis.call('set','a',1)", "0") == b"+OK\r\n"
        assert r.call("EVAL", "#!lua flags=no-writes\nreturn redis.call('get','a')", "0") == b"$1\r\n1\r\n"
        assert r.call("EVAL", "return redis.call('del','f:0')", "0") == b":1\r\n"
    c.close()


def test_appendonly(tiercel):
    """All that a script has written survives, or nothing of it."""
    t = tiercel(appendonly="yes", appendfsync="always", threads=2)
    with t.raw() as c:
        for i in range(50):
            c.call("EVAL", "redis.call('incr',KEYS[1]) redis.call('incr',KEYS[2]) redis.call('incr','c')", "2", "a", "b")
    t.kill9()
    t.start()
    assert t.call("MGET", "a", "b", "c") == [b"50"] * 3


def test_monitor(tiercel):
    t = tiercel(threads=2)
    with t.raw() as m, t.raw() as c:
        assert m.call("MONITOR") == b"+OK\r\n"
        c.call("EVAL", "return redis.call('set', KEYS[1], ARGV[1])", "1", "k", "v")
        c.call("PING")
        lines = [m.read_reply() for _ in range(3)]
    assert [b'"EVAL"' in lines[0], b" [0 lua] \"set\" \"k\" \"v\"" in lines[1], b'"PING"' in lines[2]] == [True] * 3, lines
