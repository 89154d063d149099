"""Users: files, configuration lines, clients that have to go, the log. What single rules mean is in tests/unit/test_acl.c
and, against redis-server, in tests/differential/users.py."""
import os
import re
import subprocess
import threading

import pytest

import harness
from harness import RespError, wait_until


def lines(server):
    return [line.decode() for line in server.call("ACL", "LIST")]


def login(server, user, password):
    c = server.raw()
    assert c.call("AUTH", user, password) == b"+OK\r\n"
    return c


def closed(conn):
    """Does the server close the connection, now?"""
    conn.sock.settimeout(harness.scaled(5))
    try:
        while conn.sock.recv(4096):
            pass
        return True
    except ConnectionResetError:
        return True
    except OSError:
        return False


DEFAULT = "user default on nopass ~* &* +@all"
ALICE = "user alice on #2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90 ~a* resetchannels -@all +get +set"


def test_aclfile(tiercel, tmp_path):
    path = tmp_path / "users.acl"
    path.write_text(DEFAULT + "\n\n  user alice on >alice ~a* +get   +set\r\n")
    t = tiercel(aclfile=path, threads=2)
    assert lines(t) == [ALICE, DEFAULT]
    with login(t, "alice", "alice") as c:
        assert c.call("SET", "a1", "x") == b"+OK\r\n"
        assert c.call("GET", "b").startswith(b"-NOPERM")
    assert t.call("ACL", "SETUSER", "bob", "on", ">b", "(~x", "+get)", "&c") == "OK"
    assert t.call("ACL", "SAVE") == "OK"
    saved = path.read_text().splitlines()
    assert saved == lines(t) and len(saved) == 3
    assert os.listdir(tmp_path) == ["users.acl"]
    t.restart()
    assert lines(t) == saved


@pytest.mark.sequential
def test_aclfile_in_dir(tiercel, tmp_path):
    (tmp_path / "users.acl").write_text("user alice on >alice ~a* +get +set\n")
    t = tiercel(dir=tmp_path, aclfile="users.acl")
    assert lines(t) == [ALICE, DEFAULT]


@pytest.mark.sequential
def test_load_is_all_or_nothing(tiercel, redis_server, tmp_path):
    good = DEFAULT + "\nuser alice on >a ~* +@all\n"
    bad = ("user alice on >a nosuch +nosuch\nfoo\nuser x\nuser x on\nuser b\tc on\n  user tab\ton\n"
           "user default on\n")
    answers, paths = [], []
    for i, make in enumerate((tiercel, redis_server)):
        path = tmp_path / ("users%d" % i)
        path.write_text(good)
        server = make(aclfile=path)
        before = lines(server)
        path.write_text(bad)
        error = server.call("ACL", "LOAD")
        assert lines(server) == before
        path.unlink()
        gone = server.call("ACL", "LOAD")
        path.write_text("user bob on >b +get\n")
        assert server.call("ACL", "LOAD") == "OK"
        answers.append([str(error).replace(str(path), "F"), str(gone).replace(str(path), "F"), lines(server)])
        paths.append(path)
    assert answers[0] == answers[1]


def test_load_closes_those_whose_user_was_replaced(tiercel, tmp_path):
    path = tmp_path / "users"
    path.write_text(DEFAULT + "\nuser alice on >alice ~* +@all\n")
    t = tiercel(aclfile=path, threads=4)
    mine, other = t.raw(), t.raw()
    users = [login(t, "alice", "alice") for _ in range(8)]
    assert mine.call("ACL", "LOAD") == b"+OK\r\n"
    assert all(closed(c) for c in users)
    assert other.call("PING") == b"+PONG\r\n"
    with login(t, "alice", "alice") as c:
        assert c.call("ACL", "LOAD") == b"+OK\r\n"
        assert closed(c)


@pytest.mark.sequential
@pytest.mark.parametrize("text, message", [
    ("user alice on nosuch\n", "should|Syntax error"),
    ("user alice on +nosuch\n", "Unknown command or category name"),
    ("alice\n", "should start with user keyword"),
    ("user a on\nuser a off\n", "Duplicate user 'a' found on line 2"),
    (None, "opening file"),
])
def test_bad_aclfile_at_start(tmp_path, text, message):
    path = tmp_path / "users"
    if text is not None:
        path.write_text(text)
    check_refused(tmp_path, ["--aclfile", str(path)], message)


@pytest.mark.sequential
@pytest.mark.parametrize("text, message", [
    ("user alice on nosuch\n", r":1: Error in user declaration 'alice': Syntax error"),
    ("port 0\nuser a on\nuser a off\n", r":3: Error in user declaration 'a': Duplicate user found"),
    ("user alice on +nosuch\n", "Unknown command or category name"),
    ("user\n", "user needs a name"),
    ("user a on (~x +get\n", "Unmatched parenthesis"),
    ("user a on\naclfile /nowhere\n", "by an aclfile at once"),
])
def test_bad_lines_at_start(tmp_path, text, message):
    conf = tmp_path / "t.conf"
    conf.write_text(text)
    check_refused(tmp_path, [], message, str(conf))


def check_refused(tmp_path, options, message, *first):
    run = subprocess.run([str(harness.BINARY), *first, "--port", str(harness.free_port()), "--dir", str(tmp_path / "data"),
                          "--http-port", "0", *options], capture_output=True, text=True, timeout=harness.scaled(20))
    assert run.returncode != 0
    said = [line for line in run.stderr.splitlines() if re.search(message, line)]
    assert len(said) == 1, run.stdout + run.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.sequential
def test_configuration_lines_and_rewrite(tiercel, tmp_path):
    conf = tmp_path / "t.conf"
    conf.write_text("# mine\nuser alice on >alice ~a* +get +set\nrequirepass secret\nuser old on\n# end\n")
    t = tiercel(args=[conf])
    with t.raw() as c:
        assert c.call("PING").startswith(b"-NOAUTH")
        c.call("AUTH", "secret")
        assert ALICE.encode() in c.call("ACL", "LIST")
        c.call("ACL", "DELUSER", "old")
        c.call("ACL", "SETUSER", "bob", "on", ">b", "(~x +get)")
        assert c.call("CONFIG", "REWRITE") == b"+OK\r\n"
    text = conf.read_text()
    assert text.count("user ") == 2 and "user default" not in text
    assert ALICE in text.splitlines() and text.startswith("# mine\n") and "requirepass secret" in text
    t.restart()
    with t.raw() as c:
        c.call("AUTH", "default", "secret")
        names = c.call("ACL", "USERS")
        assert b"alice" in names and b"bob" in names and b"old" not in names
        c.call("ACL", "SETUSER", "default", "-debug")
        c.call("CONFIG", "REWRITE")
    assert re.search(r"^user default on #\w{64} ~\* &\* \+@all -debug$", conf.read_text(), re.M)
    t.restart()
    with t.raw() as c:
        c.call("AUTH", "secret")
        assert c.call("DEBUG", "SLEEP", 0).startswith(b"-NOPERM")


@pytest.mark.sequential
def test_requirepass_and_the_default_user(tiercel):
    t = tiercel(requirepass="one", threads=2)
    admin = login(t, "default", "one")
    other = t.raw()
    assert other.call("PING").startswith(b"-NOAUTH")
    admin.call("CONFIG", "SET", "requirepass", "")
    assert other.call("PING") == b"+PONG\r\n"
    admin.call("ACL", "SETUSER", "default", "off")
    assert t.raw().call("PING").startswith(b"-NOAUTH")
    assert admin.call("PING") == b"+PONG\r\n"
    assert other.call("PING").startswith(b"-NOAUTH")  # it has never shown a password
    admin.call("ACL", "SETUSER", "default", "on")
    assert other.call("PING") == b"+PONG\r\n"
    admin.call("CONFIG", "SET", "requirepass", "two")
    assert t.raw().call("AUTH", "two") == b"+OK\r\n"
    assert t.raw().call("AUTH", "one").startswith(b"-WRONGPASS")


def test_deluser_closes_clients_of_all_workers(tiercel):
    t = tiercel(threads=4)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all", "~*", "&*")
    users = [login(t, "alice", "x") for _ in range(16)]
    waiting = users[0]
    waiting.send_command("BLPOP", "nothing", 0)
    users[1].call("SUBSCRIBE", "c")
    wait_until(lambda: t.info("clients")["blocked_clients"] == 1)
    with t.raw() as other:
        assert t.call("ACL", "DELUSER", "alice", "nobody") == 1
        assert t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all") == "OK"
        assert all(closed(c) for c in users)
        assert other.call("PING") == b"+PONG\r\n"
    assert t.info("clients")["blocked_clients"] == 0
    with login(t, "alice", "x") as c:  # its own: it gets the answer first
        assert c.call("ACL", "DELUSER", "alice") == b":1\r\n"
        assert closed(c)


def test_deluser_in_a_transaction(tiercel):
    t = tiercel(threads=3)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all", "~*")
    users = [login(t, "alice", "x") for _ in range(6)]
    with t.raw() as c:
        c.call("MULTI")
        c.call("ACL", "DELUSER", "alice")
        assert c.call("EXEC") == b"*1\r\n:1\r\n"
    assert all(closed(c) for c in users)


def test_subscribers_lose_their_channels(tiercel):
    t = tiercel(threads=4)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all", "&news*", "&chat", "&own")
    news, chat, pattern, shard, idle = [login(t, "alice", "x") for _ in range(5)]
    news.call("SUBSCRIBE", "news1")
    chat.call("SUBSCRIBE", "chat")
    pattern.call("PSUBSCRIBE", "news*")
    shard.call("SSUBSCRIBE", "own")
    t.call("ACL", "SETUSER", "alice", "resetchannels", "&news1", "&chat")
    assert closed(pattern) and closed(shard)
    assert t.call("PUBLISH", "news1", "m") == 1 and t.call("PUBLISH", "chat", "m") == 1
    assert b"news1" in news.read_reply() and b"chat" in chat.read_reply()
    assert idle.call("SUBSCRIBE", "own").startswith(b"-NOPERM")


def test_a_waiting_client_keeps_its_place(tiercel):
    """As in redis-server, what was let in is not checked again when it is served."""
    t = tiercel(threads=3)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all", "~*")
    c = login(t, "alice", "x")
    c.send_command("BLMOVE", "l", "m", "LEFT", "LEFT", 0)
    wait_until(lambda: t.info("clients")["blocked_clients"] == 1)
    t.call("ACL", "SETUSER", "alice", "-@all", "resetkeys")
    t.call("RPUSH", "l", "v")
    assert c.read_reply() == b"$1\r\nv\r\n"
    assert c.call("GET", "l").startswith(b"-NOPERM")


@pytest.mark.sequential
def test_log(tiercel):
    t = tiercel(threads=3, acllog_max_len=3)
    t.call("ACL", "SETUSER", "alice", "on", ">p", "+get", "+multi", "+eval", "~k")
    for _ in range(3):
        with t.raw() as c:
            c.call("AUTH", "alice", "wrong")
            c.call("AUTH", "alice", "p")
            c.call("GET", "other")
            c.call("SET", "k", "v")
            c.call("EVAL", "return redis.call('set', 'k', 'v')", 0)
            c.call("MULTI")
            c.call("GET", "other")
    log = [dict(zip(e[::2], e[1::2])) for e in t.call("ACL", "LOG")]
    assert [(e[b"reason"], e[b"context"], e[b"object"], e[b"username"], e[b"count"]) for e in log] == [
        (b"key", b"multi", b"other", b"alice", 1), (b"command", b"lua", b"set", b"alice", 1),
        (b"command", b"toplevel", b"set", b"alice", 1)]
    assert b" user=alice " in log[0][b"client-info"] and float(log[0][b"age-seconds"]) < 60
    stats = t.info("stats")
    assert [stats["acl_access_denied_" + k] for k in ("auth", "cmd", "key", "channel")] == [3, 6, 6, 0]
    assert t.call("ACL", "LOG", "RESET") == "OK" and t.call("ACL", "LOG") == []
    t.call("CONFIG", "SET", "acllog-max-len", 10)
    for _ in range(3):
        with login(t, "alice", "p") as c:
            c.call("GET", "other")
            c.call("SET", "k", "v")
    assert [e[1] for e in t.call("ACL", "LOG")] == [3, 3]


@pytest.mark.sequential
def test_secrets_are_not_shown(tiercel):
    t = tiercel(slowlog_log_slower_than=0)
    with t.raw() as watcher:
        watcher.call("MONITOR")
        t.call("ACL", "SETUSER", "alice", "on", ">hidden")
        t.call("AUTH", "alice", "hidden")
        t.call("HELLO", "2", "AUTH", "alice", "hidden")
        t.call("ECHO", "end")
        seen = b""
        while b"end" not in seen:
            seen += watcher.read_line()
    assert b"hidden" not in seen
    assert b"hidden" not in repr(t.call("SLOWLOG", "GET", 100)).encode()


def test_client_list_kill_and_reset(tiercel):
    t = tiercel(threads=3)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all")
    users = [login(t, "alice", "x") for _ in range(5)]
    assert t.call("CLIENT", "LIST").count(b" user=alice ") == 5
    assert users[0].call("RESET") == b"+RESET\r\n"
    assert users[0].call("ACL", "WHOAMI") == b"$7\r\ndefault\r\n"
    assert isinstance(t.call("CLIENT", "KILL", "USER", "bob"), RespError)
    assert t.call("CLIENT", "KILL", "USER", "alice") == 4
    assert all(closed(c) for c in users[1:]) and users[0].call("PING") == b"+PONG\r\n"


def test_rights_change_while_clients_work(tiercel):
    """No request runs that its user may not, once SETUSER has answered."""
    t = tiercel(threads=4)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all", "~*")
    stop, answers = threading.Event(), []

    def work():
        with login(t, "alice", "x") as c:
            while not stop.is_set():
                answers.append(c.call("INCR", "n"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for th in threads:
        th.start()
    for _ in range(100):
        t.call("ACL", "SETUSER", "alice", "-incr")
        before = t.call("GET", "n")
        assert t.call("GET", "n") == before
        t.call("ACL", "SETUSER", "alice", "+incr")
    stop.set()
    for th in threads:
        th.join()
    assert all(a.startswith((b":", b"-NOPERM")) for a in answers)


def test_with_an_upstream(tiercel, redis_server):
    """What this server does not know itself is for those who may do everything."""
    up = redis_server()
    t = tiercel(upstream=up, threads=2)
    t.call("ACL", "SETUSER", "alice", "on", "nopass", "+@all", "~a*", "&*")
    with login(t, "alice", "x") as c:
        assert c.call("SET", "a", "1") == b"+OK\r\n"
        assert c.call("SET", "b", "1").startswith(b"-NOPERM")
        assert c.call("EVAL", "return redis.call('get', 'b')", 0).startswith(b"-NOPERM")
        assert c.call("SORT_RO", "b").startswith(b"-NOPERM")
        assert c.call("MULTI") == b"+OK\r\n"
        assert c.call("SET", "b", "1").startswith(b"-NOPERM")
        c.call("DISCARD")
    assert up.call("GET", "b") is None and up.call("GET", "a") == b"1"
    t.call("ACL", "SETUSER", "alice", "allkeys")
    with login(t, "alice", "x") as c:
        assert c.call("EVAL", "return redis.call('get', 'a')", 0) == b"$1\r\n1\r\n"
        assert c.call("SORT_RO", "b") == b"*0\r\n"


def test_rights_that_change_within_a_transaction_at_an_upstream(tiercel, redis_server):
    up = redis_server()
    t = tiercel(upstream=up, threads=2)
    t.wait_tiers(tier_upstream_state="up")
    assert t.call("ACL", "SETUSER", "bob", "on", "nopass", "~a*", "+@all", "-eval") == "OK"
    assert t.call("ACL", "SETUSER", "eve", "on", "nopass", "~*", "+@all") == "OK"
    with t.raw() as c:
        assert c.ask("AUTH", "bob", "x") == "OK"
        # one that is refused as it comes is the end of the transaction, as in Redis
        assert [c.ask("MULTI"), c.ask("SET", "a", "1")] == ["OK", "QUEUED"]
        assert str(c.ask("SET", "b", "1")).startswith("NOPERM")
        assert str(c.ask("EXEC")).startswith("EXECABORT")
        assert up.client().keys("*") == []
        # others' rights are no matter
        assert [c.ask("MULTI"), c.ask("SET", "a", "1")] == ["OK", "QUEUED"]
        assert t.call("ACL", "SETUSER", "eve", "-set") == "OK"
        assert c.ask("EXEC") == ["OK"]
        # its own are
        assert [c.ask("MULTI"), c.ask("SET", "a", "2")] == ["OK", "QUEUED"]
        assert t.call("ACL", "SETUSER", "bob", "-set") == "OK"
        assert str(c.ask("EXEC")).startswith("EXECABORT")
        assert c.ask("GET", "a") == b"1"
        assert [c.ask("MULTI"), c.ask("GET", "a"), c.ask("EXEC")] == ["OK", "QUEUED", [b"1"]]
