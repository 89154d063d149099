"""The libraries of shim/: building them, loading them into a server, and what belongs to them.

    shims.preload("failwrites", FAILWRITES_DIR=...)   the environment of such a server
    LostWrites(directory)                             kill -9 as a power failure
    FailWrites(directory)                             system calls that fail when told to
"""
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import time

import harness

SOURCES = pathlib.Path(__file__).resolve().parent / "shim"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-shared",
         "-fPIC"]
PAGE = 4096


def build(name):
    """Path of the library, made anew when its source is newer."""
    target = harness.BINARY.parent / "shim" / (name + ".so")
    newest = max(p.stat().st_mtime for p in SOURCES.iterdir())
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
            made = pathlib.Path(tmp) / target.name
            subprocess.run([os.environ.get("CC", "gcc"), *FLAGS, "-o", made, SOURCES / (name + ".c"), "-ldl",
                            "-lpthread"], check=True)
            made.rename(target)
    return target


def preload(name, binary=None, **env):
    """Environment variables that load a shim. A sanitizer's library must come before it."""
    linked = subprocess.run(["ldd", str(binary or harness.BINARY)], capture_output=True, text=True).stdout
    first = re.findall(r"(?:=>)?\s*(\S*/lib[at]san\.so\S*)", linked)
    return {"LD_PRELOAD": ":".join([*first, str(build(name))]), **{k: str(v) for k, v in env.items()}}


class FailWrites:
    """System calls on files below `directory` fail while fail() is in force."""

    def __init__(self, directory):
        self.rules = pathlib.Path(tempfile.mkdtemp(prefix="tiercel-shim-")) / "rules"
        self.env = preload("failwrites", FAILWRITES_DIR=os.path.realpath(directory), FAILWRITES_RULES=self.rules)

    def fail(self, *rules):
        """fail("write EIO", "sync EIO 50"), see failwrites.c; fail() ends it."""
        if rules:
            new = self.rules.with_name("new")
            new.write_text("\n".join(rules) + "\n", encoding="ascii")
            new.rename(self.rules)
        elif self.rules.exists():
            self.rules.unlink()

    def remove(self):
        shutil.rmtree(self.rules.parent, ignore_errors=True)


class LostWrites:
    """What was written to files below `directory` after their last sync can be undone once the process is dead."""

    ENTRY = struct.Struct("<IIQQQ")  # lostwrites.c: struct entry
    UNDO, KEPT, SYNC = 0x4f444e55, 0x5450454b, 0x434e5953

    def __init__(self, directory, sync_us=None, broken=False, binary=None):
        self.directory = os.path.realpath(directory)
        self.journals = tempfile.mkdtemp(prefix="tiercel-shim-")
        self.env = preload("lostwrites", binary, LOSTWRITES_DIR=self.directory, LOSTWRITES_JOURNAL=self.journals)
        if sync_us:
            self.env["LOSTWRITES_SYNC_US"] = str(sync_us)
        if broken:
            self.env["LOSTWRITES_BROKEN"] = "1"

    def wait_unsynced(self, seconds):
        """Until something was written that is not synced, or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not any(e.stat().st_size > 200 for e in os.scandir(self.journals)):
            time.sleep(0.0005)

    def undo(self, rng, share=1.0):
        """Loses that share of the pages that were not synced (a device writes them in any order). Returns how many
        bytes were lost."""
        paths = {}
        for folder, _, names in os.walk(self.directory):
            for name in names:
                path = os.path.join(folder, name)
                paths[os.stat(path).st_ino] = path
        lost = 0
        for name in os.listdir(self.journals):
            journal = os.path.join(self.journals, name)
            if int(name) in paths:
                with open(journal, "rb") as f:
                    lost += self._undo_file(paths[int(name)], f.read(), rng, share)
            os.unlink(journal)
        return lost

    def _entries(self, data):
        """(kind, off, span, size, old bytes), oldest first, of what is not on the device."""
        out = []
        at = 0
        while at + self.ENTRY.size <= len(data):
            kind, length, off, span, size = self.ENTRY.unpack_from(data, at)
            end = at + self.ENTRY.size + length
            if end > len(data):
                break  # killed while it was noted: the write itself had not begun
            if kind == self.SYNC:
                out = [e for e in out if e[0] >= off]
            else:
                out.append((at, kind, off, span, size, data[end - length:end]))
            at = end
        return [e[1:] for e in out]

    def _undo_file(self, path, data, rng, share):
        entries = self._entries(data)
        decided = {}
        durable = []  # ranges on the device, later than the entry at hand
        lost = 0
        size = None
        with open(path, "r+b") as f:
            now = os.fstat(f.fileno()).st_size
            least = 0  # the file reaches at least so far

            def is_lost(page):
                if page not in decided:
                    decided[page] = share >= 1 or rng.random() < share
                return decided[page]

            for kind, off, span, before, old in reversed(entries):
                if kind == self.KEPT:
                    durable.append((off, off + span))
                    least = max(least, off + span)
                    continue
                size = before
                at = off
                while at < off + span:
                    end = min((at // PAGE + 1) * PAGE, off + span)
                    if is_lost(at // PAGE):
                        piece = old[at - off:end - off]
                        self._write_around(f, at, piece + bytes(end - at - len(piece)), durable)
                        lost += end - at
                    else:
                        least = max(least, min(end, now))
                    at = end
            if size is not None:
                f.truncate(max(size, least))
        return lost

    @staticmethod
    def _write_around(f, at, data, durable):
        pieces = [(at, at + len(data))]
        for lo, hi in durable:
            pieces = [p for a, b in pieces for p in ((a, min(b, lo)), (max(a, hi), b)) if p[0] < p[1]]
        for a, b in pieces:
            f.seek(a)
            f.write(data[a - at:b - at])

    def remove(self):
        shutil.rmtree(self.journals, ignore_errors=True)
