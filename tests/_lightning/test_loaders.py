"""Loaders are rebuilt around a view of their data, and the original loaders are left unchanged."""

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from lightning_poison._lightning.loaders import (
    check_indexable,
    equalize_lengths,
    indexable_loaders,
    lost_batches,
    map_loaders,
    reads_view,
    rebuild_loader,
    rebuild_stream_loader,
    select_loaders,
)
from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import UnsupportedDataError
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import StreamFilter


def collate(samples):
    return samples


def init_worker(worker):
    pass


@pytest.fixture
def data():
    return TensorDataset(torch.arange(10.0)[:, None], torch.arange(10) % 2)


@pytest.fixture
def view(data):
    keep = torch.ones(10, dtype=torch.bool)
    keep[[1, 4, 7]] = False
    return SanitizedDataset(data, keep)


class Shifted(TensorDataset):
    """Adds a number that a `worker_init_fn` sets."""

    shift = 0

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs + self.shift, label


def shift_below_a_subset(worker):
    data = get_worker_info().dataset
    assert type(data) is Subset
    assert type(data.dataset) is Shifted
    data.dataset.shift = 100


class WithOwnInit(DataLoader):
    """Has a `worker_init_fn` of its own."""

    def __init__(self, dataset, batch_size=1, sampler=None, num_workers=0):
        super().__init__(
            dataset, batch_size, sampler=sampler, num_workers=num_workers, worker_init_fn=shift_below_a_subset
        )


class NotRebuildable(DataLoader):
    """Cannot be rebuilt from its attributes."""

    def __init__(self, dataset, secret, **settings):
        super().__init__(dataset, **settings)


class Rebatching(DataLoader):
    """Can be rebuilt, but with another batch size."""

    def __init__(self, dataset, rows=1, **settings):
        super().__init__(dataset, **{**settings, "batch_size": rows})


def test_settings_are_preserved(data, view):
    settings = {
        "batch_size": 3,
        "collate_fn": collate,
        "drop_last": True,
        "worker_init_fn": init_worker,
        "generator": torch.Generator(),
        "num_workers": 2,
        "prefetch_factor": 5,
        "persistent_workers": True,
        "timeout": 7,
        "multiprocessing_context": "spawn",
    }
    loader = DataLoader(data, shuffle=True, **settings)
    rebuilt = rebuild_loader(loader, view)
    for name in set(settings) - {"multiprocessing_context", "worker_init_fn"}:
        assert getattr(rebuilt, name) is getattr(loader, name), name
    assert rebuilt.worker_init_fn.function is init_worker
    assert rebuilt.multiprocessing_context.get_start_method() == "spawn"
    assert rebuilt.dataset is view
    assert isinstance(rebuilt.sampler, RandomSampler)
    assert rebuilt.sampler.generator is loader.sampler.generator
    assert loader.dataset is data


@pytest.mark.parametrize("poisoned", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_worker_init_fn_sees_the_data_set_of_the_original_loader(data, own, poisoned):
    data = Subset(Shifted(*data.tensors), range(9))
    if own:
        loader = WithOwnInit(data, batch_size=4, num_workers=1)
    else:
        loader = DataLoader(data, batch_size=4, num_workers=1, worker_init_fn=shift_below_a_subset)
    view = SanitizedDataset(data, torch.arange(9) != 2)
    if poisoned:
        view = PoisonedDataset(
            data, Poison(torch.tensor([0]), torch.tensor([1]), AvailabilityObjective(), attack="flip")
        )
    rebuilt = rebuild_loader(loader, view)
    if poisoned:
        rebuilt = rebuild_loader(rebuilt, SanitizedDataset(view, torch.arange(9) != 2))
    assert [inputs[:, 0].tolist() for inputs, _ in rebuilt] == [[100, 101, 103, 104], [105, 106, 107, 108]]


@pytest.mark.parametrize("batched", [False, True])
def test_copies_what_cannot_be_rebuilt_without_lightnings_record(data, view, batched):
    how = {"batch_sampler": BatchSampler(SequentialSampler(data), 4, False)} if batched else {"batch_size": 4}
    loader = NotRebuildable(data, "secret", **how)
    loader.__dict__["__pl_saved_args"] = (data,)
    rebuilt = rebuild_loader(loader, view)
    assert type(rebuilt) is NotRebuildable
    assert "__pl_saved_args" not in vars(rebuilt)
    assert "__pl_saved_args" in vars(loader)
    assert rebuilt.sampler.data_source is view
    assert [batch[0].flatten().tolist() for batch in rebuilt] == [[0, 2, 3, 5], [6, 8, 9]]
    assert len(loader) == 3
    assert loader.dataset is data


def test_does_not_use_a_constructor_that_changes_the_loader(data, view):
    rebuilt = rebuild_loader(Rebatching(data, rows=4), view)
    assert rebuilt.batch_size == 4
    assert [len(batch[0]) for batch in rebuilt] == [4, 3]


def test_loader_without_batches(data, view):
    assert [int(point) for point, _ in rebuild_loader(DataLoader(data, batch_size=None), view)] == [0, 2, 3, 5, 6, 8, 9]


def test_rebuilds_around_poisoned_data(data):
    poison = Poison(torch.tensor([2]), torch.tensor([1]), AvailabilityObjective(), attack="flip")
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=0)
    poisoned = rebuild_loader(loader, PoisonedDataset(data, poison))
    labels = torch.cat([labels[points.flatten() == 2] for points, labels in poisoned])
    assert labels.tolist() == [1]
    assert len(poisoned) == len(loader)


def test_collections_are_mapped_by_path_and_left_unchanged():
    tree = {"b": [1, (2, 3)], "a": 4}
    mapped = map_loaders(tree, lambda path, leaf: (path, leaf))
    assert mapped == {
        "b": [("['b'][0]", 1), (("['b'][1][0]", 2), ("['b'][1][1]", 3))],
        "a": ("['a']", 4),
    }
    assert list(mapped) == ["b", "a"]
    assert tree == {"b": [1, (2, 3)], "a": 4}
    assert map_loaders(5, lambda path, leaf: (path, leaf)) == ("", 5)


def test_combined_loader_is_mapped_in_its_own_order():
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


def test_refuses_what_cannot_be_filtered():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(
        UnsupportedDataError, match="Expected the training loader to be a torch DataLoader, but got range"
    ):
        indexable_loaders(range(3))
    with pytest.raises(UnsupportedDataError, match=r"loader \['a'\] to read a map-style data set, but Stream"):
        indexable_loaders({"a": DataLoader(Stream())})


def test_loader_that_only_takes_its_own_streams_is_refused(centroid_scorer, blobs):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    class OwnLoader(DataLoader):
        def __init__(self, dataset, **settings):
            if not isinstance(dataset, Stream):
                raise RuntimeError("not a Stream")
            super().__init__(dataset, **settings)

    loader = OwnLoader(Stream(), batch_size=4)
    stream = SanitizedStream(loader.dataset, StreamFilter.fit(centroid_scorer(), blobs(1200)))
    message = (
        r"Expected OwnLoader to accept a filtered stream .* raised RuntimeError: not a Stream.\n.* by a torch DataL"
    )
    with pytest.raises(UnsupportedDataError, match=message):
        rebuild_stream_loader(loader, stream)


def test_loader_over_a_stream_with_another_constructor_is_copied(centroid_scorer, blobs):
    class OwnLoader(DataLoader):
        def __init__(self, path):
            super().__init__(Stream(), batch_size=4)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(blobs(20))

    stream = SanitizedStream(Stream(), StreamFilter.fit(centroid_scorer(), blobs(1200)), remove=False)
    rebuilt = rebuild_stream_loader(OwnLoader("data/"), stream)
    assert type(rebuilt) is OwnLoader
    assert [len(batch[1]) for batch in rebuilt] == [4] * 5
    assert stream.progress().judged == 20


TREE = {"a": ["first", "second"], "b": {"a": "third"}, "1": "fourth"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, ["first", "second", "third", "fourth"]),
        (["a"], ["first", "second"]),
        (["['a'][1]"], ["second"]),
        (["['b']['a']", "1"], ["third", "fourth"]),
        (["1", "a", "1"], ["first", "second", "fourth"]),
    ],
)
def test_selects_loaders_by_path_or_key(wanted, found):
    assert list(select_loaders(TREE, wanted).values()) == found


def test_selects_loaders_by_position():
    assert select_loaders(["first", ["second", "third"]], ["1"]) == {"[1][0]": "second", "[1][1]": "third"}


@pytest.mark.parametrize("wanted", ["c", "['a'][2]", "['a", "third", ""])
def test_refuses_paths_of_no_loader(wanted):
    with pytest.raises(
        ValueError, match=r"`loaders` to be paths or keys of the training loaders, \['a'\]\[0\], .*but got"
    ):
        select_loaders(TREE, [wanted])


def test_refuses_a_path_in_a_single_loader():
    assert select_loaders("only", [""]) == {"": "only"}
    with pytest.raises(ValueError, match="A single training loader has no path: leave out `loaders`"):
        select_loaders("only", ["labeled"])


@pytest.mark.parametrize(
    ("kept", "size", "ranks", "wanted"),
    [
        (100, 100, 1, ""),
        (99, 100, 1, "the 99 samples that are kept do not fill a batch of 100"),
        (99, 50, 1, "of the 99 samples that are kept, `drop_last` drops 49 in each epoch"),
        (99, 10, 1, ""),
        (99, 50, 2, ""),
        (98, 50, 2, "the 49 samples per rank that are kept do not fill a batch of 50"),
        (100, 101, 1, ""),
    ],
)
def test_batches_lost_by_dropping(kept, size, ranks, wanted):
    loaders = [DataLoader(range(count), size, drop_last=True) for count in (100, kept)]
    lost = lost_batches(*loaders, ranks)
    assert lost.startswith(wanted)
    assert bool(lost) == bool(wanted)
    assert not lost_batches(*(DataLoader(range(count), size) for count in (100, kept)), ranks)


def test_reads_view_checks_data_set_and_sampler(data, view):
    samplers = ({"shuffle": True}, {"sampler": range(7)}, {"batch_sampler": BatchSampler(range(7), 2, False)})
    rebuilt = rebuild_loader(DataLoader(data, shuffle=True), view)
    assert reads_view(rebuilt, view)
    assert reads_view(DataLoader(view, **samplers[0]), view)
    assert not any(reads_view(DataLoader(view, **each), view) for each in samplers[1:])
    assert not reads_view(DataLoader(data), view)
    assert not reads_view(DataLoader(view, sampler=SequentialSampler(data)), view)
    assert not reads_view([], view)


def test_reads_view_accepts_a_view_of_the_view(view):
    further = SanitizedDataset(view, torch.tensor([True] * 5 + [False] * 2))
    assert reads_view(DataLoader(further, shuffle=True), view)
    assert reads_view(DataLoader(Subset(view, [1, 2])), view)
    assert not reads_view(DataLoader(ConcatDataset([view, view])), view)


class Ranks:
    """Two ranks; the epoch of the other has length 4."""

    world_size = 2
    rank = 1

    def reduce_sum(self, tensor):
        return tensor + torch.tensor([4, 0])

    def agree(self, error=None):
        pass


@pytest.mark.parametrize(("stops", "wanted"), [(7, 4), (3, 3)])
def test_remapped_sampler_is_truncated_to_the_shortest_rank(data, view, stops, wanted):
    loader = rebuild_loader(DataLoader(data, batch_sampler=[[each] for each in view.indices[:stops].tolist()]), view)
    assert len(equalize_lengths(loader, Ranks())) == wanted
    assert len(list(loader)) == wanted


def test_remapped_sampler_in_a_batch_sampler_is_truncated(data, view):
    class Own:
        def __len__(self):
            return 7

        def __iter__(self):
            return iter(view.indices[:7].tolist())

    loader = rebuild_loader(DataLoader(data, batch_sampler=BatchSampler(Own(), 2, drop_last=False)), view)
    assert len(equalize_lengths(loader, Ranks())) == 2  # four samples, as on the other rank
    assert sum(len(batch[0]) for batch in loader) == 4


def sampler_of_rank(kind, rank):
    """Return a sampler of every second sample, starting at the rank."""
    mine = range(rank, 10, 2)
    if kind == "subset":
        return SubsetRandomSampler(mine)
    weights = torch.zeros(10)
    weights[list(mine)] = 1
    return WeightedRandomSampler(weights, 5, replacement=False)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", ["subset", "weights"])
def test_ranks_with_different_samples_have_equal_lengths(data, view, several_ranks, kind, batch_size):
    """Four of 0, 2, 4, 6 and 8 are kept, and three of 1, 3, 5, 7 and 9."""

    def work(runtime):
        loader = DataLoader(data, batch_size, sampler=sampler_of_rank(kind, runtime.rank))
        rebuilt = equalize_lengths(rebuild_loader(loader, view), runtime)
        assert reads_view(rebuilt, view)
        return [[int(point) for batch in rebuilt for point in batch[0]] for _ in range(5)], len(rebuilt)

    (even, batches), (odd, other) = several_ranks(2, work)
    assert batches == other == -(-3 // batch_size)
    assert [len(epoch) for epoch in even + odd] == [3] * 10
    assert {each for epoch in even for each in epoch} == {0, 2, 6, 8}
    assert {each for epoch in odd for each in epoch} == {3, 5, 9}


def test_torchs_sampler_is_not_truncated(data, view):
    loader = rebuild_loader(DataLoader(data), view)
    assert equalize_lengths(loader, None) is loader


def test_empty_data_of_a_training_loader_are_named():
    with pytest.raises(ValueError, match=r"the data set of the training loader \['a'\] to have at least one sample"):
        check_indexable(DataLoader([]), "['a']")


def test_length_that_fails_is_named():
    class Odd(Dataset):
        def __len__(self):
            raise ZeroDivisionError

    with pytest.raises(UnsupportedDataError, match=r"the data set of the training loader to be .* raised ZeroDivision"):
        check_indexable(DataLoader(Odd()), "")
