"""Runs differential.py, with the seeds from DIFFERENTIAL_SEED (1) on; `make soak` with new ones. For more:
differential.py --commands N --seed S."""
import os
import pathlib

import pytest

import differential

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = str(ROOT / os.environ.get("TIERCEL_BIN", "build/tiercel"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", 1))


def compare(commands, seed, **options):
    print("seed", seed)
    compared, failure = differential.run(commands, seed, BINARY, **options)
    assert failure is None, "seed %d: %s" % (seed, failure)
    assert compared > commands


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(5))
def test_same_replies_as_redis(part):
    compare(20_000, SEED + part)


@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_a_kill():
    compare(5_000, SEED + 5, appendonly=True)


@pytest.mark.timeout(300)
def test_the_same_through_a_sidecar():
    compare(10_000, SEED + 6, sidecar=True, maxmemory="1mb")


@pytest.mark.timeout(300)
def test_the_same_with_keys_that_are_local():
    compare(3_000, SEED + 7, local=True, maxmemory="2mb")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(5))
def test_the_same_with_keys_that_are_local_for_long(part):
    compare(50_000, int.from_bytes(os.urandom(4), "big"), threads=4, local=True, maxmemory="2mb", appendonly=part % 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_the_same_through_a_sidecar_for_long(part):
    compare(50_000, int.from_bytes(os.urandom(4), "big"), threads=4, sidecar=True, maxmemory=("1mb", "4mb")[part % 2])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(20))
def test_same_replies_for_long(part):
    compare(100_000, int.from_bytes(os.urandom(4), "big"), threads=4)
