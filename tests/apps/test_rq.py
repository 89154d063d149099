"""RQ: jobs, dependencies, the scheduler, registries, retries, timeouts, and a worker that is killed."""
import contextlib
import datetime
import os
import subprocess

import pytest

import apps
from harness import wait_until

pytestmark = pytest.mark.timeout(100)
LIMIT = 30


@pytest.fixture(scope="module", autouse=True)
def rq_module():
    return apps.needs_module("rq")


class App:
    """Queues on one server, and worker processes."""

    def __init__(self, server, folder):
        self.server = server
        self.marks = folder
        os.makedirs(folder)
        self.redis = server.client()
        self.env = {"MARKS": str(folder), "PYTHONPATH": str(apps.HERE), "LC_ALL": "C.UTF-8"}
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def queue(self, name="default", **options):
        import rq

        return rq.Queue(name, connection=self.redis, **options)

    def rq(self, *args):
        return [apps.PYTHON, "-m", "rq.cli", *args, "--url", self.server.url]

    def worker(self, *options, queues=("high", "default"), wait=True):
        w = self.stack.enter_context(apps.Process(*self.rq("worker", *queues, *options), env=self.env))
        wait_until(lambda: not wait or "Listening" in w.output() or not w.alive(), timeout=LIMIT, what="the worker listens")
        return w

    def runs(self, name):
        try:
            with open(os.path.join(self.marks, name), encoding="ascii") as f:
                return len(f.readlines())
        except FileNotFoundError:
            return 0


def ends(*jobs, status="finished"):
    wait_until(lambda: all(j.get_status(refresh=True) == status for j in jobs), timeout=LIMIT, interval=0.05,
               what="%s: %s" % (status, [(j.func_name, j.get_status()) for j in jobs]))


def on_each(tiercel, redis_server, tmp_path, scenario):
    servers = apps.targets(tiercel, redis_server)

    def run(server):
        name = [n for n in servers if servers[n] is server][0]
        with App(server, tmp_path / name) as app:
            return scenario(app)

    return apps.compare(apps.on_each(servers, run))


def work(app):
    from rq import Retry
    from rq.job import Job
    from rq.registry import FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry

    low, high = app.queue(), app.queue("high")
    plain = [low.enqueue("rq_jobs.add", i, i) for i in range(8)]
    first = high.enqueue("rq_jobs.mark", "first")
    front = high.enqueue("rq_jobs.mark", "front", at_front=True)
    out = {"order": [j == k.id for j, k in zip(high.job_ids, (front, first))], "lengths": (len(low), len(high))}
    parent = low.enqueue("rq_jobs.mark", "parent")
    children = [low.enqueue("rq_jobs.mark", "child%d" % i, depends_on=parent) for i in range(3)]
    last = low.enqueue("rq_jobs.mark", "last", depends_on=children)
    out["deferred"] = low.deferred_job_registry.count
    failed = low.enqueue("rq_jobs.fails", failure_ttl=600)
    again = low.enqueue("rq_jobs.third_time", "again", retry=Retry(max=3))
    later = low.enqueue_in(datetime.timedelta(seconds=1), "rq_jobs.mark", "later")
    never = low.enqueue_at(datetime.datetime(2050, 1, 1), "rq_jobs.mark", "never")
    canceled = low.enqueue("rq_jobs.mark", "canceled")
    canceled.cancel()
    slow = low.enqueue("rq_jobs.mark", "slow", 20, job_timeout=1)
    short = low.enqueue("rq_jobs.add", 1, 1, result_ttl=0)
    with app.redis.pipeline() as p:
        many = low.enqueue_many([rq_data(i) for i in range(5)], pipeline=p)
        p.execute()
    out["scheduled"] = ScheduledJobRegistry(queue=low).count
    w = app.worker("--with-scheduler")
    ends(*plain, first, front, parent, *children, last, again, later, *many)
    ends(failed, slow, status="failed")
    wait_until(lambda: not Job.exists(short.id, app.redis), timeout=LIMIT, what="the result that is not kept goes")
    out["results"] = [j.result for j in plain], [j.result for j in many], again.result
    out["states"] = canceled.get_status(), never.get_status(), app.runs("canceled"), app.runs("never")
    failed.refresh(), slow.refresh()
    out["errors"] = failed.exc_info.splitlines()[-1], slow.exc_info.splitlines()[-1]
    registry = FailedJobRegistry(queue=low)
    out["failed"] = sorted(registry.get_job_ids()) == sorted([failed.id, slow.id])
    registry.requeue(failed.id)
    wait_until(lambda: len(low) == 0 and failed.get_status(refresh=True) == "failed" and failed.id in registry, timeout=LIMIT, what="it failed again")
    registry.remove(slow, delete_job=True)
    out["after"] = len(registry), Job.exists(slow.id, app.redis), len(FinishedJobRegistry(queue=low)), len(FinishedJobRegistry(queue=high))
    run = subprocess.run(app.rq("info", "--raw"), env={**os.environ, **app.env}, capture_output=True, text=True, timeout=LIMIT, check=True)
    out["info"] = sorted(line for line in run.stdout.splitlines() if line.startswith("queue"))
    out["workers"] = sum(line.startswith("worker") for line in run.stdout.splitlines())
    w.stop()
    out["gone"] = app.redis.scard("rq:workers")
    return out


def rq_data(i):
    import rq

    return rq.Queue.prepare_data("rq_jobs.add", (i, 100))


def test_jobs(tiercel, redis_server, tmp_path):
    want = on_each(tiercel, redis_server, tmp_path, work)
    assert want["results"] == ([2 * i for i in range(8)], [100 + i for i in range(5)], 3)
    assert want["states"][2:] == (0, 0) and want["gone"] == 0


def commands(app):
    """What reaches a worker by pub/sub: a job is stopped, the worker is suspended, resumed and told to end."""
    from rq.command import send_shutdown_command, send_stop_job_command
    from rq.suspension import is_suspended, resume, suspend

    q = app.queue()
    job = q.enqueue("rq_jobs.mark", "stopped", 30)
    w = app.worker()
    wait_until(lambda: app.runs("stopped"), timeout=LIMIT, what="it runs")
    send_stop_job_command(app.redis, job.id)
    ends(job, status="stopped")
    suspend(app.redis)
    held = q.enqueue("rq_jobs.mark", "held")
    out = [bool(is_suspended(app.redis)), app.runs("held")]
    resume(app.redis)
    ends(held)
    for name in app.redis.smembers("rq:workers"):
        send_shutdown_command(app.redis, name.decode().split(":")[-1])
    wait_until(lambda: not w.alive(), timeout=LIMIT, what="the worker ends")
    return out + [app.redis.scard("rq:workers")]


def test_commands(tiercel, redis_server, tmp_path):
    assert on_each(tiercel, redis_server, tmp_path, commands) == [True, 0, 0]


def killed(app):
    """A worker is killed in its job, and the server is restarted: nothing that waited is lost."""
    q = app.queue()
    job = q.enqueue("rq_jobs.mark", "killed", 30)
    waiting = [q.enqueue("rq_jobs.mark", "waiting%d" % i) for i in range(20)]
    w = app.worker()
    wait_until(lambda: app.runs("killed"), timeout=LIMIT, what="it runs")
    w.kill9()
    started = q.started_job_registry
    out = {"started": started.get_job_ids() == [job.id]}
    app.redis.close()
    app.server.restart()
    app.redis = app.server.client()
    q = app.queue()
    out["kept"] = len(q)
    # Its time to live is what another worker's maintenance goes by.
    app.redis.zadd("rq:wip:default", {job.id: 1})
    q.started_job_registry.cleanup()
    job = q.fetch_job(job.id)
    out["status"] = job.get_status(), job.id in q.failed_job_registry
    app.worker("--burst")
    waiting = [q.fetch_job(j.id) for j in waiting]
    ends(*waiting)
    out["runs"] = [app.runs("waiting%d" % i) for i in range(20)]
    return out


def test_killed_worker_and_restart(tiercel, redis_server, tmp_path):
    want = on_each(tiercel, redis_server, tmp_path, killed)
    assert want["runs"] == [1] * 20 and want["kept"] == 20
