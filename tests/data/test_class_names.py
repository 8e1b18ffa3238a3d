"""Names of classes are used if they surely belong to the labels."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from lightning_poison import Poison, PoisonedDataset, SanitizedDataset
from lightning_poison.attacks import AvailabilityObjective
from lightning_poison.data.class_names import class_names_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.testing import TinyImages

NAMES = ("cat", "dog", "frog")


def images(names=NAMES, **attributes):
    dataset = TinyImages(6)
    vars(dataset).update(classes=list(names), **attributes)
    return dataset


def test_names_are_found_through_views():
    poison = Poison(torch.tensor([1]), torch.tensor([0]), AvailabilityObjective(), attack="label-flip")
    views = [
        images(),
        Subset(Subset(images(), [1, 2]), [0]),
        ConcatDataset([images(), Subset(images(), [0])]),
        SanitizedDataset(images(), torch.arange(6) < 4),
        PoisonedDataset(images(), poison),
        Subset(PoisonedDataset(images(), poison), [1]),
    ]
    assert [class_names_of(each) for each in views] == [NAMES] * len(views)


def test_names_of_imagenet_and_of_hugging_face():
    assert class_names_of(images([("tench", "Tinca tinca"), ("goldfish",)])) == ("tench", "goldfish")
    features = {"image": SimpleNamespace(), "label": SimpleNamespace(names=list(NAMES))}
    dataset = images([])
    dataset.features = features
    assert class_names_of(dataset) == NAMES
    dataset.features = features | {"coarse": SimpleNamespace(names=["animal"])}
    assert class_names_of(dataset) == class_names_of(dataset, sample=SampleSpec("image", "label")) == NAMES
    assert class_names_of(dataset, sample=SampleSpec("image", "coarse")) == ("animal",)


def test_names_of_another_part_of_a_sample_are_not_used():
    dataset = images([])
    dataset.features = {
        "image": SimpleNamespace(),
        "label": SimpleNamespace(),
        "source": SimpleNamespace(names=["web"]),
    }
    assert class_names_of(dataset) == class_names_of(dataset, sample=SampleSpec("image", "label")) == ()
    assert class_names_of(images(), sample=SampleSpec("0", "1")) == NAMES
    assert class_names_of(images(), sample=SampleSpec("0", "2")) == ()


class Wrapper(torch.utils.data.Dataset):
    """A wrapper of the user, which may number the classes differently."""

    def __init__(self):
        self.dataset = images()


class Failing:
    @property
    def classes(self):
        raise OSError("no index")


@pytest.mark.parametrize(
    "dataset",
    [
        images([]),
        images(target_transform=lambda label: label % 2),
        ConcatDataset([images(), images(["a", "b", "c"])]),
        images([0, 1, 2]),
        Wrapper(),
        Failing(),
        [(torch.zeros(2), 1)],
    ],
    ids=["none", "target_transform", "different parts", "numbers", "wrapper", "failing", "list"],
)
def test_names_that_may_be_wrong_are_not_used(dataset):
    assert class_names_of(dataset) == ()


def test_a_label_from_a_function_has_no_names():
    assert class_names_of(images(), sample=SampleSpec("0", "1")) == NAMES
    assert class_names_of(images(), sample=SampleSpec("0", lambda sample: 0)) == ()
