"""Logs: levels of modules, rotation, slow commands."""
import ctypes
import os
import re
import signal

import pytest

from harness import RespError, wait_until

LONG = "x" * 3900


def unpacked(path):
    """The text of a zstd file, by the library that the server is linked with."""
    lib = ctypes.CDLL("libzstd.so.1")
    lib.ZSTD_decompress.restype = ctypes.c_size_t
    packed, out = path.read_bytes(), ctypes.create_string_buffer(4 << 20)
    size = lib.ZSTD_decompress(out, ctypes.c_size_t(len(out)), packed, ctypes.c_size_t(len(packed)))
    assert size <= len(out), "not a whole zstd frame"
    return out.raw[:size].decode()


def say(t, text, level="WARNING"):
    t.call("EVAL", "redis.log(redis.LOG_%s, ARGV[1])" % level, 0, text)


def test_a_module_has_a_level_of_its_own(tiercel, tmp_path):
    conf = tmp_path / "t.conf"
    conf.write_text("loglevel notice\nlog-level-modules net=warning tier=verbose\n")
    t = tiercel(args=[conf])
    say(t, "not-said", "DEBUG")
    assert t.call("CONFIG", "SET", "log-level-modules", "script=debug disk=verbose") == "OK"
    say(t, "was-said", "DEBUG")
    for bad, tells in (("scripts=debug", "upstream"), ("script=loud", "verbose"), ("script", "modules are")):
        reply = t.call("CONFIG", "SET", "log-level-modules", bad)
        assert isinstance(reply, RespError) and tells in str(reply), reply
    assert t.call("CONFIG", "GET", "log-level-modules")[1] == b"script=debug disk=verbose"
    assert t.call("CONFIG", "SET", "loglevel", "warning") == "OK"
    say(t, "also-said", "DEBUG")
    say(t, "at-last", "WARNING")
    assert t.call("CONFIG", "REWRITE") == "OK"
    assert conf.read_text().startswith("loglevel warning\nlog-level-modules script=debug disk=verbose\n")
    log = t.log()
    assert "not-said" not in log and all(word in log for word in ("was-said", "also-said", "at-last"))


def test_a_full_log_is_packed_and_few_are_kept(tiercel, tmp_path):
    log = tmp_path / "t.log"
    left = tmp_path / "t.log.0"  # a crash came between renaming and packing
    left.write_text("left over\n")
    t = tiercel(logfile=log, log_max_size=16384, log_max_files=2)
    first, second, third = (tmp_path / ("t.log.%d.zst" % i) for i in (1, 2, 3))
    wait_until(lambda: first.exists() and not left.exists(), what="what a crash left is packed")
    assert unpacked(first) == "left over\n"
    for i in range(15):
        say(t, "line-%02d " % i + LONG)
    # At most twenty lines a second: these are all there.
    wait_until(lambda: second.exists() and not left.exists() and log.stat().st_size < 16384, what="rotation")
    text = "".join(unpacked(f) if f.suffix == ".zst" else f.read_text() for f in (second, first, log))
    found = re.findall(r"line-(\d+) ", text)
    assert found == sorted(set(found)) and found[-1] == "14" and len(found) >= 8, found
    assert oct(first.stat().st_mode & 0o777) == oct(log.stat().st_mode & 0o777)
    # Others may rotate it, too.
    os.rename(log, tmp_path / "theirs")
    t.process.send_signal(signal.SIGHUP)
    wait_until(log.exists)
    say(t, "after-hup")
    wait_until(lambda: "after-hup" in log.read_text())
    assert not third.exists()


def test_a_log_that_cannot_be_packed_is_kept_plain(tiercel, tmp_path):
    log = tmp_path / "t.log"
    (tmp_path / "t.log.0.zst.part").mkdir()
    t = tiercel(logfile=log, log_max_size=4096)
    say(t, "kept-plain " + LONG)
    wait_until(lambda: (tmp_path / "t.log.1").exists())
    assert "kept-plain" in (tmp_path / "t.log.1").read_text()
    wait_until(lambda: "cannot be compressed" in log.read_text())
    assert t.call("CONFIG", "SET", "log-max-size", "0") == "OK"
    say(t, "on-it-goes " + LONG)
    assert "on-it-goes" in log.read_text()


def test_a_full_medium_does_not_stop_the_server(tiercel):
    t = tiercel(logfile="/dev/full")
    say(t, "into the void")
    assert t.call("PING") == "PONG"


def slow_line(t, command):
    """The line of a command, as a dict of its figures."""

    def look():
        found = re.findall(r"slow: (.*) command:(.* \"?%s\"?.*)" % command, t.log(), re.I)
        return found and found[-1]

    figures, text = wait_until(look, what="a slow line of " + command)
    return dict(word.split("=", 1) for word in figures.split(" ")), text


def test_a_slow_command_tells_what_it_waited_for(tiercel, redis_server, proxy):
    up = redis_server()
    wire = proxy(up)
    t = tiercel(upstream=wire, threads=2, slow_command_log=True, slowlog_log_slower_than=40000)
    t.wait_tiers(tier_upstream_state="up")
    up.client().set("far", "v")
    wire.delay(0.06)
    with t.raw() as c:
        c.call("CLIENT", "SETNAME", "me")
        assert c.call("GET", "far") == b"$1\r\nv\r\n"
        assert c.call("SET", "secret", "y" * 100).startswith(b"+OK")
        assert c.call("GET", "far") == b"$1\r\nv\r\n"
    wire.delay(0)
    got, text = slow_line(t, "GET")
    assert int(got["upstream_us"]) >= 40000 and int(got["disk_us"]) < 40000 and got["keys"] == "1" and got["name"] == "me"
    assert int(got["total_us"]) == sum(int(got[k]) for k in ("exec_us", "disk_us", "upstream_us")) and '"far"' in text
    sent, text = slow_line(t, "SET")
    assert int(sent["upstream_us"]) >= 40000 and "... (36 more bytes)" in text
    assert len(re.findall(r"slow: .*\"GET\" \"far\"", t.log())) == 1  # the second one was here
    assert t.call("SLOWLOG", "LEN") == 0  # that counts only what a command works itself
    t.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
    t.call("CONFIG", "SET", "tls-key-file-pass", "hush-hush")
    t.call("CONFIG", "SET", "requirepass", "hush-hush", "timeout", "0")
    wait_until(lambda: t.log().count("(redacted)") >= 2)
    assert "hush" not in t.log()


@pytest.mark.heavy
def test_a_slow_command_tells_of_the_disk(tiercel):
    t = tiercel(slow_command_log=True, slowlog_log_slower_than=-1, maxmemory="4mb", threads=1)
    c = t.client()
    value = os.urandom(3000)
    for base in range(0, 6000, 500):
        p = c.pipeline(transaction=False)
        for i in range(base, base + 500):
            p.set("k%d" % i, value)
        p.execute()
    c.config_set("slowlog-log-slower-than", 0)
    keys = ["k%d" % i for i in range(0, 100)]
    assert c.mget(keys) == [value] * 100  # more than are read at once where they are
    got, _ = slow_line(t, "MGET")
    assert int(got["disk_us"]) > 0 and got["keys"] == "100" and got["upstream_us"] == "0"
