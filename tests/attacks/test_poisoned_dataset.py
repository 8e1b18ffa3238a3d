import copy
import pickle
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset

Pair = namedtuple("Pair", ["image", "label"])


def halve(image):
    return image.float() / 510


class Images(Dataset):
    """Sample `i` of class `i % 3` is an image of shade `i`, halved by its transform; `make` builds the container."""

    classes = ("a", "b", "c")

    def __init__(self, count=6, *, make=lambda image, label: (image, label), label=int, transform=halve):
        self.count, self.make, self.label, self.transform = count, make, label, transform
        self.targets = [index % 3 for index in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((1, 2, 2), index, dtype=torch.uint8)
        image = image if self.transform is None else self.transform(image)
        return self.make(image, self.label(index % 3))


class Plain(Images):
    """The same at module level, so that it pickles."""

    def __init__(self, count=6):
        super().__init__(count, make=None, label=None)

    def __getitem__(self, index):
        return self.transform(torch.full((1, 2, 2), index, dtype=torch.uint8)), index % 3


class Batched(Plain):
    """Remembers the batches it was requested for."""

    def __init__(self, count=6):
        super().__init__(count)
        self.requested = []

    def __getitems__(self, indices):
        self.requested.append(list(indices))
        return [self[index] for index in indices]


def poison(indices, labels, inputs=None, **parts):
    parts = {"objective": AvailabilityObjective(), "attack": "test", **parts}
    return Poison(torch.tensor(indices), torch.tensor(labels), inputs=inputs, **parts)


def shades(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


SAMPLE = poison([1, 6], [2, 0], shades(0.7, 0.8))
RAW = poison([1, 6], [2, 0], shades(255, 102, dtype=torch.uint8), domain="raw")
LABELS = poison([1, 6], [2, 0], base_indices=torch.tensor([1, 4]))


@pytest.mark.parametrize(
    ("drawn", "changed", "added"),
    [(SAMPLE, 0.7, 0.8), (RAW, 0.5, 0.2), (LABELS, 1 / 510, 4 / 510)],
    ids=["sample", "raw", "labels"],
)
def test_overlays_and_appends(drawn, changed, added):
    data = PoisonedDataset(Images(), drawn)
    assert len(data) == 7
    assert [float(data[index][0].max()) for index in range(7)] == pytest.approx(
        [0, changed, 2 / 510, 3 / 510, 4 / 510, 5 / 510, added]
    )
    assert [data[index][1] for index in range(7)] == data.targets.tolist() == [0, 2, 2, 0, 1, 2, 0]
    assert data.is_poison.nonzero().flatten().tolist() == [1, 6]
    assert data.classes == ("a", "b", "c")


@pytest.mark.parametrize("drawn", [SAMPLE, RAW, LABELS], ids=["sample", "raw", "labels"])
@pytest.mark.parametrize(
    "make",
    [
        lambda image, label: (image, label, "id"),
        lambda image, label: [image, label],
        lambda image, label: {"image": image, "label": label, "path": "a.png"},
        lambda image, label: Pair(image, label),
    ],
    ids=["tuple", "list", "dict", "named tuple"],
)
@pytest.mark.parametrize(
    "label", [int, torch.tensor, np.int64, np.uint8, lambda value: torch.tensor(value, dtype=torch.uint8)]
)
def test_container_and_types_are_kept(drawn, make, label):
    data = PoisonedDataset(Images(make=make, label=label), drawn)
    spec = SampleSpec.detect(data[0])
    for index in (1, 6):
        sample, clean = data[index], data.dataset[0]
        assert type(sample) is type(clean)
        assert len(sample) == len(clean)
        found, model = spec.labels_in(sample), spec.labels_in(clean)
        assert type(found) is type(model)
        assert getattr(found, "dtype", None) == getattr(model, "dtype", None)
        assert int(found) == (2 if index == 1 else 0)


def test_array_labels_stay_arrays():
    data = PoisonedDataset(Images(label=np.array), SAMPLE, sample=SampleSpec())
    label = data[1][1]
    assert isinstance(label, np.ndarray)
    assert label.shape == ()
    assert int(label) == 2


def test_appended_sample_copies_entries_of_its_base():
    base = [{"x": torch.full((2,), float(index)), "y": index, "id": index} for index in range(3)]
    data = PoisonedDataset(base, poison([3], [1], torch.zeros(1, 2), base_indices=torch.tensor([2])))
    assert data[3]["id"] == 2
    assert data[3]["y"] == 1
    assert data[3]["x"].tolist() == [0, 0]
    assert base[2]["x"].tolist() == [2, 2]


def test_negative_and_out_of_range_indices():
    data = PoisonedDataset(Images(), SAMPLE)
    assert data[-1][1] == 0
    assert float(data[-1][0].max()) == pytest.approx(0.8)
    assert float(data[-6][0].max()) == pytest.approx(0.7)
    assert float(data[torch.tensor(1)][0].max()) == pytest.approx(0.7)
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"Expected an index below 7, but got {index}"):
            data[index]
    assert len(list(iter(data))) == 7


def test_batches_are_read_at_once_in_order():
    base = Batched()
    data = PoisonedDataset(base, SAMPLE)
    found = data.__getitems__([5, 1, 0, 6, 1, -1])
    assert base.requested == [[5, 0]]
    assert [float(image.max()) for image, _ in found] == pytest.approx([5 / 510, 0.7, 0, 0.8, 0.7, 0.8])
    with pytest.raises(IndexError, match="but got 7"):
        data.__getitems__([0, 7])


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [SAMPLE, RAW, LABELS], ids=["sample", "raw", "labels"])
@pytest.mark.parametrize("base", [Plain, Batched])
def test_loader_with_two_workers_reads_same_samples(drawn, base):
    data = PoisonedDataset(base(), drawn)
    here = [torch.cat(parts) for parts in zip(*DataLoader(data, batch_size=3), strict=True)]
    there = [torch.cat(parts) for parts in zip(*DataLoader(data, batch_size=3, num_workers=2), strict=True)]
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])  # noqa: S301
@pytest.mark.parametrize("base", [Plain, Batched])
def test_views_can_be_copied_and_pickled(duplicate, base):
    keep = torch.tensor([True, False, True, True, True, True, True])
    data = duplicate(SanitizedDataset(PoisonedDataset(base(), RAW), keep))
    assert len(data) == 6
    assert data.targets.tolist() == [0, 2, 0, 1, 2, 0]
    assert [label for _, label in data.__getitems__([0, 5])] == [0, 0]


@pytest.mark.parametrize("drawn", [SAMPLE, RAW, LABELS], ids=["sample", "raw", "labels"])
def test_changing_a_sample_does_not_change_poison_or_data(drawn):
    base = TensorDataset(torch.zeros(6, 1, 2, 2), torch.arange(6) % 3) if drawn.domain == "sample" else Images()
    found = [copy.deepcopy(sample) for sample in (base[0], base[1])]
    inputs = None if drawn.inputs is None else drawn.inputs.clone()
    data = PoisonedDataset(base, drawn)
    for index in (1, 6):
        image, label = data[index]
        if drawn.inputs is not None:
            image.add_(5)
        if isinstance(label, torch.Tensor):
            label.add_(5)
    for old, new in zip(found, (base[0], base[1]), strict=True):
        assert torch.equal(old[0], new[0])
        assert old[1] == new[1]
    assert drawn.labels.tolist() == [2, 0]
    if inputs is not None:
        assert torch.equal(inputs, drawn.inputs)
    assert isinstance(base, TensorDataset) or base.targets == [0, 1, 2, 0, 1, 2]


def test_in_place_transform_does_not_change_poison():
    data = PoisonedDataset(Images(transform=lambda image: image.zero_().float()), RAW)
    data[1], data[6]
    assert RAW.inputs.unique().tolist() == [102, 255]


def test_memory_is_proportional_to_poison():
    base = Plain(200_000)
    tracemalloc.start()
    data = PoisonedDataset(base, poison([7], [1], shades(0.5)))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data) == 200_000
    assert used < 200_000


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 19), max_size=8), st.integers(0, 4), st.integers(0, 99))
def test_samples_are_clean_or_poison(indices, added, seed):
    generator = torch.Generator().manual_seed(seed)
    base = TensorDataset(torch.randn(20, 3, generator=generator), torch.randint(5, (20,), generator=generator))
    where = [*sorted(indices), *range(20, 20 + added)]
    inputs = torch.randn(len(where), 3, generator=generator)
    labels = torch.randint(5, (len(where),), generator=generator)
    drawn = Poison(torch.tensor(where).long(), labels, AvailabilityObjective(), "test", inputs=inputs)
    data = PoisonedDataset(base, drawn)
    assert len(data) == 20 + added
    for index in range(len(data)):
        wanted = (inputs[where.index(index)], labels[where.index(index)]) if index in where else base[index]
        assert torch.equal(data[index][0], wanted[0])
        assert data[index][1] == wanted[1] == data.targets[index]
        assert bool(data.is_poison[index]) == (index in where)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (poison([7], [0], shades(0.5)), r"`indices` to be consecutive from 6 on for appended samples, but got \[7\]"),
        (poison([6, 8], [0, 0], shades(0.5, 0.5)), r"consecutive from 6 on for appended samples, but got \[8\]"),
        (poison([6], [0], base_indices=torch.tensor([6])), r"`base_indices` to be positions in the data set of 6"),
        (poison([6], [0]), "Expected `inputs` or `base_indices` for appended samples"),
    ],
)
def test_refuses_poison_of_another_data_set(drawn, message):
    with pytest.raises(ValueError, match=message):
        PoisonedDataset(Images(), drawn)


def test_refuses_raw_poison_without_raw_images():
    with pytest.raises(TypeError, match=r'calls its `transform`[\s\S]*poison of domain "sample"'):
        PoisonedDataset(TensorDataset(torch.zeros(6, 1, 2, 2), torch.arange(6)), RAW)
    with pytest.raises(ValueError, match="Expected a raw image like"):
        PoisonedDataset(Images(), poison([1], [0], torch.zeros(1, 3, 2, 2, dtype=torch.uint8), domain="raw"))


@pytest.mark.parametrize(
    "base",
    [
        TensorDataset(torch.zeros(3, 5), torch.arange(3)),
        TensorDataset(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3)),
        [(np.zeros((1, 2, 2)), 0)] * 3,
    ],
    ids=["shape", "uint8", "numpy"],
)
def test_refuses_poison_unlike_samples(base):
    with pytest.raises(ValueError, match=r"Expected samples like the poison, a float32 tensor of shape \(1, 2, 2\)"):
        PoisonedDataset(base, poison([1], [0], shades(0.5)))[1]


def test_poison_is_cast_to_dtype_of_samples():
    base = TensorDataset(torch.zeros(3, 1, 2, 2).double(), torch.arange(3))
    assert PoisonedDataset(base, poison([1], [0], shades(0.5)))[1][0].dtype == torch.float64


def test_construction_keeps_random_state():
    data = Images(transform=lambda image: image + torch.rand(1, 2, 2))
    found = torch.get_rng_state()
    PoisonedDataset(data, RAW)
    assert torch.equal(torch.get_rng_state(), found)


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="nothing"):
        _ = PoisonedDataset(Plain(), LABELS).nothing


def test_storage_attributes_are_not_forwarded():
    for base in (TensorDataset(torch.zeros(6, 2), torch.arange(6)), Subset(Plain(), range(6))):
        view = PoisonedDataset(base, poison([1], [0]))
        assert not hasattr(view, "tensors")
        assert not hasattr(view, "indices")
