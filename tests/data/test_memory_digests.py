"""The digest of what a data set holds in memory changes with every array, list and label, and reads nothing."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_poison.data import memory_digests
from lightning_poison.data.memory_digests import memory_digest


class Held:
    """A data set with attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise AssertionError("nothing is read")

    @property
    def targets(self):
        raise AssertionError("no property is evaluated")


class Column:
    """What the digest uses of a series of pandas."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values


class Frame:
    """What the digest uses of a frame of pandas."""

    def __init__(self, columns):
        self.columns, self._values = list(columns), list(columns.values())

    @property
    def iloc(self):
        return self

    def __getitem__(self, place):
        return Column(self._values[place[1]])

    def set(self, name, value):
        self._values[self.columns.index(name)][0] = value


Column.__module__ = Frame.__module__ = "pandas.core"


def set_item(where, key, value):
    where[key] = value


CHANGES = {
    "tensor": (lambda: torch.zeros(3, 2), lambda held: held.add_(1)),
    "bool tensor": (lambda: torch.zeros(3).bool(), lambda held: set_item(held, 1, True)),
    "bfloat16": (lambda: torch.zeros(3).bfloat16(), lambda held: held.add_(1)),
    "strided tensor": (lambda: torch.zeros(4, 3).T, lambda held: held[2].add_(1)),
    "parameter": (lambda: torch.zeros(3, requires_grad=True), lambda held: held.detach().add_(1)),
    "array": (lambda: np.zeros((3, 2)), lambda held: set_item(held, 2, 1)),
    "strided array": (lambda: np.zeros((6, 2))[::2], lambda held: set_item(held, 2, 1)),
    "array of objects": (lambda: np.array(["a", None, 3], dtype=object), lambda held: set_item(held, 2, 4)),
    "array of texts": (lambda: np.array(["cat", "dog"]), lambda held: set_item(held, 0, "cow")),
    "list of labels": (lambda: [0, 1, 0], lambda held: set_item(held, 1, 0)),
    "list that grows": (lambda: [0, 1, 0], lambda held: held.append(0)),
    "files of a folder": (lambda: [("a.png", 0), ("b.png", 1)], lambda held: set_item(held, 1, ("b.png", 0))),
    "list of samples": (lambda: [(torch.zeros(2), 1)], lambda held: held[0][0].add_(1)),
    "dict": (lambda: {"x": torch.zeros(3), 5: [1]}, lambda held: set_item(held[5], 0, 2)),
    "frame": (lambda: Frame({"x": np.zeros(2), "y": np.array(["a", "b"], object)}), lambda held: held.set("y", "c")),
    "column": (lambda: Column(np.zeros(2)), lambda held: set_item(held.values, 0, 5)),
    "data set below": (lambda: Held(points=torch.zeros(3)), lambda held: held.points.add_(1)),
    "tensors below": (lambda: TensorDataset(torch.zeros(3)), lambda held: held.tensors[0].add_(1)),
    "positions": (lambda: Subset([1, 2, 3], [0, 2]), lambda held: set_item(held.indices, 0, 1)),
    "parts": (lambda: ConcatDataset([[1], [2]]), lambda held: set_item(held.datasets[1], 0, 3)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_show(case):
    make, change = CHANGES[case]
    data = Held(part=make())
    before = memory_digest(data)
    assert memory_digest(data) == before
    change(data.part)
    assert memory_digest(data) != before


def test_lists_that_are_data_sets():
    data = [(torch.zeros(2), 0), (torch.zeros(2), 1)]
    before = memory_digest(data)
    data[1] = (data[1][0], 0)
    assert memory_digest(data) != before


def test_numbers_and_objects_do_not_count():
    data = Held(epoch=0, name="a", file=None, points=torch.zeros(3))
    before = memory_digest(data)
    vars(data).update(epoch=1, name="b", transform=lambda image: image)
    vars(data).pop("transform")
    assert memory_digest(data) == before


def test_cycles_end():
    data = Held(points=[1])
    data.view, data.points = data, [data.points]
    data.points.append(data.points)
    assert memory_digest(data) == memory_digest(data)


def test_odd_objects_are_skipped():
    class Odd(np.ndarray):
        @property
        def dtype(self):
            raise ValueError("no type")

    data = Held(odd=np.zeros(2).view(Odd), sparse=torch.eye(3).to_sparse(), meta=torch.zeros(2, device="meta"))
    assert memory_digest(data) == memory_digest(data)


def test_large_arrays_and_files_are_skipped(monkeypatch, tmp_path):
    mapped = np.memmap(tmp_path / "samples", dtype=np.float32, mode="w+", shape=(4,))
    data = Held(mapped=mapped, large=np.zeros(100), small=np.zeros(2))
    monkeypatch.setattr(memory_digests, "_MOST_BYTES", 100)
    before = memory_digest(data)
    data.large[0] = mapped[0] = 1
    assert memory_digest(data) == before
    data.small[0] = 1
    assert memory_digest(data) != before
