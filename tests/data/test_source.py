from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Readable, open_source, read_opened, readable, source_for
from lightning_poison.errors import UnreadableSampleError, UnsupportedDataError
from lightning_poison.runtime import LocalRuntime


class Batched(Dataset):
    """Reads several samples at once, through `reorder`."""

    def __init__(self, reorder):
        self.reorder = reorder

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((2,), float(index)), index % 5

    def __getitems__(self, indices):
        return [self[index] for index in self.reorder(indices)]


def test_accepts_batched_reads_in_order():
    assert open_source(Batched(list), sample=None).sample == SampleSpec()


@pytest.mark.parametrize("reorder", [sorted, lambda indices: indices[::-1]])
def test_refuses_batched_reads_in_another_order(reorder):
    with pytest.raises(ValueError, match="`__getitems__` to be in the order of its indices, with label"):
        open_source(Batched(reorder), sample=None)


def test_refuses_batched_reads_of_another_length():
    with pytest.raises(ValueError, match="`__getitems__` of Batched to return 8 samples, but got 7"):
        open_source(Batched(lambda indices: indices[1:]), sample=None)


def images():
    return [(Image.new("L", (4, 4), color=10 * index), index % 2) for index in range(6)]


def to_tensors(samples):
    pixels = torch.stack([torch.from_numpy(np.array(image)).float()[None] / 255 for image, _ in samples])
    return {"pixel_values": pixels, "labels": torch.tensor([label for _, label in samples])}


def test_reads_through_collate_fn_if_samples_are_no_tensors():
    source = open_source(images(), sample=None, settings=ReadSettings(collate_fn=to_tensors))
    assert (source.collated, source.sample) == (True, SampleSpec("pixel_values", "labels"))
    data = read_labeled(source, runtime=LocalRuntime(), name="images")
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(data.dataset.inputs[:, 0, 0, 0], torch.arange(0, 60, 10) / 255)


def test_does_not_collate_tensors():
    source = open_source([(torch.zeros(2), 1)], sample=None, settings=ReadSettings(collate_fn=to_tensors))
    assert not source.collated


def test_names_the_sample_if_collate_fn_does_not_help():
    with pytest.raises(UnreadableSampleError, match="PIL image"):
        open_source(images(), sample=None)
    with pytest.raises(UnreadableSampleError, match="PIL image"):
        open_source(images(), sample=None, settings=ReadSettings(collate_fn=lambda samples: samples))


def test_readable_of_loader_and_data_set():
    data = TensorDataset(torch.zeros(6, 2), torch.zeros(6).long())
    found = readable(DataLoader(data, sampler=SubsetRandomSampler([4, 1])), "trusted")
    assert found.dataset is data
    assert found.positions.tolist() == [1, 4]
    assert readable(data, "trusted") == Readable(data)
    assert readable(found, "trusted") is found


def dropping(samples):
    present = [sample for sample in samples if sample is not None]
    return torch.stack([image for image, _ in present]), torch.tensor([label for _, label in present])


def test_samples_that_collate_fn_leaves_out_have_no_label():
    data = [None if index % 3 == 0 else (torch.full((2,), float(index)), index % 2) for index in range(12)]
    source = open_source(data, sample=None, settings=ReadSettings(collate_fn=dropping))
    found = read_labeled(source, runtime=LocalRuntime(), name="data")
    assert found.labels.tolist() == [-1, 1, 0, -1, 0, 1] * 2
    assert found.dataset.inputs[:, 0].tolist() == [0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11]
    assert found.absent.tolist() == [True, False, False] * 4


def test_sample_that_is_none_is_named():
    data = [None if index == 4 else (torch.zeros(2), index % 2) for index in range(12)]
    with pytest.raises(UnreadableSampleError, match="sample 4 with an input and a label, but got None"):
        read_labeled(open_source(data, sample=None), runtime=LocalRuntime(), name="data")


class OtherImages(Batched):
    """Reads other images together than alone, with the right labels."""

    def __init__(self, noise=lambda: 0.0):
        super().__init__(list)
        self.noise = noise

    def __getitem__(self, index):
        return torch.full((2,), index + self.noise()), index % 5

    def __getitems__(self, indices):
        return [(self[index + 1][0], index % 5) for index in indices]


def test_refuses_batched_reads_of_other_images():
    with pytest.raises(
        ValueError, match=r"`__getitems__` of OtherImages .* input of sample \d+ is another one.\nCorrect"
    ):
        open_source(OtherImages(), sample=None)


@pytest.mark.parametrize("noise", [lambda: float(torch.rand(())), np.random.default_rng(0).random])
def test_inputs_that_are_drawn_are_not_compared(noise):
    assert open_source(OtherImages(noise), sample=None).sample == SampleSpec()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (({"ids": torch.arange(3), "mask": torch.ones(3)}, 1), "a dict of ids (3,), mask (3,)"),
        (((torch.arange(3), torch.ones(1, 4, 4)), 1), "a tuple of shapes (3,), (1, 4, 4)"),
        ([{"ids": [1, 2, 3], "mask": [1, 1, 0]}, torch.tensor(1)], "a dict of ids (3,), mask (3,)"),
    ],
)
def test_pairs_of_several_inputs_and_a_label(sample, expected):
    source = open_source([sample] * 4, sample=None)
    assert (source.sample, str(source.layout)) == (SampleSpec(), expected)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (lambda: 1 // 0, "whose `__len__` raised ZeroDivisionError"),
        (lambda: -3, "whose `__len__` raised ValueError: __len__.. should return >= 0"),
        (lambda: 2.5, "whose `__len__` raised TypeError"),
        (lambda: 2**60, r"at most 8,589,934,592 samples, but got a length of 1,152,921,504,606,846,976"),
    ],
)
def test_refuses_odd_lengths(length, message):
    class Odd(Batched):
        def __len__(self):
            return length()

    data = Odd(list)
    for given in (data, Readable(data)):
        with pytest.raises(UnsupportedDataError, match=message):
            readable(given, "dataset")


def test_refuses_empty_data_of_a_loader():
    with pytest.raises(ValueError, match="`dataset` to have at least one sample, but it is empty"):
        readable(Readable([]), "dataset")


class Partly(Dataset):
    """The first ten samples are no training samples; the others are `(input, label, index)`."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.first(index) if index < 10 else (torch.full((2,), float(index)), index % 5, index)

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def fails(index):
    raise OSError("not a training sample")


@pytest.mark.parametrize(
    "first",
    [fails, lambda _: None, lambda _: {"image": torch.zeros(3)}, lambda _: (torch.zeros(2, dtype=torch.uint8), 1, 0)],
    ids=["error", "none", "structure", "type"],
)
def test_samples_that_are_not_drawn_are_not_read(first):
    data, positions = Partly(first), torch.arange(10, 40)
    source = open_source(data, sample=None, positions=positions)
    assert (source.sample, source.shape, source.dtype) == (SampleSpec(), (2,), "float32")
    found = read_labeled(source, positions=positions, runtime=LocalRuntime(), name="data")
    assert torch.equal(found.labels, positions % 5)
    assert source_for(data, sample=None, positions=positions).sample == SampleSpec()


@pytest.mark.parametrize("place", [0, 150])
def test_any_sample_may_be_left_out_by_collate_fn(place):
    data = [None if index != place else (torch.ones(2), 1) for index in range(200)]
    source = open_source(data, sample=None, settings=ReadSettings(collate_fn=dropping))
    assert (source.sample, source.shape) == (SampleSpec(), (2,))


@pytest.mark.parametrize("collate", [None, dropping])
def test_samples_that_are_all_none_are_named(collate):
    with pytest.raises(UnreadableSampleError, match="Expected sample 3 with an input and a label, but got None"):
        open_source([None] * 10, sample=None, positions=torch.arange(3, 10), settings=ReadSettings(collate_fn=collate))


def padded(rows):
    inputs = torch.tensor([row["x"] + [0.0] * (4 - len(row["x"])) for row in rows])
    return {"x": inputs, "labels": torch.tensor([row["y"] for row in rows])}


@pytest.mark.parametrize("shorter", [lambda index: index % 2, lambda index: int(index == 299)])
def test_rows_that_collate_fn_pads_to_one_length(shorter):
    data = [{"x": [1.0] * (4 - shorter(index)), "y": index % 2} for index in range(300)]
    read = partial(read_labeled, runtime=LocalRuntime(), name="data")
    found = read_opened(read, data, sample=None, settings=ReadSettings(collate_fn=padded))
    assert found.source.collated
    assert torch.equal(found.dataset.inputs.sum(1), torch.tensor([4.0 - shorter(index) for index in range(300)]))


@pytest.mark.parametrize("collate", [None, dropping, lambda rows: rows])
def test_rows_of_different_lengths_are_named_if_nothing_pads_them(collate):
    data = [(torch.ones(4 - index % 2), index % 2) for index in range(30)]
    read = partial(read_labeled, runtime=LocalRuntime(), name="data")
    with pytest.raises(UnreadableSampleError, match=r"sample 1 has \(3,\) and sample 0 has \(4,\)\.\nPad sequences"):
        read_opened(read, data, sample=None, settings=ReadSettings(collate_fn=collate))


@pytest.mark.timeout(60)
def test_functions_that_cannot_be_pickled_are_not_sent_back_from_a_worker():
    rows = [{"ids": torch.tensor([index, 1]), "label": index % 3} for index in range(8)]
    spec = SampleSpec(lambda row: row["ids"].float(), lambda row: row["label"])
    source = open_source(rows, sample=spec, settings=ReadSettings(num_workers=1, multiprocessing_context="fork"))
    assert source.sample is spec
    assert source.shape == (2,)
