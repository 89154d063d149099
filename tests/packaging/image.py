"""docker/Dockerfile without a container engine: its steps in fresh Debian systems, and what comes of them run as its user with a
read-only root, in namespaces of its own, with the probes of the Kubernetes manifests and of the rendered chart.

  image.py        root; needs debootstrap, unshare, nsenter, redis-cli, a Debian mirror and some minutes

ROOT=dir keeps and reuses the base system there, IMAGE=dir the built image. MIRROR chooses another mirror."""
import atexit
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
sys.path[:0] = [str(HERE), str(TOP / "tests/e2e")]

import dockerfile  # noqa: E402

MIRROR = os.environ.get("MIRROR", "http://deb.debian.org/debian")
VERSION = re.search(r'TIERCEL_VERSION "(.*)"', (TOP / "include/tiercel/version.h").read_text()).group(1)
WORK = pathlib.Path(tempfile.mkdtemp(prefix="tiercel-image-"))
LOG = WORK / "build.log"


def say(text):
    print(text, flush=True)


def log(text):
    with open(LOG, "a", encoding="utf-8") as f:
        f.write(text)


def base_system(source, directory):
    """debian:12-slim is a minimal bookworm."""
    assert source == "debian:12-slim", source
    root = pathlib.Path(os.environ.get("ROOT") or WORK / "base")
    if not (root / "usr/bin/apt-get").exists():
        say("debootstrap")
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root), MIRROR], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", "-a", "--reflink=auto", str(root), directory], check=True)


class Container:
    """The image as a process: namespaces for mounts, processes and network, a read-only root, a tmpfs on /tmp, no capabilities."""

    def __init__(self, image, command=None, data=None, binds=(), env=None, user=None, data_options="",
                 tmp=True):
        self.image = image
        self.data = data
        self.user = user or image.user
        self.env = {**image.env, "HOME": "/data", **(env or {})}
        self.out = tempfile.TemporaryFile()
        root = image.root
        mounts = ["set -e", "ip link set lo up", "mount --bind {0} {0}".format(root), "mount -o remount,ro,bind %s" % root,
                  "mount -t tmpfs tmpfs %s/tmp" % root if tmp else ":", "mount -t tmpfs -o mode=755 tmpfs %s/dev" % root]
        for device in "null", "zero", "urandom", "random":
            mounts += ["touch {0}/dev/{1}".format(root, device), "mount --bind /dev/{1} {0}/dev/{1}".format(root, device)]
        # As an engine does for VOLUME.
        mounts += ["mount --bind %s %s/data" % (data, root)] if data else ["mount -t tmpfs -o size=64m,%s tmpfs %s/data" % (data_options or "mode=700,uid=999,gid=999", root)]
        for source, target in binds:
            # A read-only root has no place for new mount points: an engine makes them before.
            os.makedirs(root + target, exist_ok=True)
            mounts += ["mount --bind %s %s%s" % (source, root, target), "mount -o remount,ro,bind %s%s" % (root, target)]
        mounts += ["mount -t proc proc %s/proc" % root, "exec chroot \"$@\""]
        command = image.entrypoint + (image.cmd if command is None else command)
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", "\n".join(mounts), "sh", root,
             *self.as_user(), *command], stdin=subprocess.DEVNULL, stdout=self.out, stderr=subprocess.STDOUT)
        atexit.register(self.kill)

    def as_user(self):
        uid, gid = self.user.split(":")
        return ["/usr/bin/setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
                "--no-new-privs", "/usr/bin/env", "-i", "-C", self.image.workdir, *["%s=%s" % kv for kv in self.env.items()]]

    @property
    def pid(self):
        """Of the container's process 1, in our numbering."""
        with open("/proc/{0}/task/{0}/children".format(self.process.pid), encoding="ascii") as f:
            children = f.read().split()
        return int(children[0]) if children else 0

    def execute(self, command, timeout=20):
        """A command in the container, as `docker exec` and exec probes do."""
        return subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-r", "--wd", *self.as_user(), *command],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout)

    def redis(self, *args):
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-n", "redis-cli", *args], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20)
        return done.stdout.strip()

    def get(self, port, path):
        """(status, body) of a GET from outside of the container but within its network."""
        code = ("import http.client,sys,json\nc=http.client.HTTPConnection('127.0.0.1',int(sys.argv[1]),timeout=5)\n"
                "c.request('GET',sys.argv[2]);r=c.getresponse();print(json.dumps([r.status,r.read().decode()]))")
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-n", sys.executable, "-c", code, str(port), path],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=20)
        return json.loads(done.stdout) if done.returncode == 0 else (0, "")

    def output(self):
        self.out.seek(0)
        return self.out.read().decode(errors="replace")

    def wait_answer(self, want="PONG"):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "it ended: " + self.output()
            if self.pid and self.redis("ping").startswith(want):
                return self
            time.sleep(0.1)
        raise AssertionError("no answer: %s\n%s" % (self.redis("ping"), self.output()))

    def wait_healthy(self):
        """By the image's health check, which knows nothing of the server's command line but what process 1 shows. The HTTP port comes last."""
        deadline = time.monotonic() + 20
        while True:
            done = self.execute(self.image.health)
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)

    def stop(self, grace=15):
        os.kill(self.pid, getattr(signal, self.image.stop_signal))
        return self.process.wait(grace)

    def finish(self, timeout=20):
        """Exit code and output of one that ends by itself."""
        return self.process.wait(timeout), self.output()

    def kill(self):
        if self.process.poll() is None:
            if self.pid:  # --kill-child is forgotten when the child changes its user
                os.kill(self.pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


def volume(name, uid=999, gid=999, mode=0o700):
    path = WORK / name
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    return str(path)


def check_server(image):
    data = volume("data")
    c = Container(image, data=data).wait_answer()
    assert c.redis("set", "greeting", "hello") == "OK"
    with open("/proc/%d/status" % c.pid, encoding="ascii") as f:
        status = f.read()
    assert re.search(r"^Uid:\t999\t999\t999\t999$", status, re.M) and re.search(r"^CapEff:\t0+$", status, re.M)
    assert re.search(r"^NSpid:.*\t1$", status, re.M), "not process 1"
    with open("/proc/%d/cmdline" % c.pid, encoding="ascii") as f:
        assert f.read() == "tiercel\0/etc/tiercel/tiercel.conf\0"
    c.wait_healthy()
    ready = c.execute(["tiercel", "--ready"])
    assert ready.returncode == 0, ready.stderr
    assert c.execute(["sh", "-c", "echo x >/x"]).returncode != 0, "its root is writable"
    for path in pathlib.Path(data).iterdir():
        assert path.stat().st_mode & 0o077 == 0 and path.stat().st_uid == 999, path
    # Orphans of others become its children, and no zombies.
    c.execute(["sh", "-c", "(sleep 0.2; exit 3) & exit 0"])
    time.sleep(1)
    states = c.execute(["sh", "-c", "grep -h ^State: /proc/[0-9]*/status"]).stdout
    assert states and "Z" not in states, states
    begin = time.monotonic()
    assert c.stop() == 0, c.output()
    say("ok      runs as 999 with a read-only root, healthy, no zombies; SIGTERM: exit 0 after %.1f s" % (time.monotonic() - begin))
    c = Container(image, data=data).wait_answer()
    assert c.redis("get", "greeting") == "hello"
    assert c.stop() == 0
    say("ok      what was set is there after a restart")


def check_variants(image):
    conf = WORK / "conf"
    conf.mkdir()
    conf.chmod(0o755)
    (conf / "my.conf").write_text("include /etc/tiercel/tiercel.conf\nport 6379\nmaxmemory 99mb\nhttp-port 9400\n")
    (conf / "my.conf").chmod(0o644)
    for command, binds in ((["--maxmemory", "99mb", "--http-port", "9400"], []), (["tiercel", "--maxmemory", "99mb", "--http-port", "9400"], []),
                           (["/conf/my.conf"], [(conf, "/conf")]), (["tiercel", "/conf/my.conf"], [(conf, "/conf")])):
        c = Container(image, command, binds=binds).wait_answer()
        c.wait_healthy()
        assert c.redis("config", "get", "maxmemory").split() == ["maxmemory", str(99 << 20)]
        assert c.stop() == 0
    for command, code, text in ((["--version"], 0, "tiercel " + VERSION), (["sh", "-c", "id -u; umask; pwd"], 0, "999\n0077\n/data"),
                                (["--no-such", "1"], 1, "tiercel: command line: unknown setting 'no-such'"), (["--health"], 1, "refused")):
        assert Container(image, command).finish()[0] == code, command
        got = Container(image, command).finish()[1]
        assert text in got, got
    say("ok      entrypoint: options, a .conf, other commands")


def check_refusals(image):
    for options in "mode=755,uid=0,gid=0", "mode=700,uid=999,gid=999,ro":
        code, text = Container(image, data_options=options).finish()
        assert code == 1 and "/data" in text and ("not writable" in text or "Read-only" in text), (code, text)
        say("        exit code 1: " + next(line for line in text.splitlines() if line.startswith("tiercel: ")))
    say("ok      a /data that cannot be written is refused")
    c = Container(image, user="12345:0", data=volume("other", 12345, 0)).wait_answer()
    c.wait_healthy()
    assert c.stop() == 0
    say("ok      another user, with a /data of its own")


def passes(c, container, which):
    probe = container[which]
    if "exec" in probe:
        return c.execute(probe["exec"]["command"], probe["timeoutSeconds"] + 5).returncode == 0
    port = next(p["containerPort"] for p in container["ports"] if p["name"] == probe["httpGet"]["port"])
    return c.get(port, probe["httpGet"]["path"])[0] == 200


def check_pods(image):
    import manifests

    secret = WORK / "secret"
    secret.mkdir()
    secret.chmod(0o755)
    for name in "password", "http-token", "upstream-auth":
        (secret / name).write_text("s3cret\n")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-days", "2",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(secret / "tls.key"), "-out", str(secret / "tls.crt")],
                   check=True, stderr=subprocess.DEVNULL)
    shutil.copy(secret / "tls.crt", secret / "ca.crt")
    for path in secret.iterdir():
        os.chown(path, 0, 999)
        path.chmod(0o440)
    paths = sorted((TOP / "docker/kubernetes").glob("*.yaml")) + sorted((TOP / "tests/packaging/rendered").glob("*.yaml"))
    for path in paths:
        objects = manifests.load(path)
        for obj, spec in manifests.pod_specs(objects):
            [container] = manifests.servers(spec)
            binds = []
            for mount in container["volumeMounts"]:
                found = next((v for v in spec.get("volumes", []) if v["name"] == mount["name"]), {})
                if "secret" in found:
                    binds.append((secret, mount["mountPath"]))
                elif "configMap" in found:
                    conf = pathlib.Path(tempfile.mkdtemp(dir=WORK))
                    conf.chmod(0o755)
                    for file, text in manifests.config_map(objects, found["configMap"]["name"]).items():
                        (conf / file).write_text(text)
                        (conf / file).chmod(0o644)
                    binds.append((conf, mount["mountPath"]))
            env = {e["name"]: e["value"] for e in container.get("env", []) if "value" in e}
            user = "%d:%d" % (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"])
            # No upstream is there: the probes must not care. The volume is as fsGroup leaves it, and there is no /tmp.
            c = Container(image, container.get("args", []), binds=binds, env=env, user=user, tmp=False,
                          data_options="mode=2775,uid=0,gid=%d" % spec["securityContext"]["fsGroup"])
            locked = "TIERCEL_REQUIREPASS_FILE" in env
            c.wait_answer("NOAUTH" if locked else "PONG")
            if locked:
                assert c.redis("-a", "s3cret", "--no-auth-warning", "ping") == "PONG"
            if any(port["name"] == "redis-tls" for port in container.get("ports", [])):
                assert c.redis("-a", "s3cret", "--no-auth-warning", "--tls", "-p", "6380", "--cacert", str(secret / "ca.crt"), "ping") == "PONG"
            for tries, which in (150, "startupProbe"), (150, "readinessProbe"), (1, "livenessProbe"):
                while not passes(c, container, which):
                    tries -= 1
                    assert tries > 0, (path, which, c.output())
                    time.sleep(0.1)
            assert c.stop(spec["terminationGracePeriodSeconds"]) == 0
            say("ok      %s: %s %s, its probes" % (path.name, obj["kind"], obj["metadata"]["name"]))


def main():
    assert os.geteuid() == 0, "this needs root"
    # A mount namespace of its own: nothing that is mounted here outlives it.
    if os.environ.get("TIERCEL_IMAGE_NS") != "1":
        shutil.rmtree(WORK)
        os.execvpe("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, __file__],
                   {**os.environ, "TIERCEL_IMAGE_NS": "1"})
    os.chmod(WORK, 0o755)
    atexit.register(lambda: shutil.rmtree(WORK, ignore_errors=True))
    kept = os.environ.get("IMAGE")
    if kept and os.path.exists(kept + "/image"):
        with open(kept + "/image", "rb") as f:
            image = pickle.load(f)
    else:
        where = kept or str(WORK)
        os.makedirs(where, exist_ok=True)
        begin = time.monotonic()
        try:
            image = dockerfile.build(str(TOP / "docker/Dockerfile"), str(TOP), where, base_system, {"VERSION": VERSION}, log)
        except BaseException:
            say(LOG.read_text()[-3000:])
            raise
        say("ok      built in %d s" % (time.monotonic() - begin))
        if kept:
            with open(kept + "/image", "wb") as f:
                pickle.dump(image, f)
    assert image.user == "999:999" and image.volumes == ["/data"] and image.workdir == "/data"
    assert image.labels["org.opencontainers.image.version"] == VERSION
    check_server(image)
    check_variants(image)
    check_refusals(image)
    check_pods(image)
    say("the image of docker/Dockerfile: built and run")


if __name__ == "__main__":
    main()
