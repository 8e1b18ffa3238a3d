import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from lightning_poison.data.view_labels import are_listed, kept_labels, replaced_labels

POSITIONS = torch.tensor([0, 2, 3, 5])

KINDS = {"tensor": torch.arange, "array": np.arange, "list": lambda count: list(range(count))}


@pytest.fixture(params=KINDS)
def labels(request):
    """The labels 0 to 5 of a data set."""
    return KINDS[request.param](6)


def listed(values):
    return [int(each) for each in values]


def like(kept, values):
    return torch.tensor(values) if isinstance(kept, torch.Tensor) else values


ASSIGNMENTS = {
    "item": (lambda kept: kept.__setitem__(1, 9), [0, 1, 9, 3, 4, 5]),
    "last item": (lambda kept: kept.__setitem__(-1, 9), [0, 1, 2, 3, 4, 9]),
    "slice": (lambda kept: kept.__setitem__(slice(1, 3), like(kept, [8, 9])), [0, 1, 8, 9, 4, 5]),
    "all": (lambda kept: kept.__setitem__(slice(None), like(kept, [6, 7, 8, 9])), [6, 1, 7, 8, 4, 9]),
}

IN_PLACE = {
    "mask": lambda kept: kept.__setitem__(kept > 2, 9),
    "indices": lambda kept: kept.__setitem__([2, 3], 9),
    "slice of a slice": lambda kept: kept[1:][1:].__setitem__(slice(None), 9),
    "augmented slice": lambda kept: kept[2:].__imul__(0).__iadd__(9),
}

OF_TENSORS = {
    "masked_fill_": lambda kept: kept.masked_fill_(kept > 2, 9),
    "fill_ of a slice": lambda kept: kept[2:].fill_(9),
    "out": lambda kept: torch.where(torch.arange(4) > 1, torch.full((4,), 9), torch.tensor([0, 2, 0, 0]), out=kept),
    "copy_": lambda kept: kept.copy_(torch.tensor([0, 2, 9, 9])),
    "data": lambda kept: kept.data.view(2, 2)[1].fill_(9),
}

OF_ARRAYS = {
    "fill of a slice": lambda kept: kept[2:].fill(9),
    "put": lambda kept: kept.put([2, 3], 9),
    "out": lambda kept: np.add([0, 2, 9, 9], 0, out=kept),
    "copyto": lambda kept: np.copyto(kept, [0, 2, 9, 9]),
    "at": lambda kept: np.maximum.at(kept, [2, 3], 9),
}


@pytest.mark.parametrize(("assign", "wanted"), ASSIGNMENTS.values(), ids=ASSIGNMENTS)
def test_assignments_change_the_data_set(labels, assign, wanted):
    kept = kept_labels(labels, POSITIONS)
    assign(kept)
    assert listed(labels) == wanted
    assert listed(kept) == [wanted[position] for position in POSITIONS]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *(("tensor", change) for change in {**IN_PLACE, **OF_TENSORS}.values()),
        *(("array", change) for change in {**IN_PLACE, **OF_ARRAYS}.values()),
    ],
    ids=[
        *(f"tensor: {name}" for name in {**IN_PLACE, **OF_TENSORS}),
        *(f"array: {name}" for name in {**IN_PLACE, **OF_ARRAYS}),
    ],
)
def test_in_place_operations_change_the_data_set(kind, change):
    labels = KINDS[kind](6)
    change(kept_labels(labels, POSITIONS))
    assert listed(labels) == [0, 1, 2, 9, 4, 9]


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_labels_of_several_columns(kind):
    labels = KINDS[kind](12).reshape(6, 2)
    kept = kept_labels(labels, POSITIONS)
    kept[1:3, 1] = 0
    kept[3] = -1
    assert labels.tolist() == [[0, 1], [2, 3], [4, 0], [6, 0], [8, 9], [-1, -1]]


def test_only_changed_entries_are_written():
    labels = torch.arange(6)
    kept = kept_labels(labels, POSITIONS)
    labels[5] = 7
    kept[0] = 9
    assert labels.tolist() == [9, 1, 2, 3, 4, 7]


def test_views_of_views(labels):
    inner = kept_labels(kept_labels(labels, POSITIONS), torch.tensor([1, 3]))
    inner[1] = 9
    assert listed(labels) == [0, 1, 2, 3, 4, 9]


def test_copies_are_independent_and_ordinary(labels):
    """Of pickles, copies and results of operations."""
    kept = kept_labels(labels, POSITIONS)
    unpickled = pickle.loads(pickle.dumps(kept))  # noqa: S301
    copies = [copy.deepcopy(kept), unpickled, copy.copy(kept), kept[:2] + kept[2:]]
    for each in copies:
        each[0] = 9
    assert listed(labels) == [0, 1, 2, 3, 4, 5]
    assert all(type(each) is type(labels) for each in copies[:2])


def test_operations_on_tensors_return_ordinary_tensors():
    kept = kept_labels(torch.arange(6), POSITIONS)
    results = (
        kept + 1,
        kept == 2,
        kept.clone(),
        kept.unique(),
        kept.long(),
        kept.to(torch.int64),
        kept[0],
        kept[[0, 1]],
    )
    assert all(type(each) is torch.Tensor for each in results)
    assert repr(kept) == "tensor([0, 2, 3, 5])"
    with pytest.raises(ValueError, match="read-only"):
        kept.numpy()[0] = 1
    assert np.asarray(kept).tolist() == [0, 2, 3, 5]


def test_arrays_are_read_without_warnings():
    kept = kept_labels(np.arange(6), POSITIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.as_tensor(kept).tolist() == np.unique(kept).tolist() == [0, 2, 3, 5]
    assert type(kept + 1) is type(np.unique(kept)) is np.ndarray


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.append(1),
        lambda kept: kept.__delitem__(0),
        lambda kept: kept.__setitem__(slice(0, 2), [1]),
        lambda kept: kept.sort(),
        lambda kept: kept.__iadd__([1]),
    ],
    ids=["append", "del", "shorter slice", "sort", "+="],
)
def test_lists_keep_their_length_and_order(change):
    labels = list(range(6))
    with pytest.raises(TypeError, match="moves, adds or removes labels"):
        change(kept_labels(labels, POSITIONS))
    assert labels == list(range(6))


def test_sorting_an_array_raises():
    with pytest.raises(TypeError, match="moves, adds or removes labels"):
        kept_labels(np.arange(6), POSITIONS).sort()


def test_tuples_cannot_change():
    assert kept_labels(tuple(range(6)), POSITIONS) == (0, 2, 3, 5)


@pytest.mark.parametrize("values", [[6, 7, 8, 9], torch.tensor([6, 7, 8, 9]), np.array([6, 7, 8, 9])])
def test_replaced_labels_have_the_type_of_the_old(labels, values):
    changed = replaced_labels(labels, POSITIONS, values)
    assert type(changed) is type(labels)
    assert listed(changed) == [6, 1, 7, 8, 4, 9]
    assert listed(labels) == [0, 1, 2, 3, 4, 5]
    assert replaced_labels((0, 1), torch.tensor([1]), [9]) == (0, 9)


@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize("values", [[0.5, 1, 1, 1], [[1.0, 0.0]] * 4], ids=["rounded", "probabilities"])
def test_refuses_labels_of_another_kind(kind, values):
    with pytest.raises(ValueError, match=r"new labels like those .* of shape \(6,\), but got an? .*float"):
        replaced_labels(KINDS[kind](6), POSITIONS, values)


def test_lists_of_labels_are_recognized():
    assert all(are_listed(each, 2) for each in ([0, 1], (0, 1), torch.zeros(2), np.zeros((2, 3))))
    assert not any(are_listed(each, 2) for each in ("ab", {0: 1, 1: 2}, None, 2, torch.tensor(2), [0]))
