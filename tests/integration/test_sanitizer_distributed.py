"""Sanitizers at several world sizes: the same mask bit for bit, no removed sample on any rank, and no deadlock."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

ranks = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Runs:
    """The results of all cases of one program."""

    def __init__(self, directory):
        self.directory = directory

    def results(self, name):
        errors = {path.name: path.read_text() for path in (self.directory / name).glob("*.txt")}
        assert not errors
        reports = self.directory / name / "sanitizer_reports" / "sanitizer"
        assert sorted(path.name for path in reports.iterdir()) == ["manifest.csv", "report.html", "verdict.safetensors"]
        paths = sorted((self.directory / name).glob("*.pt"))
        return [torch.load(path, weights_only=True) for path in paths]

    def errors(self, name):
        assert not list((self.directory / name).glob("*.pt"))
        return [(self.directory / name / f"{rank}.txt").read_text() for rank in range(2)]


@pytest.fixture(scope="module")
def runs(run_program, tmp_path_factory):
    """One program: forked ranks, the same trainings in one process, spawned ranks, and ranks as scripts.

    A process that forks after its OpenMP threads have started hangs in the first parallel loop of the child, so it has
    one thread. Spawned ranks have two. The last case shortens the timeout of collectives.
    """
    start = "fork" if hasattr(os, "fork") else "spawn"
    cases = [
        {"name": "trusted on three ranks", "world": 3, "start": start, "trusted": True},
        {"name": "groups on two ranks", "world": 2, "start": start, "groups": True},
        {"name": "trusted", "world": 1, "start": None, "trusted": True},
        {"name": "groups", "world": 1, "start": None, "groups": True},
        {"name": "plain", "world": 1, "start": None},
        {"name": "trusted on two ranks", "world": 2, "start": "spawn", "trusted": True, "threads": 2},
        {"name": "rank 0 fails", "world": 2, "start": "popen", "fails": 0},
        {"name": "rank 1 fails", "world": 2, "start": "popen", "fails": 1},
        {"name": "different data", "world": 2, "start": "popen", "differs": True},
        {"name": "rows", "world": 2, "start": "popen", "rows": True},
        {"name": "sharded module", "world": 2, "start": "popen", "sharded": True},
        {"name": "rank 1 sleeps", "world": 2, "start": "popen", "sleeps": 1},
    ]
    directory = tmp_path_factory.mktemp("ranks")
    run_program("sanitizer_run.py", str(directory), json.dumps(cases), OMP_NUM_THREADS="1")
    return Runs(directory)


def kept(results):
    """Return the positions that all sanitizers of a run keep, one applied after the other."""
    remaining = torch.arange(601)
    for verdict in results[0]["verdicts"]:
        assert 0 < verdict["keep"].sum() < len(remaining)
        remaining = remaining[verdict["keep"]]
    return set(remaining.tolist())


def trained_on(results):
    return set(chain(*chain(*(each["batches"] for each in results))))


def assert_same(results, other):
    for each in results:
        assert each["fingerprints"] == other["fingerprints"]
        for own, others in zip(each["verdicts"], other["verdicts"], strict=True):
            assert own.keys() == others.keys()
            assert all(torch.equal(own[name], others[name]) for name in own)


class TestRanks:
    pytestmark = ranks

    def test_mask_is_the_same_on_one_two_and_three_ranks(self, runs):
        """With two sanitizers: one without trusted data and with the default network, and one with trusted data."""
        alone = runs.results("trusted")
        assert len(alone[0]["verdicts"]) == 2
        assert trained_on(alone) == kept(alone)
        for results, world in ((runs.results("trusted on two ranks"), 2), (runs.results("trusted on three ranks"), 3)):
            assert len(results) == world
            assert_same(results, alone[0])
            assert trained_on(results) == kept(alone)

    def test_groups_are_the_same_on_two_ranks(self, runs):
        alone, results = runs.results("groups"), runs.results("groups on two ranks")
        assert len(results) == 2
        assert_same(results, alone[0])
        assert trained_on(results) == kept(alone)
        assert len(kept(alone)) == 561

    @pytest.mark.parametrize("failing", [0, 1])
    def test_failing_rank_stops_all_ranks(self, runs, failing):
        errors = runs.errors(f"rank {failing} fails")
        assert "this rank is broken" in errors[failing]
        assert f"rank {failing} failed: " in errors[1 - failing]
        assert "OSError: this rank is broken." in errors[1 - failing]

    def test_refuses_different_data_on_ranks(self, runs):
        for error in runs.errors("different data"):
            assert "DataChangedError" in error
            assert "every rank" in error

    def test_rank_may_work_longer_than_the_timeout_of_collectives(self, runs):
        assert_same(runs.results("rank 1 sleeps"), runs.results("plain")[0])

    def test_module_may_be_sharded(self, runs):
        results = runs.results("sharded module")
        assert len(results) == 2
        assert all(each["sharded"] and all(each["sharded"]) for each in results)
        assert_same(results, runs.results("plain")[0])
        assert trained_on(results) == kept(results)

    def test_custom_batch_sampler_has_equal_lengths_on_all_ranks(self, runs):
        results = runs.results("rows")
        assert len({len(each["batches"]) for each in results}) == 1
        assert trained_on(results) <= kept(results)


@pytest.mark.parametrize("start", ["", "multiprocessing.get_context('spawn').Process(target=wait).start()"])
def test_processes_end_with_their_parent(start, tmp_path):
    """Closing the pipe ends the program; the process that it starts ends with it, and so closes the shared output."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from parent_watch import end_with_parent\n"
        "def wait():\n    end_with_parent()\n    print('started', flush=True)\n    time.sleep(3600)\n"
        f"if __name__ == '__main__':\n    {start or 'pass'}\n    wait()\n"
    )
    with subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        for _ in range(2 if start else 1):
            assert run.stdout.readline() == "started\n"
        run.stdin.close()
        assert run.stdout.read() == ""
        assert run.wait() == 1
