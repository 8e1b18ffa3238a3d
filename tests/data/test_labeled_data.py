import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from lightning_poison.data import labeled_data
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.labeled_data import LabeledData, with_labels
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.runtime import LocalRuntime

RUNTIME = LocalRuntime(precision="32", threads=1)
SPEC = SampleSpec("x", "y")


class Unlisted(Dataset):
    """Lists no labels and counts how often each sample is read."""

    def __init__(self, count=300):
        self.reads = torch.zeros(count, dtype=torch.int64)

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"x": torch.full((2,), float(index)), "y": index % 3}


def load(data):
    return with_labels(data, SPEC, runtime=RUNTIME, seed=0, name="data")


def test_keeps_data_set_with_listed_labels():
    data = TensorDataset(torch.rand(30, 2), torch.arange(30) % 3)
    loaded = with_labels(data, SampleSpec(), runtime=RUNTIME, seed=0, name="data")
    assert loaded.dataset is data
    assert torch.equal(loaded.labels, data.tensors[1])


def test_reads_unlisted_labels_once_into_memory():
    data = Unlisted()
    loaded = load(data)
    assert torch.equal(loaded.labels, torch.arange(300) % 3)
    assert torch.equal(loaded.dataset.inputs[:, 0], torch.arange(300.0))
    assert loaded.in_memory(runtime=RUNTIME, seed=0, name="data") is loaded
    assert (data.reads[1:].max(), data.reads[0]) == (1, 2)  # the first is read once more for its size


def test_reads_only_labels_above_memory_limit(monkeypatch):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 300 * 8 - 1)
    data = Unlisted()
    loaded = load(data)
    assert loaded.dataset is data
    assert torch.equal(loaded.labels, torch.arange(300) % 3)
    part = loaded.in_memory(runtime=RUNTIME, seed=0, name="data").subset(torch.tensor([5, 7]))
    reads = data.reads.clone()
    assert labels_of(part).tolist() == [2, 1]
    assert (data.reads - reads).sum() <= 3  # a few probes, not the whole data set


def test_does_not_depend_on_number_of_workers(monkeypatch):
    runtime = LocalRuntime(precision="32", threads=1, num_workers=2)
    loaded = with_labels(Unlisted(), SPEC, runtime=runtime, seed=0, name="data")
    assert torch.equal(loaded.dataset.inputs, load(Unlisted()).dataset.inputs)


def test_memory_limit_is_in_bytes(monkeypatch):
    loaded = LabeledData(Unlisted(), SPEC, torch.arange(300) % 3)
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 300 * 8)
    assert isinstance(loaded.in_memory(runtime=RUNTIME, seed=0, name="data").dataset, MemoryDataset)
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 300 * 8 - 1)
    assert loaded.in_memory(runtime=RUNTIME, seed=0, name="data") is loaded


@pytest.mark.parametrize("limit", [0, 2**30])
def test_subset_does_not_depend_on_memory(monkeypatch, limit):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    loaded = LabeledData(Unlisted(), SPEC, torch.arange(300) % 3).in_memory(runtime=RUNTIME, seed=0, name="data")
    inputs, label = loaded.subset(torch.tensor([5, 7]))[1]
    assert (inputs.tolist(), int(label)) == ([7, 7], 1)


@pytest.mark.parametrize(
    ("odd", "error", "message"),
    [(256, ValueError, "Sample 256 is the first that differs"), (3, UnreadableSampleError, "sample 3 has")],
)
def test_refuses_other_shape_in_later_block(odd, error, message):
    class Uneven(Unlisted):
        def __getitem__(self, index):
            return {"x": torch.zeros(3 if index >= odd else 2), "y": 0}

    with pytest.raises(error, match=message):
        load(Uneven())


def test_names_invalid_label():
    class Odd(Unlisted):
        def __getitem__(self, index):
            return {"x": torch.zeros(2), "y": -1 if index == 270 else 0.5 if index == 280 else 1}

    with pytest.raises(ValueError, match="at least 0, but sample 270 has -1"):
        load(Odd(275))
    with pytest.raises(ValueError, match="label of sample 280"):
        load(Odd())
