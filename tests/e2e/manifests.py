"""Kubernetes objects as the tests need them: their containers, and what a kubelet would do with a probe."""
import hashlib
import http.client
import subprocess

import yaml

from harness import BINARY, ROOT, scaled


def load(path):
    with open(path, encoding="utf-8") as f:
        return [d for d in yaml.safe_load_all(f) if d]


def pod_specs(objects):
    for obj in objects:
        if "template" in obj.get("spec", {}):
            yield obj, obj["spec"]["template"]["spec"]


def servers(spec):
    """The Tiercel containers of a pod."""
    return [c for c in spec.get("initContainers", []) + spec["containers"] if c["name"] == "tiercel"]


def config_map(objects, name):
    return next(o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == name)["data"]


def probe(container, which, ports, run=None):
    """One try of a probe: (succeeded, what it said). `ports` are the real ones of the container's names; `run` runs a command
    where the container is (here: with the server under test in the place of the one in the image)."""
    what = container[which]
    if "exec" in what:
        command = what["exec"]["command"]
        assert command[0] == "tiercel"
        done = (run or local)(command, scaled(what["timeoutSeconds"]))
        return done.returncode == 0, done.stderr
    port = what["httpGet"]["port"]
    assert port in [p["name"] for p in container["ports"]], "no port %s" % port
    conn = http.client.HTTPConnection("127.0.0.1", ports[port], timeout=scaled(what["timeoutSeconds"]))
    try:
        conn.request("GET", what["httpGet"]["path"])
        reply = conn.getresponse()
        return 200 <= reply.status < 400, reply.read().decode()
    except OSError as e:
        return False, str(e)
    finally:
        conn.close()


def local(command, timeout, env=None):
    return subprocess.run([str(BINARY), *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=timeout, env=env)


CHART = ROOT / "docker/helm/tiercel"
RENDERED = ROOT / "tests/packaging/rendered"
CASES = ROOT / "tests/packaging/chart/cases"
PARENT = ROOT / "tests/packaging/chart/app"  # a chart that has this one as a dependency


def chart_digest(case):
    """Names the chart and the values that a file in tests/packaging/rendered/ was rendered from."""
    digest = hashlib.sha256()
    sources = PARENT.rglob("*") if case == "app" else [CASES / (case + ".yaml")]
    for path in sorted([*CHART.rglob("*"), *sources]):
        if path.is_file():
            digest.update(b"%s\0%s\0" % (path.name.encode(), path.read_bytes()))
    return digest.hexdigest()


def cases():
    return sorted(p.stem for p in CASES.glob("*.yaml")) + ["app"]
