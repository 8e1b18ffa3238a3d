"""Data that users of similar tools have reported as a problem, and the answer that each gets here.

The reports are public: issues of cleanlab, FiftyOne, Lightning, MedMNIST, PyTorch and torchvision.
"""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_poison.callbacks import Sanitizer
from lightning_poison.errors import InconclusiveError, UnreadableSampleError
from lightning_poison.sanitization import sanitize

pytestmark = pytest.mark.slow

COUNT, CLASSES = 600, 5


@pytest.fixture(autouse=True)
def reproducible(single_thread):
    """Make all runs reproducible."""


class Reported:
    """600 digits of 5 classes, 30 of them with a wrong label."""

    def __init__(self, digits, scorer):
        images, truth = (each[digits.tensors[1] < CLASSES] for each in digits.tensors)
        self.scorer = scorer
        self.images, self.truth = images[:COUNT], truth[:COUNT]
        self.trusted = TensorDataset(images[COUNT:], truth[COUNT:])
        self.wrong = torch.arange(COUNT) % 20 == 7
        self.labels = torch.where(self.wrong, (self.truth + 1) % CLASSES, self.truth)

    def judge(self, data, **settings):
        return sanitize(data, self.scorer(), **settings)

    def is_right(self, keep):
        """Whether most of the wrong labels and few others are removed."""
        return int((~keep & self.wrong[: len(keep)]).sum()) >= 25 and int((~keep & ~self.wrong[: len(keep)]).sum()) <= 6

    def train(self, loader, path, **settings):
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        callback = Sanitizer(self.scorer(), dirpath=path)
        module = Module()
        given = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": path, **settings}
        pl.Trainer(**dict.fromkeys(off, False), **given, callbacks=[callback]).fit(module, loader)
        return callback.verdict, module


class Module(pl.LightningModule):
    """Remembers the batches that it has seen."""

    def __init__(self):
        super().__init__()
        self.layer, self.batches = nn.Linear(64, CLASSES), []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def reported(digits, centroid_scorer):
    return Reported(digits, centroid_scorer)


class Folder(Dataset):
    """A folder of images: `targets` are the numbers of the folders, before `target_transform`."""

    def __init__(self, images, targets, target_transform=lambda label: label):
        self.images, self.targets, self.target_transform = images, targets, target_transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.target_transform(int(self.targets[index]))


def test_labels_in_a_column_of_width_one(reported):
    """MedMNIST 53: labels of shape (N, 1)."""
    pairs = list(zip(reported.images, reported.labels[:, None].numpy(), strict=True))
    assert reported.is_right(reported.judge(pairs).keep)


def test_several_labels_per_sample(reported):
    """MedMNIST 46: ChestMNIST has 14 labels per image, often none, and argmax reads them as class 0 or 1."""
    several = np.zeros((COUNT, 14), dtype=np.int64)
    several[5, [1, 3]] = 1
    with pytest.raises(ValueError, match=r"as in multi-label classification\.\nThis library judges one"):
        reported.judge(list(zip(reported.images, several, strict=True)))


def test_lists_of_labels_in_an_array_of_objects(reported):
    """argilla 1982: multi-label annotations as lists in an array of objects."""
    labels = np.empty(COUNT, dtype=object)
    labels[:] = [[int(label)] if label else [0, 1] for label in reported.labels]
    with pytest.raises(ValueError, match=r"labels of one form, but .* a vector of length 2.*\nGive each sample"):
        reported.judge((reported.images, labels))


def test_names_of_classes(reported):
    """cleanlab 375: labels are names of classes."""
    names = np.array(["zero", "one", "two", "three", "four"])[reported.labels]
    with pytest.raises(ValueError, match=r"label of sample 0, but got the text '.*\nMap names to numbers"):
        reported.judge((reported.images, names))


def test_classes_without_samples(reported):
    """cleanlab 288 and 613: numbers of classes with gaps, up to 27."""
    numbers = torch.tensor([3, 4, 11, 26, 27])
    verdict = reported.judge((reported.images, numbers[reported.labels]))
    assert reported.is_right(verdict.keep)
    assert set(verdict.suggested_labels.tolist()) == set(numbers.tolist())


def test_missing_labels(reported):
    """fiftyone-brain 102: some samples have no label."""
    pairs = [
        (image, None if index == 40 else int(label))
        for index, (image, label) in enumerate(zip(reported.images, reported.labels, strict=True))
    ]
    with pytest.raises(ValueError, match=r"label of sample 40, but got None\.\nGive samples without a label"):
        reported.judge(pairs)
    pairs[40] = (pairs[40][0], -1)
    verdict = reported.judge(pairs)
    assert reported.is_right(verdict.keep)
    assert "1 samples without a label are kept and not judged." in verdict.notes


def test_target_transform_of_a_folder(reported):
    """torchvision 8199: `targets` are not what `target_transform` returns."""
    data = Folder(reported.images, reported.labels, lambda label: (label + 2) % CLASSES)
    with pytest.warns(UserWarning, match="lists other labels than its samples carry: 600 of 600 differ"):
        verdict = reported.judge(data)
    assert torch.equal(verdict.labels, (reported.labels + 2) % CLASSES)
    assert reported.is_right(verdict.keep)


def test_listed_labels_of_all_splits(reported):
    """torchvision 4209: the list of labels is that of all splits, and longer than the data."""
    data = Folder(reported.images, torch.cat([reported.labels, reported.labels]))
    assert reported.is_right(reported.judge(data).keep)


def test_folders_sorted_as_text(reported):
    """ImageNetV2 10 and PyTorch 22566: folders 0, 1, 10, 2 are numbered in another order than in the training set."""
    order = torch.tensor([0, 1, 3, 4, 2])  # "0", "1", "20", "3", "4" as text
    trusted = TensorDataset(reported.trusted.tensors[0], order[reported.trusted.tensors[1]])
    with (
        pytest.warns(UserWarning, match="calibrated on"),
        pytest.raises(InconclusiveError, match="3 of 5 classes look"),
    ):
        reported.judge((reported.images, reported.labels), trusted=trusted)


def test_sampler_of_the_whole_set_with_a_subset(reported):
    """imbalanced-dataset-sampler 36: the sampler draws positions in the set of which the loader reads a subset."""
    subset = Subset(TensorDataset(reported.images, reported.labels), range(200))
    loader = DataLoader(subset, 32, sampler=SubsetRandomSampler(range(COUNT)))
    with pytest.raises(ValueError, match=r"positions below 200, .* but a SubsetRandomSampler draws 599"):
        reported.judge(loader)


class ByLength(Sampler):
    """A batch sampler with batches of different sizes, and without a batch size."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __iter__(self):
        positions = iter(range(sum(self.sizes)))
        for size in self.sizes:
            yield [next(positions) for _ in range(size)]

    def __len__(self):
        return len(self.sizes)


def test_batches_of_different_sizes(reported, tmp_path):
    """Lightning 17793: a batch sampler without `batch_size`."""
    loader = DataLoader(TensorDataset(reported.images, reported.labels), batch_sampler=ByLength([100, 200, 50, 250]))
    verdict, module = reported.train(loader, tmp_path)
    assert reported.is_right(verdict.keep)
    assert sum(len(batch[1]) for batch in module.batches) == int(verdict.keep.sum())


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
def test_weighted_samples_and_overfit_batches(reported, tmp_path):
    """Lightning 10457: `overfit_batches` with a `WeightedRandomSampler`."""
    sampler = WeightedRandomSampler((torch.arange(COUNT) < 500).float() + 0.1, COUNT)
    loader = DataLoader(TensorDataset(reported.images, reported.labels), 50, sampler=sampler)
    verdict, module = reported.train(loader, tmp_path, overfit_batches=2, max_epochs=2)
    assert reported.is_right(verdict.keep)
    seen = [batch[0].flatten(1).sum(1) for batch in module.batches]
    assert len(seen) == 4
    removed = reported.images[~verdict.keep]
    assert not any((batch[0][:, None] == removed).flatten(2).all(2).any() for batch in module.batches)


def mixed(samples):
    """Mix each sample with the next one."""
    images, labels = default_collate(samples)
    soft = nn.functional.one_hot(labels, CLASSES).float()
    return (images + images.roll(1, 0)) / 2, (soft + soft.roll(1, 0)) / 2


def test_mixup_in_the_collate_function(reported, tmp_path):
    """torchvision 7731: MixUp in `collate_fn`. Samples are judged before they are mixed."""
    loader = DataLoader(TensorDataset(reported.images, reported.labels), 50, collate_fn=mixed)
    verdict, module = reported.train(loader, tmp_path)
    assert reported.is_right(verdict.keep)
    assert all(batch[1].shape[1:] == (CLASSES,) for batch in module.batches)


class OutOfSharedMemory(TensorDataset):
    def __getitem__(self, index):
        return os.kill(os.getpid(), signal.SIGBUS) if index == 0 else super().__getitem__(index)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_shared_memory_of_a_container(reported):
    """PyTorch 5040: a bus error in a worker."""
    loader = DataLoader(OutOfSharedMemory(reported.images, reported.labels), num_workers=2)
    with pytest.raises(UnreadableSampleError, match="killed by SIGBUS, as when shared memory runs out"):
        reported.judge(loader)


class OpenInInit(TensorDataset):
    """Opens a file in its constructor."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.file = Path(os.devnull).open()  # noqa: SIM115


def test_file_that_is_opened_too_early(reported):
    """PyTorch 11929 and others: an HDF5 file that is opened in `__init__` cannot be sent to workers."""
    data = OpenInInit(reported.images, reported.labels)
    loader = DataLoader(data, num_workers=1, multiprocessing_context="spawn")
    with (
        data.file,
        pytest.raises(UnreadableSampleError, match=r"raised TypeError: cannot pickle.*\nOpen files"),
    ):
        reported.judge(loader)
