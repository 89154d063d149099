"""Runs differential.py with fixed seeds. For more: differential.py --commands N, with any seed."""
import os
import pathlib

import pytest

import differential

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_same_replies_as_redis(seed):
    binary = ROOT / os.environ.get("TIERCEL_BIN", "build/tiercel")
    compared, failure = differential.run(10000, seed, str(binary))
    assert failure is None, failure
    assert compared > 10000


@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_a_kill():
    binary = ROOT / os.environ.get("TIERCEL_BIN", "build/tiercel")
    compared, failure = differential.run(5000, 4, str(binary), appendonly=True)
    assert failure is None, failure
    assert compared > 5000
