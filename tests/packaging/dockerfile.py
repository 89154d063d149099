"""Runs the steps of a Dockerfile in plain directories, for where there is no container engine: each FROM is a copy of one base
system, RUN is a chroot. It knows what docker/Dockerfile uses; any other instruction or option is an error."""
import fnmatch
import json
import os
import re
import shutil
import subprocess

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Image:
    """What an image is: a directory, and how it is run."""

    def __init__(self, root):
        self.root = root
        self.env = {"PATH": PATH}
        self.args = {}
        self.user = "0:0"
        self.workdir = "/"
        self.volumes, self.labels, self.ports = [], {}, []
        self.entrypoint, self.cmd = [], []
        self.health, self.health_options = [], {}
        self.stop_signal = "SIGTERM"


def instructions(path):
    """(name, rest) of each, with continued lines joined and comments left out."""
    with open(path, encoding="utf-8") as f:
        lines = [line for line in f.read().splitlines() if not line.lstrip().startswith("#")]
    for text in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if text.strip():
            name, _, rest = text.strip().partition(" ")
            yield name.upper(), rest.strip()


def words(text):
    """The exec form as a list; the shell form is None."""
    if not text.startswith("["):
        return None
    got = json.loads(text)
    assert all(isinstance(w, str) for w in got), text
    return got


def expand(text, variables):
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda m: variables.get(m.group(1) or m.group(2), ""), text)


def pairs(text):
    found = re.findall(r'([\w.-]+)=("(?:[^"\\]|\\.)*"|\S*)', text)
    return {k: v[1:-1] if v.startswith('"') else v for k, v in found}


def copy(context, image, rest, stages):
    source = context
    ignored = []
    parts = rest.split()
    if parts[0].startswith("--from="):
        source = stages[parts.pop(0)[7:]].root
    else:
        with open(os.path.join(context, ".dockerignore"), encoding="utf-8") as f:
            ignored = [line.strip() for line in f if line.strip()]
    assert not parts[0].startswith("--"), rest
    *names, target = parts
    to = image.root + os.path.normpath(os.path.join(image.workdir, target))

    def ignore(directory, entries):
        inside = os.path.relpath(directory, source)
        out = set()
        for entry in entries:
            path = os.path.normpath(os.path.join(inside, entry))
            if any(path == p or (p.startswith("**/") and fnmatch.fnmatch(entry, p[3:])) for p in ignored):
                out.add(entry)
        return out

    for name in names:
        path = os.path.join(source, name.lstrip("/"))
        assert not ignored or not ignore(os.path.dirname(path), [os.path.basename(path)]), "%s is left out by .dockerignore" % name
        if os.path.isdir(path):
            shutil.copytree(path, to, ignore=ignore, symlinks=True, dirs_exist_ok=True)
        elif target.endswith("/") or len(names) > 1:
            os.makedirs(to, exist_ok=True)
            shutil.copy2(path, to)
        else:
            os.makedirs(os.path.dirname(to), exist_ok=True)
            shutil.copy2(path, to)


def run(image, text, log):
    os.makedirs(image.root + image.workdir, exist_ok=True)
    env = {**image.args, **image.env, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
    uid, _, gid = image.user.partition(":")
    command = ["chroot", "--userspec=%s:%s" % (uid, gid or uid), image.root, "/usr/bin/env", "-i", "-C", image.workdir,
               *["%s=%s" % kv for kv in env.items()], "/bin/sh", "-c", text]
    subprocess.run(["mount", "-t", "proc", "proc", image.root + "/proc"], check=True)
    shutil.copy("/etc/resolv.conf", image.root + "/etc/resolv.conf")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        subprocess.run(["umount", image.root + "/proc"], check=True)
    log(done.stdout)
    if done.returncode != 0:
        raise SystemExit("RUN %s: exit code %d\n%s" % (text, done.returncode, done.stdout[-4000:]))


def build(path, context, work, base, arguments, log):
    """The last stage's image. base(from_name, directory) fills the directory with that system."""
    stages, image = {}, None
    for number, (name, rest) in enumerate(instructions(path)):
        log("%s %s\n" % (name, rest))
        values = {**image.args, **image.env} if image else {}
        if name == "FROM":
            source, _, alias = re.sub(r"\s+", " ", rest).partition(" AS ")
            image = Image(os.path.join(work, alias or "stage%d" % number))
            base(source, image.root)
            stages[alias or image.root] = image
        elif name == "ARG":
            key, _, default = rest.partition("=")
            image.args[key] = arguments.get(key, default)
        elif name == "ENV":
            image.env.update(pairs(expand(rest, values)))
        elif name == "LABEL":
            image.labels.update(pairs(expand(rest, values)))
        elif name == "COPY":
            copy(context, image, rest, stages)
        elif name == "RUN":
            run(image, rest, log)
        elif name == "WORKDIR":
            image.workdir = os.path.normpath(os.path.join(image.workdir, rest))
            os.makedirs(image.root + image.workdir, exist_ok=True)
        elif name == "USER":
            image.user = rest
        elif name == "VOLUME":
            image.volumes += words(rest) or rest.split()
        elif name == "EXPOSE":
            image.ports += [int(p) for p in rest.split()]
        elif name == "STOPSIGNAL":
            image.stop_signal = rest
        elif name == "HEALTHCHECK":
            options, _, command = rest.partition("CMD ")
            image.health_options = dict(o[2:].split("=") for o in options.split())
            image.health = words(command)
            assert image.health, "HEALTHCHECK needs the exec form: there may be no shell"
        elif name == "ENTRYPOINT":
            image.entrypoint = words(rest)
        elif name == "CMD":
            image.cmd = words(rest)
        else:
            raise SystemExit("%s: this script does not know %s" % (path, name))
    return image
