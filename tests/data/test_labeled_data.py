import random
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from lightning_poison.data import labeled_data
from lightning_poison.data.blocks import MemoryDataset, SelectedDataset
from lightning_poison.data.labeled_data import digest_all, memory_limit, read_labeled
from lightning_poison.data.labels import labels_of
from lightning_poison.data.packed_inputs import unpacked
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.sample_digests import digest_samples
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.runtime import LocalRuntime

RUNTIME = LocalRuntime(precision="32", threads=1)
SPEC = SampleSpec("x", "y")


class Unlisted(Dataset):
    """Lists no labels and counts how often each sample is read."""

    def __init__(self, count=3_000):
        self.reads = torch.zeros(count, dtype=torch.int64)

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"x": torch.full((2,), float(index)), "y": index % 3}


class Listed(Unlisted):
    def __init__(self, targets, count=3_000):
        super().__init__(count)
        self.targets = targets


def load(data, *, sample=SPEC, workers=0, positions=None):
    source = open_source(data, sample=sample, settings=ReadSettings(num_workers=workers))
    return read_labeled(source, positions=positions, runtime=RUNTIME, name="data")


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 0)


def test_reads_into_memory():
    data = Unlisted()
    loaded = load(data)
    assert isinstance(loaded.dataset, MemoryDataset)
    assert torch.equal(loaded.labels, torch.arange(3_000) % 3)
    assert torch.equal(loaded.dataset.inputs[:, 0], torch.arange(3_000.0))
    assert data.reads.sum() <= 3_000 + 4 * 256 + 2  # once, four blocks again, and the first for its shape
    assert torch.equal(loaded.sample_digests, digest_samples(loaded.dataset.inputs))


def test_uses_listed_labels_above_memory_limit(no_memory):
    data = Listed(torch.arange(3_000) % 3)
    loaded = load(data)
    assert isinstance(loaded.dataset, SelectedDataset)
    assert torch.equal(loaded.labels, data.targets)
    assert data.reads.sum() <= 2 * 4 * 256 + 2
    reads = data.reads.clone()
    assert labels_of(loaded.subset(torch.tensor([5, 7]))).tolist() == [2, 1]
    assert torch.equal(data.reads, reads)


def test_reads_all_labels_above_memory_limit_if_none_are_listed(no_memory):
    loaded = load(Unlisted())
    assert isinstance(loaded.dataset, SelectedDataset)
    assert torch.equal(loaded.labels, torch.arange(3_000) % 3)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_carried_labels_take_precedence_over_listed_ones(monkeypatch, limit):
    """A list that was left clean hides the wrong labels that the training sees."""
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    listed = torch.arange(3_000) % 3
    listed[2_900] = (listed[2_900] + 1) % 3
    with pytest.warns(UserWarning, match=r"1 of 3,000 differ, the first at sample 2900 \(listed 0, carried 2\)"):
        assert torch.equal(load(Listed(listed)).labels, torch.arange(3_000) % 3)


def test_other_label_is_named_when_it_is_read(no_memory):
    listed = torch.arange(3_000) % 3
    listed[400] = (listed[400] + 1) % 3  # in no block that is read beforehand
    loaded = load(Listed(listed))
    with pytest.raises(ValueError, match="sample 400 to carry the label 2 that its data set lists, but it carries 1"):
        list(labeled_data.read_blocks(loaded.dataset, [torch.arange(390, 410)], sample=SampleSpec(), seed=0))


def test_does_not_depend_on_number_of_workers():
    one, two = load(Unlisted()), load(Unlisted(), workers=2)
    assert torch.equal(one.dataset.inputs, two.dataset.inputs)
    assert torch.equal(one.sample_digests, two.sample_digests)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_subset_does_not_depend_on_memory(monkeypatch, limit):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    inputs, label = load(Unlisted()).subset(torch.tensor([5, 7]))[1]
    assert (inputs.tolist(), int(label)) == ([7, 7], 1)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_selects_and_relabels(monkeypatch, limit):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    loaded = load(Unlisted(), positions=torch.arange(1, 3_000, 2)).select(torch.tensor([0, 2]))
    assert loaded.positions.tolist() == [1, 5]
    relabeled = loaded.relabeled(torch.tensor([9, 8]))
    (block,) = labeled_data.read_blocks(relabeled.dataset, [torch.arange(2)], sample=SampleSpec(), seed=0)
    assert (block.inputs[:, 0].tolist(), block.labels.tolist()) == ([1, 5], [9, 8])


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


@pytest.mark.parametrize(
    ("label", "message"), [(-2, "sample 270, or -1 for no label, but got -2"), (0.5, "sample 270")]
)
def test_names_invalid_label(label, message):
    class Odd(Unlisted):
        def __getitem__(self, index):
            return {"x": torch.zeros(2), "y": label if index == 270 else 1}

    with pytest.raises(ValueError, match=message):
        load(Odd())


class Changing(Unlisted):
    """The label, or the input, of one sample changes whenever it is read."""

    def __init__(self, what, where=13):
        super().__init__(600)
        self.what, self.where = what, where

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index == self.where:
            sample[self.what] = sample[self.what] + int(self.reads[index]) % 2
        return sample


def test_names_sample_whose_label_changes():
    with pytest.raises(ValueError, match="sample 13 had 2 and then 1"):
        load(Changing("y"))


def test_notices_inputs_that_change():
    assert not load(Changing("x")).repeats
    assert load(Unlisted()).repeats


def test_digests_are_completed(no_memory):
    loaded = load(Listed(torch.arange(3_000) % 3))
    assert not loaded.is_random
    assert len(loaded.source.digests.missing)
    digest_all(loaded, RUNTIME)
    assert torch.equal(loaded.sample_digests, load(Unlisted()).sample_digests)


@pytest.mark.slow
def test_ranks_share_digests(several_ranks, monkeypatch):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 0)
    sets = [Listed(torch.arange(3_000) % 3) for _ in range(3)]

    def digest(runtime):
        source = open_source(sets[runtime.rank], sample=SampleSpec("x", "y"))
        loaded = read_labeled(source, runtime=runtime, name="data")
        digest_all(loaded, runtime)
        return loaded.sample_digests

    found = several_ranks(3, digest)
    assert all(torch.equal(each, load(Unlisted()).sample_digests) for each in found)
    assert all(data.reads.sum() < 2_900 for data in sets)  # no rank has read everything


def test_random_transforms_have_the_same_digest_in_any_block(no_memory):
    class Random(Listed):
        def __getitem__(self, index):
            return {"x": super().__getitem__(index)["x"] + torch.rand(2), "y": index % 3}

    chosen = [7, 1_299, 40]
    loaded = load(Random(torch.arange(1_300) % 3, 1_300))
    assert loaded.is_random
    assert len(loaded.source.digests.missing) > 0
    digest_all(loaded, RUNTIME)
    blocks = list(labeled_data.read_blocks(loaded.dataset, [torch.tensor(chosen)], sample=SampleSpec(), seed=0))
    assert torch.equal(digest_samples(blocks[0].inputs), loaded.sample_digests[chosen])
    assert loaded.repeats


def test_tensor_data_set_needs_no_paths():
    data = TensorDataset(torch.rand(30, 2), torch.arange(30) % 3)
    assert torch.equal(load(data, sample=None).labels, data.tensors[1])


class Drawn(Unlisted):
    """Draws the label, or noise, at each read."""

    def __init__(self, label, draw):
        super().__init__(520)  # three blocks
        self.label, self.draw = label, draw

    def __getitem__(self, index):
        drawn = self.draw()
        sample = super().__getitem__(index)
        return sample | ({"y": int(10 * drawn)} if self.label else {"x": sample["x"] + drawn})


DRAWS = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("limit", [0, 2**30])
def test_labels_that_are_drawn_at_each_read_are_named(monkeypatch, draw, limit):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    with pytest.raises(ValueError, match=r"sample 0 is drawn at random: .* under another seed.\nDraw the labels once"):
        load(Drawn(label=True, draw=draw))
    loaded = load(Drawn(label=False, draw=draw))
    assert torch.equal(loaded.labels, torch.arange(520) % 3)
    assert loaded.is_random
    assert not load(Unlisted(520)).is_random


def test_one_image_of_another_scale_is_named_wherever_it_is():
    images = torch.rand(1_300, 1, 4, 4)
    images[700] *= 255
    with pytest.raises(UnreadableSampleError, match=r"sample 700 contains values up to [12].* and the 1,299 others up"):
        load(TensorDataset(images, torch.arange(1_300) % 3), sample=None)


def test_equal_inputs_are_refused():
    with pytest.raises(ValueError, match="all 30 that were compared are equal"):
        load(TensorDataset(torch.zeros(30, 1, 4, 4), torch.arange(30) % 3), sample=None)


def test_several_inputs_stay_one_tensor_of_known_structure():
    data = [({"ids": torch.tensor([index, 1]), "mask": torch.tensor([True, False])}, index % 2) for index in range(300)]
    for workers in (0, 1):
        loaded = load(data, sample=None, workers=workers)
        parts = unpacked(loaded.dataset.inputs)
        assert parts["ids"][:, 0].tolist() == list(range(300))
        assert parts["mask"].dtype == torch.bool


COUNT, PIXELS = 1_100, 3 * 4 * 4


def eight_bit(odd=None, *, scale=1 / 255, listed=False):
    """Return 8-bit images; with `odd`, one of them has a pixel between two levels."""
    levels = torch.randint(256, (COUNT, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    images = levels * torch.tensor(scale)
    if odd is not None:
        images[odd, 0, 0, 0] = 0.5
    rows = [{"x": image, "y": index % 3} for index, image in enumerate(images)]
    return images, ListedRows(rows, torch.arange(COUNT) % 3) if listed else rows


class ListedRows(list):
    def __init__(self, rows, targets):
        super().__init__(rows)
        self.targets = targets


def assert_bits(one, two):
    assert torch.equal(one.view(torch.int32), two.view(torch.int32))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("odd", [None, 0, 700, COUNT - 1])
def test_eight_bit_images_are_kept_as_bytes_if_all_are(odd, workers):
    images, rows = eight_bit(odd)
    loaded = load(rows, workers=workers)
    assert loaded.dataset.stored.num_bytes == COUNT * PIXELS * (1 if odd is None else 4)
    assert_bits(loaded.dataset.inputs, images)
    assert torch.equal(loaded.sample_digests, digest_samples(images))
    chosen = torch.tensor([1_000, 3])
    assert_bits(loaded.subset(chosen).inputs, images[chosen])
    (block,) = labeled_data.read_blocks(loaded.dataset, [chosen], sample=SampleSpec(), seed=0)
    assert_bits(block.inputs, images[chosen])


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("odd", "limit", "kept"),
    [
        (None, COUNT * PIXELS, 1),
        (None, COUNT * PIXELS - 1, None),
        (700, 4 * COUNT * PIXELS, 4),
        (700, 4 * COUNT * PIXELS - 1, None),  # in no block that is read beforehand
        (0, 4 * COUNT * PIXELS - 1, None),
    ],
)
def test_bytes_count_in_memory(monkeypatch, odd, limit, kept, listed):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    images, rows = eight_bit(odd, listed=listed)
    loaded = load(rows)
    assert torch.equal(loaded.labels, torch.arange(COUNT) % 3)
    assert isinstance(loaded.dataset, SelectedDataset if kept is None else MemoryDataset)
    if kept is not None:
        assert loaded.dataset.stored.num_bytes == kept * COUNT * PIXELS
    blocks = labeled_data.read_blocks(loaded.dataset, [torch.tensor([700, 0, 5])], sample=SampleSpec(), seed=0)
    assert_bits(next(blocks).inputs, images[[700, 0, 5]])


def test_wrongly_listed_labels_are_found_among_images_that_fit_as_bytes(monkeypatch):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", COUNT * PIXELS)
    _, rows = eight_bit(listed=True)
    rows.targets[700] = 2
    with pytest.warns(UserWarning, match=r"the first at sample 700 \(listed 2, carried 1\)"):
        assert int(load(rows).labels[700]) == 1


@pytest.mark.parametrize(
    ("free", "expected"), [(None, 2 * 2**30), (100 * 2**30, 2 * 2**30), (4 * 2**30, 2**30), (4_000, 1_000), (0, 0)]
)
def test_samples_take_a_quarter_of_the_free_memory_at_most(monkeypatch, free, expected):
    monkeypatch.setattr(labeled_data, "free_memory", lambda: free)
    assert memory_limit(RUNTIME) == expected


def test_samples_are_not_kept_if_little_memory_is_free(monkeypatch):
    size = 3_000 * 2 * 4
    for free, kind in ((4 * size, MemoryDataset), (4 * size - 4, SelectedDataset)):
        monkeypatch.setattr(labeled_data, "free_memory", lambda free=free: free)
        assert isinstance(load(Unlisted()).dataset, kind)


def test_ranks_share_the_memory_of_the_fullest_machine(monkeypatch, several_ranks):
    """Ranks must agree on it: near copies are looked for in memory only."""

    def limit(runtime):
        free[threading.get_ident()] = 6_000 if runtime.rank == 1 else 60_000
        return memory_limit(runtime)

    free = {}
    monkeypatch.setattr(labeled_data, "free_memory", lambda: free[threading.get_ident()])
    assert several_ranks(3, limit) == [500, 500, 500]
