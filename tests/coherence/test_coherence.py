"""Two sidecars, one upstream, and faults between them: see checker.py. The seed is printed; CHECKER_SEED repeats it."""
import os
import time

import pytest

import broken
import checker
import harness
from harness import scaled

SEED = int(os.environ.get("CHECKER_SEED", time.time()))


def verdict(**options):
    report = checker.run(seed=SEED, **options)
    print(report)
    return report


@pytest.mark.timeout(90)
def test_reduced():
    report = verdict(ops=10000, limit=scaled(20), rate=800)
    assert report.ok, report


@pytest.mark.timeout(60)
def test_a_sidecar_that_hears_nothing_is_found_out():
    report = verdict(ops=4000, calm=True, protocol="deaf", limit=scaled(10))
    assert report.violations.get("quiet"), report
    assert not report.violations.get("model") and not report.violations.get("never"), report


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_full():
    report = verdict(ops=int(os.environ.get("CHECKER_OPS", 200000)), limit=900)
    assert report.ok, report


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", sorted(broken.FAULTS))
def test_a_broken_server_is_found_out(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "BINARY", broken.build(fault, tmp_path))
    report = verdict(ops=60000, limit=120)
    assert report.violations.keys() & {"stale", "own write", "quiet"}, report
    assert not report.violations.get("model") and not report.violations.get("never"), report
