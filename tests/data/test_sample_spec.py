from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from lightning_poison.data.sample_spec import SampleSpec

IMAGE = torch.arange(4.0).view(1, 2, 2)
Pair = namedtuple("Pair", ["picture", "kind"])


@dataclass(frozen=True)
class Record:
    name: str
    image: torch.Tensor
    label: int


@dataclass
class Outer:
    inner: Record
    weight: float = 1.0


class Graph:
    def __init__(self, x, y):
        self.x, self.y = x, y


class Sealed(Graph):
    def __setattr__(self, name, value):
        if name in self.__dict__:
            raise AttributeError("it is sealed")
        super().__setattr__(name, value)


class Shared:
    def __init__(self, **parts):
        self.parts = parts

    @property
    def y(self):
        return self.parts["y"]

    @y.setter
    def y(self, value):
        self.parts["y"] = value


@dataclass
class Counted:
    image: torch.Tensor
    label: int = field(init=False, default=3)


STRUCTURES = {
    "tuple": ((IMAGE, 3), "0", "1"),
    "longer tuple": ((IMAGE, 3, 17, "id"), "0", "1"),
    "list": ([IMAGE, 3], "0", "1"),
    "label first": ((3, IMAGE), "1", "0"),
    "named tuple": (Pair(IMAGE, 3), "0", "1"),
    "dict": ({"image": IMAGE, "label": 3}, "image", "label"),
    "dict of odd names": ({"foo": IMAGE, "bar": 3}, "foo", "bar"),
    "dict of numbers": ({0: IMAGE, 1: 3}, "0", "1"),
    "dict with two integers": ({"image": IMAGE, "label": 3, "index": 9}, "image", "label"),
    "dict with two inputs": ({"image": IMAGE, "depth": IMAGE, "label": 3}, "image", "label"),
    "dict with a flag": ({"x": IMAGE, "flag": True, "y": 3}, "x", "y"),
    "dataclass": (Record("a", IMAGE, 3), "image", "label"),
    "nested": ({"views": (IMAGE,), "meta": {"label": 3, "id": "a"}}, "views.0", "meta.label"),
    "nested dataclass": (Outer(Record("a", IMAGE, 3)), "inner.image", "inner.label"),
    "tensor label": ((IMAGE, torch.tensor(3)), "0", "1"),
    "numpy": ((IMAGE.numpy(), np.int64(3)), "0", "1"),
    "PIL": ((Image.new("L", (2, 2)), 3), "0", "1"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_detects_input_and_label(name):
    sample, inputs, labels = STRUCTURES[name]
    spec = SampleSpec.detect(sample)
    assert spec == SampleSpec(inputs, labels)
    assert int(spec.labels_in(sample)) == 3
    assert spec.inputs_in(sample) is not None


@pytest.mark.parametrize("name", STRUCTURES)
def test_replace_leaves_sample_unchanged(name):
    sample, inputs, labels = STRUCTURES[name]
    spec = SampleSpec(inputs, labels)
    before_input, before_label = spec.inputs_in(sample), spec.labels_in(sample)
    changed = spec.replace(sample, inputs="new", labels=5)
    assert type(changed) is type(sample)
    assert (spec.inputs_in(changed), spec.labels_in(changed)) == ("new", 5)
    assert spec.inputs_in(sample) is before_input
    assert spec.labels_in(sample) is before_label
    assert len(repr(changed)) > 0


@pytest.mark.parametrize(
    ("sample", "spec"),
    [
        (Graph(IMAGE, 3), SampleSpec("x", "y")),
        ({"graph": Graph(IMAGE, 3)}, SampleSpec("graph.x", "graph.y")),
        (Graph({"a": IMAGE}, (3,)), SampleSpec("x.a", "y.0")),
        (Counted(IMAGE), SampleSpec("image", "label")),
    ],
    ids=["plain", "inside", "outside", "not of init"],
)
def test_replace_sets_attributes_on_copy(sample, spec):
    changed = spec.replace(sample, inputs="new", labels=5)
    assert type(changed) is type(sample)
    assert (spec.inputs_in(changed), spec.labels_in(changed)) == ("new", 5)
    assert spec.inputs_in(sample) is IMAGE
    assert spec.labels_in(sample) == 3


@pytest.mark.parametrize(
    ("sample", "why"),
    [(Sealed(IMAGE, 3), "Sealed: it is sealed"), (Shared(y=3), "Shared, which shares it with its copies")],
)
def test_refuses_attribute_that_cannot_be_set_on_copy(sample, why):
    with pytest.raises(ValueError, match=rf"whose `y` can be set on a copy, but got {why}\.\nReturn samples as tuples"):
        SampleSpec("x", "y").replace(sample, labels=5)
    assert sample.y == 3


def test_replace_keeps_other_parts():
    sample = {"views": [IMAGE, "b"], "meta": OrderedDict(id="a", label=3)}
    changed = SampleSpec("views.0", "meta.label").replace(sample, labels=4)
    assert changed["views"] is sample["views"]
    assert changed["meta"] == OrderedDict(id="a", label=4)
    assert list(changed["meta"]) == ["id", "label"]
    assert sample["meta"]["label"] == 3


def test_named_tuples_have_names_and_positions():
    sample = Pair(IMAGE, 3)
    by_name = SampleSpec("picture", "kind")
    assert by_name.labels_in(sample) == 3
    assert by_name.replace(sample, labels=4) == Pair(IMAGE, 4)


@pytest.mark.parametrize(
    ("samples", "inputs", "labels"),
    [
        ([(IMAGE, 3), (IMAGE, 4)], "0", "1"),
        (
            [{"image": IMAGE, "meta": {"y": 3, "id": "a"}}, {"image": IMAGE, "meta": {"y": 4, "id": "b"}}],
            "image",
            "meta.y",
        ),
        ([(3, {"x": IMAGE}), (4, {"x": IMAGE})], "1.x", "0"),
        ([Pair(IMAGE, 3), Pair(IMAGE, 4)], "0", "1"),
    ],
)
def test_batch_has_paths_of_its_samples(samples, inputs, labels):
    batch = default_collate(samples)
    spec = SampleSpec.detect(batch, batched=True)
    assert spec == SampleSpec(inputs, labels) == SampleSpec.detect(samples[0])
    assert spec.labels_in(batch).tolist() == [3, 4]
    assert spec.inputs_in(batch).shape == (2, 1, 2, 2)


@pytest.mark.parametrize(
    "sample",
    [
        (IMAGE, IMAGE, 3),
        {"a": IMAGE, "b": 3, "c": 4},
        (IMAGE, 3.0),
        (IMAGE, True),
        (IMAGE, "cat"),
        (IMAGE, torch.tensor([0, 1, 0])),
        IMAGE,
        (),
        "text",
    ],
)
def test_refuses_ambiguous_samples(sample):
    with pytest.raises(ValueError, match=r"Name the two by their paths: `sample=SampleSpec"):
        SampleSpec.detect(sample)


def test_error_shows_structure():
    with pytest.raises(
        ValueError, match=r"left: a float32 tensor of shape \(1, 2, 2\)\n    right: .*\n    meta.y: int"
    ):
        SampleSpec.detect({"left": IMAGE, "right": IMAGE, "meta": {"y": 3}})


@pytest.mark.parametrize(
    ("sample", "found"),
    [(Graph(IMAGE, 3), "Graph"), ((), "tuple"), ("text", "str"), (IMAGE, "a float32 tensor of shape")],
)
def test_error_names_type_without_structure(sample, found):
    with pytest.raises(ValueError, match=rf"one integer label, but got\n    {found}.*\nName the two"):
        SampleSpec.detect(sample)


@pytest.mark.parametrize("path", ["2", "label", "0.label", "", "-3"])
def test_refuses_missing_path(path):
    with pytest.raises(ValueError, match=rf"part at `{path}`, but there is no"):
        SampleSpec("0", path).labels_in((IMAGE, 3))


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((torch.rand(4, 1, 2, 2), torch.full((4, 5), 0.2)), "1"),
        ((torch.rand(4, 1, 2, 2), torch.full((4, 5), 0.2), torch.arange(4)), "1"),
        ({"image": torch.rand(4, 1, 2, 2), "label": torch.eye(4), "index": torch.arange(4)}, "label"),
        ({"image": torch.rand(4, 1, 2, 2), "meta": {"y": torch.eye(4)}}, "meta.y"),
        ((torch.rand(4, 1, 2, 2), torch.arange(4)), "1"),
    ],
)
def test_detects_mixed_labels(batch, labels):
    assert SampleSpec.detect(batch, batched=True, mixed=True).labels == labels


@pytest.mark.parametrize("second", [torch.full((4, 5), 0.3), torch.rand(4, 1, 5), torch.tensor([[1.5, -0.5]] * 4)])
def test_other_values_are_not_mixed_labels(second):
    with pytest.raises(ValueError, match="one integer label"):
        SampleSpec.detect((torch.rand(4, 1, 2, 2), second), batched=True, mixed=True)


def test_detects_mixed_labels_only_on_request():
    with pytest.raises(ValueError, match="one integer label"):
        SampleSpec.detect((torch.rand(4, 1, 2, 2), torch.full((4, 5), 0.2)), batched=True)


def test_escapes_names():
    with pytest.raises(ValueError, match=r"\\x1b\[31m") as caught:
        SampleSpec.detect({"\x1b[31m": IMAGE, "b": IMAGE, "c": 1})
    assert "\x1b" not in str(caught.value)
