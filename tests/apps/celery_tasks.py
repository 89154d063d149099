"""The Celery application of test_celery.py. BROKER is the server's address."""
import os
import time

from celery import Celery
from kombu import Queue

BROKER = os.environ["BROKER"]
app = Celery("tests", broker=BROKER + "/0", backend=BROKER + "/1")
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "8")),
    task_queues=[Queue("celery"), Queue("slow"), Queue("prio")],
    broker_transport_options={"visibility_timeout": int(os.environ.get("VISIBILITY", "3600")), "priority_steps": [0, 3, 6, 9],
                              "queue_order_strategy": "priority", "sep": ":"},
    broker_connection_retry_on_startup=True,
    result_expires=600,
    result_extended=True,
    task_track_started=True,
    worker_send_task_events=True,
    redis_socket_timeout=20,
    worker_hijack_root_logger=False,
)


def mark(name):
    """Counts runs where the test can see them, whatever happens to the server."""
    with open(os.path.join(os.environ["MARKS"], name), "a+", encoding="ascii") as f:
        f.write("x\n")
        f.seek(0)
        return len(f.readlines())


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def remember(name):
    mark(name)
    return name


@app.task(bind=True, max_retries=3)
def flaky(self, name):
    mark(name)
    if self.request.retries < 2:
        raise self.retry(countdown=0.2)
    return self.request.retries


@app.task
def fails():
    raise ValueError("on purpose")


@app.task(queue="slow")
def slow(name, seconds):
    if mark(name) == 1:  # when it comes again it is as quick as others
        time.sleep(seconds)
    return name


@app.task(bind=True)
def progress(self):
    self.update_state(state="PROGRESS", meta={"done": 50})
    time.sleep(0.5)
    return "done"
