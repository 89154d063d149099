"""What the benchmarks share: servers pinned to one core, load from another, and the figures of both."""
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time

TIERCEL = os.environ.get("TIERCEL_BIN") or "build/tiercel"
LOAD = os.path.join(os.path.dirname(TIERCEL) or ".", "tiercel-bench")
OUT = os.environ.get("BENCH_OUT") or "build/bench"

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(*args):
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Client:
    """Just enough of the protocol to fill a server and to ask it for its figures."""

    def __init__(self, port, timeout=None):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def send(self, data):
        self.sock.sendall(data)

    def read(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("the server closed the connection")
        mark, text = line[:1], line[1:-2]
        if mark == b"-":
            raise RuntimeError(text.decode())
        if mark != b"$":
            return text
        if int(text) < 0:
            return None
        return self.file.read(int(text) + 2)[:-2]

    def call(self, *args):
        self.send(command(*args))
        return self.read()

    def info(self, field, section="everything"):
        found = re.search(rf"^{field}:(\d+)", self.call("INFO", section).decode(), re.M)
        if not found:
            raise RuntimeError(f"INFO {section} has no {field}")
        return int(found.group(1))

    def tiers(self):
        """The numbers of INFO tiers."""
        return {k: int(v) for k, v in re.findall(r"^(\w+):(\d+)\r?$", self.call("INFO", "tiers").decode(), re.M)}

    def close(self):
        self.file.close()
        self.sock.close()


class Server:
    """A server on a free port, its data in a new directory. In argv, {port} and {dir} are filled in."""

    def __init__(self, name, argv, wrapper=(), pinned=True):
        self.name, self.argv, self.pinned = name, argv, pinned
        self.wrapper = wrapper
        self.port = free_port()
        self.dir = tempfile.mkdtemp(prefix="data-", dir=OUT)
        self.log = open(os.path.join(self.dir, "log"), "ab")
        self.client = None
        self.start()

    def start(self):
        """Returns the seconds until it answered PING."""
        argv = [a.format(port=self.port, dir=self.dir) for a in self.argv]
        if self.pinned:
            argv = ["taskset", "-c", str(SERVER_CORE), *self.wrapper, *argv]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TIERCEL_")}  # they are settings
        begin = time.monotonic()
        self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment)
        self.client = self.connect(begin + 120)
        return time.monotonic() - begin

    def connect(self, deadline):
        while True:
            try:
                client = Client(self.port)
                client.call("PING")
                return client
            except (OSError, RuntimeError):
                if self.proc.poll() is not None or time.monotonic() > deadline:
                    with open(self.log.name, encoding="utf-8", errors="replace") as log:
                        text = log.read()
                    self.close()
                    raise SystemExit(f"bench: {self.name} does not start:\n{text}") from None
                time.sleep(0.01)

    # -- its figures

    def cpu_s(self):
        """User and system time of all its threads: what /proc/PID/stat counts in ticks of 10 ms, in nanoseconds."""
        try:
            return time.clock_gettime((~self.proc.pid << 3) | 2)  # as clock_getcpuclockid() makes it
        except OSError:
            with open(f"/proc/{self.proc.pid}/stat", encoding="ascii") as f:
                fields = f.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_anon(self):
        return self._proc("status", r"RssAnon:\s+(\d+) kB") * 1024

    def rss(self):
        return self._proc("status", r"VmRSS:\s+(\d+) kB") * 1024

    def written(self):
        """Bytes passed to write calls for other things than replies."""
        return self._proc("io", r"wchar: (\d+)") - self.client.info("total_net_output_bytes", "stats")

    def _proc(self, file, pattern):
        with open(f"/proc/{self.proc.pid}/{file}", encoding="ascii") as f:
            return int(re.search(pattern, f.read()).group(1))

    # -- its end

    def terminate(self, timeout=60):
        """A stop in order; the data stays. Returns the seconds it took."""
        self.client.close()
        self.client = None
        begin = time.monotonic()
        self.proc.send_signal(signal.SIGTERM)
        self.proc.wait(timeout)
        return time.monotonic() - begin

    def close(self):
        if self.client:
            self.client.close()
        if self.proc.poll() is None:
            self.proc.kill()  # nothing in it is wanted
            self.proc.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


class Load:
    """tiercel-bench against a server, until finish()."""

    def __init__(self, server, *args, pinned=True):
        self.server = server
        self.report = tempfile.NamedTemporaryFile(dir=OUT, suffix=".json")
        self.argv = [LOAD, "-p", str(server.port), "--json", self.report.name, "-q", *map(str, args)]
        if pinned:
            self.argv = ["taskset", "-c", str(LOAD_CORE), *self.argv]
        self.cpu, self.own, self.machine = server.cpu_s(), own_cpu_s(), machine_cpu_s()
        self.begin = time.monotonic()
        self.proc = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True)

    def finish(self, interrupt=False, errors=False):
        """The report of its last test, with the server's CPU time in it and how much of the machine others used
        meanwhile. interrupt: it need not go on. errors: replies that are errors are no failure."""
        if interrupt:
            self.proc.send_signal(signal.SIGINT)
        try:
            text = self.proc.communicate()[0]
        finally:
            if self.proc.poll() is None:
                self.proc.kill()
        cpu = self.server.cpu_s() - self.cpu
        seconds = time.monotonic() - self.begin
        others = machine_cpu_s() - self.machine - cpu - (own_cpu_s() - self.own)
        with self.report:
            if self.proc.returncode not in (0, 130 if interrupt else 0):
                raise SystemExit(f"bench: {' '.join(self.argv)}\n{text}")
            result = json.load(self.report)["tests"][-1]
        if result["errors"] and not errors:
            raise SystemExit(f"bench: {self.server.name} answered {result['errors']} errors: {result['first_error']}")
        result["server_cpu_us"] = cpu * 1e6 / max(result["requests"], 1)
        result["others_cpu"] = max(others, 0) / seconds / os.cpu_count()
        return result


def load(server, *args, pinned=True, errors=False):
    """Runs tiercel-bench against a server to its end."""
    return Load(server, *args, pinned=pinned).finish(errors=errors)


def own_cpu_s():
    """Of this process and of the load generators that have ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def machine_cpu_s():
    """Time that all cores have worked (iowait and idle left out)."""
    with open("/proc/stat", encoding="ascii") as f:
        fields = [int(x) for x in f.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def redis_argv(program="redis-server", **settings):
    argv = [program, "--port", "{port}", "--bind", "127.0.0.1", "--dir", "{dir}", "--save", "", "--appendonly", "no"]
    for name, value in settings.items():
        argv += ["--" + name.replace("_", "-"), str(value)]
    return argv


def tiercel_argv(**settings):
    argv = [TIERCEL, "--port", "{port}", "--bind", "127.0.0.1", "--dir", "{dir}", "--http-port", "0", "--compression", "no"]
    for name, value in {"threads": 1, **settings}.items():
        argv += ["--" + name.replace("_", "-"), str(value)]
    return argv


# ---- reports ---------------------------------------------------------------------------------

def spread(values, digits=2):
    """Median, least and most."""
    m = statistics.median(values)
    if len(values) == 1:
        return f"{m:,.{digits}f}"
    return f"{m:,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def quartiles(values):
    """Lower quartile, median, upper quartile."""
    v = sorted(values)

    def at(q):
        i = q * (len(v) - 1)
        low = int(i)
        return v[low] + (v[min(low + 1, len(v) - 1)] - v[low]) * (i - low)
    return at(0.25), at(0.5), at(0.75)


def middle(values, digits=2):
    """Median and quartiles: what many short slices on a noisy machine agree on."""
    low, m, high = quartiles(values)
    if len(values) == 1:
        return f"{m:,.{digits}f}"
    return f"{m:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


class Bars:
    """What was to be shown, and whether it was."""

    def __init__(self):
        self.rows = []

    def add(self, what, value, limit, text=None):
        """limit: value may be this much at most."""
        self.rows.append({"what": what, "value": value, "limit": limit, "met": value <= limit,
                          "text": text or f"{value:,.2f}"})

    def table(self):
        lines = ["| bar | measured | at most | |", "|---|---|---|---|"]
        for r in self.rows:
            verdict = "met" if r["met"] else "**missed**"
            lines.append(f"| {r['what']} | {r['text']} | {r['limit']:g} | {verdict} |")
        return lines

    def all_met(self):
        return all(r["met"] for r in self.rows)


def first_line(*argv):
    try:
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "?"


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        found = re.search(r"^model name\s*: (.*)$", f.read(), re.M)
    return found.group(1) if found else platform.machine()


def machine_lines():
    lines = [f"{cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}.",
             f"{first_line('redis-server', '--version')}"]
    if len(CORES) < 2:
        lines.append("One core only: servers and load shared it, so trust the ratios alone.")
    return lines


def write_report(name, lines):
    text = "\n".join(lines) + "\n"
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as f:
        f.write(text)
    print(text, flush=True)
