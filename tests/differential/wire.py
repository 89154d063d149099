"""The two sides of a comparison: server processes, and connections that exchange raw bytes."""
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from ports import free_port

START_SECONDS = 60
REPLY_SECONDS = 120


class Gone(Exception):
    """A server closed a connection, hung or ended."""


class Server:
    """A server process on a free loopback port with a directory of its own."""

    def __init__(self, name, command):
        self.name = name
        self.command = command  # (port, dir) -> argument list
        self.port = free_port()
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="differential-"))
        self.process = None

    def start(self):
        with open(self.home / "log.txt", "ab") as log:
            self.process = subprocess.Popen(self.command(self.port, str(self.home)), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT, cwd=self.home)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    s.sendall(b"PING\r\n")
                    if s.recv(100).startswith(b"+PONG"):
                        return self
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Gone("%s does not start\n%s" % (self.name, self.log_tail()))
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self):
        """An orderly stop. Raises if the server had ended, or does not end well."""
        if self.process is None:
            return
        process, self.process = self.process, None
        early = process.poll()
        if early is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if early is not None or process.returncode != 0:
            raise Gone("%s ended with %d%s\n%s" % (self.name, process.returncode, " by itself" if early is not None
                                                   else "", self.log_tail()))

    def remove(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def log_tail(self, lines=30):
        try:
            return "\n".join((self.home / "log.txt").read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def redis_server(path="redis-server"):
    return Server("redis", lambda port, home: [path, "--port", str(port), "--bind", "127.0.0.1", "--dir", home,
                                               "--save", "", "--appendonly", "no", "--daemonize", "no"])


def tiercel_server(path, maxmemory, threads, appendonly=False, upstream=None, local=False):
    """appendonly: what was acknowledged survives kill(). upstream: the server that it is a sidecar of; local: without its
    keys."""
    journal = ["--appendonly", "yes", "--appendfsync", "always"] if appendonly else []
    if upstream:
        journal += ["--upstream", "redis://127.0.0.1:%d" % upstream.port, "--upstream-timeout-ms", "10000"]
    if local:
        journal += ["--rule", "*", "write=local"]
    path = os.path.abspath(path)
    return Server("tiercel", lambda port, home: [path, "--port", str(port), "--bind", "127.0.0.1", "--dir", home,
                                                 "--maxmemory", maxmemory, "--disk", "yes", "--http-port", "0",
                                                 "--threads", str(threads), "--hz", "10"] + journal)


class Connection:
    def __init__(self, server, proto):
        self.server = server
        self.sock = socket.create_connection(("127.0.0.1", server.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.buf = bytearray()
        self.pos = 0
        if proto == 3:
            self.exchange(encode([b"HELLO", b"3"]), 1)

    def close(self):
        self.sock.close()

    def exchange(self, data, n):
        """Sends the bytes while receiving, and returns the bytes of n replies."""
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self.sock], [self.sock], [], REPLY_SECONDS)
            if not readable and not writable:
                raise Gone("%s takes no more input" % self.server.name)
            if readable:
                self._receive()
            if writable:
                try:
                    view = view[self.sock.send(view):]
                except BlockingIOError:
                    pass
                except OSError as e:
                    raise Gone("%s: %s" % (self.server.name, e)) from None
        return [self.read_reply() for _ in range(n)]

    def _receive(self):
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as e:
            raise Gone("%s: %s" % (self.server.name, e)) from None
        if not data:
            raise Gone("%s closed the connection" % self.server.name)
        self.buf += data

    def _need(self, size):
        while len(self.buf) - self.pos < size:
            if not select.select([self.sock], [], [], REPLY_SECONDS)[0]:
                raise Gone("%s does not answer; has %r" % (self.server.name, bytes(self.buf[self.pos:])[:200]))
            self._receive()

    def _skip_line(self):
        """Returns the line without CR LF and moves behind it."""
        start = self.pos
        end = self.buf.find(b"\r\n", start)
        while end < 0:
            self._need(len(self.buf) - start + 1)
            end = self.buf.find(b"\r\n", start)
        self.pos = end + 2
        return self.buf[start:end]

    def read_reply(self):
        start, todo = self.pos, 1
        while todo:
            line = self._skip_line()
            kind, todo = line[:1], todo - 1
            if kind in b"$=":
                size = int(line[1:])
                if size >= 0:
                    self._need(size + 2)
                    self.pos += size + 2
            elif kind in b"*~>":
                todo += max(int(line[1:]), 0)
            elif kind == b"%":
                todo += 2 * int(line[1:])
            elif kind not in b"+-:_,#(":
                raise Gone("%s sent %r" % (self.server.name, bytes(line[:200])))
        reply = bytes(self.buf[start:self.pos])
        if self.pos == len(self.buf):
            self.buf.clear()
            self.pos = 0
        elif self.pos > 1 << 20:
            del self.buf[:self.pos]
            self.pos = 0
        return reply


def encode(args):
    out = [b"*%d\r\n" % len(args)]
    for arg in args:
        out.append(b"$%d\r\n%s\r\n" % (len(arg), arg))
    return b"".join(out)


def parse(reply):
    """A reply as a tree: lists for aggregates, else the bytes of the element without CR LF."""
    def element(pos):
        end = reply.index(b"\r\n", pos)
        kind, rest = reply[pos:pos + 1], reply[pos + 1:end]
        if kind in b"$=" and rest != b"-1":
            size = int(rest)
            return kind + reply[end + 2:end + 2 + size], end + 4 + size
        if kind in b"*~>%" and rest != b"-1":
            items, pos = [kind], end + 2
            for _ in range(int(rest) * (2 if kind == b"%" else 1)):
                item, pos = element(pos)
                items.append(item)
            return items, pos
        return reply[pos:end], end + 2

    return element(0)[0]
