"""tiercel-bench: that it sends what it says, counts what comes back, and notices what is wrong."""
import contextlib
import json
import signal
import socket
import subprocess
import threading

import pytest

from harness import BINARY, free_port, scaled

pytestmark = pytest.mark.sequential

TOOL = BINARY.parent / "tiercel-bench"


def run(*args, check=0, **kw):
    """(report, standard output, standard error)"""
    out = subprocess.run([TOOL, "--json", "-", *map(str, args)], capture_output=True, text=True, timeout=scaled(50),
                         stdin=subprocess.DEVNULL, **kw)
    assert out.returncode == check, out.stderr
    return (json.loads(out.stdout) if out.stdout else None), out.stderr


def bench(server, *args, check=0):
    """The report's tests, by name."""
    report, _ = run("-p", server.port, *args, check=check)
    return {t["name"]: t for t in report["tests"]}


def refused(*args):
    out = subprocess.run([TOOL, *map(str, args)], capture_output=True, text=True, timeout=scaled(20))
    assert out.returncode == 2, out.stderr
    return out.stderr


def ordered(latency):
    names = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"]
    values = [latency[n] for n in names]
    assert values == sorted(values) and 0 < latency["min"] <= latency["mean"] <= latency["max"], latency


@pytest.mark.parametrize("threads,pipeline", [(1, 1), (3, 7)])
def test_fill_sets_each_key_once(tiercel, threads, pipeline):
    t = tiercel()
    r = bench(t, "-t", "set", "--keys", "seq", "-r", 1013, "-c", 5, "--threads", threads, "-P", pipeline, "-d", 100)
    assert r["set"]["requests"] == 1013 == t.client().dbsize() == t.calls("set")
    assert r["set"]["errors"] == 0 and r["set"]["commands"]["set"]["requests"] == 1013
    ordered(r["set"]["latency_us"])
    assert len(t.client().get("key:000000000007")) == 100
    bench(t, "-t", "set", "--keys", "seq", "-r", 10, "--first-key", 1010, "-d", 100)  # three of them are there
    assert t.client().dbsize() == 1020
    r = bench(t, "-t", "get", "-r", 1013, "-n", 2000, "--threads", threads, "-P", pipeline, "-c", 5, "--verify")
    assert (r["get"]["requests"], r["get"]["hits"], r["get"]["misses"], r["get"]["wrong"]) == (2000, 2000, 0, 0)
    assert r["get"]["requests_per_second"] == pytest.approx(2000 / r["get"]["seconds"], rel=0.01)
    assert r["get"]["bytes_received"] > 2000 * 100


def test_mix_on_a_unix_socket(tiercel):
    t = tiercel(unixsocket=True)
    report, _ = run("-s", t.socket_path, "--fill", "-r", 500, "-t", "get:3+set:1,mget,mset,incr,del,exists,ping", "-n", 800,
                    "-P", 4, "-d", "10-3000", "--keys", "zipf:0.9", "--verify", "--mget-keys", 20)
    tests = {x["name"]: x for x in report["tests"]}
    assert list(tests) == ["fill", "get:3+set:1", "mget", "mset", "incr", "del", "exists", "ping"]
    assert all(x["errors"] == 0 and x["wrong"] == 0 for x in report["tests"])
    assert all(x["requests"] == 800 for x in report["tests"][1:]) and tests["fill"]["requests"] == 500
    mix = tests["get:3+set:1"]["commands"]
    assert mix["get"]["requests"] + mix["set"]["requests"] == 800
    assert 500 < mix["get"]["requests"] < 700
    assert tests["mget"]["hits"] == 800 * 20
    assert t.calls("mset") == t.calls("incr") == t.calls("exists") == 800


def test_a_command_of_the_users_own(tiercel):
    t = tiercel()
    r = bench(t, "-n", 300, "-r", 100, "-c", 2, "--ttl", "50-100", "set", "own:__rand_int__:x", "__value__", "px", "__ttl__")
    assert [x["requests"] for x in r.values()] == [300]
    name = next(k for k in t.client().scan_iter("own:*:x"))
    assert 0 < t.client().ttl(name) <= 100
    r = bench(t, "-n", 10, "-c", 1, "no-such-command", check=0)
    assert r["no-such-command"]["errors"] == 10
    assert "unknown command" in r["no-such-command"]["first_error"]


def test_ttl_and_json_values(tiercel):
    t = tiercel()
    bench(t, "-t", "set", "--keys", "seq", "-r", 50, "--ttl", 30, "--values", "json", "-d", 1000)
    value = t.client().get("key:000000000033")
    assert len(value) == 1000
    value = json.loads(value)
    assert value["key"] == "key:000000000033" and len(value["rows"]) > 5
    assert 0 < t.client().ttl("key:000000000033") <= 30
    assert bench(t, "-t", "get", "-r", 50, "-n", 100, "--values", "json", "--verify")["get"]["wrong"] == 0


def test_verify_finds_wrong_values(tiercel):
    t = tiercel()
    bench(t, "-t", "set", "--keys", "seq", "-r", 100, "-d", 200)
    c = t.client()
    c.set("key:000000000004", c.get("key:000000000005"))  # another key's
    damaged = bytearray(c.get("key:000000000006"))
    damaged[150] ^= 1
    c.set("key:000000000006", bytes(damaged))
    c.set("key:000000000007", c.get("key:000000000007")[:-1])
    c.delete("key:000000000008")
    args = ("--keys", "seq", "-r", 100, "-d", 200, "-P", 3)
    report, err = run("-p", t.port, "-t", "get", *args, "--verify", check=1)
    test = report["tests"][0]
    assert (test["wrong"], test["misses"], test["hits"]) == (3, 1, 99)
    assert test["first_wrong"].startswith("key:00000000000")
    assert "wrong values 3" in err
    r = bench(t, "-t", "mget", "--mget-keys", 7, *args, "--verify", check=1)  # the last request begins anew
    assert (r["mget"]["requests"], r["mget"]["hits"] + r["mget"]["misses"]) == (15, 105)
    r = bench(t, "-t", "mget", "--mget-keys", 10, "-n", 10, *args, "--verify", check=1)
    assert (r["mget"]["wrong"], r["mget"]["misses"], r["mget"]["hits"]) == (3, 1, 99)
    assert bench(t, "-t", "get", *args)["get"]["wrong"] == 0


def test_verify_of_values_that_come_in_parts(tiercel):
    t = tiercel()
    r = bench(t, "--fill", "-t", "get,mget", "-r", 12, "-n", 60, "-d", "400kb-1mb", "-c", 3, "-P", 2, "--mget-keys", 2, "--verify")
    assert (r["get"]["hits"], r["get"]["wrong"], r["mget"]["hits"], r["mget"]["wrong"]) == (60, 0, 120, 0)


def test_a_miss_is_set(tiercel):
    t = tiercel()
    r = bench(t, "-t", "get", "--set-on-miss", "--keys", "seq", "-r", 300, "-n", 900, "-c", 1)
    assert r["get"]["commands"]["get"]["misses"] == 300 and r["get"]["commands"]["get"]["hits"] == 600
    assert r["get"]["commands"]["set"]["requests"] == 300 == t.client().dbsize()


@pytest.mark.parametrize("packed", [False, True])
def test_trace(tiercel, tmp_path, packed):
    t = tiercel()
    file = tmp_path / "trace.csv"
    lines = ["time_s,key,key_size,value_size,op,ttl_s"]
    for i in range(1000):
        lines.append("%d,%d,0,%d,%s,0" % (i, i * 7919 % 300, 500 if i % 3 == 0 else 0, "set" if i % 3 == 0 else "get"))
    file.write_text("\n".join(lines) + "\n")
    if packed:
        if subprocess.run(["zstd", "-q", "--rm", file], check=False).returncode != 0:
            pytest.skip("no zstd command")
        file = str(file) + ".zst"
    r = bench(t, "--trace", file, "--set-on-miss", "--verify", "-c", 1)
    commands = r["trace"]["commands"]
    assert commands["get"]["requests"] == 666
    assert commands["get"]["hits"] + commands["get"]["misses"] == 666
    assert commands["set"]["requests"] == 334 + commands["get"]["misses"]
    assert t.client().dbsize() == 300
    assert r["trace"]["wrong"] == 0


def test_open_loop_keeps_its_rate(tiercel):
    t = tiercel()
    for more in ([], ["--poisson"], ["--spin"]):
        r = bench(t, "--fill", "-t", "get", "-r", 100, "--rate", 500, "-D", 1, "-c", 4, *more)["get"]
        assert r["open_loop"] and r["requests"] + r["unsent"] == pytest.approx(500, abs=5 if not more else 120)
        assert r["misses"] == 0
        ordered(r["latency_us"])
        assert r["send_delay_us"]["max"] <= r["latency_us"]["max"]


def test_open_loop_counts_the_time_that_the_server_stands_still(tiercel):
    """Free of coordinated omission: what was due during a pause of 0.5 s is late by as much as that."""
    t = tiercel()
    bench(t, "-t", "set", "-n", 10)
    timers = [threading.Timer(0.7, t.pause), threading.Timer(1.2, t.resume)]
    for timer in timers:
        timer.start()
    r = bench(t, "-t", "get", "--rate", 1000, "-n", 2000, "-c", 2, "--timeout", 20)["get"]
    for timer in timers:
        timer.join()
    assert r["requests"] == 2000
    late = r["latency_us"]
    assert late["max"] > 400000 and late["p90"] > 100000, late


def test_warm_up_does_not_count(tiercel):
    t = tiercel()
    r = bench(t, "-t", "get", "--warmup", 0.5, "-D", 0.5, "-c", 2)["get"]
    assert 0.4 < r["seconds"] < scaled(1)
    assert 0 < r["requests"] < t.calls("get")


def test_password_and_database(tiercel):
    t = tiercel(requirepass="secret")
    out = subprocess.run([TOOL, "-p", str(t.port), "-n", "1"], capture_output=True, text=True, timeout=scaled(20))
    assert out.returncode == 1 and "NOAUTH" in out.stderr
    run("-p", t.port, "-a", "secret", "--dbnum", 3, "-t", "set", "--keys", "seq", "-r", 20)
    assert t.client(db=3, password="secret").dbsize() == 20


@contextlib.contextmanager
def peer(*replies, close=True):
    """A server that answers what it reads with these bytes, one after another, and then closes or is silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            conn, _ = listener.accept()
            with conn:
                for reply in replies:
                    if not conn.recv(65536):
                        return
                    conn.sendall(reply)
                while conn.recv(65536) and not close:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("replies,close,message", [
    ((b"+PONG\r\n", b"$-1\r\n"), True, "closed the connection during the test"),
    ((b"+PONG\r\n",), False, "has not answered for"),
    ((), False, "does not answer within"),
    ((b"HTTP/1.1 400 Bad Request\r\n",), True, "not RESP"),
    ((b"+PONG\r\n", b"$-1\r\n$-1\r\n"), False, "nobody asked for"),
    ((b"-ERR max number of clients reached\r\n",), True, "max number of clients reached"),
])
def test_a_server_that_goes_wrong(replies, close, message):
    with peer(*replies, close=close) as port:
        _, err = run("-p", port, "-c", 1, "-t", "get", "--timeout", 1, check=1)
    assert message in err and "127.0.0.1:%d" % port in err, err


def test_nobody_listens():
    _, err = run("-p", free_port(), check=1)
    assert "cannot connect to 127.0.0.1:" in err and "connection refused" in err
    out = subprocess.run([TOOL, "-s", "/nonexistent/socket"], capture_output=True, text=True, timeout=scaled(20))
    assert out.returncode == 1 and "/nonexistent/socket" in out.stderr


def test_an_interrupt_ends_it_with_a_report(tiercel):
    t = tiercel()
    p = subprocess.Popen([TOOL, "-p", str(t.port), "-t", "get,set", "-D", "60", "--progress"], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    line = p.stderr.readline()
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=scaled(20))
    assert p.returncode == 130
    assert "requests/s" in line and "(interrupted)" in out and "set:" not in out


@pytest.mark.parametrize("args,message", [
    (["-c", "0"], "-c: '0' is not a number from 1"),
    (["-n", "many"], "-n: 'many'"),
    (["-t", "got"], "no test 'got'"),
    (["-t", "get:0"], "weight"),
    (["-t", "get,"], "empty name"),
    (["-d", "9-1"], "-d: '9-1'"),
    (["--keys", "zip"], "--keys: 'zip'"),
    (["--key-size", "8", "-r", "100k"], "do not fit"),
    (["--threads", "9", "-c", "3"], "more than connections"),
    (["--poisson"], "wants --rate"),
    (["-t", "get", "ping"], "exclude each other"),
    (["set", "k", "x__value__"], "argument of its own"),
    (["--no-such"], "no option --no-such"),
    (["-d"], "-d wants a value"),
])
def test_bad_options(args, message):
    err = refused(*args)
    assert message in err and "--help" in err, err


def test_bad_trace(tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text("key,op\na,get\nb,fetch\n")
    _, err = run("--trace", file, check=1)
    assert "line 3" in err
    _, err = run("--trace", tmp_path / "none.csv", check=1)
    assert "No such file" in err


def test_help_names_every_option():
    out = subprocess.run([TOOL, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("-h", "-p", "-s", "-c", "-n", "-d", "-r", "-P", "-t", "--threads", "--rate", "--trace", "--verify", "--json"):
        assert name in out
    assert subprocess.run([TOOL, "--version"], capture_output=True, text=True, check=True).stdout.startswith("tiercel-bench ")
