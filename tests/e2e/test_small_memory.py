"""A server in a cgroup of 64 MB sizes itself, and is flooded. Needs a memory cgroup that may be made (root, mostly)."""
import os
import pathlib
import random
import socket
import threading

import pytest

from harness import Tiercel, encode, scaled, wait_until

LIMIT = 64 << 20
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(90)]


def memory_cgroup():
    """A new group, its limit set: (path, the file that tells the peak), or None where none can be made."""
    for base, limit, peak in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
                              ("/sys/fs/cgroup", "memory.max", "memory.peak")):
        at = pathlib.Path(base, "tiercel-test-%d" % os.getpid())
        try:
            at.mkdir()
        except OSError:
            continue
        try:
            (at / limit).write_text(str(LIMIT))
            return at, at / peak
        except OSError:
            at.rmdir()
    return None


class Confined(Tiercel):
    group = None

    def command_line(self):
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.group), *super().command_line()]


@pytest.fixture
def confined():
    found = memory_cgroup()
    if found is None:
        pytest.skip("no memory cgroup can be made here")
    server = Confined(threads=2)
    server.group = found[0]
    try:
        server.start()
        yield server
        server.close()
    finally:
        server.remove()
        wait_until(lambda: not (found[0] / "cgroup.procs").read_text())
        found[0].rmdir()


def flood(t, requests):
    """Sends them all, and reads what comes; that it is cut off for what it holds is allowed."""
    with socket.create_connection(("127.0.0.1", t.port)) as s:
        s.settimeout(scaled(30))

        def read():
            try:
                while s.recv(1 << 16):
                    pass
            except OSError:
                pass

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for request in requests:
                s.sendall(request)
            s.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        reader.join()


def at_once(*jobs):
    threads = [threading.Thread(target=flood, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_flood_in_64_mb(confined):
    t = confined
    blob = random.Random(7).randbytes(1 << 20)
    log = t.log()
    assert "maxmemory: 28 MB" in log and "maxmemory-clients: 8 MB" in log
    peak = [0]
    done = threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], t.rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        at_once(*((t, [encode("SET", "s%d:%d" % (i, k), blob[k * 30:k * 30 + 1500]) for k in range(9000)])
                  for i in range(3)))
        at_once((t, [encode("HSET", "h%d" % k, *(a for f in range(50) for a in ("f%d" % f, blob[f * 40:f * 40 + 40])))
                     for k in range(1000)]),
                *((t, [encode("SET", "b%d:%d" % (i, k), blob) for k in range(15)]) for i in range(3)))
        # Who sends much and reads nothing, and who sends half of something large.
        slow = []
        for i in range(60):
            s = socket.create_connection(("127.0.0.1", t.port))
            s.setblocking(False)
            slow.append(s)
            if i % 2:
                s.send(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$10000000\r\n")
        gets = b"".join(encode("GET", "s0:%d" % k) for k in range(5000))
        for _ in range(20):
            for i, s in enumerate(slow):
                try:
                    s.send(blob[:65536] if i % 2 else gets[:len(gets) // 50 * 50])
                except OSError:
                    pass
        assert t.call("PING") == "PONG"
        for s in slow:
            s.close()
    finally:
        done.set()
        watcher.join()
    assert t.alive()
    assert 16 << 20 < peak[0] < LIMIT - (4 << 20), peak[0] >> 20
    memory = t.info("memory")
    assert memory["maxmemory"] <= 29 << 20 and memory["used_memory_rss_anon"] < LIMIT
    assert memory["used_memory_rss_file"] > 0
    assert t.call("GET", "b0:14") in (blob, None)
