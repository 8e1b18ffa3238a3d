import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.labels import as_label, as_labels, check_class_labels, labels_of, read_sample, spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import UnreadableSampleError

LABELS = [2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2]


class Listed(Dataset):
    """Counts its reads; lists labels under a name, which need not be those of its samples."""

    def __init__(self, labels=LABELS, *, name="targets", listed=None):
        self.own = list(labels)
        self.reads = 0
        setattr(self, name, self.own if listed is None else listed)

    def __len__(self):
        return len(self.own)

    def __getitem__(self, index):
        self.reads += 1
        return torch.zeros(1, 2, 2), self.own[index]


class Column:
    """Stands for a column of a frame."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


def tensors(labels=LABELS):
    return TensorDataset(torch.zeros(len(labels), 2), torch.tensor(labels))


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    "kind",
    [
        *(list, tuple, np.array, torch.tensor, lambda values: np.array(values, dtype=np.uint8)),
        *(lambda values: np.array(values, dtype=float), lambda values: torch.tensor(values)[:, None]),
        *(lambda values: np.eye(3)[values], lambda values: [torch.tensor(value) for value in values]),
        *(lambda values: np.array(values, dtype=object), Column),
    ],
)
def test_uses_listed_labels_after_few_reads(name, kind):
    data = Listed(LABELS * 10, name=name, listed=kind(LABELS * 10))
    found = labels_of(data)
    assert found.tolist() == LABELS * 10
    assert found.dtype == torch.int64
    assert data.reads <= 9


def test_accepts_read_only_arrays():
    listed = np.array(LABELS)
    listed.flags.writeable = False
    assert labels_of(Listed(listed=listed)).tolist() == LABELS


@pytest.mark.parametrize(
    "listed",
    [
        [0] * len(LABELS),
        LABELS[:5],
        LABELS + LABELS,
        [str(label) for label in LABELS],
        [None] * len(LABELS),
        [[label, label + 1] for label in LABELS],
        np.eye(3)[LABELS] / 2,
        np.array(LABELS) + 0.5,
        np.full(len(LABELS), np.nan),
        dict(enumerate(LABELS)),
        "abcdefghijkl",
        7,
        np.array(None),
    ],
)
def test_ignores_lists_that_disagree(listed):
    data = Listed(listed=listed)
    assert labels_of(data).tolist() == LABELS
    assert data.reads >= len(LABELS)


def test_tensors():
    assert labels_of(tensors()).tolist() == LABELS


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_views_and_concatenations(indices, choice):
    base = choice.choice([tensors(), Listed()])
    kind = choice.choice([list, torch.tensor, np.array])
    view = Subset(ConcatDataset([base, tensors([5, 6])]), [*indices, 13])
    assert labels_of(view).tolist() == [*(LABELS[index] for index in indices), 6]
    assert labels_of(Subset(view, kind([len(indices)]))).tolist() == [6]


def test_subset_of_range():
    assert labels_of(Subset(Listed(), range(3, 6))).tolist() == LABELS[3:6]


def flip(indices, labels, **parts):
    return Poison(torch.tensor(indices), torch.tensor(labels), AvailabilityObjective(), attack="flip", **parts)


@pytest.mark.parametrize(
    "base",
    [tensors(LABELS * 20), Subset(tensors(LABELS * 30), range(240)), ConcatDataset([tensors(LABELS * 10)] * 2)],
    ids=["tensors", "subset", "concat"],
)
def test_labels_of_poisoned_data_set(base):
    clean = labels_of(base)
    poisoned = PoisonedDataset(base, flip([3, 240], [7, 8], base_indices=torch.tensor([3, 0])))
    expected = torch.cat([clean, torch.tensor([8])])
    expected[3] = 7
    assert labels_of(poisoned).tolist() == expected.tolist() == [int(poisoned[i][1]) for i in range(241)]
    assert labels_of(Subset(poisoned, [3, 240])).tolist() == [7, 8]
    keep = torch.ones(241, dtype=torch.bool)
    keep[0] = False
    assert labels_of(SanitizedDataset(poisoned, keep)).tolist() == expected[1:].tolist()


def test_flipped_label_outside_probes():
    for base in (tensors(LABELS * 20), Subset(tensors(LABELS * 30), range(240))):
        assert labels_of(PoisonedDataset(base, flip([3], [7])))[:5].tolist() == [2, 0, 1, 7, 0]


def test_subset_with_repeated_samples():
    class Twice(Dataset):
        def __init__(self, dataset, indices):
            self.dataset, self.indices = dataset, indices

        def __len__(self):
            return 2 * len(self.indices)

        def __getitem__(self, index):
            return self.dataset[self.indices[index % len(self.indices)]]

    assert labels_of(Twice(tensors(), [0, 1])).tolist() == [2, 0, 2, 0]


def test_view_that_forwards_attributes():
    view = PoisonedDataset(Subset(tensors(), [8, 9, 10, 11]), flip([1], [2]))
    assert labels_of(view).tolist() == [0, 2, 1, 2]


def test_object_that_only_looks_like_a_view():
    class Odd(Listed):
        dataset, indices = tensors([0, 1]), list(range(12))

    assert labels_of(Odd()).tolist() == LABELS


def test_named_label():
    data = [{"image": torch.zeros(1, 2, 2), "coarse": 1, "fine": 4}] * 3
    assert labels_of(data, SampleSpec("image", "fine")).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "label",
    [
        *(0.5, "cat", torch.tensor(1.5), torch.tensor([1, 1]), torch.zeros(2, 2).long(), torch.tensor([2, 3])),
        *(np.float32(1.5), np.array(1.5), np.array([1, 1, 0]), [0, 0], torch.tensor([0.2, 0.8])),
    ],
)
def test_refuses_other_than_class_index(label):
    data = [(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2), label)]
    with pytest.raises(ValueError, match=r"class index as the label of sample 1[\s\S]*target_transform"):
        labels_of(data)


@pytest.mark.parametrize("label", [3, np.int64(3), 3.0, np.array(3), torch.tensor([3]), np.eye(4)[3]])
def test_accepts_class_indices(label):
    assert as_label(label, 0) == 3
    assert type(as_label(label, 0)) is int


@pytest.mark.parametrize("label", [-1, torch.tensor(-1), -1.0])
def test_no_label(label):
    assert as_label(label, 0) == -1


def test_labels_of_several_samples():
    assert as_labels([torch.tensor([0, 1]), np.eye(2)[0], -1], [5, 6, 7]).tolist() == [1, 0, -1]
    assert as_labels([torch.tensor([3]), 2, np.array(1.0)], [5, 6, 7]).tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match=r"sample 6 is a vector of length 3 and that of sample 5 is a .* of length 2"):
        as_labels([[0, 1], [0, 0, 1]], [5, 6])
    with pytest.raises(ValueError, match="sample 7 is a number and that of sample 6 is a vector of length 2"):
        as_labels([-1, [0, 1], 1], [5, 6, 7])


def test_refuses_other_negative_labels():
    with pytest.raises(ValueError, match=r"label of sample 4, or -1 for no label, but got -2\.\nNumber the classes"):
        as_label(-2, 4)


@pytest.mark.parametrize("form", [torch.Tensor.double, torch.Tensor.bool, lambda labels: labels[:, None]])
def test_binary_labels_of_any_form(form):
    labels = torch.tensor([0, 1, 1, 0])
    assert labels_of(TensorDataset(torch.zeros(4, 2), form(labels))).tolist() == labels.tolist()


class Raising(Listed):
    """Its properties raise."""

    def __init__(self):
        self.own, self.reads = list(LABELS), 0

    @property
    def targets(self):
        raise ZeroDivisionError

    classes = labels = targets


class Strange:
    def __len__(self):
        raise OSError


def test_ignores_properties_that_raise():
    assert labels_of(Raising()).tolist() == LABELS
    check_class_labels(torch.tensor(LABELS), Raising())


@pytest.mark.parametrize("classes", [Strange(), torch.tensor(3), 7, "abc", None, []])
def test_ignores_strange_classes(classes):
    data = tensors()
    data.classes = classes
    check_class_labels(torch.tensor(LABELS), data)


def test_refuses_negative_labels():
    with pytest.raises(ValueError, match=r"integers of at least 0, but got -1 at sample 1"):
        labels_of(tensors([0, -1]))


@pytest.mark.parametrize("data", [[], tensors([])])
def test_refuses_empty_data_set(data):
    with pytest.raises(ValueError, match="at least one sample"):
        labels_of(data)


def test_unreadable_sample_is_named():
    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 2:
                raise OSError("truncated")
            return torch.zeros(1, 2, 2), 0

    message = r"sample 2 of Broken, but it raised OSError: truncated\.\nRepair or remove the sample\."
    with pytest.raises(UnreadableSampleError, match=message):
        labels_of(Broken())
    folder = Broken()
    folder.samples = [(f"cat/{index}\x1b.png", 0) for index in range(4)]
    with pytest.raises(
        UnreadableSampleError, match=r"sample 1 of Subset, .*\n.*remove its file, cat/2\\x1b\.png\. .* FOLDER"
    ):
        read_sample(Subset(folder, [0, 2]), 1)


def test_restores_random_states():
    class Random(Listed):
        def __getitem__(self, index):
            noise = random.random() + np.random.rand()  # noqa: NPY002, S311
            return torch.rand(1, 2, 2) + noise, self.own[index]

    found = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    labels_of(Random(listed=[9] * 12))
    spec_of(Random())
    assert random.getstate() == found[0]
    assert np.random.get_state()[1].tolist() == found[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), found[2])


class Leaving(Dataset):
    """Raises `SystemExit`, as scripts do that call `sys.exit`."""

    def __len__(self):
        return 12

    @property
    def targets(self):
        raise SystemExit(3)

    classes = targets

    def __getitem__(self, index):
        if index == 7:
            raise SystemExit("bye")
        return torch.zeros(2), index % 3


def test_exit_of_a_data_set_is_an_error():
    with pytest.raises(UnreadableSampleError, match="sample 7 of Leaving, but it raised SystemExit: bye"):
        labels_of(Leaving())


def test_signals_of_lightning_pass():
    class SIGTERMException(SystemExit):
        pass

    class Interrupted(Leaving):
        def __getitem__(self, index):
            raise SIGTERMException

    with pytest.raises(SIGTERMException):
        read_sample(Interrupted(), 0)


def test_samples_without_a_label_may_be_allowed():
    data = [(torch.zeros(2), label) for label in (0, -1, 1)]
    assert labels_of(data, unlabeled=True).tolist() == [0, -1, 1]
    with pytest.raises(ValueError, match="at least 0, but got -1 at sample 1"):
        labels_of(data)
    with pytest.raises(ValueError, match="0, or -1 for no label, but got -2"):
        labels_of([(torch.zeros(2), -2)], unlabeled=True)


USUAL_LABELS = {
    "numbers": [3, 0, -1],
    "tensors": [torch.tensor(3), torch.tensor(0), torch.tensor(-1)],
    "tensors of two types": [torch.tensor(3), torch.tensor(0, dtype=torch.int32), torch.tensor(-1)],
    "mixed": [3, torch.tensor(0), -1.0],
    "vectors of one": [torch.tensor([3]), torch.tensor([0]), torch.tensor([-1])],
}


@pytest.mark.parametrize("name", USUAL_LABELS)
def test_usual_and_other_labels_become_the_same_column(name):
    found = as_labels(USUAL_LABELS[name], range(3))
    assert torch.equal(found, torch.tensor([3, 0, -1]))
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    "odd",
    [-2, 2**70, torch.tensor(-2), torch.tensor(0.5), torch.tensor(0, device="meta"), torch.tensor([1, 1])],
    ids=["negative", "huge", "negative tensor", "fraction", "meta", "two"],
)
def test_an_odd_label_among_usual_ones_is_named(odd):
    usual = torch.tensor(1) if isinstance(odd, torch.Tensor) else 1
    with pytest.raises(ValueError, match="label of sample 8"):
        as_labels([usual, odd], [7, 8])
