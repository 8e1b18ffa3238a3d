import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

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
    assert type(found) is type(getattr(base, name))
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
