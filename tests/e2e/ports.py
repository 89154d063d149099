"""Free loopback ports for servers under test.

They lie below the range that the kernel takes for outgoing connections (32768 and up on Linux): one of those could take
the port, or connect to itself, before the server listens. Processes of pytest-xdist that run at the same time have a
lane each.
"""
import itertools
import os
import random
import socket

FIRST, LANE, LANES = 10000, 2500, 8

_lane = FIRST + LANE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % LANES)
_next = itertools.count(random.SystemRandom().randrange(LANE))


def free_port():
    for _ in range(LANE):
        port = _lane + next(_next) % LANE
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port from %d to %d" % (_lane, _lane + LANE - 1))
