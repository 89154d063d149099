"""Celery: broker and results on one port, worker processes that are killed, a broker that is restarted."""
import contextlib
import datetime
import importlib.util
import os
import time

import pytest

import apps
from harness import wait_until

pytestmark = pytest.mark.timeout(100)
LIMIT = 30


@pytest.fixture(scope="module", autouse=True)
def celery_module():
    return apps.needs_module("celery")


class App:
    """The application on one server: the client's side, and worker processes."""

    def __init__(self, server, folder, visibility=3600, prefetch=8):
        self.server = server
        self.marks = folder
        os.makedirs(folder, exist_ok=True)
        self.env = {"BROKER": server.url, "MARKS": str(folder), "VISIBILITY": str(visibility), "PREFETCH": str(prefetch)}
        self.stack = contextlib.ExitStack()
        os.environ.update(self.env)
        self.module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(
            "celery_tasks", apps.HERE / "celery_tasks.py"))
        self.module.__spec__.loader.exec_module(self.module)
        self.app = self.module.app

    def __enter__(self):
        self.app.set_current()  # of this thread
        return self

    def __exit__(self, *error):
        # Otherwise a result that is collected later, in whatever thread, unsubscribes at a server that is gone,
        # and tries for 20 s.
        self.app.backend.result_consumer.stop()
        self.app.backend.result_consumer._pubsub = None
        self.app.close()
        return self.stack.__exit__(*error)

    def task(self, name):
        return self.app.tasks["celery_tasks." + name]

    def worker(self, *options, name="w", queues="celery,slow,prio", concurrency=2, wait=True):
        w = self.stack.enter_context(apps.Process(
            apps.PYTHON, "-m", "celery", "-A", "celery_tasks", "worker", "-n", name + "@test", "-Q", queues, "-P", "prefork",
            "-c", concurrency, "-l", "INFO", "--without-mingle", *options, env=self.env))
        if wait:
            wait_until(lambda: " ready." in w.output() or not w.alive(), timeout=LIMIT, what="the worker is ready")
            assert w.alive(), w.output()[-3000:]
        return w

    def runs(self, name):
        try:
            with open(os.path.join(self.marks, name), encoding="ascii") as f:
                return len(f.readlines())
        except FileNotFoundError:
            return 0


def on_each(tiercel, redis_server, tmp_path, scenario, **options):
    """The scenario with an application of its own on each server, one after another is too slow: at once."""
    servers = apps.targets(tiercel, redis_server)
    made = {server.port: App(server, tmp_path / name, **options) for name, server in servers.items()}

    def run(server):
        with made[server.port] as app:
            return scenario(app)

    return apps.compare(apps.on_each(servers, run))


def work(app):
    """200 tasks, a group, a chord, a chain, retries, failures, states and control."""
    from celery import chain, chord, group

    # Before there is a worker, so that the order is that of the queue.
    later = app.task("remember").apply_async(("revoked",), countdown=3600)
    w = app.worker(concurrency=3)
    add, total = app.task("add"), app.task("total")
    results = [add.delay(i, i) for i in range(200)]
    out = {"tasks": sum(r.get(timeout=LIMIT) for r in results)}
    out["group"] = group(add.s(i, 1) for i in range(20))().get(timeout=LIMIT)
    out["chord"] = chord((add.s(i, i) for i in range(30)), total.s())().get(timeout=LIMIT)
    out["chain"] = chain(add.s(1, 2), add.s(3), group(add.s(1), add.s(2)), total.s())().get(timeout=LIMIT)
    out["retries"] = (app.task("flaky").delay("flaky").get(timeout=LIMIT), app.runs("flaky"))
    eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    begin = time.monotonic()
    app.task("remember").apply_async(("eta",), eta=eta).get(timeout=LIMIT)
    out["eta"] = time.monotonic() - begin > 0.8
    failed = app.task("fails").delay()
    out["failed"] = repr(failed.get(timeout=LIMIT, propagate=False)), failed.state
    moving = app.task("progress").delay()
    wait_until(lambda: moving.state == "PROGRESS", timeout=LIMIT, interval=0.01, what="the state PROGRESS")
    out["progress"] = moving.info, moving.get(timeout=LIMIT), moving.status
    kept = app.server.client(db=1)
    key = "celery-task-meta-" + moving.id
    out["expires"] = 500 < kept.ttl(key) <= 600
    moving.forget()
    out["forgotten"] = kept.exists(key)
    out["ping"] = app.app.control.ping(["w@test"], timeout=10, limit=1)
    inspect = app.app.control.inspect(["w@test"], timeout=10)
    out["registered"] = len(inspect.registered()["w@test"])
    out["queues"] = sorted(q["name"] for q in inspect.active_queues()["w@test"])
    wait_until(lambda: later.id in str(inspect.scheduled()), timeout=LIMIT, what="the task with a countdown is scheduled")
    later.revoke()
    wait_until(lambda: later.id in str(inspect.revoked()), timeout=LIMIT, what="the worker knows of it")
    out["purged"] = app.app.control.purge()
    w.stop()
    out["stopped"] = w.process.returncode
    return out


def test_tasks_groups_chords(tiercel, redis_server, tmp_path):
    want = on_each(tiercel, redis_server, tmp_path, work)
    assert want["tasks"] == sum(2 * i for i in range(200)) and want["chord"] == sum(2 * i for i in range(30))
    assert want["chain"] == 15 and want["retries"] == (2, 3) and want["eta"] and want["expires"]


def order(app):
    """One worker takes what waits by priority; events tell of it."""
    from celery.events import EventReceiver

    for i, priority in enumerate([9, 0, 6, 3, 9, 0]):
        app.task("remember").apply_async(("p%d" % i,), priority=priority, queue="prio")
    lengths = sorted((k.decode(), app.server.client().llen(k)) for k in app.server.client().keys("prio*"))
    seen = []

    def succeeded(event):
        seen.append(event["result"])
        receiver.should_stop = len(seen) == 6

    app.worker(queues="prio", concurrency=1, wait=False)
    with app.app.connection() as connection:
        receiver = EventReceiver(connection, app=app.app, handlers={"task-succeeded": succeeded})
        receiver.capture(limit=None, timeout=LIMIT, wakeup=False)
    return {"lengths": lengths, "order": seen}


def test_priorities_and_events(tiercel, redis_server, tmp_path):
    want = on_each(tiercel, redis_server, tmp_path, order, prefetch=1)
    assert len(want["order"]) == 6


def killed(app):
    """A worker killed in the middle of a task: what it had not acknowledged comes again."""
    first = app.worker(name="first")
    results = [app.task("slow").delay("kill%d" % i, 20 if i < 2 else 0) for i in range(4)]
    wait_until(lambda: app.runs("kill0") and app.runs("kill1"), timeout=LIMIT, what="two tasks run")
    # What a worker has popped and not noted yet when it is killed is lost, on any server.
    wait_until(lambda: app.server.client().hlen("unacked") == 4, timeout=LIMIT, what="all tasks are taken and noted")
    first.kill9()
    unacked = app.server.client().hlen("unacked")
    time.sleep(2.5)  # a worker looks for what was not acknowledged in time when it starts, and every 100 s
    app.worker(name="second", concurrency=4)
    done = [r.get(timeout=LIMIT) for r in results[2:]]
    wait_until(lambda: app.runs("kill0") > 1 and app.runs("kill1") > 1, timeout=LIMIT, what="the tasks came again")
    return {"unacked": unacked >= 2, "done": done}


@pytest.mark.timeout(120)
def test_killed_worker(tiercel, redis_server, tmp_path):
    want = on_each(tiercel, redis_server, tmp_path, killed, visibility=2)
    assert want["done"] == ["kill2", "kill3"]


def restarted(app):
    """The broker is restarted with tasks that wait and tasks that a worker had, which was killed: every one runs.

    The worker is as full as it gets: kombu itself loses a message that it has popped and not yet written down."""
    remember = app.task("remember")
    sent = [app.task("slow").delay("held%d" % i, 30 if i < 2 else 0) for i in range(6)]
    sent += [remember.delay("before%d" % i) for i in range(50)]
    app.server.restart()
    first = app.worker(name="first", queues="slow")
    wait_until(lambda: app.runs("held0") and app.runs("held1") and app.server.client().hlen("unacked") == 4, timeout=LIMIT,
               what="the worker has all that it takes")
    first.kill9()
    app.server.restart()
    sent += [remember.delay("after%d" % i) for i in range(20)]
    time.sleep(2.5)  # what the first had is due when the second starts
    app.worker(name="second", concurrency=3)
    names = ["held%d" % i for i in range(6)] + ["before%d" % i for i in range(50)] + ["after%d" % i for i in range(20)]
    missing = names
    deadline = time.monotonic() + LIMIT
    while missing and time.monotonic() < deadline:
        time.sleep(0.1)
        missing = [n for n in missing if not app.runs(n)]
    assert not missing, "never run: %s" % missing
    wait_until(lambda: {app.app.backend.get_state(r.id) for r in sent} == {"SUCCESS"}, timeout=LIMIT, interval=0.1, what="all results")
    return [app.app.backend.get_result(r.id) for r in sent] == names


@pytest.mark.timeout(120)
def test_broker_restarted(tiercel, redis_server, tmp_path):
    assert on_each(tiercel, redis_server, tmp_path, restarted, visibility=2, prefetch=2)
