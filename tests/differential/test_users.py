"""Runs users.py with fixed seeds."""
import os
import pathlib

import pytest

from users import Users
from wire import redis_server, tiercel_server

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_users_as_in_redis(seed):
    servers = redis_server(), tiercel_server(ROOT / os.environ.get("TIERCEL_BIN", "build/tiercel"), "64mb", 3)
    try:
        for s in servers:
            s.start()
        test = Users(*servers, seed)
        test.run(1500)
        assert test.compared > 5000
        test.close()
        for s in servers:
            s.stop()
    finally:
        for s in servers:
            s.remove()
