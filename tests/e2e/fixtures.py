"""Fixtures and hooks of the end-to-end tests; tests/differential/ uses them too."""
import signal

import pytest

import harness

__all__ = ["tiercel", "redis_server", "proxy", "trio", "pytest_configure", "pytest_runtest_call", "pytest_runtest_makereport"]


def pytest_configure(config):
    if not harness.BINARY.exists():
        pytest.exit("no %s: run make, or set TIERCEL_BIN" % harness.BINARY, returncode=2)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """Ends a test that hangs, so that its fixtures still clean up and show the log."""
    marker = item.get_closest_marker("timeout")
    limit = harness.scaled(marker.args[0] if marker else 60)

    def on_alarm(_signo, _frame):
        pytest.fail("still running after %d s" % limit)

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call":
        item.call_failed = outcome.get_result().failed


def _factory(request, make):
    """Yields a function that makes servers; all of them are ended afterwards, and every one
    is checked even if another's check fails."""
    made = []

    def build(*args, **options):
        server = make(*args, **options)
        made.append(server)
        server.start()
        return server

    yield build
    problems = []
    failed = getattr(request.node, "call_failed", True)
    for server in reversed(made):
        try:
            server.close()
        except AssertionError as e:
            problems.append(str(e))
            failed = True
        if failed and server.log_path:
            print("---- log of %s\n%s" % (server, server.log_tail()))
        server.remove()
    assert not problems, "\n".join(problems)


@pytest.fixture
def tiercel(request):
    """tiercel(**options) -> harness.Tiercel, started; options become --name value."""
    yield from _factory(request, harness.Tiercel)


@pytest.fixture
def redis_server(request):
    """redis_server(**options) -> harness.Redis, started: a real redis-server without persistence."""
    yield from _factory(request, harness.Redis)


@pytest.fixture
def proxy(request):
    """proxy(target) -> harness.Proxy, listening in front of target (a server of this library or a port)."""
    yield from _factory(request, harness.Proxy)


@pytest.fixture
def trio(tiercel, redis_server, proxy):
    """A Redis, the wire to it, and a sidecar in front."""
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2)
    t.wait_tiers(tier_upstream_state="up")
    return up, wire, t
