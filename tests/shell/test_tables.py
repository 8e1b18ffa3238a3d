import sys

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from lightning_poison.shell.sources import open_named_source
from lightning_poison.shell.tables import class_numbers, read_table


def written(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_numbers_and_labels(tmp_path):
    found = open_named_source(written(tmp_path, "id,width,Label,note\n7,1.5,b,x\n8,2.5,a,y\n"))
    assert found.dataset.tensors[0].tolist() == [[1.5], [2.5]]
    assert found.dataset.tensors[1].tolist() == [1, 0]
    assert found.classes == ["a", "b"]
    assert found.notes == ["Unused columns: note."]
    assert found.dataset.samples == [("7", 1), ("8", 0)]


def test_columns_are_named(tmp_path):
    found = open_named_source(written(tmp_path, "label,kind\n3,dog\n4,cat\n"), label="kind")
    assert found.dataset.tensors[0].tolist() == [[3], [4]]
    assert found.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a,b\n1,2\n", {}, r"a column of the labels, such as 'label', but got a, b\.\nName it: `--label COLUMN`"),
        ("a,b\n1,2\n", {"label": "c"}, r"a column 'c', but got a, b"),
        ("a,label\n", {}, r"a table with rows"),
        ("", {}, r"a table with rows"),
        ("a,label\n1\n", {}, r"2 columns in line 2, but got 1"),
        ("a,a\n1,2\n", {}, r"columns with different names"),
        ("a,label\nx,1\n", {}, r"columns of numbers beside the labels"),
        ("a,label\nnan,1\n", {}, r"columns of numbers beside the labels"),
    ],
)
def test_refuses_tables_that_cannot_be_read(tmp_path, text, settings, message):
    with pytest.raises(ValueError, match=message):
        open_named_source(written(tmp_path, text), **settings)


def test_refuses_a_table_of_another_encoding(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("a,label\nä,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a CSV file in UTF-8"):
        read_table(path)


@pytest.mark.parametrize(
    ("values", "numbers", "names"),
    [
        (["10", "9", "9"], [1, 0, 0], ["9", "10"]),
        ([2.0, 1.0], [1, 0], ["1", "2"]),
        (["b", "10"], [1, 0], ["10", "b"]),
        (["cat", "", None, float("nan"), " ", "dog"], [0, -1, -1, -1, -1, 1], ["cat", "dog"]),
        (["3", "", "12"], [0, -1, 1], ["3", "12"]),
    ],
)
def test_classes_are_numbered_in_the_order_of_their_names(values, numbers, names):
    found, classes = class_numbers(values)
    assert (found.tolist(), classes) == (numbers, names)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (np.full((4, 6, 5), 255, dtype=np.uint8), (1, 6, 5)),
        (np.full((4, 6, 5, 3), 255, dtype=np.uint8), (3, 6, 5)),
        (np.ones((4, 3, 6, 5), dtype=np.float32), (3, 6, 5)),
        (np.ones((4, 9)), (9,)),
    ],
)
def test_archives(tmp_path, images, shape):
    np.savez(tmp_path / "data.npz", images=images, labels=np.array([0, 1, 0, 1]), extra=np.zeros(2))
    found = open_named_source(str(tmp_path / "data.npz"))
    inputs, label = found.dataset[1]
    assert inputs.shape == shape
    assert float(inputs.max()) == 1
    assert int(label) == 1


def test_embeddings_and_their_labels(tmp_path):
    np.save(tmp_path / "data.npy", np.eye(3, dtype=np.float32))
    written(tmp_path, "cat\ndog\ncat\n", "labels.txt")
    found = open_named_source(str(tmp_path / "data.npy"), label=str(tmp_path / "labels.txt"))
    assert found.dataset.tensors[1].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"--label labels\.npy"):
        open_named_source(str(tmp_path / "data.npy"))


def test_embeddings_in_a_column_and_names_in_another(tmp_path):
    table = pyarrow.table({"e": [[1.5, 2.5], [3.5, 4.5]], "label": ["b", "a"], "key": ["k1", "k2"]})
    parquet.write_table(table, tmp_path / "table.parquet")
    found = open_named_source(str(tmp_path / "table.parquet"), ids="key")
    assert found.dataset.tensors[0].tolist() == [[1.5, 2.5], [3.5, 4.5]]
    assert found.dataset.samples == [("k1", 1), ("k2", 0)]
    with pytest.raises(ValueError, match="a column 'name', but got e, label, key"):
        open_named_source(str(tmp_path / "table.parquet"), ids="name")


def test_names_in_a_file_or_an_array(tmp_path):
    np.save(tmp_path / "data.npy", np.eye(2, dtype=np.float32))
    np.save(tmp_path / "labels.npy", np.array([1, 0]))
    written(tmp_path, "first one\nsecond\n", "ids.txt")
    labels, ids = str(tmp_path / "labels.npy"), str(tmp_path / "ids.txt")
    found = open_named_source(str(tmp_path / "data.npy"), label=labels, ids=ids)
    assert found.dataset.samples == [("first one", 1), ("second", 0)]
    np.savez(tmp_path / "data.npz", x=np.eye(2), y=np.array([0, 1]), key=np.array(["a", "b"]))
    assert open_named_source(str(tmp_path / "data.npz"), ids="key").dataset.samples == [("a", 0), ("b", 1)]
    written(tmp_path, "only one\n", "ids.txt")
    with pytest.raises(ValueError, match="the ids` to be one for each of the 2 samples, but got 1"):
        open_named_source(str(tmp_path / "data.npy"), label=labels, ids=ids)


def test_nothing_pickled_is_loaded(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    with pytest.raises(ValueError, match="a NumPy file without pickled objects"):
        open_named_source(str(tmp_path / "data.npz"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 3)), "y": np.zeros(2)}, "an array of inputs, such as 'x', but got a, y"),
        ({"x": np.zeros((2, 3))}, "an array of labels"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, r"one label for each of them, but got shapes \(2, 3\) and \(3,\)"),
    ],
)
def test_refuses_archives_without_samples(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_named_source(str(tmp_path / "data.npz"))


def test_parquet(tmp_path):
    table = pyarrow.table({"width": [1.5, 2.5], "label": ["b", "a"]})
    parquet.write_table(table, tmp_path / "table.parquet")
    found = open_named_source(str(tmp_path / "table.parquet"))
    assert found.dataset.tensors[0].tolist() == [[1.5], [2.5]]
    assert found.classes == ["a", "b"]


def test_names_what_to_install_for_parquet(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "table.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"lightning-poison\[parquet\]"):
        open_named_source(str(tmp_path / "table.parquet"))


def test_dtype_of_inputs(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((2, 3)), y=np.array(["a", "b"]))
    assert open_named_source(str(tmp_path / "data.npz")).dataset.tensors[0].dtype == torch.float32
