"""Samplers over a filtered view: known draws, exact lengths, and the same random numbers."""

import copy

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_poison._lightning.samplers import (
    RemappedBatchSampler,
    RemappedSampler,
    adapt_batch_sampler,
    adapt_sampler,
    view_positions,
)
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import NothingKeptError, UnsupportedDataError


@pytest.fixture
def data():
    return TensorDataset(torch.arange(10.0)[:, None], torch.arange(10) % 2)


@pytest.fixture
def view(data):
    """A view without 1, 4 and 7."""
    return SanitizedDataset(data, torch.tensor([True, False, True, True, False, True, True, False, True, True]))


class Listed(Sampler):
    """Draws from the given lists, the next one in each epoch."""

    def __init__(self, *epochs):
        self.epochs = epochs
        self.drawn = 0
        self.ended = 0

    def __len__(self):
        return len(self.epochs[0])

    def __iter__(self):
        self.drawn += 1
        yield from self.epochs[(self.drawn - 1) % len(self.epochs)]
        self.ended += 1


def originals(view, drawn):
    return [int(view.indices[place]) for place in drawn]


def test_view_positions(view):
    assert view_positions(view).tolist() == [0, -1, 1, 2, -1, 3, 4, -1, 5, 6]


def test_sequential_sampler(view, data):
    assert list(adapt_sampler(SequentialSampler(data), view)) == list(range(7))


def test_random_sampler_draws_like_one_over_the_view(view, data):
    twin = RandomSampler(view, generator=torch.Generator().manual_seed(3))
    assert list(adapt_sampler(RandomSampler(data, generator=torch.Generator().manual_seed(3)), view)) == list(twin)


@pytest.mark.parametrize(("drawn", "wanted"), [(None, 7), (10, 7), (20, 14), (5, 4), (1, 1)])
def test_number_of_random_samples_is_scaled(view, data, drawn, wanted):
    sampler = adapt_sampler(RandomSampler(data, replacement=True, num_samples=drawn), view)
    assert len(sampler) == len(list(sampler)) == wanted


def test_weights_follow_their_samples(view):
    weights = torch.zeros(10).double()
    weights[[1, 3, 8]] = torch.tensor([5.0, 1.0, 3.0]).double()
    sampler = adapt_sampler(WeightedRandomSampler(weights, 10_000), view)
    drawn = torch.tensor(originals(view, sampler))
    assert set(drawn.tolist()) == {3, 8}
    assert (drawn == 8).double().mean() == pytest.approx(0.75, abs=0.03)
    assert len(drawn) == 6_667  # two of the three samples that it draws are kept


def test_weights_without_replacement_draw_at_most_all_samples(view):
    weights = torch.tensor([1.0, 1, 0, 0, 0, 1, 0, 0, 0, 0])
    sampler = adapt_sampler(WeightedRandomSampler(weights, 3, replacement=False), view)
    assert sorted(originals(view, sampler))[-1] == 5
    assert len(sampler) <= 2


def test_subset_of_indices(view):
    sampler = adapt_sampler(SubsetRandomSampler([0, 1, 2, 4, 9]), view)
    assert sorted(originals(view, sampler)) == [0, 2, 9]
    assert len(sampler) == 3


def test_refuses_a_subset_without_kept_samples(view):
    with pytest.raises(NothingKeptError, match="Expected SubsetRandomSampler to draw samples that are kept"):
        adapt_sampler(SubsetRandomSampler([1, 4]), view)


@pytest.mark.parametrize("cls", [DistributedSampler, type("Mine", (DistributedSampler,), {"note": "mine"})])
@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_sampler_and_its_subclasses(view, data, cls, drop_last):
    ranks = [cls(data, num_replicas=3, rank=rank, seed=4, drop_last=drop_last) for rank in range(3)]
    for sampler in ranks:
        sampler.set_epoch(2)
    rebuilt = [adapt_sampler(sampler, view) for sampler in ranks]
    twins = [DistributedSampler(view, num_replicas=3, rank=rank, seed=4, drop_last=drop_last) for rank in range(3)]
    for sampler, twin in zip(rebuilt, twins, strict=True):
        twin.set_epoch(2)
        assert type(sampler) is cls
        assert list(sampler) == list(twin)
        assert len(sampler) == len(twin)
    assert ranks[0].dataset is data
    assert len(ranks[0]) == (3 if drop_last else 4)


def test_refuses_a_distributed_sampler_with_its_own_order(view, data):
    class Own(DistributedSampler):
        def __iter__(self):
            return iter([0])

    with pytest.raises(UnsupportedDataError, match="Own distributes samples in its own way"):
        adapt_sampler(Own(data, 2, 0), view)


def test_unknown_sampler(view):
    sampler = adapt_sampler(Listed([9, 1, 2, 2, 4, 0]), view)
    assert isinstance(sampler, RemappedSampler)
    assert originals(view, sampler) == [9, 2, 2, 0]
    assert len(sampler) == 4


def test_all_epochs_have_the_length_of_the_first(view):
    inner = Listed([0, 1, 2], [0, 2, 3], [1, 4, 5])
    sampler = RemappedSampler(inner, view)
    assert len(sampler) == 2
    epochs = [originals(view, sampler) for _ in range(3)]
    assert epochs == [[0, 2], [0, 2], [5, 0]]  # the third needs a second draw
    assert inner.drawn == 4


def test_counts_on_a_copy_without_copying_data(view, data, monkeypatch):
    def refuse(self, memo):
        raise AssertionError("copied the data")

    monkeypatch.setattr(TensorDataset, "__deepcopy__", refuse, raising=False)
    inner = Listed([0, 1, 2])
    inner.data = data
    inner.generator = torch.Generator().manual_seed(1)
    state = torch.get_rng_state()
    assert len(RemappedSampler(inner, view)) == 2
    assert inner.drawn == 0
    assert torch.equal(state, torch.get_rng_state())


def test_counts_on_a_sampler_that_cannot_be_copied(view):
    inner = Listed([0, 1, 2])
    inner.handle = (each for each in ())
    sampler = RemappedSampler(inner, view)
    assert len(sampler) == 2
    assert len(list(sampler)) == 2


@pytest.mark.parametrize("kind", [ValueError, AttributeError, KeyError])
def test_names_a_sampler_whose_copying_code_fails(view, kind):
    class Broken(Listed):
        def __deepcopy__(self, memo):
            raise kind("odd\x1b[2J")

    with pytest.raises(UnsupportedDataError, match=rf"copying Broken raises {kind.__name__}: .*odd\\+x1b") as caught:
        len(RemappedSampler(Broken([0, 1, 2]), view))
    assert isinstance(caught.value.__cause__, kind)


def test_inner_sampler_finishes(view):
    """Code after the last draw, such as using up random numbers, runs as without the wrapper."""
    inner = Listed([0, 2, 3])
    list(RemappedSampler(inner, view))
    assert inner.ended == 1


def test_inner_iteration_starts_with_that_of_the_wrapper(view):
    class Eager:
        def __len__(self):
            return 3

        def __iter__(self):
            started.append(True)
            return iter([0, 2, 3])

    started = []
    sampler = RemappedSampler(Eager(), view)
    length = len(sampler)
    started.clear()
    iter(sampler)
    assert length == 3
    assert started


def test_endless_sampler(view):
    class Endless:
        def __iter__(self):
            while True:
                yield 1
                yield 0

    sampler = RemappedSampler(Endless(), view)
    with pytest.raises(TypeError, match="has no len"):
        len(sampler)
    stream = iter(sampler)
    assert [next(stream) for _ in range(5)] == [0] * 5


def test_endless_sampler_with_a_length(view):
    class Endless:
        def __len__(self):
            return 10

        def __iter__(self):
            while True:
                yield 1
                yield 0

    sampler = RemappedSampler(Endless(), view)
    assert len(sampler) == 5
    assert list(sampler) == [0] * 5


def test_refuses_a_sampler_without_kept_samples(view):
    with pytest.raises(NothingKeptError, match="Expected Listed to draw samples that are kept, but it draws none"):
        len(RemappedSampler(Listed([1, 4, 7]), view))


def test_epochs_can_be_truncated(view):
    sampler = RemappedSampler(Listed([0, 2, 3]), view)
    sampler.truncate(2)
    assert len(sampler) == 2
    assert list(sampler) == [0, 1]


def test_unknown_batch_sampler(view):
    sampler = adapt_batch_sampler(Listed([[0, 1], [1, 4], [2, 3]]), view)
    assert isinstance(sampler, RemappedBatchSampler)
    assert list(sampler) == [[0], [1, 2]]
    assert len(sampler) == 2


def test_batch_sampler_with_the_usual_arguments_is_rebuilt(view, data):
    class Usual(BatchSampler):
        pass

    sampler = adapt_batch_sampler(Usual(SequentialSampler(data), 3, True), view)
    assert type(sampler) is Usual
    assert list(sampler) == [[0, 1, 2], [3, 4, 5]]


def test_batch_sampler_with_other_arguments_is_wrapped(view, data):
    """It may use data that are indexed by the original positions."""

    class Labeled(BatchSampler):
        def __init__(self, sampler, batch_size, drop_last, labels):
            super().__init__(sampler, batch_size, drop_last)
            self.labels = labels

    sampler = adapt_batch_sampler(Labeled(SequentialSampler(data), 5, False, [0] * 10), view)
    assert isinstance(sampler, RemappedBatchSampler)
    assert list(sampler) == [[0, 1, 2], [3, 4, 5, 6]]


def test_batch_sampler_as_sampler(view, data):
    assert list(adapt_sampler(BatchSampler(SequentialSampler(data), 4, False), view)) == [[0, 1, 2, 3], [4, 5, 6]]


def test_delegates_attributes_except_those_that_would_mislead(view):
    inner = Listed([0])
    inner.batch_size, inner.drop_last, inner.note = 4, True, "mine"
    inner.set_epoch = lambda epoch: setattr(inner, "epoch", epoch)
    sampler = RemappedSampler(inner, view)
    sampler.set_epoch(3)
    assert (inner.epoch, sampler.note) == (3, "mine")
    for name in ("batch_size", "drop_last", "state_dict", "unknown"):
        with pytest.raises(AttributeError, match=name):
            getattr(sampler, name)
    assert originals(view, copy.copy(sampler)) == [0]
