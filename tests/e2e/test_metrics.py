"""What monitoring sees, by its own tools: promtool, a Prometheus, redis_exporter; and that INFO, /metrics and the exporter agree.

Debian: prometheus (with promtool), prometheus-redis-exporter."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse
import urllib.request

import pytest

from harness import scaled, wait_until
from ports import free_port

pytestmark = pytest.mark.heavy

CONF = pathlib.Path(__file__).resolve().parents[2] / "conf"
RULES = CONF / "prometheus" / "tiercel.rules.yml"
DASHBOARD = CONF / "grafana" / "tiercel.json"


def tool(name):
    path = shutil.which(name)
    if path is None:
        assert os.environ.get("CI") != "true", "%s is missing (deps/apt-test.txt)" % name
        pytest.skip("%s is not installed" % name)
    return path


def get(port, path, token=None):
    request = urllib.request.Request("http://127.0.0.1:%d%s" % (port, path))
    if token:
        request.add_header("Authorization", "Bearer " + token)
    with urllib.request.urlopen(request, timeout=scaled(10)) as reply:
        return reply.read().decode()


def samples(text):
    """{'name{labels}': value}, labels in alphabetical order."""
    out = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.partition("{")
            if labels:
                pairs = sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))
                name += "{%s}" % ",".join('%s="%s"' % pair for pair in pairs)
            out[name] = float(value)
    return out


def names(text):
    return {series.partition("{")[0] for series in samples(text)}


def run(name, *args, **kw):
    done = subprocess.run([tool(name), *map(str, args)], capture_output=True, text=True, timeout=scaled(60), **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Tool:
    """A program that runs while the test does."""

    def __init__(self, log, name, *args):
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen([tool(name), *map(str, args)], stdout=out, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(scaled(20))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def answer(self, port, path):
        def once():
            assert self.process.poll() is None, self.log.read_text()
            try:
                return get(port, path)
            except OSError:
                return None

        return wait_until(once, timeout=20, what="%s on port %d" % (path, port))


def busy(server):
    """Some of everything that makes figures."""
    c = server.client()
    for i in range(20):
        c.set("k%d" % i, i, ex=1000 if i % 2 else None)
    for i in range(30):
        c.get("k%d" % i)
    c.xadd("stream", {"a": 1})
    c.xgroup_create("stream", "group", 0)
    c.xreadgroup("group", "consumer", {"stream": ">"})
    for bad in (["NONSENSE"], ["LPUSH", "k1", "x"], ["GET"]):
        try:
            c.execute_command(*bad)
        except Exception:
            pass
    c.config_set("latency-monitor-threshold", 1)
    c.config_set("slowlog-log-slower-than", 0)
    c.ping()
    return c


# ---- /metrics

def test_promtool_dashboard_and_rules(tiercel, redis_server):
    alone = tiercel(http_port=free_port(), maxmemory="2mb", threads=2)
    sidecar = tiercel(http_port=free_port(), upstream=redis_server(), threads=2)
    sidecar.wait_tiers(tier_upstream_state="up")
    c = busy(alone)
    for i in range(4000):
        c.set("big%d" % i, os.urandom(1000))
    for i in range(0, 4000, 20):
        c.get("big%d" % i)
    c = busy(sidecar)
    c.eval("return redis.call('set', 'other', 1)", 0)
    texts = [get(t.http_port, "/metrics") for t in (alone, sidecar)]
    for text in texts:
        assert run("promtool", "check", "metrics", input=text) == ""
        # Every sample has its help and its type, and no label grows without bound.
        assert len(samples(text)) < 1000
    one, two = map(samples, texts)
    assert one["tiercel_disk_hits_total"] > 0
    assert one['tiercel_tier_latency_seconds_count{tier="disk"}'] >= one["tiercel_disk_hits_total"] > 0
    assert one['tiercel_tier_latency_seconds_sum{tier="disk"}'] > 0
    assert one['tiercel_tier_latency_seconds_count{tier="memory"}'] > 4000
    assert one['tiercel_evictions_total{reason="demoted",tier="memory"}'] > 0
    assert one["tiercel_disk_reads_waiting"] == 0
    assert 'tiercel_tier_latency_seconds_count{tier="upstream"}' not in one
    assert two['tiercel_tier_latency_seconds_count{tier="upstream"}'] == two["tiercel_upstream_fetches_total"] > 0
    assert two["tiercel_upstream_call_latency_seconds_count"] > 20
    assert two["tiercel_upstream_fetches_waiting"] == two["tiercel_upstream_calls_waiting"] == 0
    assert two["tiercel_coherence_fences_total"] > 0 and two["tiercel_coherence_fence_latency_seconds_count"] > 0
    assert two['tiercel_coherence_info{mode="tracking"}'] == 1 and two["tiercel_coherence_fallback"] == 0
    for figures in (one, two):
        for series, value in figures.items():
            if "_bucket" in series and 'le="+Inf"' in series:
                count = series.replace("_bucket", "_count").replace('le="+Inf"', "").replace("{,", "{").replace(",}", "}")
                assert figures[count.replace("{}", "")] == value

    # What the rules and the dashboard name is there.
    there = names(texts[0]) | names(texts[1]) | {"up"}
    rules = RULES.read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    wanted = set(re.findall(r"\b(?:redis|tiercel)_[a-z0-9_]+", re.sub(r"\w+:\w+(?::\w+)?|description:.*", "", rules)))
    dashboard = DASHBOARD.read_text()
    panels = json.loads(dashboard)["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    wanted |= {name for e in expressions for name in re.findall(r"\b(?:redis|tiercel)_[a-z0-9_]+", e)}
    assert len(wanted) > 80 and recorded
    assert wanted - there == set()


def test_rules():
    assert "SUCCESS" in run("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)
    run("promtool", "test", "rules", RULES.with_suffix(".test.yml"))
    # Each alert has a test that raises it, and says what to do.
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    tests = RULES.with_suffix(".test.yml").read_text()
    assert [a for a in alerts if a not in tests] == []
    assert RULES.read_text().count("description:") == RULES.read_text().count("summary:") == len(alerts)


def test_dashboard_has_grafanas_form():
    d = json.loads(DASHBOARD.read_text())
    assert d["uid"] and d["title"] and d["schemaVersion"] >= 36 and "id" not in d
    variables = {v["name"]: v for v in d["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    ids = [p["id"] for p in d["panels"]]
    assert len(ids) == len(set(ids))
    rows = [p["title"] for p in d["panels"] if p["type"] == "row"]
    assert rows == ["Overview", "Memory", "Disk", "Upstream", "Coherence", "Clients", "Commands"]
    taken = set()
    for p in d["panels"]:
        g = p["gridPos"]
        cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert g["x"] + g["w"] <= 24 and not cells & taken, "%s lies on another" % p["title"]
        taken |= cells
        if p["type"] == "row":
            continue
        assert p["datasource"]["uid"] == "${datasource}" and p["targets"]
        for target in p["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert {"job", "instance"} <= used <= set(variables)
            assert target["expr"].count("(") == target["expr"].count(")")


def test_each_lookup_counts_once(tiercel, redis_server):
    """Found in memory at once, or missed there and then had from another tier, or nowhere."""
    def look(c, keys):
        t0 = t.tiers()
        for key in keys:
            c.get(key)
        t1 = t.tiers()
        change = {name: t1[name] - t0[name] for name in t1 if name.startswith("tier_") and isinstance(t1[name], int)}
        return change["tier_memory_hits"] - change["tier_memory_refound"], change["tier_memory_misses"], change

    t = tiercel(maxmemory="2mb")
    c = t.client()
    for i in range(4000):
        c.set("k%d" % i, os.urandom(1000))
    keys = ["k%d" % (i * 7 % 4000) for i in range(2000)] + ["nowhere"] * 50
    hits, misses, change = look(c, keys)
    assert hits + misses == len(keys)
    assert misses == change["tier_disk_hits"] + 50 > 500
    t = tiercel(upstream=redis_server())
    t.wait_tiers(tier_upstream_state="up")
    c = t.client()
    c.set("k", "v")
    hits, misses, change = look(c, ["k"] * 10 + ["nowhere"])
    assert (hits, misses) == (9, 2) and change["tier_upstream_hits"] == change["tier_upstream_misses"] == 1


# ---- a Prometheus

def test_prometheus_scrapes(tiercel, tmp_path):
    t = tiercel(http_port=free_port(), http_token="s3cret")
    c = busy(t)
    for name in ("prometheus.yml", "tiercel.rules.yml"):
        shutil.copy(CONF / "prometheus" / name, tmp_path)
    (tmp_path / "token").write_text("s3cret\n")
    config = (tmp_path / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9379", "127.0.0.1:%d" % t.http_port).replace("15s", "1s")
    config = config.replace("# authorization:", "authorization:").replace("#   credentials_file: /etc/prometheus/tiercel.token",
                                                                           "  credentials_file: %s" % (tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(config)
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
    port = free_port()
    with Tool(tmp_path / "log", "prometheus", "--config.file=%s" % (tmp_path / "prometheus.yml"),
              "--storage.tsdb.path=%s" % (tmp_path / "tsdb"), "--web.listen-address=127.0.0.1:%d" % port) as prometheus:
        prometheus.answer(port, "/-/ready")

        def query(expression):
            reply = json.loads(get(port, "/api/v1/query?query=" + urllib.parse.quote(expression)))
            assert reply["status"] == "success"
            return [float(r["value"][1]) for r in reply["data"]["result"]]

        wait_until(lambda: query('up{job="tiercel"} == 1'), timeout=30, what="it is scraped")
        assert query('redis_commands_total{job="tiercel",cmd="set"}') == [c.info("commandstats")["cmdstat_set"]["calls"]]
        assert query('tiercel_build_info') == [1.0]
        target, = json.loads(get(port, "/api/v1/targets"))["data"]["activeTargets"]
        assert target["health"] == "up" and target["lastError"] == ""
        groups = json.loads(get(port, "/api/v1/rules"))["data"]["groups"]
        bad = [r for g in groups for r in g["rules"] if r["health"] not in ("ok", "unknown")]
        assert len(groups) == 5 and bad == []


# ---- redis_exporter

EXPORTER = """-include-system-metrics -is-tile38=false -check-keys db0=k*,db0=str* -check-single-keys db0=k1,db0=nokey
    -count-keys db0=k* -check-streams db0=str* -check-single-streams db0=stream -check-key-groups ^(k).*$ -set-client-name
    -ping-on-connect -export-client-list -export-client-port -include-config-metrics -connection-timeout 5s
    -config-command CONFIG""".split()
# What a server without replicas and save points cannot have: nothing.
NOT_HERE = set()


def exporter(server, tmp_path):
    port = free_port()
    log = tmp_path / ("exporter-%d.log" % server.port)
    with Tool(log, "prometheus-redis-exporter", "-redis.addr", server.url, "-web.listen-address",
              "127.0.0.1:%d" % port, *EXPORTER) as e:
        text = e.answer(port, "/metrics")
    noise = [line for line in log.read_text().splitlines() if "level=info" not in line]
    return text, noise


def test_exporter_and_numbers(tiercel, redis_server, tmp_path):
    tool("prometheus-redis-exporter")
    redis, t = redis_server(), tiercel(http_port=free_port(), threads=2)
    for server in (redis, t):
        busy(server)
    before = samples(get(t.http_port, "/metrics"))
    info = t.info("everything")
    theirs, their_noise = exporter(redis, tmp_path)
    ours, our_noise = exporter(t, tmp_path)
    assert [line for line in our_noise if "level=" in line and "error" in line.lower()] == []
    assert len(our_noise) <= len(their_noise), our_noise
    assert names(theirs) - names(ours) - NOT_HERE == set()
    assert "redis_exporter_last_scrape_error" in ours and samples(ours)['redis_exporter_last_scrape_error{err=""}'] == 0
    # INFO, /metrics and the exporter tell the same.
    after = samples(ours)
    fields = {
        "redis_keyspace_hits_total": info["keyspace_hits"],
        "redis_keyspace_misses_total": info["keyspace_misses"],
        "redis_expired_keys_total": info["expired_keys"],
        "redis_evicted_keys_total": info["evicted_keys"],
        "redis_memory_max_bytes": info["maxmemory"],
        "redis_config_maxclients": info["maxclients"],
        "redis_rdb_changes_since_last_save": info["rdb_changes_since_last_save"],
        'redis_commands_total{cmd="set"}': 20,
        'redis_commands_total{cmd="get"}': 30,
        'redis_commands_failed_calls_total{cmd="lpush"}': 1,
        'redis_commands_rejected_calls_total{cmd="get"}': 1,
        'redis_db_keys{db="db0"}': 21,
        'redis_db_keys_expiring{db="db0"}': 10,
        'redis_errors_total{err="WRONGTYPE"}': 1,
        'redis_errors_total{err="ERR"}': 2,
        "redis_aof_enabled": 0,
    }
    for series, value in fields.items():
        assert before[series] == value, series
        assert after[series] == value, series
    # What Grafana's dashboard for redis_exporter (763) asks for is in our own page, too.
    for name in """redis_up redis_uptime_in_seconds redis_connected_clients redis_blocked_clients redis_memory_used_bytes
            redis_memory_max_bytes redis_memory_used_rss_bytes redis_mem_fragmentation_ratio redis_net_input_bytes_total
            redis_net_output_bytes_total redis_commands_processed_total redis_connections_received_total redis_connected_slaves
            redis_rejected_connections_total redis_cpu_sys_seconds_total redis_cpu_user_seconds_total redis_tracking_clients
            redis_evicted_keys_total redis_expired_keys_total redis_pubsub_channels redis_pubsub_patterns redis_slowlog_length""".split():
        assert name in before and name in after
    mine = {n for n in names(get(t.http_port, "/metrics")) if n.startswith("redis_")}
    # Names that redis_exporter has in other versions.
    assert mine - names(ours) == {"redis_error_replies_total", "redis_expired_subkeys_total", "redis_evicted_clients_total", "redis_rdb_saves_total"}
