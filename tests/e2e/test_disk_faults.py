"""A disk that is full, fails, turns read-only or has been damaged: memory goes on serving, everybody is told, and it
recovers by itself. (tests/unit/test_disk_fault.c does the same to the disk layer alone.)"""
import errno
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import time
import urllib.request

import pytest

from harness import BINARY, SANITIZE, free_port, scaled, wait_until
from rawconn import RespError
from shims import FailWrites

MB = 1 << 20
FULL = ("no space", "full")


def value_of(key, version=0, size=1000):
    return hashlib.shake_128(b"%s/%d" % (key.encode(), version)).digest(size)


def write(t, keys, version=0, size=1000):
    """None of them fails."""
    c = t.client()
    for at in range(0, len(keys), 200):
        p = c.pipeline(transaction=False)
        for k in keys[at:at + 200]:
            p.set(k, value_of(k, version, size))
        replies = p.execute(raise_on_error=False)
        assert set(map(str, replies)) == {"True"}, set(map(str, replies))


def wrong_values(t, keys, versions=(0,), size=1000):
    """Keys with a value that is none of theirs."""
    c = t.client()
    bad, found = [], 0
    for at in range(0, len(keys), 200):
        some = keys[at:at + 200]
        for k, got in zip(some, c.mget(some)):
            found += got is not None
            if got is not None and got not in [value_of(k, v, size) for v in versions]:
                bad.append(k)
    return bad, found


def check_latest(t, keys):
    """What was just written is in memory, but for what sampling takes for old."""
    bad, found = wrong_values(t, keys)
    assert not bad and found >= len(keys) * 0.8, (bad, found)


def readyz(t):
    with urllib.request.urlopen("http://127.0.0.1:%d/readyz" % t.http_port, timeout=scaled(10)) as reply:
        return json.loads(reply.read())


def keys_of(prefix, n):
    return ["%s:%d" % (prefix, i) for i in range(n)]


@pytest.fixture
def mounted(tmp_path):
    """mounted(megabytes) -> a directory that is a tmpfs of that size."""
    made = []

    def mount(size):
        path = tmp_path / ("fs%d" % len(made))
        path.mkdir()
        if os.geteuid() != 0:
            pytest.skip("mounting needs root")
        run = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % size, "tiercel-test", path],
                             capture_output=True, text=True)
        if run.returncode != 0:
            pytest.skip("no tmpfs can be mounted here: %s" % run.stderr.strip())
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", path])


@pytest.fixture
def failing(tmp_path):
    """failing() -> a FailWrites for a directory of its own, `.dir`."""
    made = []

    def make():
        f = FailWrites(tmp_path)
        f.dir = tmp_path / ("data%d" % len(made))
        made.append(f)
        return f

    yield make
    for f in made:
        f.remove()


def wait_told(t, healthy, *words, timeout=10):
    """INFO, /readyz and the log agree; returns INFO's Tiers."""
    tiers = t.wait_tiers(tier_disk_healthy=int(healthy), timeout=timeout)
    disk = readyz(t)["disk"]
    assert disk["healthy"] is healthy, disk
    assert readyz(t)["ready"] is True, "memory serves"
    if not healthy:
        text = tiers["tier_disk_problem"]
        for where in (text, disk["problem"], t.log()):
            assert any(w.lower() in where.lower() for w in words), "%r does not say %s" % (where[-500:], words)
        assert tiers["tier_disk_io_errors"] > 0
    return tiers


# -- a full file system


def fill(directory, leave=0):
    """Takes the room of a file system, but for `leave` bytes. Returns the file that has it."""
    ballast = directory / "ballast"
    with open(ballast, "wb", buffering=0) as f:
        try:
            while f.write(bytes(65536)) == 65536:
                pass
        except OSError as e:
            assert e.errno == errno.ENOSPC
        f.truncate(max(0, f.tell() - leave))
    return ballast


def settle(t):
    wait_until(lambda: t.tiers()["tier_disk_queue_bytes"] == 0, what="it is on disk")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("leave", [0, pytest.param(600000, marks=pytest.mark.twin)])
def test_full_file_system(tiercel, mounted, leave):
    """A cache: no SET fails, reads go on, and writing resumes when room is made."""
    room = mounted(40)
    t = tiercel(dir=room / "data", maxmemory="4mb", threads=2, http_port=free_port(), disk_max_size="1gb")
    first = keys_of("a", 8000)
    write(t, first)
    settle(t)
    assert wrong_values(t, first) == ([], 8000)
    ballast = fill(room, leave)
    second = keys_of("b", 16000)
    write(t, second)
    check_latest(t, second[-500:])
    bad, found = wrong_values(t, first + second)
    assert not bad and found > 4000
    tiers = t.tiers()
    if not tiers["tier_disk_healthy"]:
        wait_told(t, False, *FULL)
    c = t.client()
    c.delete(*first[:500])
    write(t, first[500:1000], version=1)
    ballast.unlink()
    wait_told(t, True)
    third = keys_of("c", 12000)
    write(t, third)
    settle(t)
    bad, found = wrong_values(t, third)
    assert not bad and found > 6000, "there is room again, though not used in full at once"
    t.kill9()
    t.start()
    assert t.client().exists(*first[:500]) == 0, "deleted while the disk was full"
    assert wrong_values(t, first[500:1000], versions=(1,))[0] == [], "replaced while the disk was full"
    assert wrong_values(t, first[1000:] + second)[0] == []
    bad, found = wrong_values(t, third)
    assert not bad and found > 2000
    t.stop()


@pytest.mark.sequential
@pytest.mark.timeout(90)
def test_a_small_file_system_is_enough_for_a_cache(tiercel, mounted):
    """What may be dropped makes room for what is new, though disk-max-size would allow more."""
    room = mounted(24)
    t = tiercel(dir=room / "data", maxmemory="4mb", threads=2, http_port=free_port(), disk_max_size="1gb")
    keys = keys_of("a", 60000)
    write(t, keys)
    check_latest(t, keys[-500:])
    assert wrong_values(t, keys)[0] == []
    assert wait_told(t, True)["tier_disk_io_errors"] == 0, "room was made before it ran out"
    t.restart()
    bad, found = wrong_values(t, keys)
    assert not bad and found > 5000
    t.stop()


def write_until_refused(t, prefix, most, keep):
    """SETs until one is refused, or ends the connection; keep: those that were answered. Returns the error."""
    with t.raw() as c:
        for i in range(most):
            k = "%s:%d" % (prefix, i)
            try:
                reply = c.ask("SET", k, value_of(k))
            except (EOFError, ConnectionError):
                return "closed"
            if isinstance(reply, RespError):
                return str(reply)
            keep.append(k)
    return None


@pytest.mark.twin
@pytest.mark.timeout(90)
def test_full_file_system_without_eviction(tiercel, mounted):
    """Memory and disk are full, and nothing may be dropped: writes are refused, all that was answered is there."""
    room = mounted(24)
    t = tiercel(dir=room / "data", maxmemory="4mb", threads=2, http_port=free_port(), maxmemory_policy="noeviction",
                disk_max_size="1gb")
    keys = keys_of("a", 4000)
    write(t, keys)
    settle(t)
    ballast = fill(room)
    assert write_until_refused(t, "b", 40000, keys).startswith("OOM")
    wait_told(t, False, *FULL)
    assert wrong_values(t, keys) == ([], len(keys))
    ballast.unlink()
    wait_told(t, True)
    more = keys_of("c", 4000)
    write(t, more)
    settle(t)
    assert wrong_values(t, keys + more) == ([], len(keys) + 4000)
    t.restart()
    assert wrong_values(t, keys + more) == ([], len(keys) + 4000)
    t.stop()


@pytest.mark.sequential
@pytest.mark.timeout(60)
def test_full_file_system_refuses_what_it_cannot_keep(tiercel, mounted):
    """appendfsync always: what is answered is on disk, so a write is refused as Redis does; reads go on."""
    room = mounted(16)
    t = tiercel(dir=room / "data", maxmemory="32mb", http_port=free_port(), maxmemory_policy="noeviction",
                disk_max_size="1gb", appendonly=True, appendfsync="always")
    keys = []
    assert write_until_refused(t, "a", 40000, keys).startswith(("closed", "MISCONF"))
    assert write_until_refused(t, "b", 1, keys).startswith("MISCONF")
    assert len(keys) > 1000
    wait_told(t, False, *FULL)
    assert wrong_values(t, keys) == ([], len(keys))
    t.kill9()
    t.start()
    assert wrong_values(t, keys) == ([], len(keys)), "what was answered is on disk"
    t.stop()


# -- a disk that fails


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rules, words", [
    pytest.param(["write EIO"], ["input/output"], id="write-EIO"),
    pytest.param(["sync EIO"], ["input/output"], id="sync-EIO", marks=pytest.mark.heavy),
    pytest.param(["write EROFS"], ["read-only file system"], id="write-EROFS", marks=pytest.mark.heavy),
    pytest.param(["write ENOSPC"], ["no space"], id="write-ENOSPC", marks=pytest.mark.twin),
    pytest.param(["write SHORT"], ["input/output", "no space"], id="write-SHORT", marks=pytest.mark.heavy),
])
def test_failing_disk(tiercel, failing, rules, words):
    disk = failing()
    t = tiercel(dir=disk.dir, maxmemory="3mb", threads=2, http_port=free_port(), env=disk.env)
    old = keys_of("old", 6000)
    write(t, old)
    settle(t)
    disk.fail(*rules)
    new = keys_of("new", 4000)
    write(t, new)
    wait_told(t, False, *words)
    check_latest(t, new[-200:])
    bad, found = wrong_values(t, old)
    assert not bad and found > 1000, "what is on disk can be read, and was not dropped to make room"
    t.client().delete(*old[:1000])
    write(t, old[1000:1500], version=1)
    time.sleep(scaled(1.2))  # it has tried again meanwhile
    wait_told(t, False, *words)
    disk.fail()
    wait_told(t, True)
    more = keys_of("more", 3000)
    write(t, more)
    settle(t)
    assert wrong_values(t, more) == ([], 3000)
    t.kill9()
    t.start()
    c = t.client()
    assert c.exists(*old[:1000]) == 0, "deleted while the disk failed"
    assert wrong_values(t, old[1000:1500], versions=(1,))[0] == [], "replaced while the disk failed"
    assert wrong_values(t, old[1500:] + new + more)[0] == []
    t.stop()


@pytest.mark.timeout(60)
def test_now_and_then_a_failure(tiercel, failing):
    """Every fourth call fails: nothing wrong comes of it, and it is healthy again afterwards."""
    disk = failing()
    t = tiercel(dir=disk.dir, maxmemory="3mb", threads=2, http_port=free_port(), env=disk.env)
    disk.fail("write EIO 25", "sync EIO 25")
    keys = keys_of("k", 3000)
    for version in range(4):
        write(t, keys, version)
        assert wrong_values(t, keys, versions=(version,))[0] == []
    disk.fail()
    wait_told(t, True)
    write(t, keys, 4)
    settle(t)
    assert wrong_values(t, keys, versions=(4,)) == ([], 3000)
    t.restart()
    assert wrong_values(t, keys, versions=(4,)) == ([], 3000)
    t.stop()


@pytest.mark.timeout(60)
def test_always_and_a_failing_disk(tiercel, failing):
    """A write that cannot be kept is refused; what was answered is there after a kill; it recovers."""
    disk = failing()
    t = tiercel(dir=disk.dir, maxmemory="8mb", threads=2, http_port=free_port(), env=disk.env, appendonly=True,
                appendfsync="always")
    answered = {}
    with t.raw() as c:
        for i in range(50):
            assert c.ask("SET", "k:%d" % i, value_of("k:%d" % i)) == "OK"
            answered["k:%d" % i] = 0
        disk.fail("sync EIO")
        try:  # done, but not to be acknowledged: there is no reply that says so
            reply = c.ask("SET", "k:0", value_of("k:0", 1))
            assert isinstance(reply, RespError), reply
        except (EOFError, ConnectionError):
            pass
    with t.raw() as c:
        refused = [c.ask("SET", "k:%d" % i, value_of("k:%d" % i, 1)) for i in range(10)]
        assert all(isinstance(r, RespError) and str(r).startswith("MISCONF") for r in refused), refused
        assert c.ask("GET", "k:20") == value_of("k:20")
        wait_told(t, False, "input/output")
        disk.fail()
        wait_told(t, True)
        for i in range(20, 30):
            assert c.ask("SET", "k:%d" % i, value_of("k:%d" % i, 2)) == "OK"
            answered["k:%d" % i] = 2
    t.kill9()
    t.start()
    for k, version in answered.items():
        may = (0, 1) if k == "k:0" else (version,)
        assert wrong_values(t, [k], versions=may) == ([], 1)
    t.stop()


@pytest.mark.timeout(60)
def test_a_stop_while_the_disk_fails(tiercel, failing):
    disk = failing()
    t = tiercel(dir=disk.dir, maxmemory="3mb", env=disk.env, http_port=free_port(), shutdown_timeout=2)
    keys = keys_of("k", 6000)
    write(t, keys)
    settle(t)
    disk.fail("write EIO")
    write(t, keys[:2000], version=1)
    assert t.stop() < scaled(8)
    assert "not written out" in t.log()
    disk.fail()
    t.start()
    assert wrong_values(t, keys[:2000], versions=(1,))[0] == [], "replaced while the disk failed"
    assert wrong_values(t, keys[2000:])[0] == []
    t.stop()


@pytest.mark.timeout(60)
def test_read_only_remount(tiercel, tmp_path):
    """As a kernel does it to a file system that has errors."""
    image, room = tmp_path / "image", tmp_path / "fs"
    room.mkdir()
    with open(image, "wb") as f:
        f.truncate(64 * MB)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, room]):
        if os.geteuid() != 0 or shutil.which(command[0]) is None or subprocess.run(
                command, capture_output=True).returncode != 0:
            pytest.skip("%s is not possible here" % command[0])
    try:
        t = tiercel(dir=room / "data", maxmemory="3mb", http_port=free_port())
        old = keys_of("old", 6000)
        write(t, old)
        settle(t)
        if subprocess.run(["mount", "-o", "remount,abort", room], capture_output=True).returncode != 0:
            pytest.skip("this kernel does not remount so")
        new = keys_of("new", 3000)
        write(t, new)
        wait_told(t, False, "read-only file system", "input/output")
        check_latest(t, new[-200:])
        bad, found = wrong_values(t, old)
        assert not bad and found > 2500
        t.stop()
    finally:
        subprocess.run(["umount", "-l", room], capture_output=True)


# -- files that are not what they should be


def refused(t_dir, env=None, **options):
    """A server that must not start; what it says."""
    line = [str(BINARY), "--port", str(free_port()), "--http-port", "0", "--dir", str(t_dir)]
    for name, value in options.items():
        line += ["--" + name, str(value)]
    run = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=scaled(20),
                         env={**os.environ, **(env or {})})
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stderr


def test_a_directory_in_use(tiercel):
    t = tiercel()
    t.client().set("k", "v")
    assert "in use by another process" in refused(t.dir)
    assert t.client().get("k") == b"v"
    t.stop()
    t.start()
    assert t.client().get("k") == b"v"


def test_a_network_file_system(tmp_path, failing):
    nfs = failing()
    nfs.fail("statfs NFS")
    assert "network file system" in refused(tmp_path, nfs.env)


def test_a_directory_that_cannot_be_written(tmp_path, failing):
    ro = failing()
    ro.fail("open EROFS")
    text = refused(ro.dir, ro.env)
    assert "Read-only file system" in text and "data0" in text


def set_aside(t):
    return sorted(p.name for p in t.dir.glob("tiercel.mdb.bad-*"))


def expect_aside(t, why, count=1):
    """It started with a new file, kept the old one, and named it."""
    t.start()
    names = set_aside(t)
    assert len(names) == count, names
    assert names[-1] in t.log() and why in t.log().rsplit("set aside", 1)[1], t.log()[-500:]
    assert t.client().dbsize() == 0
    keys = keys_of("new", 500)
    write(t, keys)
    t.restart()
    assert wrong_values(t, keys) == ([], 500) and len(set_aside(t)) == count
    t.stop()


def stopped(tiercel, n=3000, **options):
    """A server that has stopped and left a file."""
    t = tiercel(maxmemory="3mb", **options)
    keys = keys_of("k", n)
    write(t, keys)
    write(t, keys[::3], version=1)
    t.client().delete(*keys[::5])
    t.stop()
    return t, keys, t.dir / "tiercel.mdb"


def test_a_truncated_file(tiercel):
    t, _, path = stopped(tiercel)
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size // 2 // 4096 * 4096)
    expect_aside(t, "truncated")


@pytest.mark.timeout(60)
def test_truncated_while_it_is_used(tiercel):
    """Pages of the map are gone. Memory serves on; what was on disk answers an error, and nothing wrong."""
    t = tiercel(maxmemory="3mb", threads=2, http_port=free_port())
    keys = keys_of("k", 6000)
    write(t, keys)
    settle(t)
    with open(t.dir / "tiercel.mdb", "r+b") as f:
        f.truncate(100000)
    write(t, keys_of("more", 4000))  # commits meet it
    wait_told(t, False, "cannot be read", "MDB_CORRUPTED")
    recent = keys_of("last", 200)
    write(t, recent)
    check_latest(t, recent)
    p = t.client().pipeline(transaction=False)
    for key in keys[::50]:
        p.get(key)
    for key, value in zip(keys[::50], p.execute(raise_on_error=False)):
        assert value is None or value == value_of(key) or "IOERR" in str(value), value
    t.stop()
    t.start()  # the file was set aside, or removed
    write(t, recent)
    check_latest(t, recent)


def test_a_file_of_a_newer_version(tiercel):
    t, _, path = stopped(tiercel)
    data = path.read_bytes()
    at, patched = 0, 0
    with open(path, "r+b") as f:
        while (at := data.find(b"TRCL", at)) >= 0:
            version = struct.unpack_from("<I", data, at + 4)[0]
            if 0 < version < 100:
                f.seek(at + 4)
                f.write(struct.pack("<I", version + 1))
                patched += 1
            at += 4
    assert patched
    expect_aside(t, "another version")


def test_another_kind_of_file(tiercel):
    t, _, path = stopped(tiercel)
    path.write_text("not what you think\n" * 5000, encoding="ascii")
    expect_aside(t, "not a file of ours")


def damage(path, seed):
    """Bits flipped, bytes and pages overwritten, anywhere."""
    rng = random.Random(seed)
    size = path.stat().st_size
    with open(path, "r+b") as f:
        for _ in range(rng.choice((1, 3, 20, 200))):
            kind = rng.random()
            at = rng.randrange(size)
            if rng.random() < 0.3:
                at = rng.randrange(min(size, 20 * 4096))
            f.seek(at)
            if kind < 0.7:
                old = f.read(1)
                f.seek(at)
                f.write(bytes([old[0] ^ 1 << rng.randrange(8)]))
            elif kind < 0.9:
                f.write(rng.randbytes(rng.randrange(1, 300)))
            else:
                f.seek(at // 4096 * 4096)
                f.write(rng.choice((bytes(4096), rng.randbytes(4096))))
        f.truncate(size)


def damaged_starts(tiercel, seeds):
    """The server starts with what is left or sets the file aside, and never brings a value that is not the newest."""
    t, keys, path = stopped(tiercel)
    want = {k: value_of(k, int(i % 3 == 0)) for i, k in enumerate(keys) if i % 5}
    good = path.with_name("good")
    shutil.copy(path, good)
    seen = {"aside": 0, "corrupt": 0, "missing": 0}
    for seed in seeds:
        shutil.copy(good, path)
        damage(path, seed)
        try:
            t.start()
            c = t.client()
            for at in range(0, len(keys), 200):
                some = keys[at:at + 200]
                for k, got in zip(some, c.mget(some)):
                    assert got in (None, want.get(k)), "%s has a value of nobody" % k
                    seen["missing"] += got is None and k in want
            write(t, keys[:1500], version=2)
            assert wrong_values(t, keys[:1500], versions=(2,))[0] == []
            aside = set_aside(t)
            seen["aside"] += len(aside)
            seen["corrupt"] += t.tiers()["tier_disk_corrupt"]
            for name in aside:
                assert name in t.log()
                (t.dir / name).unlink()
            t.stop()
        except BaseException:
            print("seed %d" % seed)
            raise
    print(seen)
    assert all(seen.values()) if len(seeds) >= 25 else any(seen.values()), seen


@pytest.mark.timeout(60)
def test_damaged_files(tiercel):
    damaged_starts(tiercel, range(4 if SANITIZE else 25))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_damaged_files(tiercel):
    begin = int(os.environ.get("DAMAGE_SEED", time.time()))
    damaged_starts(tiercel, range(begin, begin + 500))
