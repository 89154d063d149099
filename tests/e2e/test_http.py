"""The HTTP port: who may see what, and what the probes say while the server loads, warms, or has lost a tier."""
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request

import pytest

from harness import RespError, Tiercel, scaled, wait_until
from ports import free_port

sequential = pytest.mark.sequential


def ask(t, path, token=None, host="127.0.0.1", method="GET"):
    """Status and body."""
    request = urllib.request.Request("http://%s:%d%s" % (host, t.http_port, path), method=method)
    if token is not None:
        request.add_header("Authorization", "Bearer " + token)
    try:
        with urllib.request.urlopen(request, timeout=scaled(10)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def other_address():
    """One of this machine that is not loopback, or None. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = s.getsockname()[0]
    return None if address.startswith("127.") else address


@sequential
def test_token(tiercel, tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    t = tiercel(http_port=free_port(), env={"TIERCEL_HTTP_TOKEN_FILE": path}, slowlog_log_slower_than=0)
    assert ask(t, "/metrics")[0] == 401
    assert ask(t, "/metrics", "second")[0] == 401
    status, text = ask(t, "/metrics", "first")
    assert status == 200 and "\ntiercel_http_refused_total 2\n" in text
    assert ask(t, "/healthz") == (200, "ok\n")
    assert ask(t, "/readyz") == (200, '{"ready":true,"state":"serving"}\n')
    assert json.loads(ask(t, "/readyz", "first")[1])["memory"]["state"] == "ok"
    # Another one in the file, at SIGHUP; one that is none leaves it.
    path.write_text("second\n")
    t.process.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(t, "/metrics", "second")[0] == 200)
    assert ask(t, "/metrics", "first")[0] == 401
    path.write_text("se cond\n")
    t.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "http-token is not loaded again" in t.log())
    assert ask(t, "/metrics", "second")[0] == 200
    # And by a client, whose word no log keeps.
    assert isinstance(t.call("CONFIG", "SET", "http-token", "th ird"), RespError)
    assert t.call("CONFIG", "SET", "http-token", "third") == "OK"
    assert ask(t, "/metrics", "third")[0] == 200 and ask(t, "/metrics", "second")[0] == 401
    assert b"third" not in repr(t.call("SLOWLOG", "GET", "20")).encode() and "third" not in t.log()
    assert t.call("CONFIG", "SET", "http-token", "") == "OK"
    assert ask(t, "/metrics")[0] == 200


@sequential
def test_alive_while_a_scrape_waits(tiercel, tmp_path):
    """A file that cannot be read at once (here a pipe, at SIGHUP) holds up whoever asks for the settings."""
    path = tmp_path / "token"
    path.write_text("first\n")
    t = tiercel(http_port=free_port(), env={"TIERCEL_HTTP_TOKEN_FILE": path})
    path.unlink()
    os.mkfifo(path)
    t.process.send_signal(signal.SIGHUP)
    got = []
    scrapes = [threading.Thread(target=lambda: got.append(ask(t, "/metrics", "first")[0])) for _ in range(3)]
    for scrape in scrapes:
        scrape.start()
    for _ in range(5):
        assert ask(t, "/healthz") == (200, "ok\n")
    with open(path, "w") as f:
        f.write("second\n")
    for scrape in scrapes:
        scrape.join()
    assert set(got) <= {200, 401}
    wait_until(lambda: ask(t, "/metrics", "second")[0] == 200)


@sequential
def test_other_hosts(tiercel):
    address = other_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    t = tiercel(http_port=free_port(), http_bind="*")
    assert "other hosts get no /metrics until http-token is set" in t.log()
    assert ask(t, "/metrics")[0] == 200, "from this host"
    status, text = ask(t, "/metrics", host=address)
    assert status == 403 and "protected" in text
    assert ask(t, "/healthz", host=address)[0] == 200
    assert ask(t, "/readyz", host=address) == (200, '{"ready":true,"state":"serving"}\n')
    t.call("CONFIG", "SET", "http-token", "abc")
    assert ask(t, "/metrics", "abc", host=address)[0] == 200 and ask(t, "/metrics", host=address)[0] == 401
    t.call("CONFIG", "SET", "http-token", "", "protected-mode", "no")
    assert ask(t, "/metrics", host=address)[0] == 200


@sequential
def test_while_it_loads(tmp_path, request):
    """A dump.rdb whose reading does not begin: a pipe. When it does, it is no such file, and the start ends."""
    pipe = tmp_path / "dump.rdb"
    os.mkfifo(pipe)
    t = Tiercel(dir=tmp_path, http_port=free_port())
    request.addfinalizer(t.close)
    t.start(wait=False)

    def answer():
        try:
            return ask(t, "/readyz")
        except OSError:
            return None

    assert wait_until(answer, what="the HTTP port answers") == (503, '{"ready":false,"state":"loading"}\n')
    assert ask(t, "/healthz") == (200, "ok\n")
    assert ask(t, "/metrics") == (503, "loading\n")
    t.expect_exit()
    with open(pipe, "wb"):
        assert t.wait() == 1
    assert "dump.rdb: it cannot be read" in t.log()


@sequential
def test_while_it_warms(tiercel, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("".join("k%d\n" % i for i in range(1000)))
    t = tiercel(http_port=free_port(), warm_on_start="FILE %s RATE 1" % keys)
    status, text = ask(t, "/readyz")
    assert status == 503 and json.loads(text)["state"] == "warming"
    wait_until(lambda: 'tiercel_warm_jobs{state="running"} 1\n' in ask(t, "/metrics")[1])
    assert "\ntiercel_warming 1\n" in ask(t, "/metrics")[1]
    t.call("WARM", "CANCEL", "1")
    wait_until(lambda: ask(t, "/readyz")[0] == 200)
    assert 'tiercel_warm_jobs{state="cancelled"} 1\n' in ask(t, "/metrics")[1]


@sequential
def test_a_lost_upstream_takes_nobody_out_of_service(trio):
    up, wire, t = trio
    t.restart(http_port=free_port())
    t.wait_tiers(tier_upstream_state="up")
    detail = json.loads(ask(t, "/readyz")[1])
    assert detail["upstream"] == {"state": "up", "breaker": "closed", "coherence": "tracking", "reason": ""}
    up.stop()
    t.wait_tiers(tier_upstream_state="down")
    status, text = ask(t, "/readyz")
    assert status == 200 and json.loads(text)["upstream"]["state"] == "down"
    assert ask(t, "/healthz")[0] == 200
    assert "\ntiercel_upstream_up 0\n" in ask(t, "/metrics")[1]


@sequential
def test_paths_and_methods(tiercel):
    t = tiercel(http_port=free_port())
    for path in ("/metrics", "/healthz", "/readyz"):
        assert ask(t, path, method="HEAD") == (200, "")
        assert ask(t, path, method="POST")[0] == 405
    assert ask(t, "/api/info")[0] == 404
    with socket.create_connection(("127.0.0.1", t.http_port), timeout=scaled(10)) as s:
        try:
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200000)
            reply = s.recv(100)
        except ConnectionError:
            reply = b""
    assert reply == b"" or int(reply.split()[1]) >= 400
    assert ask(t, "/healthz")[0] == 200


def test_scrapes_while_there_is_traffic(trio):
    """The HTTP thread reads what the workers write."""
    up, wire, t = trio
    t.restart(http_port=free_port(), maxmemory="4mb")
    t.wait_tiers(tier_upstream_state="up")
    over = threading.Event()

    def traffic(n):
        c = t.client()
        while not over.is_set():
            p = c.pipeline(transaction=False)
            for i in range(50):
                p.set("k%d:%d" % (n, i), "v" * 2000)
                p.get("k%d:%d" % (n, i))
                p.hget("h%d" % i, "f")
            p.eval("return redis.call('incr', 'n')", 0)
            p.execute()

    threads = [threading.Thread(target=traffic, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(15):
            t.call("CONFIG", "SET", "http-token", "t%d" % i)
            assert ask(t, "/metrics", "t%d" % i)[0] == 200
            assert ask(t, "/readyz")[0] == 200
            if i % 5 == 0:
                t.call("CONFIG", "RESETSTAT")
    finally:
        over.set()
        for thread in threads:
            thread.join()
