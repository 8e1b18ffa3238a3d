"""Labels of every form: those that stand for a class index, and what is said about the others."""

import datetime
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightning_poison.data.label_forms import class_index, class_indices, odd_label


@pytest.mark.parametrize(
    "label",
    [
        *(2, 2.0, np.int8(2), np.uint64(2), np.float16(2), np.longdouble(2), Fraction(2), np.array(2), np.array(2.0)),
        *(torch.tensor(2), torch.tensor(2.0), torch.tensor(2.0).bfloat16(), torch.tensor(2).byte()),
        *([2], (2.0,), np.array([2]), torch.tensor([2]), torch.tensor([2.0], requires_grad=True)),
        *(
            [0, 0, 1],
            (0.0, 0.0, 1.0),
            np.eye(4)[2],
            torch.eye(3)[2],
            torch.eye(3)[2].bool(),
            np.array([0, 0, 1], np.uint8),
        ),
        *([torch.tensor(0), torch.tensor(0), torch.tensor(1)], torch.eye(3)[2].to_sparse(), np.array(2, dtype=object)),
    ],
)
def test_forms_of_class_two(label):
    assert class_index(label) == 2
    assert type(class_index(label)) is int


@pytest.mark.parametrize("label", [True, np.True_, np.array(True), torch.tensor(True), torch.tensor([True])])
def test_booleans_are_two_classes(label):
    assert class_index(label) == 1


MASK = torch.zeros(8, 8).long()


@pytest.mark.parametrize(
    ("label", "what", "way"),
    [
        (2.5, "the number 2.5, as in regression", "sample[1] > limit"),
        (torch.tensor(2.5), "the number 2.5, as in regression", "sample[1] > limit"),
        (np.array([2.5]), "the number 2.5, as in regression", "sample[1] > limit"),
        (torch.tensor([2.5, 7.25]), "the vector [2.5, 7.25], as in regression", "sample[1] > limit"),
        (float("nan"), "NaN", "-1"),
        (torch.tensor(torch.nan), "NaN", "-1"),
        (torch.tensor([0.5, torch.nan]), "contains NaN", "-1"),
        (float("inf"), "inf, which is too large", "Number the classes from 0"),
        (1e300, "1e+300, which is too large", "Number the classes from 0"),
        (2**64, "1.845e+19, which is too large", "Number the classes from 0"),
        (10**400, "inf, which is too large", "Number the classes from 0"),
        ("cat\x1b", r"the text 'cat\x1b'", "target_transform=classes.index"),
        (b"cat", "the text b'cat'", "target_transform=classes.index"),
        (np.str_("3"), "the text '3'", "target_transform=classes.index"),
        (np.array("cat"), "the text 'cat'", "target_transform=classes.index"),
        (np.array(["cat", "dog"]), "texts of shape (2,)", "target_transform=classes.index"),
        (None, "None", "-1"),
        (np.array(None), "None", "-1"),
        (torch.tensor([0.2, 0.5, 0.3]), "the vector [0.2, 0.5, 0.3], probabilities of 3 classes", "argmax"),
        (torch.full((10,), 0.1), "a float32 tensor of shape (10,), probabilities of 10 classes", "argmax"),
        ([0, 1, 1], "the vector [0, 1, 1], as in multi-label classification", "one label at a time"),
        (torch.zeros(5), "as in multi-label classification", "one label at a time"),
        (torch.ones(2).bool(), "as in multi-label classification", "one label at a time"),
        (MASK, "a int64 tensor of shape (8, 8), as in segmentation", "not masks"),
        (MASK.numpy(), "int64 values of shape (8, 8), as in segmentation", "not masks"),
        (torch.rand(1, 8, 8), "a float32 tensor of shape (1, 8, 8), as in segmentation", "not masks"),
        (Image.new("L", (3, 3)), "a PIL image of mode L, as in segmentation", "not masks"),
        (
            {"boxes": 1, "labels\x1b": 2},
            r"a dict with the keys boxes, labels\x1b, as in detection",
            "SampleSpec(labels=",
        ),
        ([3, 7], "the vector [3, 7], as for several labels", "SampleSpec(labels="),
        ([], "the vector []", "SampleSpec(labels="),
        ([[1, 2], [3]], "list", "SampleSpec(labels="),
        (1 + 2j, "complex", "SampleSpec(labels="),
        (torch.tensor(1j), "complex", "SampleSpec(labels="),
        (torch.tensor(1, device="meta"), "a int64 tensor of shape ()", "SampleSpec(labels="),
        (datetime.date(2020, 1, 1), "date", "SampleSpec(labels="),
        (object(), "object", "SampleSpec(labels="),
    ],
)
def test_other_forms_are_named(label, what, way):
    assert class_index(label) is None
    found = odd_label(label)
    assert what in found[0]
    assert way in found[1]


def test_objects_with_index_are_integers():
    class Index:
        def __index__(self):
            return 3

    assert class_index(Index()) == 3


COLUMNS = {
    "integers": [2, 0, 1],
    "tuple": (2, 0, 1),
    "range": range(3),
    "floats": [2.0, 0.0, 1.0],
    "booleans": [True, False, True],
    "NumPy numbers": [np.int64(2), np.float32(0), np.bool_(True)],
    "0-dim tensors": [torch.tensor(2), torch.tensor(0.0), torch.tensor(1)],
    "one-hot rows": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "one-hot tensors": list(torch.eye(3)),
    "column": np.array([[2], [0], [1]]),
    "column of floats": torch.tensor([[2.0], [0.0], [1.0]]),
    "one-hot": torch.eye(3).bool(),
    "uint8": np.array([2, 0, 1], np.uint8),
    "big endian": np.array([2, 0, 1], ">i4"),
    "bfloat16": torch.tensor([2, 0, 1]).bfloat16(),
    "objects": np.array([2, 0, 1], dtype=object),
    "with gradient": torch.tensor([2.0, 0.0, 1.0], requires_grad=True),
    "no labels": [-1, -1, 2],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_converted_as_their_labels(name):
    column = COLUMNS[name]
    found = class_indices(column, 3)
    assert found.dtype == torch.int64
    assert found.tolist() == [class_index(label) for label in column]


@pytest.mark.parametrize(
    "column",
    [
        *([0, 1], [0, 1, 2, 3], [0.5, 1, 2], [0, 1, torch.nan], ["a", "b", "c"], "abc", b"abc", None, 3, object()),
        *([0, None, 1], [[0, 1], [1, 0], [1]], [[0, 1], [1, 0], [1, 1]], [[0.5, 0.5]] * 3, torch.zeros(3, 2, 2)),
        *({0: 1, 1: 0, 2: 1}, {0, 1, 2}, np.array([2**64 - 1, 0, 1], np.uint64), [1e300, 0, 1], torch.zeros(3) * 1j),
        *(torch.zeros(3, device="meta"), np.array(3)),
    ],
)
def test_other_columns_are_ignored(column):
    assert class_indices(column, 3) is None


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.sampled_from(["float", "column", "one-hot", "bool"]))
def test_column_and_label_agree(labels, form):
    plain = torch.tensor(labels)
    column = {
        "float": plain.double(),
        "column": plain[:, None],
        "one-hot": torch.eye(7)[plain],
        "bool": plain > 3,
    }[form]
    expected = (plain > 3).long() if form == "bool" else plain
    assert class_indices(column, len(labels)).tolist() == expected.tolist()
    assert [class_index(label) for label in column] == expected.tolist()


@pytest.mark.parametrize("value", [np.ma.masked, np.ma.array([3], mask=[True]), np.ma.array(3, mask=True)])
def test_masked_labels_are_missing(value):
    assert class_index(value) is None
    what, way = odd_label(value)
    assert what == "a masked value, as for a missing label"
    assert way.startswith("Correct the label")


def test_masked_columns_are_no_labels():
    values = np.ma.array([0, 1, 2], mask=[False, True, False])
    assert class_indices(values, 3) is None
    assert class_indices([0, np.ma.masked, 2], 3) is None
    assert class_indices(np.ma.array([0, 1, 2]), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_small_floats_do_not_overflow(dtype):
    assert class_indices(np.array([0, 3, 1], dtype=dtype), 3).tolist() == [0, 3, 1]
    assert class_index(dtype(3)) == 3


def test_way_out_of_a_column_of_texts_can_be_copied():
    space = {"np": np, "y": np.array(["dog", "cat", "dog"])}
    code = odd_label("dog")[1].split("`")[1]
    exec(code, space)  # noqa: S102 (a text of this package)
    assert class_indices(space["y"], 3).tolist() == [1, 0, 1]
    assert space["classes"].tolist() == ["cat", "dog"]
