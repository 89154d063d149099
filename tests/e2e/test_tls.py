"""tls-port: clients that encrypt, with and without certificates; certificates replaced while it runs; what is wrong with them."""
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest
import redis

from harness import BINARY, free_port, scaled, wait_until

OPENSSL = ["openssl"]


def openssl(where, *args):
    subprocess.run([*OPENSSL, *map(str, args)], cwd=where, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def authority(where, name):
    openssl(where, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
            "/CN=" + name, "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", name + ".key", "-out", name + ".crt")


def certificate(where, name, by, password=None):
    openssl(where, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=" + name, "-keyout",
            name + ".key", "-out", name + ".csr")
    (where / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(where, "x509", "-req", "-in", name + ".csr", "-CA", by + ".crt", "-CAkey", by + ".key", "-CAcreateserial", "-days", "2",
            "-extfile", "ext", "-out", name + ".crt")
    if password:
        openssl(where, "ec", "-in", name + ".key", "-aes256", "-passout", "pass:" + password, "-out", name + ".locked.key")


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    where = tmp_path_factory.mktemp("certs")
    authority(where, "ca")
    authority(where, "other")
    certificate(where, "server", "ca", password="sesame")
    certificate(where, "server2", "ca")
    certificate(where, "client", "ca")
    certificate(where, "stranger", "other")
    return where


def options(certs, **more):
    return {"tls_port": free_port(), "tls_cert_file": certs / "server.crt", "tls_key_file": certs / "server.key",
            "tls_ca_cert_file": certs / "ca.crt", **more}


def client(t, certs, cert="client", **more):
    c = redis.Redis(port=t.options["tls_port"], ssl=True, ssl_ca_certs=str(certs / "ca.crt"), socket_timeout=scaled(10),
                    ssl_certfile=str(certs / (cert + ".crt")) if cert else None,
                    ssl_keyfile=str(certs / (cert + ".key")) if cert else None, **more)
    t._clients.append(c)
    return c


def context(certs, cert="client"):
    ctx = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    if cert:
        ctx.load_cert_chain(str(certs / (cert + ".crt")), str(certs / (cert + ".key")))
    return ctx


def connect(t, ctx):
    return ctx.wrap_socket(socket.create_connection(("127.0.0.1", t.options["tls_port"]), scaled(10)), server_hostname="localhost")


def serial(sock):
    return ssl.DER_cert_to_PEM_cert(sock.getpeercert(True))


def test_values_of_all_sizes_both_ways(tiercel, certs):
    t = tiercel(threads=2, **options(certs))
    c, plain = client(t, certs), t.client()
    for size in (0, 1, 100, 16383, 16384, 16385, 65536, 1 << 20, (8 << 20) + 7):
        value = os.urandom(size)
        assert c.set("k%d" % size, value) and plain.get("k%d" % size) == value and c.get("k%d" % size) == value
    p = c.pipeline(transaction=False)
    for i in range(20000):
        p.set("p%d" % i, "v%d" % i)
    assert all(p.execute())
    for i in range(20000):
        p.get("p%d" % i)
    assert p.execute() == [b"v%d" % i for i in range(20000)]
    with c.pubsub() as sub:
        sub.subscribe("ch")
        assert sub.get_message(timeout=scaled(5))["type"] == "subscribe"
        plain.publish("ch", "hello")
        assert sub.get_message(timeout=scaled(5))["data"] == b"hello"


def test_redis_cli(tiercel, certs):
    t = tiercel(**options(certs))
    run = subprocess.run(["redis-cli", "--tls", "-p", str(t.options["tls_port"]), "--cacert", str(certs / "ca.crt"), "--cert",
                          str(certs / "client.crt"), "--key", str(certs / "client.key"), "set", "k", "v"], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, timeout=scaled(20))
    assert run.stdout.strip() == b"OK", run.stdout


def test_a_pipeline_that_is_not_read_and_one_byte_at_a_time(tiercel, certs):
    t = tiercel(**options(certs))
    value = os.urandom(100000)
    t.client().set("k", value)
    with connect(t, context(certs)) as s:
        sent = threading.Thread(target=s.sendall, args=(b"GET k\r\n" * 300,))  # 30 MB of replies
        sent.start()
        time.sleep(0.2)
        got = 0
        while got < 300 * (len(value) + 11):
            part = s.recv(1 << 16)
            assert part
            got += len(part)
        sent.join()
        for byte in b"*1\r\n$4\r\nPING\r\n":
            s.sendall(bytes([byte]))
        assert s.recv(100) == b"+PONG\r\n"


def test_clients_need_a_certificate_of_ours(tiercel, certs):
    t = tiercel(**options(certs))
    for cert in (None, "stranger"):
        with pytest.raises((redis.ConnectionError, OSError)):
            client(t, certs, cert).ping()
    with pytest.raises((OSError, EOFError)):  # no TLS at all
        with socket.create_connection(("127.0.0.1", t.options["tls_port"]), scaled(10)) as s:
            s.sendall(b"PING\r\n" * 100)
            answer = s.recv(100)
            if not answer.startswith(b"+PONG"):  # an alert
                raise EOFError
    assert client(t, certs).ping() and t.client().ping()
    c = t.client()
    c.config_set("tls-auth-clients", "optional")
    assert client(t, certs, None).ping()
    with pytest.raises((redis.ConnectionError, OSError)):
        client(t, certs, "stranger").ping()
    c.config_set("tls-auth-clients", "no")
    assert client(t, certs, "stranger").ping()


def test_new_certificates_drop_nobody(tiercel, certs, tmp_path):
    for name in ("crt", "key"):
        (tmp_path / ("live." + name)).write_bytes((certs / ("server." + name)).read_bytes())
    t = tiercel(threads=2, **options(certs, tls_cert_file=tmp_path / "live.crt", tls_key_file=tmp_path / "live.key"))
    ctx = context(certs)
    old = [connect(t, ctx) for _ in range(50)]
    was = serial(old[0])
    for name in ("crt", "key"):
        (tmp_path / ("live." + name)).write_bytes((certs / ("server2." + name)).read_bytes())
    t.process.send_signal(signal.SIGHUP)

    def is_new():
        with connect(t, ctx) as s:
            return serial(s) != was
    wait_until(is_new, what="new connections get the new certificate")
    for s in old:
        s.sendall(b"PING\r\n")
        assert s.recv(100) == b"+PONG\r\n"
        s.close()
    # A broken file changes nothing, but is told.
    (tmp_path / "live.crt").write_text("broken")
    t.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "certificates are not loaded again: tls-cert-file" in t.log_path.read_text(), what="a line in the log")
    assert is_new()
    with pytest.raises(redis.ResponseError, match="tls-cert-file .*live.crt"):
        t.client().config_set("tls-cert-file", str(tmp_path / "live.crt"))
    t.client().config_set("tls-cert-file", str(certs / "server.crt"), "tls-key-file", str(certs / "server.key"))
    with connect(t, ctx) as s:
        assert serial(s) == was


def test_protocols_and_pass_phrase(tiercel, certs):
    t = tiercel(**options(certs, tls_key_file=certs / "server.locked.key", tls_key_file_pass="sesame", tls_protocols="TLSv1.2"))
    ctx = context(certs)
    with connect(t, ctx) as s:
        assert s.version() == "TLSv1.2"
    ctx.minimum_version = ssl.TLSVersion.TLSv1_3
    with pytest.raises((ssl.SSLError, OSError)):
        connect(t, ctx)
    with pytest.raises(redis.ResponseError, match="TLSv9"):
        t.client().config_set("tls-protocols", "TLSv1.2 TLSv9")
    t.client().config_set("tls-protocols", "TLSv1.3")
    with connect(t, ctx) as s:
        assert s.version() == "TLSv1.3"


def test_without_a_plain_port(tiercel, certs, tmp_path):
    line = [str(BINARY), "--port", "0", "--http-port", "0", "--dir", str(tmp_path / "d")]
    for name, value in options(certs).items():
        line += ["--" + name.replace("_", "-"), str(value)]
    port = int(line[line.index("--tls-port") + 1])
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        try:
            ctx = context(certs)

            def answers():
                try:
                    with ctx.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost") as s:
                        s.sendall(b"INFO server\r\n")
                        return b"tcp_port:%d\r\n" % port in s.recv(1 << 16)
                except OSError:
                    return False
            wait_until(answers, what="it answers on tls-port alone")
        finally:
            p.terminate()
            assert p.wait(scaled(20)) == 0


@pytest.mark.parametrize("change, text", [
    ({"tls_cert_file": ""}, "tls-port needs tls-cert-file and tls-key-file"),
    ({"tls_key_file": "/nowhere/key"}, "tls-key-file /nowhere/key: No such file or directory"),
    ({"tls_key_file": "client.key"}, "tls-key-file .*client.key: key values mismatch"),
    ({"tls_key_file": "server.locked.key"}, "tls-key-file .*server.locked.key: "),
    ({"tls_ca_cert_file": ""}, "tls-auth-clients needs tls-ca-cert-file or tls-ca-cert-dir"),
    ({"tls_ca_cert_file": "ext"}, "tls-ca-cert-file .*ext: "),
    ({"tls_protocols": "SSLv2"}, "tls-protocols: SSLv2 is none of"),
    ({"tls_ciphers": "nonsense"}, "tls-ciphers nonsense: no cipher match"),
])
def test_bad_settings_are_one_clear_line(certs, tmp_path, change, text):
    import re
    settings = {**options(certs), **{k: str(certs / v) if (certs / v).is_file() else v for k, v in change.items()}}
    line = [str(BINARY), "--port", str(free_port()), "--http-port", "0", "--dir", str(tmp_path / "d")]
    for name, value in settings.items():
        line += ["--" + name.replace("_", "-"), str(value)]
    run = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=scaled(20))
    assert run.returncode == 1
    first = run.stderr.splitlines()[0]
    assert first.startswith("tiercel: ") and re.search(text, first), run.stderr
    assert not pathlib.Path(tmp_path / "d").exists() or not list((tmp_path / "d").glob("*.mdb*"))


@pytest.mark.heavy
def test_a_silent_client_is_closed(tiercel, certs):
    t = tiercel(**options(certs))
    with socket.create_connection(("127.0.0.1", t.options["tls_port"])) as s:
        s.settimeout(scaled(30))
        begin = time.monotonic()
        s.sendall(b"\x16\x03\x01")  # the beginning of a hello
        assert s.recv(1) == b""
        assert time.monotonic() - begin > 5
    assert t.info("clients")["connected_clients"] >= 1 and t.client().ping()


def test_a_busy_script_answers_over_tls(tiercel, certs):
    t = tiercel(threads=1, busy_reply_threshold=100, **options(certs))
    ctx = context(certs)
    with connect(t, ctx) as waiting, connect(t, ctx) as other:
        other.sendall(b"PING\r\n")
        assert other.recv(100) == b"+PONG\r\n"
        waiting.sendall(b"*3\r\n$4\r\nEVAL\r\n$17\r\nwhile true do end\r\n$1\r\n0\r\n")

        def busy():
            other.sendall(b"GET k\r\n")
            return other.recv(200).startswith(b"-BUSY")
        wait_until(busy, what="BUSY")
        other.sendall(b"SCRIPT KILL\r\n")
        assert other.recv(100) == b"+OK\r\n"
        assert waiting.recv(200).startswith(b"-ERR Script killed by user")
        other.sendall(b"PING\r\n")
        assert other.recv(100) == b"+PONG\r\n"


@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_many_clients_with_certificates(tiercel, certs, n):
    t = tiercel(threads=2, **options(certs))
    ctx = context(certs)
    clients = []
    try:
        for i in range(n):
            s = connect(t, ctx)
            s.sendall(b"*3\r\n$3\r\nSET\r\n$5\r\nk%04d\r\n$1\r\nv\r\n" % i)
            clients.append(s)
            if i == n // 2:
                t.process.send_signal(signal.SIGHUP)
        for s in clients:
            assert s.recv(100) == b"+OK\r\n"
        assert t.client().dbsize() == n
    finally:
        for s in clients:
            s.close()
    wait_until(lambda: t.info("clients")["connected_clients"] < 10, what="all are gone")
