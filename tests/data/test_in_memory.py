import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from lightning_poison.data import in_memory
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.in_memory import Held, hold, take
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.runtime import LocalRuntime

RUNTIME = LocalRuntime(precision="32", threads=1)
SPEC = SampleSpec("x", "y")


class Unlisted(Dataset):
    """Lists no labels, and counts how often each sample is read."""

    def __init__(self, count=300):
        self.reads = torch.zeros(count, dtype=torch.int64)

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"x": torch.full((2,), float(index)), "y": index % 3}


def taken(data):
    return take(data, SPEC, runtime=RUNTIME, seed=0, name="data")


def test_a_set_that_lists_its_labels_is_left_as_it_is():
    data = TensorDataset(torch.rand(30, 2), torch.arange(30) % 3)
    held = take(data, SampleSpec(), runtime=RUNTIME, seed=0, name="data")
    assert held.dataset is data
    assert torch.equal(held.labels, data.tensors[1])


def test_one_that_lists_none_is_read_once_and_kept():
    data = Unlisted()
    held = taken(data)
    assert torch.equal(held.labels, torch.arange(300) % 3)
    assert torch.equal(held.dataset.inputs[:, 0], torch.arange(300.0))
    assert hold(held, runtime=RUNTIME, seed=0, name="data") is held
    assert (data.reads[1:].max(), data.reads[0]) == (1, 2)  # the first is looked at for its size


def test_a_large_one_is_read_for_its_labels_alone(monkeypatch):
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", 300 * 8 - 1)
    data = Unlisted()
    held = taken(data)
    assert held.dataset is data
    assert torch.equal(held.labels, torch.arange(300) % 3)
    part = hold(held, runtime=RUNTIME, seed=0, name="data").part(torch.tensor([5, 7]))
    reads = data.reads.clone()
    assert labels_of(part).tolist() == [2, 1]
    assert (data.reads - reads).sum() <= 3  # a few probes, and no walk over the whole


def test_workers_read_the_same(monkeypatch):
    runtime = LocalRuntime(precision="32", threads=1, num_workers=2)
    held = take(Unlisted(), SPEC, runtime=runtime, seed=0, name="data")
    assert torch.equal(held.dataset.inputs, taken(Unlisted()).dataset.inputs)


def test_the_limit_is_one_of_bytes(monkeypatch):
    held = Held(Unlisted(), SPEC, torch.arange(300) % 3)
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", 300 * 8)
    assert isinstance(hold(held, runtime=RUNTIME, seed=0, name="data").dataset, MemoryDataset)
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", 300 * 8 - 1)
    assert hold(held, runtime=RUNTIME, seed=0, name="data") is held


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_part_is_the_same_in_memory_or_not(monkeypatch, limit):
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", limit)
    held = hold(Held(Unlisted(), SPEC, torch.arange(300) % 3), runtime=RUNTIME, seed=0, name="data")
    inputs, label = held.part(torch.tensor([5, 7]))[1]
    assert (inputs.tolist(), int(label)) == ([7, 7], 1)


@pytest.mark.parametrize(
    ("odd", "error", "message"),
    [(256, ValueError, "Sample 256 is the first that differs"), (3, UnreadableSampleError, "sample 3 has")],
)
def test_shapes_must_agree_over_the_whole_set(odd, error, message):
    class Uneven(Unlisted):
        def __getitem__(self, index):
            return {"x": torch.zeros(3 if index >= odd else 2), "y": 0}

    with pytest.raises(error, match=message):
        taken(Uneven())


def test_a_bad_label_is_named():
    class Odd(Unlisted):
        def __getitem__(self, index):
            return {"x": torch.zeros(2), "y": -1 if index == 270 else 0.5 if index == 280 else 1}

    with pytest.raises(ValueError, match="at least 0, but sample 270 has -1"):
        taken(Odd(275))
    with pytest.raises(ValueError, match="label of sample 280"):
        taken(Odd())
