import pytest
import torch
from torch.utils.data import Dataset

from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source, source_for
from lightning_poison.data.source_labels import source_labels


class Partly(Dataset):
    """The first ten samples are no training samples; the others are `(input, label, index)`."""

    reads = 0

    def __init__(self, listed=None):
        self.targets = listed

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index < 10:
            raise OSError("not a training sample")
        self.reads += 1
        return torch.full((2,), float(index)), index % 5, index


@pytest.mark.parametrize("listed", [None, list(range(10, 50)), [0] * 40], ids=["no list", "wrong list", "zeros"])
def test_labels_of_drawn_samples(listed):
    source = source_for(Partly(listed), sample=None, positions=torch.arange(10, 40))
    assert torch.equal(source_labels(source, torch.arange(12, 40)), torch.arange(12, 40) % 5)


def test_listed_labels_of_drawn_samples_are_used():
    data = Partly([index % 5 for index in range(40)])
    source = source_for(data, sample=SampleSpec())
    assert torch.equal(source_labels(source, torch.arange(10, 40)), torch.arange(10, 40) % 5)
    assert data.reads == 8


def test_samples_that_collate_fn_leaves_out_have_no_label():
    data = [None if index % 3 == 0 else (torch.ones(2), index % 2) for index in range(6)]
    source = Source(data, SampleSpec(), ReadSettings(collate_fn=lambda samples: samples))
    assert source_labels(source).tolist() == [-1, 1, 0, -1, 0, 1]
