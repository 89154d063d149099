"""What the tests of applications share: servers to run on, processes, packages from npm.

A scenario runs on redis-server as well: what fails there is the scenario's fault, and what came of it there is what is
expected of Tiercel. All servers run it at once, since applications wait more than they work.
"""
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from harness import ROOT, scaled

HERE = pathlib.Path(__file__).resolve().parent
NPM_HOME = ROOT / "build" / "apps"
IN_CI = os.environ.get("CI") == "true"


def left_out(why):
    """A test whose tool is missing fails in CI and is skipped, visibly, elsewhere."""
    (pytest.fail if IN_CI else pytest.skip)("left out: " + why)


def needs_module(name):
    """The Python module, or the test is left out."""
    try:
        return __import__(name)
    except ImportError:
        left_out("no Python module %s: deps/install.sh test installs it" % name)


# ---- packages from npm

def npm_packages():
    """The folder with the packages of package-lock.json, installed by the first test that asks."""
    for tool in ("node", "npm"):
        if not shutil.which(tool):
            left_out("no %s: deps/install.sh test installs it" % tool)
    NPM_HOME.mkdir(parents=True, exist_ok=True)
    with open(NPM_HOME / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (HERE / "package-lock.json").read_bytes()
        stamp = NPM_HOME / ".installed"
        if not stamp.exists() or stamp.read_bytes() != wanted:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, NPM_HOME / name)
            run = subprocess.run(["npm", "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=NPM_HOME,
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False)
            if run.returncode != 0:
                left_out("npm ci cannot install tests/apps/package-lock.json:\n" + (run.stdout + run.stderr)[-2000:])
            stamp.write_bytes(wanted)
    return NPM_HOME / "node_modules"


def run_node(server, script, names=(), limit=90, **env):
    """Runs a file of node/ on the server; what each scenario returned, by name. Scenarios may ask for a restart."""
    packages = NPM_HOME / "node_modules"
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(["node", str(HERE / "node" / script), str(server.port), *names], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE,
                               env={**os.environ, "NODE_PATH": str(packages), **env})
    timer = threading.Timer(limit, process.kill)
    timer.start()
    results = {}
    try:
        for line in process.stdout:
            said = json.loads(line)
            if said.get("ask") == "restart":
                server.restart()
                process.stdin.write("\n")
                process.stdin.flush()
            else:
                results[said["name"]] = said.get("result", said.get("error"))
                assert "error" not in said, "%s of %s on %s: %s" % (said["name"], script, server, said["error"])
        code = process.wait()
        errors.seek(0)
        assert code == 0 and results, "%s on %s: exit code %d after %s\n%s" % (script, server, code, list(results)[-1:], errors.read()[-4000:])
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        errors.close()
    return results


# ---- servers

def targets(tiercel, redis_server):
    """redis-server, Tiercel, Tiercel with so little memory that objects go to disk, and Tiercel as a sidecar of another
    redis-server."""
    sidecar = tiercel(threads=2, upstream=redis_server(appendonly=True), upstream_timeout_ms=10000)
    sidecar.wait_tiers(tier_upstream_state="up")
    return {"redis": redis_server(appendonly=True), "tiercel": tiercel(threads=4),
            "small": tiercel(threads=4, maxmemory="2mb", maxmemory_policy="noeviction"), "sidecar": sidecar}


class Pressure:
    """Keeps writing and reading values in database 15, so that those of the application leave memory."""

    def __init__(self, server):
        self.server = server
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self):
        n = 0
        client = self.server.client(db=15)
        while not self.end.wait(0.05):
            try:
                p = client.pipeline(transaction=False)
                for _ in range(60):
                    n += 1
                    p.set("ballast:%d" % (n % 4000), os.urandom(2000))
                    p.get("ballast:%d" % (n * 7919 % 4000))
                p.execute()
            except (OSError, Exception):  # the server is being restarted
                time.sleep(0.05)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()


def on_each(servers, scenario):
    """Runs scenario(server) on all servers at once and returns what it returned, by the servers' names."""
    results, failures = {}, {}

    def work(name, server):
        try:
            with Pressure(server) if name == "small" else contextlib.nullcontext():
                begin = time.monotonic()
                results[name] = scenario(server)
                print("%s: %.1f s" % (server, time.monotonic() - begin))
            if name == "small":
                tiers = server.tiers()
                assert tiers["tier_disk_keys"] and tiers["tier_disk_reads"], tiers
        except BaseException as e:  # pylint: disable=broad-except
            failures[name] = e

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in servers.items()]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for name in servers:
        if name in failures:
            raise AssertionError("on %s: %s" % (name, failures[name])) from failures[name]
    return results


def compare(results):
    """Every server's outcome is that of redis-server."""
    want = results.pop("redis")
    for name, got in results.items():
        if isinstance(want, dict):
            differ = ["%s:\n  redis-server %r\n  %s %r" % (k, want[k], name, got.get(k)) for k in want if want[k] != got.get(k)]
            assert not differ, "\n".join(differ)
        assert got == want, name
    return want


# ---- processes of an application

class Process:
    """A worker: its output is kept for a failing test, and what is left of it is killed at the end, with its children."""

    def __init__(self, *command, env=None, cwd=None):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
                                        cwd=cwd or HERE, start_new_session=True,
                                        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})})

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.kill9()
        self.log.seek(0)
        if kind:
            print("---- output of %s\n%s" % (" ".join(self.process.args), self.log.read()[-6000:]))
        self.log.close()

    def alive(self):
        return self.process.poll() is None

    def output(self):
        with open("/proc/self/fd/%d" % self.log.fileno(), encoding="utf-8", errors="replace") as f:
            return f.read()

    def kill9(self):
        """The whole session of the process at once, as when a machine fails."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, limit=10):
        if self.alive():
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(scaled(limit))
        self.kill9()


PYTHON = sys.executable
