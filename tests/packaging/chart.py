"""The Helm chart, rendered with Go's templates and validated against Kubernetes' own schemas.

  chart.py            compares with tests/packaging/rendered/, which the tests of CI go by
  chart.py --update   writes these files anew

Needs Debian's golang-go, golang-github-masterminds-sprig-dev, golang-github-ghodss-yaml-dev, python3-yaml and npm, whose packages
(of chart/package.json) it installs into build/chart."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
sys.path.insert(0, str(TOP / "tests/e2e"))

import manifests  # noqa: E402

BUILD = TOP / "build/chart"
TOOL = BUILD / "render"

# Values that values.schema.json lets pass, for it cannot compare, and that the templates refuse: (values, what is said)
REFUSED = [
    ({"terminationGracePeriodSeconds": 20}, "terminationGracePeriodSeconds must be at least"),
    ({"mode": "upstream"}, "mode upstream needs upstream.url"),
    ({"upstream": {"url": "redis://redis:6379"}}, "upstream.url is for mode upstream"),
    ({"serviceMonitor": {"enabled": True}, "http": {"expose": False}}, "serviceMonitor.enabled needs http.expose"),
    ({"tls": {"enabled": True}}, "tls.enabled needs tls.existingSecret"),
    ({"config": {"port": 7000}}, "config.port: the chart sets this itself"),
]


def render(case, values=None, notes=False):
    """(exit code, text, errors)"""
    command = [str(TOOL)]
    if notes:
        command.append("-notes")
    if case == "app":
        command += ["-subchart", str(manifests.CHART), str(manifests.PARENT)]
    else:
        command += [str(manifests.CHART), str(values or manifests.CASES / (case + ".yaml"))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stdout, done.stderr


def tools():
    BUILD.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOCACHE": str(BUILD / "gocache")}
    for tool in "go", "npm", "node":
        if not shutil.which(tool):
            raise SystemExit("chart.py: there is no %s" % tool)
    subprocess.run(["go", "build", "-o", str(TOOL), str(HERE / "chart/render.go")], check=True, env=env)
    wanted = (HERE / "chart/package.json").read_text()
    have = BUILD / "package.json"
    if not have.exists() or have.read_text() != wanted or not (BUILD / "node_modules").is_dir():
        have.write_text(wanted)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=BUILD, check=True)


def validate(documents):
    """What the API's validators and, for names that it does not know, its types say of the objects."""
    done = subprocess.run(["node", str(HERE / "chart/validate.mjs")], input=json.dumps(documents), stdout=subprocess.PIPE,
                          text=True, env={**os.environ, "NODE_MODULES": str(BUILD / "node_modules")})
    faults = done.stdout.splitlines()
    if done.returncode != 0 and not faults:
        faults = ["validate.mjs: exit code %d" % done.returncode]
    lines = []
    for number, entry in enumerate(documents):
        obj = entry["object"]
        package = "@kubernetes-models/prometheus-operator" if obj["apiVersion"].startswith("monitoring.coreos.com/") else "kubernetes-models"
        lines.append("import type { I%s as T%d } from '%s/%s';" % (obj["kind"], number, package, obj["apiVersion"]))
        lines.append("const d%d: T%d = %s; // %s" % (number, number, json.dumps(obj), entry["file"]))
    (BUILD / "objects.mts").write_text("\n".join(lines) + "\nexport {};\n")
    done = subprocess.run(["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target",
                           "es2022", "objects.mts"], cwd=BUILD, stdout=subprocess.PIPE, text=True)
    for fault in done.stdout.splitlines():
        faults.append(fault)
    return faults


def selftest(documents):
    """That the validation finds what it is for: a missing field, a wrong type, a misspelt name."""
    def broken(change):
        copy = json.loads(json.dumps(next(d for d in documents if d["object"]["kind"] == "StatefulSet")))
        change(copy["object"]["spec"]["template"]["spec"]["containers"][0])
        return validate([copy])

    for change in (lambda c: c.pop("name"), lambda c: c["ports"][0].update(containerPort="x"), lambda c: c.update(livenesProbe={})):
        assert broken(change), "a broken object passes"


def main():
    update = "--update" in sys.argv[1:]
    tools()
    failed = []
    documents = []
    for case in manifests.cases():
        code, text, errors = render(case)
        if code != 0:
            raise SystemExit("%s: %s" % (case, errors))
        text = "# Rendered from docker/helm/tiercel by make chart-test ARGS=--update: %s\n%s" % (manifests.chart_digest(case), text)
        path = manifests.RENDERED / (case + ".yaml")
        if update:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            failed.append("%s is not what the chart makes now: make chart-test ARGS=--update" % path)
        documents += [{"file": path.name, "object": d} for d in yaml.safe_load_all(text) if d]
        if case != "app":
            code, text, errors = render(case, notes=True)
            assert code == 0 and "Tiercel" not in errors, errors
    for path in sorted((TOP / "docker/kubernetes").glob("*.yaml")):
        documents += [{"file": path.name, "object": d} for d in manifests.load(path)]
    failed += validate(documents)
    selftest(documents)
    for values, text in REFUSED:
        path = BUILD / "refused.yaml"
        path.write_text(json.dumps(values))
        code, _, errors = render("refused", path)
        if code == 0 or text not in errors:
            failed.append("%s is not refused: %s" % (values, errors))
    path = BUILD / "only.yaml"
    path.write_text(json.dumps({"tls": {"enabled": True, "existingSecret": "t", "only": True}, "networkPolicy": {"enabled": True}}))
    code, text, errors = render("only", path)
    if code != 0 or "port 0\n" not in text or "name: redis\n" in text or "port: redis}" in text:
        failed.append("tls.only leaves a port without TLS: %s" % errors)
    failed += validate([{"file": "tls.only", "object": d} for d in yaml.safe_load_all(text) if d])
    for line in failed:
        print(line)
    print("%d objects of %d renderings and docker/kubernetes/" % (len(documents), len(manifests.cases())))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
