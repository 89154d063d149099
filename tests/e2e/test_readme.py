"""Every command of the README's code blocks is run, in its order, against real servers.

What a block is:

    ```sh, ```bash, indented     commands, one a line (a trailing backslash goes on); comments are for the reader
    ```console                   "$ command", and what it prints; "..." stands for anything within a line, or for lines
    ```conf                      lines of a configuration: a server starts with them
    others (```text, ```yaml)    not commands

They run in a directory that looks like a clone after `make`. Ports stand for free ones, names in STANDS_FOR for what is there,
and FILES are made before. A server goes on until another one is started on its port. What cannot run here is in LISTED, with the
reason: of such a command the targets of make are known to make, and the files of the sources that it names exist. A command that
neither runs nor is listed fails the test.
"""
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import time

import pytest

from harness import BINARY, ROOT, scaled, wait_until
from ports import free_port
from test_tls import authority, certificate

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(120)]

README = ROOT / "README.md"

LISTED = [
    (r"make( [A-Z]+=\S*)*$|make clean", "builds, or undoes it; CI does"),
    (r"make test$|make bench|make soak|make apps|make port-test|make deb-test", "takes minutes; CI runs what it is made of"),
    (r"(sudo )?make (&& sudo make )?install", "installs into the system; test_packaging.py does, elsewhere"),
    (r"make deb|sudo apt", "packages and installs into the system; test_packaging.py and make deb-test do"),
    (r"(sudo )?systemctl|journalctl", "needs the package installed and systemd running"),
    (r"docker|podman|make image|make chart", "needs a container engine, or takes minutes"),
    (r"kubectl|helm|minikube|kind", "needs a cluster"),
    (r"prometheus|promtool|grafana|git clone", "needs a program or a network that may not be here"),
]
# They go on until they are ended: the first line that comes is enough.
STREAMS = re.compile(r"redis-cli\b.*\b(p?subscribe|ssubscribe|monitor|--latency\S*|--stat)\b", re.I)
FILES = {
    "mylib.lua": "#!lua name=mylib\nredis.register_function('myfunction', function(keys, args) return args[1] end)\n",
    "keys.txt": "a\nb\nprice:42\n",
    "auth.txt": "user\npassword\n",
}
UPSTREAM = "redis.example:6379"
PORT = re.compile(r"((?:^|\s)(?:-p|--[a-z-]*port|port)[ =]|(?:127\.0\.0\.1|localhost|\]):)(\d{4,5})\b")
ASKS = ("--help", "--version", "--check", "--settings-table", "--sample-config", "--man-page")


class Block:
    def __init__(self, language, line):
        self.language, self.line, self.lines = language, line, []


def blocks(text):
    """Fenced ones, and indented ones behind an empty line."""
    block, before = None, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if block and block.language != "indented":
            if fence:
                yield block
                block = None
            else:
                block.lines.append(line)
        elif fence:
            if block:
                yield block
            block = Block(fence.group(1) or "text", number + 1)
        elif line.startswith("    ") and (block or not before.strip()):
            block = block or Block("indented", number)
            block.lines.append(line[4:])
        elif block:
            yield block
            block = None
        before = line
    if block:
        yield block


def commands(block):
    """(line number, command, expected output or None)"""
    found, going_on = [], False
    for number, line in enumerate(block.lines, block.line):
        if going_on:
            found[-1][1] += "\n" + line
        elif block.language != "console":
            if line.strip() and not line.lstrip().startswith("#"):
                found.append([number, line, None])
        elif line.startswith("$ "):
            found.append([number, line[2:], []])
        else:
            found[-1][2].append(line)
            continue
        going_on = bool(found) and found[-1][1].endswith("\\")
    return found


def bare(command):
    """Without comment and & at its end."""
    return re.sub(r"\s*(&\s*)?(\s#.*)?$", "", command)


class Clone:
    """The directory, the ports, the servers that run."""

    def __init__(self, where, upstream):
        self.dir = where / "clone"
        self.dir.mkdir()
        for entry in ROOT.iterdir():
            if entry.name in ("conf", "docker"):  # a command may write there
                shutil.copytree(entry, self.dir / entry.name)
            elif entry.name not in ("build", "data", ".git"):
                (self.dir / entry.name).symlink_to(entry)
        (self.dir / "build").mkdir()
        for program in ("tiercel", "tiercel-bench"):
            (self.dir / "build" / program).symlink_to(BINARY.parent / program)
        for name, text in FILES.items():
            (self.dir / name).write_text(text)
        authority(self.dir, "ca")
        certificate(self.dir, "server", "ca")
        certificate(self.dir, "client", "ca")
        upstream.call("ACL", "SETUSER", "user", "on", ">password", "allcommands", "allkeys", "allchannels")
        self.stands_for = {UPSTREAM: "127.0.0.1:%d" % upstream.port, "/path/to": str(self.dir)}
        self.ports, self.servers, self.known, self.log = {}, {}, set(), self.dir / "log.txt"
        bin_dir = where / "bin"
        bin_dir.mkdir()
        self.program(bin_dir, "tiercel", 'exec "%s" "$@"' % BINARY)
        self.program(bin_dir, "redis-cli", 'exec "%s" -e -p %d "$@"' % (shutil.which("redis-cli"), self.port("6379")))
        self.program(bin_dir, "curl", 'exec "%s" -fsS --max-time 20 "$@"' % (shutil.which("curl") or "curl"))
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("TIERCEL", "MAKE", "MFLAGS"))}
        self.env.update(PATH="%s:%s" % (bin_dir, os.environ["PATH"]), HOME=str(where))

    @staticmethod
    def program(bin_dir, name, line):
        (bin_dir / name).write_text("#!/bin/sh\n%s\n" % line)
        (bin_dir / name).chmod(0o755)

    def port(self, readmes):
        if readmes not in self.ports:
            self.ports[readmes] = free_port()
        return self.ports[readmes]

    def here(self, command):
        for name, stands_for in self.stands_for.items():
            command = command.replace(name, stands_for)
        upstream = self.stands_for[UPSTREAM]
        return PORT.sub(lambda m: m[0] if m[0].endswith(upstream) else m[1] + str(self.port(m[2])), command)

    def run(self, command, timeout=30):
        run = subprocess.run(["bash", "-c", self.here(command)], cwd=self.dir, env=self.env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=scaled(timeout))
        return run.returncode, run.stdout

    def stream(self, command):
        """The first line that it prints."""
        process = subprocess.Popen(["bash", "-c", "exec " + self.here(bare(command))], cwd=self.dir, env=self.env,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            return process.stdout.readline().decode()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    # -- servers

    def serve(self, command):
        """Starts a server, and waits until it listens."""
        line = self.here(bare(command))
        words = shlex.split(line)
        said = dict(zip(words, words[1:]))
        port = int(said.get("--port", 0)) or int(said.get("--tls-port", 0)) or self.port("6379")
        self.end(port)
        env = dict(self.env, TIERCEL_PORT=str(port), TIERCEL_DIR=str(self.dir / ("data-%d" % port)))
        env["TIERCEL_HTTP_PORT"] = str(self.port("9379") if port == self.port("6379") else free_port())
        with open(self.log, "ab") as log:
            process = subprocess.Popen(["bash", "-c", "exec " + line], cwd=self.dir, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=subprocess.STDOUT)
        self.servers[port] = process

        def listens():
            assert process.poll() is None, "it ended: " + self.log.read_text()[-2000:]
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0
        wait_until(listens, timeout=20, what=line)

    def end(self, port):
        process = self.servers.pop(port, None)
        if process:
            process.terminate()
            code = process.wait(scaled(20))
            assert code == 0, "a server ended with %d: %s" % (code, self.log.read_text()[-2000:])

    def close(self):
        for port in list(self.servers):
            self.end(port)

    # -- what cannot run

    def make_knows(self, target):
        if target not in self.known:
            code, output = self.run("make -n -o all %s" % target)
            assert code == 0, "make does not know %s: %s" % (target, output[-500:])
            self.known.add(target)

    def look_at(self, command):
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", command):
            self.make_knows(target)
        for word in shlex.split(bare(command)):
            first = word.split("=")[-1].lstrip("./").split("/")[0]
            if "/" in word and "*" not in word and ":" not in word and first in ("conf", "docker", "deps", "tests", "bench", "src"):
                assert (ROOT / word.split("=")[-1]).exists(), "there is no " + word

    # -- one command

    def try_command(self, command):
        """Its output, or None where it has none here."""
        words = shlex.split(bare(command), comments=True)
        program = pathlib.Path(words[0]).name
        if any(re.match(pattern, command) for pattern, _ in LISTED):
            self.look_at(command)
        elif words[:2] == ["make", "run"]:
            self.make_knows("run")
            recipe = self.run("make -n -o all " + bare(command)[len("make "):])[1].splitlines()
            self.serve([line for line in recipe if "--port" in line][-1].replace("exec ", ""))
        elif program in ("tiercel", "redis-server") and not set(words) & set(ASKS):
            self.serve(command)
        elif STREAMS.search(command):
            assert self.stream(command), "it says nothing"
        else:
            code, output = self.run(bare(command))
            assert code == 0 and not re.match(r"\(?(error|ERR|NOAUTH|NOPERM|WRONG)", output), "exit code %d\n%s" % (code, output[-2000:])
            return output
        return None

    def try_conf(self, lines):
        (self.dir / "readme.conf").write_text("\n".join(lines) + "\n")
        port = free_port()
        self.serve("build/tiercel readme.conf --port %d" % port)
        self.end(port)


def matches(expected, output):
    """Lines, of which "..." is any text, and a line of it alone any lines."""
    pattern = "\n".join(".*" if line.strip() == "..." else re.escape(line).replace(re.escape("..."), "[^\n]*") for line in expected)
    return re.fullmatch(pattern, output.rstrip("\n"), re.S)


def test_every_command_of_the_readme(tmp_path, redis_server):
    clone = Clone(tmp_path, redis_server())
    ran = 0
    try:
        for block in blocks(README.read_text()):
            if block.language == "conf":
                clone.try_conf(block.lines)
            if block.language not in ("sh", "bash", "console", "indented"):
                continue
            for number, command, expected in commands(block):
                begin = time.monotonic()
                try:
                    output = clone.try_command(command)
                    if expected and output is not None:
                        assert matches(expected, output), "it printed:\n" + output
                except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as e:
                    raise AssertionError("README.md:%d: %s\n%s" % (number, command, e)) from None
                print("%.1f s: %s" % (time.monotonic() - begin, command))
                ran += 1
    finally:
        clone.close()
    assert ran > 20


def test_targets_that_the_readme_names():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`make ([a-z][a-z-]*)", README.read_text()))
    assert named and named <= targets, named - targets


def test_blocks():
    text = "a\n\n    one \\\n      two\n    three # c\n\n- x\n    no\n\n```console\n$ ls -l\ntotal ...\n```\n```\nnot\n```\n"
    found = [(b.language, commands(b)) for b in blocks(text) if b.language != "text"]
    assert found == [("indented", [[3, "one \\\n  two", None], [5, "three # c", None]]), ("console", [[11, "ls -l", ["total ..."]]])]
    assert matches(["total ...", "..."], "total 5\na\nb\n") and not matches(["total ..."], "total 5\nmore")
