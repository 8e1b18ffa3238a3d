"""Loaders are built again around a view of their data, by their own constructors, and the user's are left alone."""

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_poison._lightning.loaders import (
    filterable,
    level,
    map_loaders,
    rebuild_loader,
    replace_dataset,
    speaks_view,
)
from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import UnsupportedDataError


def collate(samples):
    return samples


def begin(worker):
    pass


@pytest.fixture
def data():
    return TensorDataset(torch.arange(10.0)[:, None], torch.arange(10) % 2)


@pytest.fixture
def view(data):
    keep = torch.ones(10, dtype=torch.bool)
    keep[[1, 4, 7]] = False
    return SanitizedDataset(data, keep)


class Needy(DataLoader):
    """Cannot be built from what it holds."""

    def __init__(self, dataset, secret, **settings):
        super().__init__(dataset, **settings)


class Careless(DataLoader):
    """Can be built, but would not batch as before."""

    def __init__(self, dataset, rows=1, **settings):
        super().__init__(dataset, **{**settings, "batch_size": rows})


def test_the_settings_are_kept(data, view):
    settings = {
        "batch_size": 3,
        "collate_fn": collate,
        "drop_last": True,
        "worker_init_fn": begin,
        "generator": torch.Generator(),
        "num_workers": 2,
        "prefetch_factor": 5,
        "persistent_workers": True,
        "timeout": 7,
        "multiprocessing_context": "spawn",
    }
    loader = DataLoader(data, shuffle=True, **settings)
    rebuilt = rebuild_loader(loader, view)
    for name in set(settings) - {"multiprocessing_context"}:
        assert getattr(rebuilt, name) is getattr(loader, name), name
    assert rebuilt.multiprocessing_context.get_start_method() == "spawn"
    assert rebuilt.dataset is view
    assert isinstance(rebuilt.sampler, RandomSampler)
    assert rebuilt.sampler.generator is loader.sampler.generator
    assert loader.dataset is data


@pytest.mark.parametrize("batched", [False, True])
def test_what_cannot_be_built_is_copied_without_lightnings_record_of_it(data, view, batched):
    how = {"batch_sampler": BatchSampler(SequentialSampler(data), 4, False)} if batched else {"batch_size": 4}
    loader = Needy(data, "secret", **how)
    loader.__dict__["__pl_saved_args"] = (data,)
    rebuilt = rebuild_loader(loader, view)
    assert type(rebuilt) is Needy
    assert "__pl_saved_args" not in vars(rebuilt)
    assert "__pl_saved_args" in vars(loader)
    assert rebuilt.sampler.data_source is view
    assert [batch[0].flatten().tolist() for batch in rebuilt] == [[0, 2, 3, 5], [6, 8, 9]]
    assert len(loader) == 3
    assert loader.dataset is data


def test_a_constructor_that_would_change_the_loader_is_not_used(data, view):
    rebuilt = rebuild_loader(Careless(data, rows=4), view)
    assert rebuilt.batch_size == 4
    assert [len(batch[0]) for batch in rebuilt] == [4, 3]


def test_a_loader_that_does_not_batch(data, view):
    assert [int(point) for point, _ in rebuild_loader(DataLoader(data, batch_size=None), view)] == [0, 2, 3, 5, 6, 8, 9]


def test_poison_takes_the_place_of_data(data):
    poison = Poison(torch.tensor([2]), torch.tensor([1]), AvailabilityObjective(), attack="flip")
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=0)
    poisoned = replace_dataset(loader, PoisonedDataset(data, poison))
    labels = torch.cat([labels[points.flatten() == 2] for points, labels in poisoned])
    assert labels.tolist() == [1]
    assert len(poisoned) == len(loader)


def test_collections_are_mapped_by_path_and_left_as_they_are():
    tree = {"b": [1, (2, 3)], "a": 4}
    mapped = map_loaders(tree, lambda path, leaf: (path, leaf))
    assert mapped == {
        "b": [("['b'][0]", 1), (("['b'][1][0]", 2), ("['b'][1][1]", 3))],
        "a": ("['a']", 4),
    }
    assert list(mapped) == ["b", "a"]
    assert tree == {"b": [1, (2, 3)], "a": 4}
    assert map_loaders(5, lambda path, leaf: (path, leaf)) == ("", 5)


def test_a_combined_loader_is_mapped_in_its_own_order():
    loaders = [DataLoader([number]) for number in range(4)]
    tree = {"z": loaders[0], "a": [loaders[1], {"y": loaders[2]}], "m": (loaders[3],)}
    combined = CombinedLoader(tree, "min_size")
    numbers = {id(loader): number for number, loader in enumerate(loaders)}
    mapped = map_loaders(combined, lambda path, loader: (path, numbers[id(loader)]))
    assert type(mapped) is CombinedLoader
    assert mapped is not combined
    assert mapped.flattened == [("['z']", 0), ("['a'][0]", 1), ("['a'][1]['y']", 2), ("['m'][0]", 3)]
    assert mapped.iterables["a"][1]["y"] == ("['a'][1]['y']", 2)
    assert combined.flattened == loaders


def test_what_cannot_be_filtered_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(
        UnsupportedDataError, match="Expected the training loader to be a torch DataLoader, but got lis"
    ):
        filterable([], "")
    with pytest.raises(UnsupportedDataError, match=r"loader \['a'\] to read a map-style data set, but Stream"):
        filterable(DataLoader(Stream()), "['a']")


def test_a_loader_of_the_view_speaks_it(data, view):
    samplers = ({"shuffle": True}, {"sampler": range(7)}, {"batch_sampler": BatchSampler(range(7), 2, False)})
    rebuilt = rebuild_loader(DataLoader(data, shuffle=True), view)
    assert speaks_view(rebuilt, view)
    assert speaks_view(DataLoader(view, **samplers[0]), view)
    assert not any(speaks_view(DataLoader(view, **each), view) for each in samplers[1:])
    assert not speaks_view(DataLoader(data), view)
    assert not speaks_view(DataLoader(view, sampler=SequentialSampler(data)), view)
    assert not speaks_view([], view)


def test_a_loader_of_a_view_of_the_view_speaks_it(view):
    further = SanitizedDataset(view, torch.tensor([True] * 5 + [False] * 2))
    assert speaks_view(DataLoader(further, shuffle=True), view)
    assert speaks_view(DataLoader(Subset(view, [1, 2])), view)
    assert not speaks_view(DataLoader(ConcatDataset([view, view])), view)


class Ranks:
    """Two ranks, of which the other has an epoch of four."""

    world_size = 2
    rank = 1

    def reduce_sum(self, tensor):
        return tensor + torch.tensor([4, 0])

    def all_true(self, flag):
        return flag


@pytest.mark.parametrize(("stops", "wanted"), [(7, 4), (3, 3)])
def test_a_remapped_sampler_is_cut_to_the_shortest_rank(data, view, stops, wanted):
    loader = rebuild_loader(DataLoader(data, batch_sampler=[[each] for each in view.indices[:stops].tolist()]), view)
    assert len(level(loader, Ranks())) == wanted
    assert len(list(loader)) == wanted


def test_a_remapped_sampler_within_a_batch_sampler_is_cut_too(data, view):
    class Own:
        def __len__(self):
            return 7

        def __iter__(self):
            return iter(view.indices[:7].tolist())

    loader = rebuild_loader(DataLoader(data, batch_sampler=BatchSampler(Own(), 2, drop_last=False)), view)
    assert len(level(loader, Ranks())) == 2  # four samples, as the other rank has
    assert sum(len(batch[0]) for batch in loader) == 4


def of_the_rank(kind, rank):
    """A sampler of every second sample, from the first or from the second on."""
    mine = range(rank, 10, 2)
    if kind == "subset":
        return SubsetRandomSampler(mine)
    weights = torch.zeros(10)
    weights[list(mine)] = 1
    return WeightedRandomSampler(weights, 5, replacement=False)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", ["subset", "weights"])
def test_ranks_that_draw_samples_of_their_own_have_epochs_of_one_length(data, view, several_ranks, kind, batch_size):
    """Of 0, 2, 4, 6 and 8 four are kept, of 1, 3, 5, 7 and 9 three."""

    def work(runtime):
        loader = DataLoader(data, batch_size, sampler=of_the_rank(kind, runtime.rank))
        rebuilt = level(rebuild_loader(loader, view), runtime)
        assert speaks_view(rebuilt, view)
        return [[int(point) for batch in rebuilt for point in batch[0]] for _ in range(5)], len(rebuilt)

    (even, batches), (odd, other) = several_ranks(2, work)
    assert batches == other == -(-3 // batch_size)
    assert [len(epoch) for epoch in even + odd] == [3] * 10
    assert {each for epoch in even for each in epoch} == {0, 2, 6, 8}
    assert {each for epoch in odd for each in epoch} == {3, 5, 9}


def test_a_sampler_of_torchs_own_is_not_cut(data, view):
    loader = rebuild_loader(DataLoader(data), view)
    assert level(loader, None) is loader
