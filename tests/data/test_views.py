import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_poison.data.views import SanitizedDataset, as_view, locate


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
