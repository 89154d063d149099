"""memcached beside redis-server. tiercel-bench does not speak its protocol, so both are driven by the small
client below, with the same load; their ratio is comparable with the others, their microseconds are less so."""
import getpass
import random
import socket
import time

from common import Server, command

CONNECTIONS = 50
BATCHES = 2000  # made before anything is measured


def argv():
    return ["memcached", "-l", "127.0.0.1", "-p", "{port}", "-t", "1", "-m", "16384", "-u", getpass.getuser()]


def key(i):
    return b"key:%012d" % i


class Memcached(Server):
    """As far as Server needs it: there is no PING."""

    def connect(self, deadline):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port)) as s:
                    s.sendall(b"version\r\n")
                    if s.recv(100).startswith(b"VERSION"):
                        return None
            except OSError:
                pass
            if self.proc.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise SystemExit("bench: memcached does not start")
            time.sleep(0.01)


# A request and the length of its reply, which is known: every key is there, and its value has one size.

def redis_get(k, value):
    return command("GET", k), len(b"$%d\r\n" % len(value)) + len(value) + 2


def redis_set(k, value):
    return command("SET", k, value), len(b"+OK\r\n")


def memcached_get(k, value):  # of a pipeline of the older "get", each reply is a write of its own
    return b"mg %s v\r\n" % k, len(b"VA %d\r\n" % len(value)) + len(value) + 2


def memcached_set(k, value):
    return b"set %s 0 0 %d\r\n%s\r\n" % (k, len(value), value), len(b"STORED\r\n")


REQUESTS = {("redis-server", "GET"): redis_get, ("redis-server", "SET"): redis_set,
            ("memcached", "GET"): memcached_get, ("memcached", "SET"): memcached_set}


class Driver:
    """Connections that are all written to and then all read from, a batch of requests on each."""

    def __init__(self, server, connections=CONNECTIONS):
        self.server = server
        self.socks = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(connections)]
        for s in self.socks:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf = bytearray(1 << 20)

    def exchange(self, batches):
        for s, (data, _) in zip(self.socks, batches):
            s.sendall(data)
        for s, (_, length) in zip(self.socks, batches):
            while length > 0:
                n = s.recv_into(self.buf, length)
                if n == 0:
                    raise ConnectionError(f"{self.server.name} closed the connection")
                length -= n

    def run(self, batches, pipeline, seconds):
        """Microseconds of the server's CPU per request."""
        cpu, sent = self.server.cpu_s(), 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            at = sent // pipeline % len(batches)
            self.exchange((batches + batches)[at:at + len(self.socks)])
            sent += pipeline * len(self.socks)
        return (self.server.cpu_s() - cpu) * 1e6 / sent

    def close(self):
        for s in self.socks:
            s.close()


def batch_of(make, keys, value):
    requests = [make(key(i), value) for i in keys]
    return b"".join(r for r, _ in requests), sum(n for _, n in requests)


def fill(server, keys, value):
    driver = Driver(server, 1)
    make = REQUESTS[server.name, "SET"]
    for start in range(0, keys, 500):
        driver.exchange([batch_of(make, range(start, min(start + 500, keys)), value)])
    driver.close()


def measure(servers, cells, keys, value_size, slices, seconds):
    """{cell: {server: [us, ...]}} for cells like ("GET", 16)."""
    value, rng, result = b"x" * value_size, random.Random(1), {}
    drivers = []
    try:
        for s in servers:
            fill(s, keys, value)
            drivers.append(Driver(s))
        for cmd, pipeline in cells:
            picks = [[rng.randrange(keys) for _ in range(pipeline)] for _ in range(BATCHES)]
            batches = {d: [batch_of(REQUESTS[d.server.name, cmd], p, value) for p in picks] for d in drivers}
            runs = result[f"{cmd} P{pipeline}"] = {s.name: [] for s in servers}
            for i in range(slices):
                for d in drivers if i % 2 == 0 else reversed(drivers):
                    runs[d.server.name].append(d.run(batches[d], pipeline, seconds))
    finally:
        for d in drivers:
            d.close()
    return result
