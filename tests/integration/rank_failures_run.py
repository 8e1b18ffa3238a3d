"""Ranks that fail: `rank_failures_run.py DIRECTORY CASES`, where `CASES` is a JSON list of `[event, place, rank]`.

In every case three ranks start as a cluster starts them, without a launcher that ends them all. One of them raises, is
killed or stopped, receives SIGTERM, or is assigned a GPU that does not exist, at a place of the run; at the place
`alone`, there is one process without ranks. The ranks write the seconds from this event to their end, and their error,
to `DIRECTORY/<event> <place> <rank>/<rank>.txt`, and what they print to `<rank>.log`. All ranks are forks of this
process, to import everything once.
"""

import json
import os
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from parent_watch import end_with_parent
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import SanitizedDataModule, Sanitizer
from lightning_poison._lightning import loader_sanitizer, rank_link
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.protocol import Scorer

WORLD, PATIENT = 3, 90


class Case:
    """What happens to a rank of this process, and where."""

    def __init__(self, directory, event, place, failing, rank):
        self.directory, self.event, self.failing, self.rank = directory, event, failing, rank
        self.place, self.world = ("fitting", 1) if place == "alone" else (place, WORLD)

    def happen_at(self, place, trainer=None):
        if place != self.place or not self.is_failing:
            return
        (self.directory / "event").touch()
        if self.event == "raise":
            raise FileNotFoundError("/data/train is not on this node")
        if self.event == "lose its GPU":
            trainer.strategy.parallel_devices[self.rank] = torch.device("cuda", 7)
            return
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}[self.event])

    @property
    def is_failing(self):
        return self.rank == self.failing

    def write(self, error):
        seconds = time.time() - (self.directory / "event").stat().st_mtime
        notes = " ".join(getattr(error, "__notes__", ()))
        text = f"{seconds:.1f} {type(error).__name__}: {error} {notes}"
        (self.directory / f"{self.rank}.txt").write_text(text)


class SlowScorer(Scorer):
    """Takes minutes to fit a fold, in short steps."""

    name = "slow"
    scores_labels = True
    fitted_tensors = ("means",)
    case = None

    def fit(self, trusted, *, runtime=None, generator=None):
        runtime = runtime or LocalRuntime()
        with runtime.progress(12_000, "Fitting") as progress:
            for step in range(12_000):
                time.sleep(0.01)
                progress.advance()
                if step == 20:
                    self.case.happen_at("fitting")
                if self.case.place == "writing" or (self.case.place == "scoring" and self.case.is_failing):
                    break
        images = torch.stack([trusted[index][0] for index in range(len(trusted))])
        labels = torch.tensor([trusted[index][1] for index in range(len(trusted))])
        self.means = torch.stack([images[labels == each].mean(0) for each in range(3)])
        return self

    def score_labels(self, inputs):
        self.case.happen_at("scoring")
        return 0.5 * (inputs[:, None] - self.means).square().sum(2)

    def __deepcopy__(self, memo):
        twin = type(self)()
        vars(twin).update(vars(self))
        return twin


class Data(pl.LightningDataModule):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def setup(self, stage):
        self.case.happen_at("setup", self.trainer)

    def train_dataloader(self):
        self.case.happen_at("loaders")
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(240) % 3
        points = torch.randn(240, 4, generator=generator) + 6 * torch.eye(4)[labels]
        return DataLoader(TensorDataset(points, labels), batch_size=16)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(case, port):
    end_with_parent()
    with (case.directory / f"{case.rank}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    names = {"RANK": case.rank, "LOCAL_RANK": case.rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
    cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "none"}
    if case.world > 1:
        os.environ.update({name: str(value) for name, value in (names | cluster).items()})
    if case.event == "stop":
        rank_link.SILENT_AFTER = 8
    write_files = loader_sanitizer.write_files

    def write(*arguments, **settings):
        case.happen_at("writing")
        return write_files(*arguments, **settings)

    loader_sanitizer.write_files = write
    scorer, data = SlowScorer(), Data(case)
    scorer.case = case
    wraps = case.event == "raise" and case.place == "loaders"
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=case.world,
        strategy=DDPStrategy(process_group_backend="gloo") if case.world > 1 else "auto",
        callbacks=[] if wraps else [Sanitizer(scorer)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=case.directory,
    )
    try:
        trainer.fit(Classifier(), datamodule=SanitizedDataModule(data, scorer) if wraps else data)
    except BaseException as error:  # noqa: BLE001 (reported by the test)
        case.write(error)


def start(directory, event, place, failing):
    """Start the ranks of a case; return their processes, and whether each of them ends by itself."""
    directory.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = {}
    for rank in range(1 if place == "alone" else WORLD):
        process = os.fork()
        if not process:
            try:
                train(Case(directory, event, place, failing, rank), port)
            finally:
                os._exit(0)
        processes[process] = (event, failing) != ("stop", rank)
    return processes


def run(directory, cases):
    """Run cases at the same time: their ranks mostly wait for each other."""
    processes = {}
    for case in cases:
        processes |= start(directory / " ".join(map(str, case)), *case)
    end = time.monotonic() + PATIENT
    while any(processes.values()) and time.monotonic() < end:
        processes.pop(os.waitpid(-1, os.WNOHANG)[0], None)
        time.sleep(0.05)
    for process in processes:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    end_with_parent()
    cases = json.loads(sys.argv[2])
    # In a wave of their own: a rank that gets no processor for long looks like one that has stopped.
    run(Path(sys.argv[1]), [case for case in cases if case[0] != "stop"])
    run(Path(sys.argv[1]), [case for case in cases if case[0] == "stop"])
