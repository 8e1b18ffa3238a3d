"""One of three ranks fails, is killed, stopped or terminated: the others end soon, with its number and reason."""

import json
import os

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forks of one process"),
]

RAISES = "FileNotFoundError: /data/train is not on this node"
CASES = {
    ("raise", "setup", 0): RAISES,
    ("raise", "loaders", 1): RAISES,
    ("raise", "fitting", 2): RAISES,
    ("raise", "scoring", 1): RAISES,
    ("raise", "writing", 0): RAISES,
    ("kill", "setup", 1): "its process was killed",
    ("kill", "loaders", 2): "its process was killed",
    ("kill", "fitting", 1): "its process was killed",
    ("kill", "scoring", 2): "its process was killed",
    ("kill", "writing", 0): "its process was killed",
    ("stop", "fitting", 0): "it has not responded for 8 s",
    ("stop", "fitting", 1): "its process is stopped",
    ("stop", "scoring", 2): "its process is stopped",
    ("lose its GPU", "setup", 1): "an available device, such as 'cpu' or 'cuda', but got 'cuda:7'",
    ("terminate", "fitting", 1): "it received SIGTERM",
}


@pytest.fixture(scope="module")
def runs(run_program, tmp_path_factory):
    directory = tmp_path_factory.mktemp("failures")
    run_program(
        "rank_failures_run.py", str(directory), json.dumps([*CASES, ("terminate", "alone", 0)]), OMP_NUM_THREADS="1"
    )
    return directory


@pytest.mark.parametrize(("event", "place", "failing"), CASES, ids=lambda value: str(value))
def test_all_ranks_end(runs, event, place, failing):
    for rank in {0, 1, 2} - {failing}:
        text = (runs / f"{event} {place} {failing}" / f"{rank}.txt").read_text()
        seconds, _, error = text.partition(" ")
        assert float(seconds) <= 60
        assert f"rank {failing} failed: " in error
        assert CASES[event, place, failing] in error
        assert "PluginError: " not in error.partition("failed: ")[0], "this rank's scorer is innocent"
        assert ("SIGTERMException" in error) == (event == "terminate")
    if event in ("raise", "terminate"):
        own = (runs / f"{event} {place} {failing}" / f"{failing}.txt").read_text().partition(" ")[2]
        assert (RAISES if event == "raise" else "SIGTERMException") in own
        assert "rank" not in own


def test_sigterm_ends_a_single_process_while_it_scores(runs):
    folder = runs / "terminate alone 0"
    seconds, _, error = (folder / "0.txt").read_text().partition(" ")
    assert float(seconds) <= 30
    assert "SIGTERMException" in error, "Lightning handles the signal"
    assert "Received SIGTERM" in (folder / "0.log").read_text()
    assert not (folder / "sanitizer_reports" / "sanitizer" / "verdict.safetensors").exists()
