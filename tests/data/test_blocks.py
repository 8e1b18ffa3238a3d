import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_poison.data.blocks import MemoryDataset, SelectedDataset, index_blocks, is_plain, read_blocks
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source
from lightning_poison.errors import UnreadableSampleError


class Noisy(Dataset):
    """Draws from all three random sources at every read."""

    def __init__(self, count=23):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = random.random() + np.random.rand()  # noqa: NPY002, S311
        return torch.rand(1, 2, 2) + noise + index, index % 3


class Faulty(Noisy):
    """Returns something odd at sample 13."""

    def __init__(self, odd, label=1):
        super().__init__()
        self.odd, self.label = odd, label

    def __getitem__(self, index):
        if index != 13:
            return torch.zeros(1, 2, 2), index % 3
        return (self.odd() if callable(self.odd) else self.odd), self.label


class FaultyBatches(Faulty):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def fail():
    raise KeyError("lost")


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def read(dataset, *, workers=0, seed=5, size=5, indices=None):
    blocks = index_blocks(torch.arange(len(dataset)) if indices is None else indices, size)
    return list(read_blocks(dataset, blocks, sample=SampleSpec(), seed=seed, num_workers=workers))


def test_index_blocks():
    assert [block.tolist() for block in index_blocks(torch.tensor([4, 2, 9, 7, 1]), 2)] == [[4, 2], [9, 7], [1]]


def test_blocks_have_given_order():
    found = read(Noisy(), indices=torch.tensor([7, 3, 11, 0]), size=3)
    assert [block.indices.tolist() for block in found] == [[7, 3, 11], [0]]
    assert [block.labels.tolist() for block in found] == [[1, 0, 2], [0]]
    assert found[0].inputs.dtype == torch.float32
    assert found[0].inputs.shape == (3, 1, 2, 2)


def test_random_transforms_do_not_depend_on_number_of_workers():
    here, there = read(Noisy()), read(Noisy(), workers=2)
    assert len(here) == len(there) == 5
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.indices, two.indices)
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.labels, two.labels)


def test_block_does_not_depend_on_others():
    alone = next(read_blocks(Noisy(), [torch.arange(10, 15)], sample=SampleSpec(), seed=5))
    assert torch.equal(alone.inputs, read(Noisy())[2].inputs)


def test_seed_changes_random_transforms():
    assert not torch.equal(read(Noisy())[0].inputs, read(Noisy(), seed=6)[0].inputs)


class Doubled(TensorDataset):
    """Could draw random numbers, unlike its base class."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs * torch.randint(1, 1000, ()), label


def test_only_parts_of_tensors_are_read_without_a_random_state():
    data = TensorDataset(torch.ones(9, 2), torch.arange(9))
    assert is_plain(data)
    assert is_plain(Subset(Subset(data, [1, 2]), [0]))
    assert not is_plain(Doubled(*data.tensors))
    assert not is_plain(Subset(Doubled(*data.tensors), [0]))
    assert not is_plain([(torch.zeros(2), 0)])


def test_samples_of_derived_classes_have_random_states_of_their_own():
    data = Doubled(torch.ones(9, 2), torch.arange(9))
    forward, backward = (
        torch.cat([block.inputs for block in read(data, indices=torch.tensor(order))])
        for order in (range(9), range(8, -1, -1))
    )
    assert forward.unique().numel() > 1
    assert forward.equal(backward.flip(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_restores_random_states(workers):
    found = states()
    read(Noisy(), workers=workers)
    next(read_blocks(Noisy(), [torch.arange(2)] * 3, sample=SampleSpec(), seed=0, num_workers=workers))
    with pytest.raises(UnreadableSampleError):
        read(Faulty(fail), workers=workers)
    assert states() == found


FAULTS = {
    "raises": (fail, UnreadableSampleError, "read sample 13 of .*, but it raised KeyError: 'lost'"),
    "NaN": (torch.full((1, 2, 2), torch.nan), UnreadableSampleError, "finite inputs, but sample 13 contains NaN"),
    "infinite": (torch.full((1, 2, 2), -torch.inf), UnreadableSampleError, "finite inputs, but sample 13"),
    "shape": (torch.zeros(1, 2, 3), UnreadableSampleError, r"sample 13 has \(1, 2, 3\) and sample 10 has \(1, 2, 2\)"),
    "PIL": (Image.new("L", (2, 2)), UnreadableSampleError, r"sample 13, but got a PIL image.\nAdd torchvision's"),
    "text": ("x", UnreadableSampleError, "a tensor as the input of sample 13, but got 'x'"),
    "objects": (np.array([[None]]), UnreadableSampleError, "a tensor as the input of sample 13, but got a object"),
    "complex": (torch.zeros(1, 2, 2) + 0j, UnreadableSampleError, "a tensor as the input of sample 13"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", [Faulty, FaultyBatches])
def test_error_names_sample_with_and_without_workers(name, kind):
    odd, error, message = FAULTS[name]
    seen = []
    for workers in (0, 2):
        with pytest.raises(error, match=message) as caught:
            read(kind(odd), workers=workers)
        seen.append((caught.type, str(caught.value)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("label", "message"),
    [(-1, "at least 0, but got -1 at sample 13"), (1.5, "label of sample 13"), ("x", "sample 13")],
)
def test_label_error_names_sample(label, message):
    seen = []
    for workers in (0, 1):
        with pytest.raises(ValueError, match=message) as caught:
            read(Faulty(torch.zeros(1, 2, 2), label), workers=workers)
        seen.append(str(caught.value))
    assert seen[0] == seen[1]


def test_ignores_faults_in_samples_not_read():
    assert len(read(Faulty(fail), indices=torch.arange(13))) == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([0, 51, 255], dtype=torch.uint8), [0, 0.2, 1]),
        (torch.tensor([0.0, 51, 255], dtype=torch.float64), [0, 51, 255]),
        (torch.tensor([0, 51, 255]), [0, 51, 255]),
        (np.array([0, 51, 255], dtype=np.uint8), [0, 0.2, 1]),
        (np.array([0, 51, 255], dtype=">f4"), [0, 51, 255]),
        (np.array([255, 51, 0])[::-1], [0, 51, 255]),
        (torch.tensor([False, True, True]), [0, 1, 1]),
    ],
)
def test_converts_inputs_to_float(value, expected):
    block = read([(value, 0)])[0]
    assert block.inputs.dtype == torch.float32
    assert block.inputs[0].tolist() == pytest.approx(expected)


def test_read_only_arrays_are_copied():
    value = np.ones(3, dtype=np.float32)
    value.flags.writeable = False
    read([(value, 0)])[0].inputs.zero_()
    assert value.tolist() == [1, 1, 1]


def test_uses_getitems():
    class Batched(Noisy):
        requested = ()

        def __getitems__(self, indices):
            self.requested = (*self.requested, indices)
            return [(torch.zeros(1), 0) for _ in indices]

    data = Batched()
    read(data, size=20)
    assert data.requested == (list(range(20)), [20, 21, 22])


def test_memory_dataset():
    data = MemoryDataset(torch.arange(6.0).view(6, 1), torch.tensor([0, 1, 2, 0, 1, 2]))
    part = data.subset(torch.tensor([5, 0]))
    assert [(float(x), int(y)) for x, y in (part[0], part[1])] == [(5, 2), (0, 0)]
    block = read(data, indices=torch.tensor([4, 1]))[0]
    assert block.inputs.flatten().tolist() == [4, 1]
    assert block.labels.tolist() == [1, 1]


def test_large_part_of_a_memory_dataset_is_no_copy():
    data = MemoryDataset(torch.arange(6.0).view(6, 1), torch.arange(6))
    part = data.subset(torch.tensor([5, 1, 3, 0]))
    assert part.stored is data.stored
    assert part.inputs.flatten().tolist() == [5, 1, 3, 0]
    assert part.relabeled(part.targets + 1).inputs_at(torch.tensor([2])).flatten().tolist() == [3]
    inner = part.subset(torch.tensor([3, 2, 0]))
    assert inner.stored is data.stored
    assert [(float(x), int(y)) for x, y in (inner[0], inner[2])] == [(0, 0), (5, 5)]
    assert [read(inner)[0].inputs.flatten().tolist(), inner.targets.tolist()] == [[0, 3, 5]] * 2
    few = part.subset(torch.tensor([1, 0]))
    assert few.rows is None
    assert few.inputs.flatten().tolist() == [1, 5]


def test_selection_names_samples_by_their_index_in_the_whole_data_set():
    whole = [{"x": torch.full((2,), float(index)), "odd": index % 2, "id": index} for index in range(6)]
    data = SelectedDataset(Source(whole, SampleSpec("x", "odd")), torch.tensor([5, 2]), torch.tensor([1, 0]))
    assert [(image.tolist(), int(label)) for image, label in (data[0], data[1])] == [([5, 5], 1), ([2, 2], 0)]
    block = read(data)[0]
    assert block.indices.tolist() == [0, 1]
    assert block.inputs[:, 0].tolist() == [5, 2]
    assert block.labels.tolist() == [1, 0]
    with pytest.raises(UnreadableSampleError, match="sample 13 contains NaN"):
        read(SelectedDataset(Source(Faulty(FAULTS["NaN"][0]), SampleSpec()), torch.tensor([4, 13]), torch.zeros(2)))
    with pytest.raises(UnreadableSampleError, match="read sample 13 of Faulty"):
        SelectedDataset(Source(Faulty(fail), SampleSpec()), torch.tensor([4, 13]), torch.zeros(2))[1]


def test_worker_that_ends_is_named_with_the_samples_that_it_read():
    class Deadly(Faulty):
        def __getitem__(self, index):
            return os._exit(3) if index == 13 else super().__getitem__(index)

    with pytest.raises(UnreadableSampleError, match=r"Expected worker processes to read samples from \d+ on, but one"):
        read(Deadly(fail), workers=1)


def test_exit_in_batched_reads_names_the_sample():
    class Leaving(Faulty):
        def __getitems__(self, indices):
            raise SystemExit("bye")

    with pytest.raises(UnreadableSampleError, match="read sample 13 of Leaving, but it raised KeyError"):
        read(Leaving(fail))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_cannot_be_decoded_is_named(workers):
    class Folder(Dataset):
        samples = tuple((f"cat/{index}.png", 0) for index in range(8))

        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 6:
                raise OSError("image file is truncated")
            return torch.zeros(2), 0

    blocks = index_blocks(torch.arange(8), 4)
    message = r"(?s)sample 6 of Folder.*OSError: image file is truncated.*its file, cat/6\.png\. `lightning-poison scan"
    with pytest.raises(UnreadableSampleError, match=message):
        list(read_blocks(Folder(), blocks, sample=SampleSpec(), seed=0, num_workers=workers))
