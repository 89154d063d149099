"""Servers with a broken protocol: they show that the checker finds what it is for.

    broken.py FAULT DIRECTORY       copies the sources there, breaks them, builds; prints the server's path

The product has no switch for it: the copy's source is changed before it is built.
"""
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A fetch that was under way when its key was invalidated or written is kept all the same.
KEEPS_NO_KEEP = ("tier_delete_locked(w, shard, &key, TIER_DELETED);",
                 "{ mem_slot *at = mem_find_locked(t->mem, shard, &key);\n"
                 "  struct object *it = at ? mem_object(*at) : NULL;\n"
                 "  if (!it || it->type != OBJ_RESIDENCY || !residency_of(it)->fetching)\n"
                 "      tier_delete_locked(w, shard, &key, TIER_DELETED); }")
# Copies outlive the connection that vouches for them.
KEEPS_SUSPECTS = ("atomic_load_explicit(&t->generation[worker], memory_order_acquire) == generation;",
                  "(atomic_load_explicit(&t->generation[worker], memory_order_acquire) != generation + 1000000u);")

FAULTS = {"keeps-no-keep": KEEPS_NO_KEEP, "keeps-suspects": KEEPS_SUSPECTS}


def build(fault, directory):
    """Returns the path of the server. AssertionError: the source is not what the change expects."""
    directory = pathlib.Path(directory)
    for name in ("src", "include", "tbl", "deps", "conf"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, directory / name, symlinks=True)
    shutil.copy(ROOT / "Makefile", directory)
    before, after = FAULTS[fault]
    hits = [p for p in (directory / "src" / "tier").glob("*.c") if before in p.read_text(encoding="utf-8")]
    assert len(hits) == 1 and hits[0].read_text(encoding="utf-8").count(before) == 1, \
        "%s: found in %s; it has to be once in src/tier" % (fault, hits)
    hits[0].write_text(hits[0].read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "SAN", "BUILD")}
    run = subprocess.run(["make", "-j2", "LTO=0", "BUILD=build", "build/tiercel"], cwd=directory, env=env, stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return directory / "build" / "tiercel"


if __name__ == "__main__":
    print(build(sys.argv[1], sys.argv[2]))
