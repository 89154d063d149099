"""BullMQ, ioredis and node-redis: the scenarios of node/, on redis-server and on Tiercel, and what came of them."""
import pytest

import apps


pytestmark = pytest.mark.timeout(110)


@pytest.fixture(scope="module", autouse=True)
def packages():
    return apps.npm_packages()


@pytest.mark.parametrize("script, env", [("bullmq.js", {}), ("ioredis.js", {}), ("node_redis.js", {"PROTO": "2"}),
                                         ("node_redis.js", {"PROTO": "3"})])
def test_same_outcome_as_redis(tiercel, redis_server, script, env):
    servers = apps.targets(tiercel, redis_server)
    want = apps.compare(apps.on_each(servers, lambda server: apps.run_node(server, script, **env)))
    assert len(want) > 10
