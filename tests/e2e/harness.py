"""The parts of an end-to-end test: Tiercel, Redis, RawConn, and a Proxy between them.

A test gets them from the fixtures of the same names:

    def test_read_through(tiercel, redis_server, proxy):
        up = redis_server()
        wire = proxy(up)
        t = tiercel(upstream=wire, threads=2)
        up.client().set("k", "v")
        assert t.client().get("k") == b"v"
        assert wire.count("GET") == 1

Ports are free loopback ports, directories are temporary, and only what was started is ended.

    TIERCEL_BIN        the server under test (build/tiercel)
    TIERCEL_SANITIZE   asan or tsan: it is such a build, so everything may take longer
"""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

import redis

from ports import free_port
from proxy import Proxy, seen  # noqa: F401  (part of this library)
from rawconn import RawConn, RespError, encode, parse  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = (ROOT / os.environ.get("TIERCEL_BIN", "build/tiercel")).resolve()
SANITIZE = os.environ.get("TIERCEL_SANITIZE", "")
SLOWER = {"": 1, "asan": 4, "tsan": 8}.get(SANITIZE, 8)
REPORT = re.compile(r"(ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|ThreadSanitizer:DEADLYSIGNAL"
                    r"|AddressSanitizer:DEADLYSIGNAL|: runtime error: |SUMMARY: \w+Sanitizer|CHECK\b.* failed)")


def scaled(seconds):
    """A time limit, longer in sanitizer builds."""
    return seconds * SLOWER


def wait_until(predicate, timeout=10, interval=0.02, what=None):
    """Calls predicate until it returns something true, and returns that."""
    deadline = time.monotonic() + scaled(timeout)
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("not within %g s: %s" % (scaled(timeout), what or predicate))
        time.sleep(interval)


def _value(value):
    """An option's value as the command line wants it."""
    if value is True:
        return "yes"
    if value is False:
        return "no"
    if isinstance(value, (Server, Proxy)):
        return value.url
    return str(value)


def parse_info(text):
    """INFO's text as a dict, numbers as numbers."""
    out = {}
    for line in text.splitlines():
        if not line or line.startswith("#") or ":" not in line:
            continue
        name, value = line.split(":", 1)
        for kind in (int, float):
            try:
                value = kind(value)
                break
            except ValueError:
                pass
        out[name] = value
    return out


class Server:
    """A process that speaks the Redis protocol on a loopback port."""

    name = "server"

    def __init__(self, port=None, **options):
        self.options = options
        self.port = port or free_port()
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="tiercel-test-"))
        self.log_path = self.home / "log.txt"
        self.process = None
        self.expect_running = False
        self._clients = []

    def __str__(self):
        return "%s on port %d" % (self.name, self.port)

    # -- to be overridden

    def command_line(self):
        raise NotImplementedError

    def environment(self):
        return None

    # -- the process

    @property
    def pid(self):
        return self.process.pid

    @property
    def url(self):
        return "redis://127.0.0.1:%d" % self.port

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def start(self, wait=True):
        assert not self.alive(), "%s runs already" % self
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command_line(), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, env=self.environment(), cwd=self.home)
        self.expect_running = True
        if wait:
            try:
                wait_until(self._answers, timeout=20, what="%s answers PING" % self)
            except AssertionError as e:
                self.expect_running = False
                raise AssertionError("%s\n%s" % (e, self.log_tail())) from None
        return self

    def _answers(self):
        if not self.alive():
            raise AssertionError("%s ended at its start, exit code %s" % (self, self.process.returncode))
        try:
            with RawConn(self.port, timeout=scaled(2)) as c:
                reply = c.call("PING")
        except (OSError, EOFError):
            return False
        return reply.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))

    def wait(self, timeout=20):
        """Waits for the process to end, returns its exit code."""
        try:
            return self.process.wait(scaled(timeout))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.expect_running = False
            raise AssertionError("%s did not end within %g s" % (self, scaled(timeout))) from None

    def stop(self, signo=signal.SIGTERM, timeout=20, expect=0):
        """Ends the process with a signal and checks its exit code (None: any). Returns the seconds it took."""
        self._close_clients()
        assert self.alive(), "%s is not running: exit code %s" % (self, self.process and self.process.returncode)
        self.expect_running = False
        begin = time.monotonic()
        self.process.send_signal(signo)
        code = self.wait(timeout)
        assert expect is None or code == expect, "%s ended with exit code %s" % (self, code)
        return time.monotonic() - begin

    def kill9(self):
        self._close_clients()
        self.expect_running = False
        self.process.kill()
        self.process.wait()

    def pause(self):
        """The process is stopped (SIGSTOP): connections stay, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def restart(self, **changes):
        """Stops it if it runs, and starts it with the same port and directory and with options changed."""
        if self.alive():
            self.stop()
        self.options.update(changes)
        return self.start()

    def expect_exit(self):
        """The test makes the server end by itself (SHUTDOWN, say)."""
        self.expect_running = False

    # -- talking to it

    def client(self, db=0, **kw):
        """A redis-py client. (RESP3 needs redis-py 5; RawConn does without.)"""
        kw.setdefault("socket_timeout", scaled(30))
        c = redis.Redis(host="127.0.0.1", port=self.port, db=db, **kw)
        self._clients.append(c)
        return c

    def raw(self, *args, **kw):
        return RawConn(self.port, *args, **{"timeout": scaled(30), **kw})

    def call(self, *args):
        """One command on a connection of its own; the reply as Python values."""
        with self.raw() as c:
            return parse(c.call(*args))

    def cli(self, *args, stdin=None, options=(), check=True):
        """redis-cli's standard output, without the last newline."""
        run = subprocess.run(["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *options, *map(str, args)],
                             input=stdin if stdin is not None else "", capture_output=True, text=True,
                             timeout=scaled(60))
        assert not check or run.returncode == 0, "redis-cli %s: %s%s" % (args, run.stdout, run.stderr)
        return run.stdout.rstrip("\n")

    def info(self, section=None):
        reply = self.call(*(["INFO", section] if section else ["INFO"]))
        if isinstance(reply, RespError):
            raise AssertionError("INFO: %s" % reply)
        return parse_info(reply.decode())

    def calls(self, command):
        """How often the server has executed a command (INFO commandstats)."""
        line = self.info("commandstats").get("cmdstat_" + command.lower(), "")
        match = re.search(r"calls=(\d+)", str(line))
        return int(match.group(1)) if match else 0

    def status(self, field):
        """A field of /proc/PID/status."""
        with open("/proc/%d/status" % self.pid, encoding="ascii") as f:
            for line in f:
                if line.startswith(field + ":"):
                    return line.split(":", 1)[1].strip()
        raise AssertionError("no %s in /proc/PID/status" % field)

    def rss_anon(self):
        """Anonymous resident memory in bytes."""
        return int(self.status("RssAnon").split()[0]) * 1024

    def fds(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    # -- its log

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, size=8000):
        text = self.log()
        report = REPORT.search(text)
        if report and len(text) - report.start() > size:
            return text[report.start():report.start() + size]
        return text[-size:]

    def check_log(self):
        report = REPORT.search(self.log())
        assert not report, "%s: %s\n%s" % (self, report.group(0), self.log()[report.start():report.start() + 6000])

    # -- the end

    def _close_clients(self):
        for c in self._clients:
            try:
                c.close()
                c.connection_pool.disconnect()
            except Exception:  # the server may be gone
                pass
        self._clients = []

    def close(self):
        """Ends it and checks that it was alive until now, ends in order, and has reported nothing."""
        self._close_clients()
        problems = []
        if self.process is None:
            return
        if self.alive():
            self.resume()
            try:
                self.stop()
            except AssertionError as e:
                problems.append(str(e))
        elif self.expect_running:
            problems.append("%s died, exit code %s" % (self, self.process.returncode))
        try:
            self.check_log()
        except AssertionError as e:
            problems.append(str(e))
        assert not problems, "\n".join(problems)

    def remove(self):
        """Deletes its files, and ends it if it still runs."""
        if self.alive():
            self.kill9()
        shutil.rmtree(self.home, ignore_errors=True)


class Tiercel(Server):
    """The server under test. Keyword arguments are its options: http_port=0 is --http-port 0, True is yes,
    None leaves the option out, and upstream takes a Redis or a Proxy. unixsocket=True picks a path.

    env={...} adds to its environment, args=[...] to its command line (before the options)."""

    name = "tiercel"

    def __init__(self, port=None, env=None, args=(), **options):
        super().__init__(port, **options)
        self.env = env or {}
        self.args = list(args)
        self.dir = pathlib.Path(self.options.get("dir") or self.home / "data")
        self.dir.mkdir(exist_ok=True)
        if self.options.get("unixsocket") is True:
            self.options["unixsocket"] = self.home / "t.sock"

    @property
    def socket_path(self):
        return str(self.options["unixsocket"])

    @property
    def http_port(self):
        return self.options["http_port"]

    def command_line(self):
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.dir, "http_port": 0}
        options.update({k: v for k, v in self.options.items() if k != "dir"})
        line = [str(BINARY), *map(str, self.args)]
        for name, value in options.items():
            if value is not None:
                line += ["--" + name.replace("_", "-"), _value(value)]
        return line

    def environment(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TIERCEL_")}
        env.update({k: str(v) for k, v in self.env.items()})
        return env

    def tiers(self):
        """INFO's Tiers section as a dict."""
        out = self.info("tiers")
        assert out, "INFO tiers is empty"
        return out

    def wait_tiers(self, timeout=10, **want):
        """Waits until fields of INFO tiers have these values (or satisfy these functions)."""

        def reached():
            now = self.tiers()
            return all(v(now.get(k)) if callable(v) else now.get(k) == v for k, v in want.items()) and now

        return wait_until(reached, timeout=timeout, what="INFO tiers %s" % want)


class Redis(Server):
    """A real redis-server without persistence. Keyword arguments are its options."""

    name = "redis-server"

    def command_line(self):
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.home}
        options.update(self.options)
        line = ["redis-server"]
        for name, value in options.items():
            if value is not None:
                line += ["--" + name.replace("_", "-"), _value(value)]
        return line
