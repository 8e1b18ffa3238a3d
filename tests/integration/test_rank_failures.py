"""One of three ranks fails, is killed, stopped or terminated: the others end soon, with its number and reason."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    ("raise", "writing", 0): RAISES,
    ("kill", "setup", 1): "its process was killed",
    ("kill", "loaders", 2): "its process was killed",
    ("kill", "fitting", 1): "its process was killed",
    ("kill", "writing", 0): "its process was killed",
    ("stop", "fitting", 0): "it has not responded for 8 s",
    ("stop", "fitting", 1): "its process is stopped",
    ("terminate", "fitting", 1): "it received SIGTERM",
}


@pytest.fixture(scope="module")
def runs(run_program, tmp_path_factory):
    directory = tmp_path_factory.mktemp("failures")
    run_program("rank_failures_run.py", str(directory), json.dumps(list(CASES)), OMP_NUM_THREADS="1")
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


PROGRAM = """
import sys, time
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from rank_failures_run import Classifier, SlowScorer
from lightning_poison import Sanitizer

class Case:
    place = "fitting"
    def happen_at(self, place):
        print("scoring", flush=True)

SlowScorer.case = Case()
settings = dict(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False)
settings |= dict(enable_progress_bar=False, default_root_dir=sys.argv[1])
trainer = pl.Trainer(callbacks=[Sanitizer(SlowScorer())], **settings)
trainer.fit(Classifier(), DataLoader(TensorDataset(torch.randn(240, 4), torch.arange(240) % 3), batch_size=16))
"""


def test_sigterm_ends_a_single_process_while_it_scores(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(program), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        try:
            assert "scoring\n" in iter(run.stdout.readline, ""), "the program has ended early"
            run.send_signal(signal.SIGTERM)
            start = time.monotonic()
            _, errors = run.communicate(timeout=60)
        finally:
            run.kill()
    assert time.monotonic() - start <= 30
    assert "Received SIGTERM" in errors
    assert run.returncode >= 0, "Lightning handles the signal"
    assert not (tmp_path / "sanitizer_reports" / "sanitizer" / "verdict.safetensors").exists()
