"""Starts that fail, --check, the background, and forced stops: one clear line, the right exit code, nothing left over."""
import os
import pathlib
import re
import signal
import socket
import subprocess

import pytest

from harness import BINARY, Tiercel, scaled, wait_until
from ports import free_port


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("TIERCEL_")}


def run(args, cwd):
    done = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True, cwd=cwd, env=environment(),
                          stdin=subprocess.DEVNULL, timeout=scaled(30))
    return done.returncode, done.stdout, done.stderr


def certificate(home, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", home / (name + ".key"),
                    "-out", home / (name + ".crt"), "-subj", "/CN=test", "-days", "30"], check=True,
                   capture_output=True)


# What is given on top of a free port and a fresh directory; what the line says. {taken}: a port in use, {home}: a directory.
BAD = [
    ("--no-such-thing 1", r"unknown setting 'no-such-thing'"),
    ("--por 1", r"did you mean 'port'"),
    ("--maxmemory lots", r"maxmemory lots: not valid, must be a size"),
    ("--port", r"port needs a value"),
    ("{home}/missing.conf", r"cannot read '.*missing.conf': No such file"),
    ("{home}/bad.conf", r"bad.conf:2: unknown setting 'prot'"),
    ("--port {taken}", r"cannot listen on 127.0.0.1 port \d+: Address already in use"),
    ("--http-port {taken}", r"http-port: cannot listen on 127.0.0.1 port \d+: Address already in use"),
    ("--tls-port {taken} --tls-auth-clients no --tls-cert-file {home}/a.crt --tls-key-file {home}/a.key",
     r"cannot listen on 127.0.0.1 port \d+: Address already in use"),
    ("--tls-port {port} --tls-cert-file {home}/a.crt --tls-key-file {home}/a.key", r"port and tls-port are both"),
    ("--tls-port 1", r"tls-cert-file"),
    ("--tls-port 1 --tls-cert-file {home}/missing.crt --tls-key-file {home}/a.key", r"tls-cert-file .*missing.crt"),
    ("--tls-port 1 --tls-cert-file {home}/bad.conf --tls-key-file {home}/a.key", r"tls-cert-file .*bad.conf"),
    ("--tls-port 1 --tls-cert-file {home}/a.crt --tls-key-file {home}/b.key", r"tls-key-file .*b.key"),
    ("--unixsocket {home}/bad.conf", r"unixsocket .*bad.conf: the path exists and is not a socket"),
    ("--dir {home}/bad.conf", r"dir .*bad.conf is not a directory"),
    ("--dir {home}/bad.conf/below", r"dir .*below: Not a directory"),
    ("--dir {home}/no/such", r"dir .*no/such cannot be made: No such file"),
    ("--dir {used}", r"is in use by another process"),
    ("--logfile {home}/no/such.log", r"logfile .*such.log: No such file"),
    ("--aclfile {home}/missing.acl", r"missing.acl"),
    ("--requirepass-file {home}/missing", r"cannot read '.*missing'"),
    ("--upstream redis://127.0.0.1:1 --upstream-auth-file {home}/missing", r"upstream-auth-file .* cannot be read"),
    ("--upstream http://x", r"upstream: "),
    ("--client-auth upstream", r"client-auth upstream: there is no upstream"),
    ("--upstream redis://127.0.0.1:1 --coherence-prefixes a: a:b", r"coherence-prefixes: "),
    ("--appendonly yes --disk no", r"appendonly yes needs the disk tier"),
    ("--disk-min-value 2mb --disk-max-value 1mb", r"disk-min-value is over disk-max-value"),
    ("--log-level-modules nothing=debug", r"modules are acl"),
    ("--rule x", r"rule: "),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    at = tmp_path_factory.mktemp("start")
    (at / "bad.conf").write_text("port 1\nprot 2\n")
    certificate(at, "a")
    certificate(at, "b")
    return at


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    server = Tiercel(dir=tmp_path_factory.mktemp("used") / "data")
    yield server.start()
    server.close()
    server.remove()


@pytest.fixture(scope="module")
def taken():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


@pytest.mark.sequential
@pytest.mark.parametrize("args,line", BAD, ids=[args for args, _ in BAD])
def test_a_start_that_fails(args, line, home, used, taken, tmp_path):
    port = free_port()
    given = [a.format(home=home, used=used.dir, taken=taken, port=port) for a in args.split()]
    if not args.startswith("{"):
        defaults = {"--port": port, "--http-port": 0, "--dir": tmp_path / "data", "--unixsocket": tmp_path / "t.sock"}
        given = [str(w) for k, v in defaults.items() if k not in given for w in (k, v)] + given
    code, _, err = run(given, tmp_path)
    assert code == 1, err
    assert re.fullmatch(r"tiercel: [^\n]*\n", err) and re.search(line, err), err
    assert list(tmp_path.iterdir()) == [] and used.call("PING") == "PONG"
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))


def items(out):
    found = [re.fullmatch(r"(ok|advice|error) ([a-z-]+): (.+)", line) for line in out.splitlines()]
    assert found and all(found), out
    return [m.groups() for m in found]


@pytest.mark.sequential
def test_check_says_what_to_change_and_touches_nothing(home, used, tmp_path):
    conf = tmp_path / "t.conf"
    conf.write_text("port 7000\ndir %s\nmaxmemory 900gb\nthreads 128\ntcp-backlog 65535\ndisk-max-size 900gb\n" %
                    (tmp_path / "data"))
    code, out, err = run(["--check", conf], tmp_path)
    got = {name: (kind, text) for kind, name, text in items(out)}
    assert code == 0 and err == "" and got["settings"][0] == "ok"
    assert got["maxmemory"][0] == "advice" and "921600 MB" in got["maxmemory"][1]
    assert got["threads"][0] == "advice"
    assert {"transparent-hugepage", "overcommit-memory", "somaxconn", "swappiness", "open-files", "file-system",
            "disk-space", "max-map-count"} <= set(got)
    # A server that runs with these settings is none of its business.
    code, out, _ = run(["--check", "--port", used.port, "--dir", used.dir], tmp_path)
    assert code == 0 and not [i for i in items(out) if i[0] == "error"]
    assert list(tmp_path.iterdir()) == [conf]
    if pathlib.Path("/dev/shm").is_dir():
        _, out, _ = run(["--check", "--dir", "/dev/shm"], tmp_path)
        assert ("advice", "file-system") in [i[:2] for i in items(out)] or "tmpfs" not in pathlib.Path(
            "/proc/mounts").read_text()


@pytest.mark.sequential
@pytest.mark.parametrize("args,line", [b for b in BAD if not re.search("taken|used|unixsocket|logfile", b[0])][::3])
def test_check_finds_what_a_start_would(args, line, home, tmp_path):
    given = [a.format(home=home, port=6379) for a in args.split()]
    code, out, err = run(["--check", *given], tmp_path)
    assert code == 1 and err == ""
    errors = [text for kind, name, text in items(out) if kind == "error"]
    assert len(errors) == 1 and re.search(line, errors[0]), out


def test_the_background_tells_how_the_start_went(used, tmp_path):
    args = ["--daemonize", "yes", "--http-port", "0", "--dir", tmp_path / "data", "--logfile", tmp_path / "log",
            "--pidfile", tmp_path / "pid"]
    code, _, err = run([*args, "--port", used.port], tmp_path)
    assert code == 1 and "Address already in use" in err and not (tmp_path / "pid").exists()
    port = free_port()
    code, out, err = run([*args, "--port", port], tmp_path)
    assert (code, out, err) == (0, "", "")
    pid = int((tmp_path / "pid").read_text())
    with socket.create_connection(("127.0.0.1", port)) as s:  # it serves already
        s.sendall(b"PING\r\n")
        assert s.recv(100) == b"+PONG\r\n"
    assert oct((tmp_path / "data" / "tiercel.mdb").stat().st_mode & 0o777) == "0o600"
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not (tmp_path / "pid").exists())


def test_exit_codes_and_what_the_service_manager_is_told(tiercel, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(scaled(10))
        t = tiercel(env={"NOTIFY_SOCKET": tmp_path / "notify"})
        told = ""
        while "READY=1" not in told:
            told += manager.recv(1000).decode() + "\n"
        assert "STATUS=Serving on port %d" % t.port in told
        t.stop(expect=0)
        assert "STOPPING=1" in manager.recv(1000).decode()


def test_a_second_signal_does_not_wait(tiercel):
    t = tiercel(shutdown_timeout=600, threads=1)
    with t.raw() as c:
        c.send_command("EVAL", "redis.log(redis.LOG_WARNING, 'it runs') while true do end", "0")
        wait_until(lambda: "it runs" in t.log())  # a stop waits for it
        t.expect_exit()
        t.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in t.log())
        t.process.send_signal(signal.SIGTERM)
        assert t.wait() == 2
