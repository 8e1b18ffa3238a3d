"""Loaders keep their class, their settings and the meaning of their sampler over the kept samples."""

from itertools import chain, count

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it


class Backwards(Sampler):
    """A custom sampler."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        return iter(reversed(range(len(self.dataset))))


class Doubled(BatchSampler):
    """A batch sampler with the usual arguments that draws each sample twice."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch + batch


class Rows(Sampler):
    """A custom batch sampler over positions in the whole data set."""

    def __init__(self, length, rows):
        self.length = length
        self.rows = rows

    def __len__(self):
        return -(-self.length // self.rows)

    def __iter__(self):
        for start in range(0, self.length, self.rows):
            yield list(range(start, min(start + self.rows, self.length)))


class Odd(DataLoader):
    """A loader whose constructor has other arguments than DataLoader."""

    def __init__(self, points, rows, *, note):
        super().__init__(points, batch_size=rows, shuffle=True)
        self.note = note


class Forgetful(DataLoader):
    """A loader whose constructor has another name for the batch size and does not store it."""

    def __init__(self, dataset, rows=4, sampler=None):
        super().__init__(dataset, batch_size=rows, sampler=sampler)


class Wrapping(DataLoader):
    """A loader that wraps its data set; a rebuilt one would wrap twice."""

    def __init__(self, dataset, **settings):
        super().__init__(Subset(dataset, range(len(dataset))), **settings)


def run(world, loader, epochs=2, **settings):
    module, sanitizer = world.module(), world.sanitizer()
    trainer = world.trainer(sanitizer, max_epochs=epochs, **settings)
    trainer.fit(module, loader)
    return module, sanitizer.verdict, trainer.train_dataloader


LOADERS = {
    "sequential": lambda data: DataLoader(data, batch_size=16),
    "shuffled": lambda data: DataLoader(data, batch_size=16, shuffle=True),
    "generator": lambda data: DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator()),
    "subset of indices": lambda data: DataLoader(data, batch_size=16, sampler=SubsetRandomSampler(range(240))),
    "custom sampler": lambda data: DataLoader(data, batch_size=16, sampler=Backwards(data)),
    "distributed": lambda data: DataLoader(data, batch_size=16, sampler=DistributedSampler(data, 1, 0)),
    "batch sampler subclass": lambda data: DataLoader(data, batch_sampler=Doubled(RandomSampler(data), 8, False)),
    "batch sampler of a custom sampler": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(Backwards(data), 16, False)
    ),
    "custom batch sampler": lambda data: DataLoader(data, batch_sampler=Rows(240, 16)),
    "subclass": lambda data: Odd(data, 16, note="mine"),
    "subclass with another batch size argument": lambda data: Forgetful(data, 16),
    "wrapping subclass": lambda data: Wrapping(data, batch_size=16),
    "stateful": lambda data: StatefulDataLoader(data, batch_size=16, shuffle=True),
    "stateful, custom sampler": lambda data: StatefulDataLoader(data, batch_size=16, sampler=Backwards(data)),
    "of a subset": lambda data: DataLoader(Subset(data, range(240)), batch_size=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_each_epoch_trains_on_exactly_the_kept_samples(world, assert_clean, make):
    loader = make(world.numbered())
    module, verdict, rebuilt = run(world, loader)
    assert_clean(module, verdict)
    assert [len(set(chain(*epoch))) for epoch in module.epochs] == [int(verdict.keep.sum())] * 2
    assert type(rebuilt) is type(loader)
    assert rebuilt.batch_size == loader.batch_size
    assert max(len(batch) for batch in module.epochs[0]) == 16


@pytest.mark.slow
def test_generator_is_preserved(world):
    generator = torch.Generator().manual_seed(5)
    orders = []
    for _ in range(2):
        generator.manual_seed(5)
        orders.append(run(world, world.loader(world.numbered(), generator=generator))[0].epochs)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_number_of_samples_with_replacement_is_scaled(world):
    data = world.numbered()
    sampler = RandomSampler(data, replacement=True, num_samples=480)
    module, verdict, rebuilt = run(world, DataLoader(data, 16, sampler=sampler), epochs=1)
    assert rebuilt.sampler.replacement
    assert len(rebuilt.sampler) == round(480 * verdict.keep.sum().item() / 240)
    assert module.seen <= set(verdict.keep.nonzero().flatten().tolist())


@pytest.mark.slow
def test_weights_follow_their_samples(world):
    data = world.numbered()
    weights = (torch.arange(240) % 2).double()
    module, verdict, _ = run(world, DataLoader(data, 16, sampler=WeightedRandomSampler(weights, 2000)), epochs=1)
    assert module.seen
    assert module.seen <= set((verdict.keep & (weights > 0)).nonzero().flatten().tolist())


def test_weights_without_replacement(world, assert_clean):
    data = world.numbered()
    sampler = WeightedRandomSampler(torch.ones(240), 240, replacement=False)
    module, verdict, _ = run(world, DataLoader(data, 16, sampler=sampler))
    assert_clean(module, verdict)


def test_subset_of_indices(world):
    data = world.numbered()
    chosen = torch.arange(0, 240, 2)
    module, verdict, _ = run(world, DataLoader(data, 16, sampler=SubsetRandomSampler(chosen)))
    assert module.seen == {index for index in chosen.tolist() if verdict.keep[index]}


def test_subclass_keeps_its_attributes(world):
    _, _, rebuilt = run(world, Odd(world.numbered(), 16, note="mine"), epochs=1)
    assert rebuilt.note == "mine"


def test_batch_sampler_as_the_sampler_of_a_loader_without_batches(world):
    """As for data sets that are read one batch at a time."""
    numbered = world.numbered()
    data = TensorDataset(numbered.points, numbered.targets, torch.arange(len(numbered)) + world.first_id)
    sampler = BatchSampler(SequentialSampler(data), 16, drop_last=False)
    module, verdict, _ = run(world, DataLoader(data, batch_size=None, sampler=sampler), epochs=1)
    assert module.seen == set(verdict.keep.nonzero().flatten().tolist())


def test_drop_last(world):
    data = world.numbered()
    module, verdict, rebuilt = run(world, world.loader(data, drop_last=True), epochs=1)
    assert [len(batch) for batch in module.epochs[0]] == [16] * (int(verdict.keep.sum()) // 16)
    assert rebuilt.drop_last


@pytest.mark.slow
@pytest.mark.parametrize("endless", [False, True])
def test_sampler_without_a_length(world, assert_clean, endless):
    """Lightning draws batches until the sampler ends or `max_steps` is reached."""

    class Unsized:
        def __iter__(self):
            return (index % 240 for index in count()) if endless else iter(range(240))

    module, sanitizer = world.module(), world.sanitizer()
    settings = {"max_steps": 40, "max_epochs": -1} if endless else {}
    trainer = world.trainer(sanitizer, **settings)
    trainer.fit(module, DataLoader(world.numbered(), 16, sampler=Unsized()))
    assert_clean(module, sanitizer.verdict)
    assert trainer.num_training_batches == float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 2])
def test_validation_runs_after_each_epoch_with_a_custom_batch_sampler(world, rows):
    """It would never run if the loader announced more batches than it has."""
    data = world.numbered(wrong=40)
    module, sanitizer = world.validated_module(), world.sanitizer()
    trainer = world.trainer(sanitizer, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module, DataLoader(data, batch_sampler=Rows(240, rows)), world.loader(data, shuffle=False))
    assert len(module.validated) == 2 * 15
    assert len(trainer.train_dataloader) == len(module.epochs[0]) == len(module.epochs[1])


@pytest.mark.slow
def test_persistent_workers(world, assert_clean):
    loader = world.loader(world.numbered(), num_workers=1, persistent_workers=True, prefetch_factor=3)
    module, verdict, rebuilt = run(world, loader)
    assert_clean(module, verdict)
    assert (rebuilt.num_workers, rebuilt.persistent_workers, rebuilt.prefetch_factor) == (1, True, 3)


@pytest.mark.parametrize("first", ["error", "none", "structure"])
def test_samples_that_are_not_drawn_may_be_anything(world, first):
    class Partly(type(world.numbered())):
        def __getitem__(self, index):
            if index >= 40:
                return super().__getitem__(index)
            if first == "error":
                raise OSError("not a training sample")
            return None if first == "none" else {"image": torch.zeros(3)}

    data = Partly()
    module, verdict, _ = run(world, DataLoader(data, 16, sampler=SubsetRandomSampler(range(40, 240))), epochs=1)
    assert torch.equal(~verdict.keep, data.is_wrong & (torch.arange(240) >= 40))
    assert module.seen == {each for each in range(40, 240) if verdict.keep[each]}
