"""At any number of ranks: one mask, bit for bit, no removed sample on any of them, and no rank left waiting."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("distributed_run.py")


@pytest.fixture
def run(tmp_path):
    """Return a function that runs ranks with options and returns what each found, or how they ended."""

    def start_ranks(world, *, start="fork", ends_well=True, **options):
        directory = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        command = [
            sys.executable,
            str(PROGRAM),
            str(directory),
            json.dumps({"world": world, "start": start, **options}),
        ]
        # A process that forks after its OpenMP threads have started hangs in the first parallel loop of the child.
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if start == "fork" else {})
        ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
        if not ends_well:
            assert ended.returncode
            return ended.stderr
        assert not ended.returncode, ended.stderr[-3000:]
        found = [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(world)]
        files = [path.name for path in (directory / "lightning_poison" / "sanitizer").iterdir()]
        assert sorted(files) == ["manifest.csv", "verdict.safetensors"]
        return found

    return start_ranks


def kept(found):
    """Return the positions that are left by the sanitizers of a run, one behind the other."""
    left = torch.arange(601)
    for verdict in found[0]["verdicts"]:
        assert 0 < verdict["keep"].sum() < len(left)
        left = left[verdict["keep"]]
    return set(left.tolist())


def trained_on(found):
    return set(chain(*chain(*(each["batches"] for each in found))))


def assert_same(found, other):
    for each in found:
        assert each["fingerprints"] == other["fingerprints"]
        for own, others in zip(each["verdicts"], other["verdicts"], strict=True):
            assert own.keys() == others.keys()
            assert all(torch.equal(own[name], others[name]) for name in own)


def test_the_mask_is_the_same_at_one_two_and_three_ranks(run):
    """Behind each other: one sanitizer that trusts nothing, by the default network, and one with trusted data."""
    alone = run(1, trusted=True)
    assert len(alone[0]["verdicts"]) == 2
    assert trained_on(alone) == kept(alone)
    for found in (run(2, start="spawn", trusted=True), run(3, trusted=True)):
        assert_same(found, alone[0])
        assert trained_on(found) == kept(alone)


def test_groups_are_the_same_on_two_ranks(run):
    alone = run(1, groups=True)
    found = run(2, groups=True)
    assert_same(found, alone[0])
    assert trained_on(found) == kept(alone)
    assert len(kept(alone)) == 561


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_stops_all(run, broken):
    said = run(2, start="popen", ends_well=False, fails=broken)
    assert "this rank is broken" in said


def test_ranks_with_different_data_are_told_so(run):
    assert "ranks hold different ones" in run(2, start="popen", ends_well=False, differs=True)


def test_a_rank_may_work_longer_than_a_collective_waits(run):
    assert_same(run(2, start="popen", sleeps=1), run(1)[0])


def test_batches_of_an_own_sampler_have_the_same_number_on_every_rank(run):
    found = run(2, start="popen", rows=True)
    assert len({len(each["batches"]) for each in found}) == 1
    assert trained_on(found) <= kept(found)
