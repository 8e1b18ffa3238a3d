"""`map_style`: the samples that a loader represents, and invalid labels."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_poison.data.labels import check_class_labels
from lightning_poison.data.map_style_data import map_style
from lightning_poison.errors import UnsupportedDataError
from lightning_poison.sanitization.pipeline import sanitize


def points(labels, classes=None):
    labels = torch.as_tensor(labels)
    data = TensorDataset(torch.zeros(len(labels), 2), labels)
    if classes is not None:
        data.classes = classes
    return data


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shuffle": True, "batch_size": 3},
        {"batch_size": None},
        {"sampler": SequentialSampler(range(6))},
        {"batch_sampler": BatchSampler(RandomSampler(range(6)), 2, drop_last=False)},
        {"sampler": DistributedSampler(range(6), num_replicas=2, rank=1)},
    ],
)
def test_loader_of_all_samples_gives_its_data_set(arguments):
    data = points([0, 1] * 3)
    assert map_style(DataLoader(data, **arguments), "trusted") is data


@pytest.mark.parametrize("batched", [False, True])
def test_subset_sampler_gives_its_samples(batched):
    data = points([0, 1] * 3)
    sampler = SubsetRandomSampler(torch.tensor([5, 0, 3]))
    loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=False)) if batched else None
    found = map_style(loader or DataLoader(data, sampler=sampler), "trusted")
    assert isinstance(found, Subset)
    assert found.indices == [0, 3, 5]


class Odd(RandomSampler):
    """A custom sampler."""


@pytest.mark.parametrize(
    "sampler",
    [
        WeightedRandomSampler([1.0] * 6, 6),
        RandomSampler(range(6), num_samples=3),
        RandomSampler(range(6), replacement=True),
        Odd(range(6)),
    ],
)
def test_refuses_other_samplers(sampler):
    message = (
        rf"`trusted` to be a loader that draws every sample.*a {type(sampler).__name__}\.\n.*Subset\(dataset, indices\)"
    )
    with pytest.raises(UnsupportedDataError, match=message):
        map_style(DataLoader(points([0, 1] * 3), sampler=sampler), "trusted")


def test_loader_of_clean_part_gives_only_that_part(blobs, centroid_scorer):
    whole = blobs(1600, flipped=400)  # the last 400 are wrong
    clean = DataLoader(whole, batch_size=32, sampler=SubsetRandomSampler(range(1200)))
    by_loader = sanitize(blobs(300, flipped=30, seed=1), centroid_scorer(), trusted=clean)
    by_subset = sanitize(blobs(300, flipped=30, seed=1), centroid_scorer(), trusted=Subset(whole, range(1200)))
    assert torch.equal(by_loader.keep, by_subset.keep)
    assert not by_loader.keep[270:].any()


def test_refuses_labels_beyond_listed_classes():
    data = points([0, 1, 2, 3, 0], classes=["cat", "dog\x1b", "fox"])
    with pytest.raises(ValueError, match=r"below 3, .*\(cat, dog\\x1b, fox\), but sample 3 has the label 3\.\nCorrect"):
        check_class_labels(torch.tensor([0, 1, 2, 3, 0]), data)


def test_refuses_labels_far_beyond_those_that_occur():
    with pytest.raises(
        ValueError, match=r"but sample 2 has the label 255 and only 4 classes occur\.\nCorrect or remove"
    ):
        check_class_labels(torch.tensor([0, 1, 255, 2]), points([0, 1, 255, 2]))


@pytest.mark.parametrize(
    ("labels", "classes"), [([3, 8, 3], None), ([5, 6, 7, 8, 9], None), ([12, 507], range(1000)), ([0, 1], "names")]
)
def test_accepts_absent_classes(labels, classes):
    check_class_labels(torch.tensor(labels), points(labels, classes))
