"""Loaders with and without labels are told apart by a few of their samples."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.loader_labels import find_labels, unlabeled_loaders
from lightning_poison.data.reading import ReadSettings
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
    assert find_labels(data, sample=None, positions=torch.arange(20)).kind == "several"
    assert find_labels(data, sample=None, positions=torch.arange(20, 40)).kind == "none"


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


@pytest.mark.parametrize(
    "label", [lambda index: index, lambda index: index + 600, lambda index: (index * 7_919) % 100_003]
)
def test_labels_that_are_indices_are_named(label):
    """Also those of a subset, which start anywhere, and of a random split, which are in no order."""
    loaders = {
        "['l']": DataLoader(TensorDataset(torch.zeros(40, 2), torch.arange(40) % 2)),
        "['u']": DataLoader(Counting(lambda index: (IMAGE, label(index)))),
    }
    match = r"loader \['u'\] to have .* but no two of 1,000 samples have the same label, as if it were an index\.\n.*"
    with pytest.raises(ValueError, match=match + r"`loaders=\['l'\]`"):
        unlabeled_loaders(loaders, None, known={})


def test_many_classes_are_labels():
    data = Counting(lambda index: (IMAGE, (index * 7_919) % 5_000 // 5))
    assert find_labels(data, sample=None).kind == "several"
    assert data.reads < 200


def test_a_few_samples_of_different_classes_have_labels():
    assert find_labels([(IMAGE, index) for index in range(10)], sample=None).kind == "several"


def test_unlabeled_data_are_looked_at_again_with_fewer_reads():
    """As of a pool whose samples are labeled one after the other."""
    data = Counting(lambda index: (IMAGE, -1))
    loaders = {"[0]": DataLoader(data)}
    assert list(unlabeled_loaders(loaders, None, known={})) == ["[0]"]
    data.reads = 0
    assert list(unlabeled_loaders(loaders, None, known={}, before={"[0]": data})) == ["[0]"]
    assert data.reads == 64
    data.sample = lambda index: (IMAGE, index % 3)
    assert not unlabeled_loaders(loaders, None, known={}, before={"[0]": data})


def test_listed_labels_are_read_first():
    labels = torch.full((5_000,), -1)
    labels[4_321] = 2
    assert find_labels(TensorDataset(torch.zeros(5_000, 2), labels), sample=None).kind == "several"


def collated(samples):
    return {
        "pixels": torch.stack([torch.as_tensor(np.array(each["img"])).float() for each in samples]),
        "labels": torch.tensor([{"cat": 0, "dog": 1, "": -1}[each["animal"]] for each in samples]),
    }


@pytest.mark.parametrize("sample", [None, SampleSpec("pixels", "labels")])
@pytest.mark.parametrize(("names", "kind"), [(("cat", "dog"), "several"), (("", ""), "none")])
def test_labels_in_batches_of_a_collate_fn(sample, names, kind):
    data = [{"img": Image.new("L", (4, 4)), "animal": names[index % 2]} for index in range(20)]
    assert find_labels(data, sample=sample, settings=ReadSettings(collate_fn=collated)).kind == kind


def test_samples_that_collate_fn_leaves_out_have_no_label():
    drop = ReadSettings(collate_fn=lambda samples: samples)
    data = [None if index % 2 else (IMAGE, index % 3) for index in range(20)]
    assert find_labels(data, sample=None, settings=drop).kind == "several"
    assert find_labels([None] * 5, sample=None, settings=drop).kind == "none"
