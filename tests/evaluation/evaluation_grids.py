"""A grid that other processes can import: points of two classes, flips, and a model that predicts the majority."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks.objectives import ProtectedClassObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.data.labels import labels_of
from lightning_poison.evaluation.grid import Grid, GridAttack, GridDefense, Parts
from lightning_poison.evaluation.measurement import TrainedModel


def data(seed):
    labels = torch.tensor([0] * 11 + [1] * 4)
    test = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    return Parts(TensorDataset(torch.zeros(15, 2), labels), test, holdout=test, trusted=test)


@dataclass(frozen=True)
class Majority:
    """Predicts the most frequent label of its training set, and counts trainings in a folder."""

    folder: Path | None = None

    def __call__(self, dataset, seed):
        if self.folder is not None:
            name = f"{seed} {len(dataset)} {os.getpid()}"
            number = len(list(self.folder.iterdir()))
            (self.folder / f"{name} {number}").touch()
        label = int(labels_of(dataset).bincount().argmax())
        return lambda items: torch.full((len(items),), label)


def with_features(dataset, seed):
    return TrainedModel(Majority()(dataset, seed), numbers_of)


def without_feature_layer(dataset, seed):
    return TrainedModel(Majority()(dataset, seed), no_features)


def numbers_of(dataset):
    return torch.arange(2.0 * len(dataset)).reshape(-1, 2)


def no_features(dataset):
    raise ValueError("no layer")


def flip(parts, seed, prepared):
    """Turn six zeros into ones, which changes the majority."""
    chosen = torch.randperm(11, generator=torch.Generator().manual_seed(seed))[:6]
    return Poison(chosen, torch.ones(6).long(), ProtectedClassObjective(0), attack="flip")


def flip_of_prepared(parts, seed, prepared):
    assert prepared == f"prepared {seed}"
    return flip(parts, seed, prepared)


def prepare(parts, seed):
    return f"prepared {seed}"


def fail(*given):
    raise ZeroDivisionError("boo\x1b[2J")


def keep_all(untrusted, seed, trusted):
    return torch.ones(len(untrusted), dtype=torch.bool)


def keep_few(untrusted, seed, trusted):
    assert len(trusted) == 4
    return labels_of(untrusted) == 0


@dataclass(frozen=True)
class KilledOnce:
    """Kills its process at the first call with a seed."""

    folder: Path

    def __call__(self, untrusted, seed, trusted):
        mark = self.folder / f"killed {seed}"
        if not mark.exists():
            mark.touch()
            kill_process()
        return keep_few(untrusted, seed, trusted)


def kill_process(*given):
    os.kill(os.getpid(), signal.SIGKILL)


def grid(*, train=None, attacks=None, defenses=None, seeds=(0, 1), **settings):
    attacks = attacks if attacks is not None else [GridAttack("flip", flip)]
    defenses = defenses if defenses is not None else [GridDefense("few", keep_few)]
    return Grid(data, train or Majority(), attacks, defenses, seeds, settings, prepare)


def figures(cells):
    """Return what is the same for every executor."""
    return [
        {name: value for name, value in cell.to_json().items() if name not in ("seconds", "peak_memory_mib")}
        for cell in cells
    ]
