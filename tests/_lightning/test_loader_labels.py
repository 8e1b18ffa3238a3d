"""Loaders with and without labels are told apart by a few of their samples."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.loader_labels import find_labels, unlabeled_loaders
from lightning_poison.data.sample_spec import SampleSpec

IMAGE = torch.zeros(1, 8, 8)


class Counting:
    """Samples from a function, with a count of the reads."""

    def __init__(self, sample, length=5_000):
        self.sample, self.length, self.reads = sample, length, 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.reads += 1
        return self.sample(index)


@pytest.mark.parametrize(
    "sample",
    [
        IMAGE,
        (IMAGE,),
        (IMAGE, IMAGE),
        [IMAGE, IMAGE, IMAGE],
        {"image": IMAGE},
        {"weak": IMAGE, "strong": IMAGE},
        Image.new("L", (8, 8)),
        (Image.new("L", (8, 8)), Image.new("L", (4, 4))),
        np.zeros((8, 8, 3)),
        torch.zeros(4),
        (torch.zeros(4),),
    ],
    ids=[
        "tensor",
        "tuple",
        "pair",
        "list",
        "dict",
        "named views",
        "PIL",
        "PIL views",
        "array",
        "row",
        "tuple of a row",
    ],
)
def test_inputs_alone(sample):
    data = Counting(lambda _: sample)
    assert find_labels(data, sample=None) == ("none", "its samples consist of inputs alone")
    assert data.reads == 1


@pytest.mark.parametrize("label", [-1, torch.tensor(-1), np.int64(-1), None, -1.0])
def test_no_labels(label):
    data = Counting(lambda _: {"image": IMAGE, "label": label})
    assert find_labels(data, sample=None) == ("none", "its samples have no labels, or the label -1")
    assert data.reads == 1_000


@pytest.mark.parametrize(
    "label", [lambda i: i % 3, lambda i: torch.eye(3)[i % 3], lambda i: float(i % 3), lambda i: torch.tensor([i % 3])]
)
def test_labels_of_several_classes(label):
    data = Counting(lambda index: (IMAGE, label(index)))
    assert find_labels(data, sample=None).kind == "several"
    assert data.reads < 10


def test_vectors_with_one_hot_labels_have_labels():
    data = Counting(lambda index: (torch.rand(3), torch.eye(3)[index % 3]))
    assert find_labels(data, sample=None).kind == "several"


@pytest.mark.parametrize("label", ["cat", IMAGE[0], torch.rand(3)])
def test_labels_of_other_forms_count_as_labels(label):
    """Scoring describes them."""
    assert find_labels(Counting(lambda _: (IMAGE, label)), sample=None).kind == "several"


def test_a_few_labels_among_many_samples_are_found():
    data = Counting(lambda index: (IMAGE, index % 2 if index % 50 == 0 else -1))
    assert find_labels(data, sample=None).kind == "several"
    assert data.reads < 1_000


def test_one_class():
    found = find_labels(Counting(lambda _: (IMAGE, 0), length=7), sample=None)
    assert found == ("one", "all of its 7 samples have the label 0")
    rare = Counting(lambda index: (IMAGE, int(index == 4_000)))
    assert find_labels(rare, sample=None).kind == "several"


def test_only_the_given_positions_are_read():
    data = Counting(lambda index: (IMAGE, index % 2 if index < 20 else -1))
    assert find_labels(data, sample=None, positions=range(20)).kind == "several"
    assert find_labels(data, sample=None, positions=range(20, 40)).kind == "none"


def test_samples_without_the_part_of_the_label_have_none():
    spec = SampleSpec("image", "label")
    assert find_labels(Counting(lambda _: {"image": IMAGE}), sample=spec).kind == "none"
    assert find_labels(Counting(lambda index: {"image": IMAGE, "label": index % 2}), sample=spec).kind == "several"


def test_random_states_are_unchanged():
    torch.manual_seed(0)
    find_labels(Counting(lambda index: (torch.rand(3), index % 2)), sample=None)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_unclear_samples_are_named_with_their_structure():
    loaders = {
        "['l']": DataLoader(TensorDataset(torch.zeros(4, 2), torch.arange(4))),
        "['u']": DataLoader([(IMAGE, 1, 2), (IMAGE, 0, 3)]),
    }
    with pytest.raises(ValueError, match=r"loader \['u'\] (?s:.*)1: int(?s:.*)`loaders=\['l'\]`"):
        unlabeled_loaders(loaders, None, known={})


def test_known_data_sets_are_not_read_again():
    data = Counting(lambda _: IMAGE)
    loaders = {"[0]": DataLoader(data), "[1]": DataLoader(TensorDataset(torch.zeros(4, 2), torch.arange(4)))}
    assert list(unlabeled_loaders(loaders, None, known={})) == ["[0]"]
    assert not unlabeled_loaders(loaders, None, known={"[0]": data})
    assert data.reads == 1
