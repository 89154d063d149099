"""What docker/ has, without a container engine: the entrypoint, the health command, the manifests and their probes against the
real server. tests/packaging/image.py runs the Dockerfile itself."""
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

pytest.importorskip("yaml")

import manifests  # noqa: E402
from harness import BINARY, ROOT, scaled, wait_until  # noqa: E402
from ports import free_port  # noqa: E402

pytestmark = [pytest.mark.sequential]

DOCKER = ROOT / "docker"
VERSION = re.search(r'TIERCEL_VERSION "(.*)"', (ROOT / "include/tiercel/version.h").read_text()).group(1)


def health(*args, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TIERCEL_")}
    return manifests.local(["tiercel", *map(str, args)], scaled(20), env={**clean, **{k: str(v) for k, v in env.items()}})


def test_health_command(tiercel):
    t = tiercel(http_port=free_port(), requirepass="secret")
    wait_until(lambda: health("--ready", "--http-port", t.http_port).returncode == 0, what="ready")
    for word in "--health", "--ready":
        done = health(word, "--http-port", t.http_port)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert health(word, TIERCEL_HTTP_PORT=t.http_port).returncode == 0
    conf = t.home / "t.conf"
    conf.write_text("http-port %d\nhttp-bind *\n" % t.http_port)
    assert health("--health", conf).returncode == 0
    # A PING where there is no HTTP port, on the port or the socket; whoever refuses is alive.
    assert health("--health", "--http-port", 0, "--port", t.port, "--bind", "0.0.0.0", "::1").returncode == 0
    t.restart(unixsocket=t.home / "t.sock")
    assert health("--health", "--http-port", 0, "--port", 0, "--unixsocket", t.home / "t.sock").returncode == 0
    done = health("--ready", "--http-port", 0, "--port", t.port)
    assert done.returncode == 1 and "needs http-port" in done.stderr


def test_health_command_fails():
    port = free_port()
    for args, text in (["--http-port", port], "port %d: Connection refused" % port), (["--no-such", 1], "unknown setting"), \
            (["/no/such.conf"], "No such file"), (["--http-port", 0, "--port", 0], "no unixsocket"), \
            (["--http-port", 0, "--port", 0, "--unixsocket", "/no/such"], "/no/such: No such file"):
        done = health("--health", *args)
        assert done.returncode == 1 and text in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("answer,text", [
    (b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n{\"ready\":false}\n", "/readyz: HTTP/1.1 503 Service Unavailable: {\"ready\":false}"),
    (b"x" * 10000, "/readyz: xxxx"), (b"", "/readyz: no answer"), (None, "no answer in time")],
    ids=["503", "no-http", "nothing", "silence"])
def test_health_command_believes_only_200(answer, text):
    with socket.create_server(("127.0.0.1", 0)) as s:
        done = threading.Event()

        def serve():
            conn = s.accept()[0]
            with conn:
                conn.recv(1000)
                if answer is None:
                    done.wait(scaled(30))
                else:
                    conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        run = health("--ready", "--http-port", s.getsockname()[1])
        done.set()
        thread.join()
    assert run.returncode == 1 and text in run.stderr and len(run.stderr) < 5000


@pytest.mark.heavy
def test_entrypoint(tmp_path):
    """What is executed, by a `tiercel` and a `redis-cli` that tell their arguments."""
    for name in "tiercel", "redis-cli":
        tool = tmp_path / name
        tool.write_text("#!/bin/sh\numask\necho %s \"$@\"\n" % name)
        tool.chmod(0o755)

    def run(*args):
        done = subprocess.run(["sh", str(DOCKER / "entrypoint.sh"), *args], stdout=subprocess.PIPE, text=True, check=True,
                              env={"PATH": "%s:/usr/bin:/bin" % tmp_path})
        assert done.stdout.startswith("0077\n")
        return done.stdout[5:].rstrip("\n")

    ours = "/etc/tiercel/tiercel.conf"
    assert run() == run("tiercel") == "tiercel " + ours
    assert run("--port", "7000") == run("tiercel", "--port", "7000") == "tiercel %s --port 7000" % ours
    assert run("/etc/my.conf", "--port", "1") == run("tiercel", "/etc/my.conf", "--port", "1") == "tiercel /etc/my.conf --port 1"
    assert run("--version") == "tiercel --version" and run("--health") == "tiercel --health"
    assert run("-") == "tiercel -"
    assert run("redis-cli", "--version") == "redis-cli --version"
    missing = subprocess.run(["sh", str(DOCKER / "entrypoint.sh"), "no-such-program"], stderr=subprocess.PIPE)
    assert missing.returncode == 127


def test_the_image_s_defaults_are_valid(tmp_path):
    """The configuration in the image, with a directory of our own in the place of /data."""
    conf = tmp_path / "t.conf"
    conf.write_text((DOCKER / "tiercel.conf").read_text().replace("/data", str(tmp_path)))
    done = health("--health", conf, "--http-port", free_port())
    assert done.returncode == 1 and "Connection refused" in done.stderr


def manifest_objects():
    return [(p.name, manifests.load(p)) for p in sorted((DOCKER / "kubernetes").glob("*.yaml"))]


def check_pod(where, kind, spec):
    """What every pod with a Tiercel in it must have; its server container."""
    [c] = manifests.servers(spec)
    rights, of_pod = c["securityContext"], spec["securityContext"]
    assert of_pod["runAsNonRoot"] and of_pod["runAsUser"] == 999 and of_pod["fsGroup"] == 999, where
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"] and rights["capabilities"] == {"drop": ["ALL"]}
    assert spec["enableServiceLinks"] is False and spec["automountServiceAccountToken"] is False
    assert set(c["resources"]) == {"requests", "limits"} and "lifecycle" not in c
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(c)
    assert any(m["mountPath"] == "/data" for m in c["volumeMounts"])
    volumes = {v["name"] for v in spec.get("volumes", [])}
    volumes |= {t["metadata"]["name"] for t in kind["spec"].get("volumeClaimTemplates", [])}
    assert {m["name"] for m in c["volumeMounts"]} <= volumes, where
    return c


def run_pod(tiercel, objects, obj, spec, **options):
    """The container's server with its own settings, but for ports, secrets and paths. (server, container, ports)"""
    c = check_pod(obj["metadata"]["name"], obj, spec)
    env = {e["name"]: e["value"] for e in c["env"] if "value" in e and not e["name"].endswith("_FILE")}
    for name in "TIERCEL_UPSTREAM", "TIERCEL_BIND", "TIERCEL_HTTP_PORT":
        env.pop(name, None)
    grace, args = spec["terminationGracePeriodSeconds"], []
    if c.get("args"):
        assert c["args"] == ["/etc/tiercel/conf/tiercel.conf"]
        name = next(v["configMap"]["name"] for v in spec["volumes"] if v["name"] == "conf")
        text = manifests.config_map(objects, name)["tiercel.conf"]
        text = re.sub(r"(?m)^(upstream|upstream-auth-file|protected-mode|tls-[a-z-]+) .*\n", "", text)
        timeout = int(re.search(r"^shutdown-timeout (\d+)$", text, re.M).group(1))
        args = [str(options.pop("home") / "tiercel.conf")]
        with open(args[0], "w", encoding="utf-8") as f:
            f.write(text)
    else:
        timeout = int(env["TIERCEL_SHUTDOWN_TIMEOUT"])
        options.pop("home")
    assert timeout + 6 < grace
    port = free_port()
    t = tiercel(args=args, env=env, http_port=port, maxmemory="64mb", **options)
    return t, c, {"http": port, "redis": t.port}


def check_probes(t, c, ports):
    def run(command, timeout):
        return manifests.local([*command, "--http-port", str(ports["http"])], timeout)

    # As a kubelet does: the others count from when the first one has passed, and it goes on asking whether the pod is ready.
    for which in "startupProbe", "readinessProbe":
        wait_until(lambda: manifests.probe(c, which, ports, run)[0], what=which + " passes")
    ok, text = manifests.probe(c, "livenessProbe", ports, run)
    assert ok, text
    t.stop()
    for which in "startupProbe", "readinessProbe", "livenessProbe":
        assert not manifests.probe(c, which, ports, run)[0], which


def test_standalone_manifest(tiercel, tmp_path):
    objects = manifests.load(DOCKER / "kubernetes/standalone.yaml")
    [(obj, spec)] = manifests.pod_specs(objects)
    t, c, ports = run_pod(tiercel, objects, obj, spec, home=tmp_path)
    assert t.client().config_get("log-format") == {"log-format": "json"}
    check_probes(t, c, ports)


def test_sidecar_manifest(tiercel, redis_server, tmp_path):
    objects = manifests.load(DOCKER / "kubernetes/sidecar.yaml")
    [(obj, spec)] = manifests.pod_specs(objects)
    assert spec["initContainers"][0]["restartPolicy"] == "Always"
    up = redis_server()
    t, c, ports = run_pod(tiercel, objects, obj, spec, home=tmp_path, upstream=up)
    t.wait_tiers(tier_upstream_state="up")

    def run(command, timeout):
        return manifests.local([*command, "--http-port", str(ports["http"])], timeout)

    # Without its upstream it is alive and ready: copies are served.
    up.stop()
    t.wait_tiers(tier_upstream_state=lambda state: state != "up")
    wait_until(lambda: manifests.probe(c, "readinessProbe", ports, run)[0], what="ready")
    for which in "startupProbe", "readinessProbe", "livenessProbe":
        assert manifests.probe(c, which, ports, run)[0], which
    check_probes(t, c, ports)


def test_readiness_waits_for_warming(tiercel, redis_server):
    """Not ready while it warms, alive all the same."""
    objects = manifests.load(DOCKER / "kubernetes/sidecar.yaml")
    [(_, spec)] = manifests.pod_specs(objects)
    [c] = manifests.servers(spec)
    up = redis_server()
    with up.client().pipeline(transaction=False) as p:
        for i in range(100):
            p.set("k%d" % i, i)
        p.execute()
    port = free_port()
    t = tiercel(upstream=up, http_port=port, warm_on_start="MATCH k* RATE 1")

    def run(command, timeout):
        return manifests.local([*command, "--http-port", str(port)], timeout)

    wait_until(lambda: manifests.probe(c, "livenessProbe", {}, run)[0], what="alive")
    ok, text = manifests.probe(c, "readinessProbe", {}, run)
    assert not ok and "503" in text
    for job in t.client().execute_command("WARM", "LIST"):
        number = job[job.index(b"id") + 1] if isinstance(job, list) else job[b"id"]
        t.client().execute_command("WARM", "CANCEL", number)
    wait_until(lambda: manifests.probe(c, "readinessProbe", {}, run)[0], what="ready")


@pytest.mark.heavy
@pytest.mark.parametrize("case", manifests.cases())
def test_rendered_chart(tiercel, tmp_path, case):
    """make chart-test has rendered it with Go's templates and validated it against Kubernetes' schemas; here it is still the chart's."""
    path = manifests.RENDERED / (case + ".yaml")
    assert manifests.chart_digest(case) in path.read_text().splitlines()[0], "the chart has changed: make chart-test ARGS=--update"
    objects = manifests.load(path)
    [(obj, spec)] = manifests.pod_specs(objects)
    t, c, ports = run_pod(tiercel, objects, obj, spec, home=tmp_path)
    assert t.client().config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
    if case == "upstream":
        rules = t.client().execute_command("CACHE", "RULE", "LIST")
        assert len(rules) == 2
    check_probes(t, c, ports)


BAD_VALUES = [
    {"mode": "cluster"}, {"replica": 2}, {"replicas": "2"}, {"replicas": -1}, {"image": {"tag": 1}}, {"http": {"port": 0}},
    {"http": {"bind": "0.0.0.0"}}, {"upstream": {"url": "redis://user:secret@redis:6379"}}, {"upstream": {"url": "http://redis"}},
    {"config": {"max memory": "1gb"}}, {"config": {"maxmemory": None}}, {"config": {"logfile": "a\nb"}}, {"config": {"rule": []}},
    {"persistence": {"size": "10 GB"}}, {"persistence": {"accessModes": ["ReadWriteMany"]}}, {"auth": {"password": "secret"}},
    {"auth": {"existingSecret": "No Such"}}, {"serviceMonitor": {"interval": "15"}}, {"podLabels": {"a": 1}},
    {"podDisruptionBudget": {"maxUnavailable": "all"}}, {"terminationGracePeriodSeconds": 0}, {"tls": {"authClients": True}}, {"resources": {"memory": "1Gi"}}]


def merged(below, above):
    both = isinstance(below, dict) and isinstance(above, dict)
    return {**below, **{k: merged(below.get(k), v) for k, v in above.items()}} if both else above


@pytest.mark.heavy
def test_chart_values():
    jsonschema = pytest.importorskip("jsonschema")
    with open(manifests.CHART / "values.schema.json", encoding="utf-8") as f:
        schema = json.load(f)
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    [values] = manifests.load(manifests.CHART / "values.yaml")
    assert set(values) | {"global"} == set(schema["properties"])
    good = [manifests.load(p) for p in sorted(manifests.CASES.glob("*.yaml"))]
    good.append([manifests.load(manifests.PARENT / "values.yaml")[0]["tiercel"]])
    for case in good:
        validator.validate(merged(values, case[0] if case else {}))
    for bad in BAD_VALUES:
        assert not validator.is_valid(merged(values, bad)), bad


@pytest.mark.heavy
def test_compose_file():
    compose = manifests.load(DOCKER / "compose.yaml")[0]
    for name, service in compose["services"].items():
        if name == "redis":
            assert "healthcheck" in service
            continue
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert int(service["stop_grace_period"].rstrip("s")) > int(service["environment"]["TIERCEL_SHUTDOWN_TIMEOUT"]) + 6
        assert all(p.startswith("127.0.0.1:") for p in service["ports"])
        assert any(v.endswith(":/data") for v in service["volumes"])
        settings = {k: v for k, v in service["environment"].items()}
        done = health("--health", **dict(settings, TIERCEL_HTTP_PORT=free_port()))
        assert "Connection refused" in done.stderr  # all of them are settings, with good values
        for waited in service["depends_on"]:
            assert service["depends_on"][waited] == {"condition": "service_healthy"}


@pytest.mark.heavy
def test_versions_are_the_server_s():
    for _, objects in manifest_objects():
        for _, spec in manifests.pod_specs(objects):
            assert manifests.servers(spec)[0]["image"] == "tiercel:" + VERSION
    chart = manifests.load(manifests.CHART / "Chart.yaml")[0]
    assert chart["version"] == chart["appVersion"] == VERSION
    assert manifests.load(manifests.PARENT / "Chart.yaml")[0]["dependencies"][0]["version"] == VERSION
    assert subprocess.run([str(BINARY), "--version"], stdout=subprocess.PIPE, text=True).stdout.split()[1] == VERSION


@pytest.mark.heavy
def test_the_dockerfile():
    """What needs no build: known instructions, sources that are there and are sent, a numeric user, a health check without a shell."""
    sys.path.insert(0, str(ROOT / "tests/packaging"))
    import dockerfile

    ignored = (ROOT / ".dockerignore").read_text().split()
    steps = list(dockerfile.instructions(str(DOCKER / "Dockerfile")))
    final = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    for name, rest in steps:
        assert name in ("FROM", "ARG", "RUN", "COPY", "LABEL", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
                        "ENTRYPOINT", "CMD"), name
        if name == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and source.split("/")[0] not in ignored, source
    last = dict(steps[final:])
    assert last["USER"] == "999:999" and last["VOLUME"] == "/data"
    assert dockerfile.words(last["HEALTHCHECK"].partition("CMD ")[2]) == ["tiercel", "--health"]
    assert os.access(DOCKER / "entrypoint.sh", os.X_OK)
