import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.views import SanitizedDataset, as_view, locate
from lightning_poison.errors import NothingKeptError

KEEP = torch.tensor([False, True, True, False, True, True])


class Plain(Dataset):
    """Sample `i` is an image of shade `i / 510` and of class `i % 3`."""

    classes = ("a", "b", "c")

    def __init__(self, count=6):
        self.count, self.targets = count, [index % 3 for index in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((1, 2, 2), index / 510), index % 3


class Batched(Plain):
    """Records the batches that are requested."""

    def __init__(self, count=6):
        super().__init__(count)
        self.requested = []

    def __getitems__(self, indices):
        self.requested.append(list(indices))
        return [self[index] for index in indices]


class Forwarding:
    """Forwards every attribute to another data set."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_locates_sample_through_nested_views():
    first, second = TensorDataset(torch.arange(3)), TensorDataset(torch.arange(5))
    kept = SanitizedDataset(second, torch.tensor([True, False, True, True, False]))
    data = ConcatDataset([first, Subset(kept, [2, 0])])
    assert [locate(data, index) for index in (0, 2, 3, 4)] == [(first, 0), (first, 2), (second, 3), (second, 0)]
    assert locate(data, -1) == (second, 0)


def test_other_data_sets_are_not_views():
    data = TensorDataset(torch.arange(3))
    assert as_view(data) is None
    assert as_view([1, 2]) is None
    assert as_view(Forwarding(Subset(data, [0]))) is None
    assert locate(data, 1) == (data, 1)


def test_gathers_values_of_parts():
    values = torch.arange(4) * 10
    assert as_view(Subset([0, 1, 2, 3], [3, 1])).gather([values]).tolist() == [30, 10]
    assert as_view(ConcatDataset([[0, 1], [2, 3]])).gather([values[:2], values[2:]]).tolist() == [0, 10, 20, 30]


def test_sanitized_view_keeps_order():
    data = SanitizedDataset(Plain(), KEEP)
    assert len(data) == 4
    assert data.indices.tolist() == [1, 2, 4, 5]
    assert [label for _, label in data] == [1, 2, 1, 2] == data.targets
    assert data[-1][1] == 2
    assert data.classes == ("a", "b", "c")
    assert data.count == 6
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("name", ["targets", "labels"])
def test_label_lists_are_filtered_with_same_type(kind, name):
    base = Plain()
    setattr(base, name, kind([0, 1, 2, 3, 4, 5]))
    found = getattr(SanitizedDataset(base, KEEP), name)
    assert isinstance(found, type(getattr(base, name)))
    assert list(found) == [1, 2, 4, 5]


@pytest.mark.parametrize("values", [dict.fromkeys(range(6), "a"), "abcdef", [1, 2], None, 3])
def test_other_labels_attribute_is_unchanged(values):
    base = Plain()
    base.labels = values
    assert SanitizedDataset(base, KEEP).labels == values


def test_nested_views():
    outer = SanitizedDataset(SanitizedDataset(Plain(), KEEP), torch.tensor([True, False, True, True]))
    assert [label for _, label in outer] == [1, 1, 2] == outer.targets
    deeper = SanitizedDataset(Subset(outer, [2, 0]), torch.tensor([False, True]))
    assert deeper[0][1] == 1
    assert not hasattr(deeper, "targets")


def test_getitems_only_if_data_set_has_it():
    assert not hasattr(SanitizedDataset(Plain(), KEEP), "__getitems__")
    base = Batched()
    view = SanitizedDataset(base, KEEP)
    assert [label for _, label in view.__getitems__([3, 0])] == [2, 1]
    assert base.requested == [[5, 1]]


@pytest.mark.slow
def test_loader_of_view():
    for base in (Plain(), Batched()):
        loader = DataLoader(SanitizedDataset(base, KEEP), batch_size=2, num_workers=2)
        assert torch.cat([labels for _, labels in loader]).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("keep", [torch.ones(6), torch.ones(5, dtype=torch.bool), torch.ones(6, 1, dtype=torch.bool)])
def test_refuses_invalid_mask(keep):
    with pytest.raises(ValueError, match=r"`keep` to be a boolean mask \(6,\)"):
        SanitizedDataset(Plain(), keep)


def test_refuses_empty_mask():
    with pytest.raises(NothingKeptError, match="keeps some of the 6 samples, but it keeps none"):
        SanitizedDataset(Plain(), torch.zeros(6, dtype=torch.bool))


def test_mask_is_copied():
    keep = KEEP.clone()
    view = SanitizedDataset(Plain(), keep)
    keep[:] = False
    assert len(view) == 4


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="nothing"):
        _ = SanitizedDataset(Plain(), KEEP).nothing


class Adjustable(Plain):
    """Samples whose input and label depend on attributes."""

    def __init__(self, count=6, kind=list):
        super().__init__(count)
        self.shift, self.targets = 0.0, kind([index % 3 for index in range(count)])

    def __getitem__(self, index):
        return torch.full((1, 2, 2), index / 510) + self.shift, self.targets[index]


def views_of(base):
    poison = Poison(torch.tensor([5]), torch.tensor([0]), AvailabilityObjective(), attack="flip")
    return {
        "sanitized": SanitizedDataset(base, KEEP),
        "sanitized twice": SanitizedDataset(SanitizedDataset(base, KEEP), torch.tensor([True, False, True, True])),
        "poisoned": PoisonedDataset(base, poison),
        "sanitized poison": SanitizedDataset(PoisonedDataset(base, poison), KEEP),
    }


@pytest.mark.parametrize("name", views_of(Adjustable()))
def test_attributes_are_set_on_the_data_set(name):
    base = Adjustable()
    view = views_of(base)[name]
    view.shift = 1.0
    view.epoch = 3
    assert (base.shift, base.epoch, view.epoch) == (1.0, 3, 3)
    assert view[0][0].min() >= 1
    assert "shift" not in vars(view)
    del view.epoch
    assert not hasattr(base, "epoch")


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("name", ["sanitized", "sanitized twice"])
def test_new_labels_reach_the_samples(kind, name):
    base = Adjustable(kind=kind)
    view = views_of(base)[name]
    view.targets[0] = 7
    assert int(view[0][1]) == 7
    view.targets = list(range(10, 10 + len(view)))
    assert [int(label) for _, label in view] == list(range(10, 10 + len(view)))
    assert int(base.targets[0]) == 0
    assert isinstance(base.targets, type(kind([0])))
    view.targets[:] = kind([8] * len(view))
    assert {int(label) for _, label in view} == {8}


@pytest.mark.parametrize("poisoned", [False, True])
def test_attributes_set_as_without_the_view_reach_the_data_set_of_a_subset(poisoned):
    """`loader.dataset.dataset.shift = ...` is usual after `random_split`."""
    base = Adjustable(9)
    subset = Subset(base, [7, 5, 3, 1, 0, 2])
    subset.note = "set before"
    view = views_of(subset)["poisoned" if poisoned else "sanitized"]
    loader = DataLoader(view, batch_size=2)
    for shift, dataset in enumerate([loader.dataset.dataset, loader.dataset.dataset.dataset] * 2, start=1):
        dataset.shift = float(shift)
        assert all(inputs.min() >= shift for inputs, _ in loader)
        assert base.shift == shift
    loader.dataset.dataset.more = "unknown to the data set"
    assert view[0][0].min() >= 4
    assert (subset.note, subset.more) == ("set before", "unknown to the data set")
    assert not hasattr(base, "note")


def test_attributes_set_through_two_subsets_reach_the_data_set():
    base = Adjustable(9)
    view = SanitizedDataset(Subset(Subset(base, range(8)), [7, 5, 3, 1, 0, 2]), KEEP)
    view.dataset.dataset.shift = 1.0
    assert view[0][0].min() >= 1


def initialize_worker(worker):
    torch.utils.data.get_worker_info().dataset.shift = 1.0


@pytest.mark.slow
def test_workers_initialize_the_data_set():
    base = Adjustable()
    loader = DataLoader(SanitizedDataset(base, KEEP), num_workers=1, worker_init_fn=initialize_worker)
    assert all(inputs.min() >= 1 for inputs, _ in loader)
    assert base.shift == 0


def test_labels_of_all_samples_are_set_as_they_are():
    base = Adjustable()
    view = SanitizedDataset(base, KEEP)
    view.targets = labels = [9] * 6
    assert base.targets is labels


@pytest.mark.parametrize("labels", [[1] * 5, torch.zeros(3), None, 4])
def test_refuses_labels_of_another_length(labels):
    base = Adjustable()
    with pytest.raises(ValueError, match="`targets` to be labels of the 4 kept samples, or of all 6, but got "):
        SanitizedDataset(base, KEEP).targets = labels
    assert len(base.targets) == 6


def test_refuses_one_entry_for_each_sample_of_the_view():
    """The data set would look them up under the positions of other samples."""
    base = Adjustable()
    view = SanitizedDataset(base, KEEP)
    with pytest.raises(ValueError, match=r"`weights` to have one entry for each of the 6 samples .*, but got 4"):
        view.weights = torch.zeros(4)
    base.crops = [0, 0, 0, 0]
    view.crops = [1, 1, 1, 1]
    assert base.crops == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["dataset", "indices"])
def test_attributes_of_the_view_are_read_only(name):
    view = SanitizedDataset(Adjustable(), KEEP)
    with pytest.raises(AttributeError, match=f"`{name}` belongs to its SanitizedDataset and is read-only"):
        setattr(view, name, None)
    with pytest.raises(AttributeError, match=r"which would describe other samples .*\n.*`.dataset`"):
        view.tensors = ()
    with pytest.raises(AttributeError, match="'tensors', which would describe other samples"):
        _ = view.tensors


def test_labels_of_poisoned_data_are_read_only():
    view = views_of(Adjustable())["poisoned"]
    assert view.targets.tolist() == [0, 1, 2, 0, 1, 0]
    for change in (lambda: setattr(view, "targets", [0] * 6), lambda: view.targets.fill_(1)):
        with pytest.raises(ValueError, match="to be those of its data set and its poison"):
            change()
    assert view.targets.tolist() == [0, 1, 2, 0, 1, 0]


def pickled(view):
    return pickle.loads(pickle.dumps(view))  # noqa: S301


@pytest.mark.parametrize("name", views_of(Adjustable()))
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickled])
def test_views_can_be_copied_and_pickled(name, how):
    view = views_of(Adjustable())[name]
    copied = how(view)
    assert [int(label) for _, label in copied] == [int(label) for _, label in view]
    copied.shift = 1.0
    assert copied[0][0].min() >= 1
    assert (view.shift == 1) == (how is copy.copy)


def test_attributes_are_not_read_before_there_is_a_data_set():
    empty = SanitizedDataset.__new__(SanitizedDataset)
    with pytest.raises(AttributeError, match="no attribute 'classes'"):
        _ = empty.classes
    assert not hasattr(empty, "targets")


@pytest.mark.slow
def test_workers_that_are_spawned_read_what_was_set():
    base = Adjustable()
    view = SanitizedDataset(base, KEEP)
    view.targets[0] = 7
    view.shift = 1.0
    loader = DataLoader(view, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    inputs, labels = (torch.cat(each) for each in zip(*loader, strict=True))
    assert labels.tolist() == [7, 2, 1, 2]
    assert inputs.min() >= 1
