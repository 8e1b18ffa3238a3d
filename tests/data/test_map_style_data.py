"""`map_style`: data sets, the samples that a loader represents, arrays and tables; and invalid labels."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_poison.data.labels import check_class_labels, labels_of
from lightning_poison.data.map_style_data import drawn_positions, map_style
from lightning_poison.errors import UnsupportedDataError
from lightning_poison.sanitization.pipeline import sanitize


def points(labels, classes=None):
    labels = torch.as_tensor(labels)
    data = TensorDataset(torch.zeros(len(labels), 2), labels)
    if classes is not None:
        data.classes = classes
    return data


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shuffle": True, "batch_size": 3},
        {"batch_size": None},
        {"sampler": SequentialSampler(range(6))},
        {"batch_sampler": BatchSampler(RandomSampler(range(6)), 2, drop_last=False)},
        {"sampler": DistributedSampler(range(6), num_replicas=2, rank=1)},
    ],
)
def test_loader_of_all_samples_gives_its_data_set(arguments):
    data = points([0, 1] * 3)
    assert map_style(DataLoader(data, **arguments), "trusted") is data


@pytest.mark.parametrize("batched", [False, True])
def test_subset_sampler_gives_its_samples(batched):
    data = points([0, 1] * 3)
    sampler = SubsetRandomSampler(torch.tensor([5, 0, 3]))
    loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=False)) if batched else None
    found = map_style(loader or DataLoader(data, sampler=sampler), "trusted")
    assert isinstance(found, Subset)
    assert found.indices == [0, 3, 5]


class Odd(RandomSampler):
    """A custom sampler."""


@pytest.mark.parametrize(
    "sampler",
    [
        WeightedRandomSampler([1.0] * 6, 6),
        RandomSampler(range(6), num_samples=3),
        RandomSampler(range(6), replacement=True),
    ],
)
def test_samplers_that_can_draw_all_samples(sampler):
    data = points([0, 1] * 3)
    assert map_style(DataLoader(data, sampler=sampler), "trusted") is data


def test_refuses_samplers_of_unknown_kind():
    message = r"`trusted` to be a loader whose sampler draws known samples.*a Odd\.\n.*Subset\(dataset, indices\)"
    with pytest.raises(UnsupportedDataError, match=message):
        map_style(DataLoader(points([0, 1] * 3), sampler=Odd(range(6))), "trusted")


def test_loader_of_clean_part_gives_only_that_part(blobs, centroid_scorer):
    whole = blobs(1600, flipped=400)  # the last 400 are wrong
    clean = DataLoader(whole, batch_size=32, sampler=SubsetRandomSampler(range(1200)))
    by_loader = sanitize(blobs(300, flipped=30, seed=1), centroid_scorer(), trusted=clean)
    by_subset = sanitize(blobs(300, flipped=30, seed=1), centroid_scorer(), trusted=Subset(whole, range(1200)))
    assert torch.equal(by_loader.keep, by_subset.keep)
    assert not by_loader.keep[270:].any()


def test_refuses_labels_beyond_listed_classes():
    data = points([0, 1, 2, 3, 0], classes=["cat", "dog\x1b", "fox"])
    with pytest.raises(ValueError, match=r"below 3, .*\(cat, dog\\x1b, fox\), but sample 3 has the label 3\.\nCorrect"):
        check_class_labels(torch.tensor([0, 1, 2, 3, 0]), data)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        *(([3, 8, 3], None), ([5, 6, 7, 8, 9], None), ([12, 507], range(1000)), ([0, 1], "names")),
        *(([0, 1, 255, 2], None), ([20240001, 20240002], None)),
    ],
)
def test_accepts_absent_classes(labels, classes):
    check_class_labels(torch.tensor(labels), points(labels, classes))


X = np.arange(12.0).reshape(4, 3)
Y = [0, 1, 1, 0]


def stand_in(package, name, base=object, **attributes):
    """Return a class that looks like one of a package that is not installed."""
    return type(name, (base,), {"__module__": f"{package}.core.frame", **attributes})


def columns_of(frame):
    return list(frame.values)


def column_of(frame, name):
    return frame.kind_of_column(frame.values[name])


def frame_of(package, values, name="DataFrame"):
    column = stand_in(
        package,
        "Series",
        __init__=lambda self, values: setattr(self, "values", values),
        __len__=lambda self: len(self.values),
        __getitem__=lambda self, index: self.values[index],
        to_numpy=lambda self: np.array(self.values),
        __array__=lambda self, dtype=None, copy=None: np.array(self.values, dtype=dtype),
    )
    frame = stand_in(
        package,
        name,
        kind_of_column=column,
        columns=property(columns_of),
        shape=property(lambda self: (len(next(iter(self.values.values()))), len(self.values))),
        __init__=lambda self, values: setattr(self, "values", values),
        __len__=lambda self: len(next(iter(self.values.values()))),
        __getitem__=column_of,
        to_numpy=lambda self: np.stack([np.array(each) for each in self.values.values()], axis=1),
    )
    return frame(values)


TABLE = {"width": [0.5, 1.5, 2.5, 3.5], "Label": Y, "legs": [4, 2, 2, 4]}


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, np.array(Y)],
        (torch.tensor(X), torch.tensor(Y)),
        (X, np.eye(2)[Y]),
        (X, torch.tensor(Y, dtype=torch.float)[:, None]),
        {"image": X, "label": np.array(Y)},
        {"a": X[:, 0], "b": X[:, 1].tolist(), "c": X[:, 2], "target": Y},
        frame_of("pandas", {**{index: X[:, index] for index in range(3)}, "y": Y}),
        (frame_of("pandas", {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}), frame_of("pandas", {"z": Y})["z"]),
        (frame_of("polars", {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}), Y),
    ],
)
def test_arrays_and_tables(data):
    found = map_style(data, "dataset")
    assert len(found) == 4
    assert labels_of(found).tolist() == Y
    assert np.asarray(found[2][0]).tolist() == X[2].tolist()


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_table_has_one_column_of_labels(package):
    was_loaded = package in sys.modules  # by another test
    found = map_style(frame_of(package, TABLE), "dataset")
    assert found[1][0].tolist() == [1.5, 2]
    assert found[1][0].dtype == np.float32
    assert labels_of(found).tolist() == Y
    for columns, message in (
        ({"a": [1, 2], "b": [0, 1]}, "table with one column of labels .* but got columns a, b\\.\\nRename the column"),
        ({"y": [1, 2], "label": [0, 1], "a": [0, 1]}, "one column of labels .* but got columns y, label, a"),
        ({"y": [1, 2], "name\x1b": ["a", "b"], "a": [0, 1]}, r"but got features name\\x1b\.\nDrop these columns"),
        ({"y": [1, 2]}, "but got features missing"),
    ):
        with pytest.raises(UnsupportedDataError, match=message):
            map_style(frame_of(package, columns), "dataset")
    assert (package in sys.modules) == was_loaded


def test_class_of_a_frame_may_be_derived():
    frame = frame_of("pandas", TABLE)
    frame.__class__ = type("GeoFrame", (type(frame),), {"__module__": "geo"})
    assert len(map_style(frame, "dataset")) == 4


def test_pair_of_samples_is_a_data_set():
    for pair in (((X, 0), (X, 1)), [(torch.zeros(2, 2), 0), (torch.ones(2, 2), 1)], {0: (X, 0), 1: (X, 1)}):
        assert map_style(pair, "dataset") is pair


def test_hugging_face_data_set_is_map_style():
    rows = [{"x": torch.zeros(3), "label": 1}] * 2
    data = stand_in("datasets", "Dataset", __len__=lambda _: 2, __getitem__=lambda _, index: rows[index])()
    assert map_style(data, "dataset") is data


class Module:
    def train_dataloader(self):
        return DataLoader(points([0, 1]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

    def __len__(self):
        return 3


LOADER = DataLoader(points([0, 1]))
LISTS = X.tolist() * 3
SPARSE = csr_array(X)
ARRAYS = r"a float64 array of shape \(4, 3\), a int64 array of shape \(4,\)"
PAIR = r"Pass inputs and labels as a pair of arrays, in this order: `\(X, y\)`\."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"got a float64 array of shape \(4, 3\) without labels\.\nPass .* `\(X, y\)`"),
        (torch.tensor(X), r"got a float64 tensor of shape \(4, 3\) without labels\.\nPass"),
        (frame_of("pandas", TABLE)["legs"], r"got a Series without labels\.\nPass"),
        (stand_in("polars", "LazyFrame", collect=dict)(), r"got a LazyFrame without labels\.\nPass `frame\.collect"),
        (
            stand_in("datasets", "DatasetDict", dict)(train=[1], test=[2]),
            r"got a DatasetDict with the splits 'train', 'test'\.\n.*`data\['train'\]`",
        ),
        (Module(), r"got Module\.\n.*`SanitizedDataModule\(datamodule, scorer\)`, .*`datamodule\.train_dataloader"),
        ([LOADER, LOADER], r"got a list of 2 loaders\.\nPass one at a time"),
        ({"a": LOADER}, r"got a dict of 1 loaders\.\nPass one at a time"),
        ((points([0, 1]), points([0, 1])), r"got a tuple of 2 data sets\.\nPass one at a time"),
        ("images/cats", r"got the path 'images/cats'\.\n.*`ImageFolder\('images/cats', transform\)`"),
        (Path("images"), r"got the path 'images'\.\n.*ImageFolder"),
        (["cats/1.png", "cats/2.png"], r"got a list of texts\.\nRead the files"),
        ({"a": X, "b": 3}, r"got a dict with the keys a, b\.\nPass a pair of arrays"),
        ((X, np.array(Y), np.ones(4)), rf"got a tuple of {ARRAYS}, a float64 array .*\n{PAIR} Weights"),
        ((np.array(Y), X), rf"got a tuple of a int64 array .*, a float64 array of shape \(4, 3\)\.\n{PAIR}$"),
        ((torch.tensor(Y), torch.tensor(X)), rf"got a tuple of a int64 tensor .*\.\n{PAIR}$"),
        ((X[:, 0], np.array(Y)), rf"got a tuple of .*\n{PAIR} .*`\(X\[:, None\], y\)`"),
        (
            (LISTS, Y * 3),
            rf"got a tuple of a list of length 12, a list of length 12\.\n{PAIR} .*`\(np\.asarray\(X\), y\)`",
        ),
        (
            (list(X), np.array(Y)),
            rf"got a tuple of a list of length 4, a int64 .*\n{PAIR} .*`list\(zip\(X, y\)\)` for images",
        ),
        ((["1.png"] * 12, Y * 3), r"got a tuple of .*\nRead the files in a data set"),
        (((X, Y), (X, Y)), r"got a tuple of a tuple of length 2, .*\nPass one pair of inputs and labels, `\(X, y\)`"),
        ((SPARSE, Y), rf"got a tuple of a csr_array of shape \(4, 3\), a list of length 4\.\n{PAIR} .*X\.toarray\(\)"),
        (SPARSE, r"got a csr_array without labels\.\n.*`\(X\.toarray\(\), y\)`"),
        (TensorDataset, r"got the class TensorDataset\.\nCreate the data set: `TensorDataset\(\.\.\.\)`"),
        (zip(X, Y, strict=True), r"got zip\.\nSamples are removed by their index"),
        (Stream(), r"got Stream\.\nSamples are removed by their index"),
        (DataLoader(Stream()), r"got Stream\.\nSamples are removed by their index"),
        (None, r"got NoneType\.\nSamples are removed"),
    ],
)
def test_says_how_to_pass_other_data(data, message):
    with pytest.raises(UnsupportedDataError, match=rf"`dataset` to be a map-style data set.*, but {message}"):
        map_style(data, "dataset")


def test_refuses_arrays_of_different_lengths():
    with pytest.raises(ValueError, match="of one length, but got 4 inputs, 3 labels"):
        map_style((X, Y[:3]), "dataset")


@pytest.mark.parametrize(
    "data", [[(X[0], 1), (X[1], 0)], ((X[0], 1),), [{"image": X, "label": 1}], [list(X)] * 3, list(X) * 2]
)
def test_few_samples_are_no_columns(data):
    assert map_style(data, "dataset") is data


@pytest.mark.parametrize("data", [[], (X[:0], []), points([])])
def test_refuses_empty_data(data):
    with pytest.raises(ValueError, match="`dataset` to have at least one sample, but it is empty"):
        map_style(data, "dataset")


class Sorted(Sampler):
    """A sampler of others that lists its positions."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(sorted(self.indices))

    def __len__(self):
        return len(self.indices)


@pytest.mark.parametrize(
    ("arguments", "positions"),
    [
        ({}, None),
        ({"shuffle": True}, None),
        ({"batch_size": None}, None),
        ({"sampler": SubsetRandomSampler([5, 0, 3])}, [0, 3, 5]),
        ({"sampler": SubsetRandomSampler(torch.tensor([5, 5, 3]))}, [3, 5]),
        ({"sampler": SubsetRandomSampler(range(6))}, None),
        ({"sampler": WeightedRandomSampler([0.0, 1.0, 2.0, 0.0, 0.0, 1.0], 20)}, [1, 2, 5]),
        ({"sampler": WeightedRandomSampler([1.0] * 6, 2)}, None),
        ({"sampler": RandomSampler(range(6), num_samples=3)}, None),
        ({"sampler": RandomSampler(range(4), replacement=True)}, [0, 1, 2, 3]),
        ({"sampler": SequentialSampler(range(2))}, [0, 1]),
        ({"sampler": DistributedSampler(range(6), num_replicas=2, rank=1)}, None),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([4, 1]), 2, drop_last=False)}, [1, 4]),
        ({"sampler": Sorted([2, 1])}, [1, 2]),
        ({"sampler": Sorted(np.array([2, 1]))}, [1, 2]),
        ({"sampler": Sorted([2.5])}, None),
        ({"sampler": Sorted([7])}, None),
        ({"sampler": Sorted([])}, None),
        ({"sampler": Sorted("ab")}, None),
        ({"sampler": Odd(range(3))}, None),
    ],
)
def test_positions_that_a_sampler_can_draw(arguments, positions):
    found = drawn_positions(DataLoader(points([0, 1] * 3), **arguments))
    assert (found if found is None else found.tolist()) == positions


def test_streams_have_no_positions():
    assert drawn_positions(DataLoader(Stream())) is None


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ({"sampler": [7, 2, 2]}, [2, 7]),
        ({"sampler": range(3)}, [0, 1, 2]),
        ({"sampler": torch.tensor([4])}, [4]),
        ({"batch_sampler": [[7, 2], [1]]}, [1, 2, 7]),
        ({"batch_sampler": [torch.tensor([3, 1]), torch.tensor([5])]}, [1, 3, 5]),
        ({"sampler": SubsetRandomSampler([-1, 0])}, [0, 9]),
        ({"sampler": WeightedRandomSampler([0.0, 1.0] + [0.0] * 8, 5)}, [1]),
    ],
)
def test_only_what_a_sampler_draws_is_judged(settings, drawn):
    loader = DataLoader(list(range(10)), **settings)
    assert drawn_positions(loader).tolist() == drawn
    assert list(map_style(loader, "dataset")) == drawn


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": SubsetRandomSampler([1, 10])}, "below 10, .* but a SubsetRandomSampler draws 10"),
        ({"sampler": [-11]}, "below 10, .* but a list draws -11"),
        ({"batch_sampler": [[3], [12]]}, "below 10, .* but a list draws 12"),
        ({"sampler": WeightedRandomSampler([1.0] * 12, 5)}, "but a WeightedRandomSampler draws 11"),
        ({"sampler": RandomSampler(range(20))}, "but a RandomSampler draws 19"),
        ({"sampler": SubsetRandomSampler([])}, "at least one sample, but a SubsetRandomSampler draws none"),
    ],
)
def test_positions_outside_of_the_data_are_named(settings, message):
    loader = DataLoader(list(range(10)), **settings)
    with pytest.raises(ValueError, match=message):
        drawn_positions(loader)
    with pytest.raises(ValueError, match=message):
        map_style(loader, "dataset")


def test_indices_of_unknown_samplers_may_mean_something_else():
    sampler = Sampler()
    sampler.indices = [100, 200]
    assert drawn_positions(DataLoader(list(range(10)), sampler=sampler)) is None
