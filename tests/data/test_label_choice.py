import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.labels import spec_of
from lightning_poison.data.sample_parts import AmbiguousLabelError
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset

COUNT = 200
IMAGE = torch.zeros(1, 2, 2)
SITES = torch.randint(4, (COUNT,), generator=torch.Generator().manual_seed(0)).tolist()
KINDS = ["cat", "dog", "owl"]


class Rows(Dataset):
    """Rows `form(index)`, and which of them were read."""

    def __init__(self, form, count=COUNT, **members):
        self.form, self.count, self.read = form, count, []
        self.__dict__.update(members)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return self.form(index)


FOUND = {
    "float label and index": (lambda i: (IMAGE, float(i % 2), i), "1"),
    "regression and index": (lambda i: (IMAGE, i / 7, i), "1"),
    "text label and index": (lambda i: (IMAGE, KINDS[i % 3], i), "1"),
    "boolean label and index": (lambda i: (IMAGE, i % 2 == 0, i), "1"),
    "one-hot label and index": (lambda i: (IMAGE, torch.eye(3)[i % 3], i), "1"),
    "label and index": (lambda i: (IMAGE, SITES[i], i), "1"),
    "index and label": (lambda i: (IMAGE, i, SITES[i]), "2"),
    "path and label": (lambda i: (IMAGE, f"{i}.png", SITES[i]), "2"),
    "split and label": (lambda i: (IMAGE, "train", SITES[i]), "2"),
    "nothing and label": (lambda i: (IMAGE, None, SITES[i]), "2"),
    "label and path": (lambda i: (IMAGE, SITES[i], f"{i}.png"), "1"),
    "label and weight": (lambda i: (IMAGE, SITES[i], 1.0 if i < 9 else 0.3), "1"),
    "index first": (lambda i: (i, IMAGE, float(i % 2)), "2"),
    "label first, and a weight": (lambda i: (SITES[i], IMAGE, 1.0 if i < 9 else 0.3), "0"),
    "dict with a path": (lambda i: {"pixels": IMAGE, "digit": SITES[i], "file": f"{i}.png"}, "digit"),
    "dict with a split": (lambda i: {"pixels": IMAGE, "digit": SITES[i], "split": "train"}, "digit"),
    "dict with a fraction": (lambda i: {"pixels": IMAGE, "digit": SITES[i], "width": 1.0 if i < 9 else 0.3}, "digit"),
    "dict with a number of each": (lambda i: {"pixels": IMAGE, "digit": SITES[i], "number": i + 7}, "digit"),
    "dict with a named label": (
        lambda i: {"image": IMAGE, "label": 0.5, "site": SITES[i], "kind": KINDS[i % 3]},
        "label",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_other_samples_show_the_label(name):
    form, labels = FOUND[name]
    assert spec_of(Rows(form)).labels == labels


AMBIGUOUS = {
    "float label and site": lambda i: (IMAGE, float(i % 2), SITES[i]),
    "regression and site": lambda i: (IMAGE, i / 7, SITES[i]),
    "text label and site": lambda i: (IMAGE, KINDS[i % 3], SITES[i]),
    "sorted text label and site": lambda i: (IMAGE, KINDS[3 * i // COUNT], SITES[i]),
    "boolean label and site": lambda i: (IMAGE, i % 2 == 0, SITES[i]),
    "one-hot label and site": lambda i: (IMAGE, torch.eye(3)[i % 3], SITES[i]),
    "label that some lack, and site": lambda i: (IMAGE, None if i < 150 else 2, SITES[i]),
    "dict of a float and a site": lambda i: {"image": IMAGE, "survived": float(i % 2), "site": SITES[i]},
    "dict of a boolean and a site": lambda i: {"image": IMAGE, "survived": i % 2 == 0, "site": SITES[i]},
    "dict of a text and a site": lambda i: {"image": IMAGE, "kind": KINDS[i % 3], "site": SITES[i]},
    "dict of a text, a site and an index": lambda i: {"image": IMAGE, "kind": KINDS[i % 3], "site": 3, "number": i},
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_another_field_is_never_taken_for_the_label(name):
    rows = Rows(AMBIGUOUS[name])
    with pytest.raises(AmbiguousLabelError, match="could each be the label"):
        spec_of(rows)
    with pytest.raises(AmbiguousLabelError, match="could each be the label"):
        spec_of(rows, torch.arange(100, COUNT))


def test_missing_values_are_no_fractions():
    rows = Rows(lambda i: {"image": IMAGE, "survived": 1.0 if i < 99 else torch.nan, "site": SITES[i]})
    with pytest.raises(AmbiguousLabelError, match="`survived` and `site` could each be the label"):
        spec_of(rows)


@pytest.mark.parametrize("count", [5, 8, 40])
def test_texts_that_all_differ_are_no_labels(count):
    assert spec_of(Rows(lambda i: (IMAGE, f"caption {i}", SITES[i]), count=count)).labels == "2"
    assert spec_of(Rows(lambda i: {"image": IMAGE, "kind": SITES[i], "note": f"{i}"}, count=count)).labels == "kind"
    with pytest.raises(AmbiguousLabelError):
        spec_of(Rows(lambda i: (IMAGE, KINDS[i % 3], SITES[i]), count=count))


def test_paths_are_recognized_without_a_look_at_other_samples():
    rows = Rows(lambda i: (IMAGE, f"photos/{i % 2}.png", SITES[i]))
    assert spec_of(rows).labels == "2"
    assert set(rows.read) == {0}


@pytest.mark.parametrize("part", [Path("a.png"), np.array("name"), {1, 2}, {}, [], ["a", "b"], 1j], ids=repr)
def test_parts_that_cannot_be_a_label_are_none(part):
    assert spec_of(Rows(lambda i: (IMAGE, part, SITES[i]))).labels == "2"


def test_parts_that_some_samples_lack_are_no_labels():
    optional = Rows(lambda i: {"image": IMAGE, "kind": SITES[i]} | ({} if i % 3 else {"note": KINDS[i % 2]}))
    assert spec_of(optional).labels == "kind"
    tags = Rows(lambda i: {"image": IMAGE, "kind": SITES[i], "tags": ["a", "b"][: 1 + (i == 0)]})
    with pytest.raises(AmbiguousLabelError, match=r"`kind` and `tags\.0`"):  # the first tag repeats
        spec_of(Rows(lambda i: {"image": IMAGE, "kind": SITES[i], "tags": [KINDS[i % 2]]}))
    assert spec_of(tags).labels == "kind"


def test_other_samples_are_kept_without_their_images():
    class Large(Rows):
        def __getitem__(self, index):
            image = super().__getitem__(index)[0]
            kept.append(weakref.ref(image))
            return image, f"caption {index}", SITES[index]

    kept = []
    rows = Large(lambda i: (torch.zeros(3, 100, 100),))
    assert spec_of(rows).labels == "2"
    assert len(kept) > 8
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 1


def test_listed_labels_decide():
    text = Rows(lambda i: {"image": IMAGE, "kind": KINDS[i % 3], "site": SITES[i]}, targets=SITES)
    assert spec_of(text).labels == "site"
    parity = Rows(lambda i: (IMAGE, float(i % 2), SITES[i]), targets=[i % 2 for i in range(COUNT)])
    assert spec_of(parity).labels == "1"


@pytest.mark.parametrize(
    "form", [lambda i: (IMAGE, 3, f"{i}.png"), lambda i: {"image": IMAGE, "label": 3, "kind": "a"}]
)
def test_no_other_sample_is_read_if_one_is_clear(form):
    rows = Rows(form)
    spec_of(rows)
    assert rows.read == [0]


def test_only_allowed_samples_are_read():
    rows = Rows(lambda i: (IMAGE, KINDS[i % 3], i))
    assert spec_of(rows, torch.arange(50, 90)).labels == "1"
    assert set(rows.read) <= set(range(50, 90))


def numbered(index):
    return IMAGE, SITES[index], index


def half():
    return random_split(Rows(numbered), [100, 100], generator=torch.Generator().manual_seed(0))[1]


FLIP = Poison(torch.tensor([3]), torch.tensor([1]), AvailabilityObjective(), attack="label-flip")

VIEWS = {
    "Subset": lambda: Subset(Rows(numbered), [*range(40, 90), *range(7)]),
    "random_split": half,
    "fold": lambda: Subset(Rows(numbered), [index for index in range(COUNT) if index % 5]),
    "Subset of a Subset": lambda: Subset(half(), list(range(0, 100, 3))),
    "indices from 1": lambda: Subset(Rows(lambda i: (IMAGE, SITES[i], i + 1)), torch.arange(199, 0, -2)),
    "index in the Subset": lambda: Rows(lambda i: (IMAGE, SITES[i], i)),
    "filtered": lambda: SanitizedDataset(Rows(numbered), torch.arange(COUNT) % 3 > 0),
    "filtered Subset": lambda: SanitizedDataset(half(), torch.arange(100) % 3 > 0),
    "concatenation": lambda: ConcatDataset([Rows(numbered), Rows(numbered)]),
    "poisoned Subset": lambda: PoisonedDataset(half(), FLIP),
}


@pytest.mark.parametrize("name", VIEWS)
def test_index_in_the_whole_data_set_is_no_label(name):
    assert spec_of(VIEWS[name]()) == SampleSpec("0", "1")


def test_number_of_another_order_may_be_a_label():
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).tolist()
    with pytest.raises(AmbiguousLabelError):
        spec_of(Subset(Rows(lambda i: (IMAGE, SITES[i], order[i])), list(range(100))))


def test_object_that_only_looks_like_a_view_is_no_view():
    rows = Rows(lambda i: (IMAGE, SITES[i], 7 * i), dataset=[1], indices=None)
    with pytest.raises(AmbiguousLabelError):
        spec_of(rows)
