"""Jobs of test_rq.py."""
import os
import time


def add(x, y):
    return x + y


def mark(name, seconds=0):
    """Counts runs where the test can see them, whatever happens to the server."""
    with open(os.path.join(os.environ["MARKS"], name), "a", encoding="ascii") as f:
        f.write("x\n")
    time.sleep(seconds)
    return name


def fails():
    raise ValueError("on purpose")


def third_time(name):
    mark(name)
    with open(os.path.join(os.environ["MARKS"], name), encoding="ascii") as f:
        n = len(f.readlines())
    if n < 3:
        raise RuntimeError("run %d" % n)
    return n

