import pickle
import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from lightning_poison.data.sample_parts import AmbiguousLabelError
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.errors import UnreadableSampleError

IMAGE = torch.arange(4.0).view(1, 2, 2)
Pair = namedtuple("Pair", ["picture", "kind"])
Domain = namedtuple("Domain", ["image", "domain", "label"])


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
    "longer tuple": ((IMAGE, 3, "id", None, 0.7), "0", "1"),
    "float label": ((IMAGE, 3.0), "0", "1"),
    "label of shape (1,)": ((IMAGE, torch.tensor([3])), "0", "1"),
    "array label": ((IMAGE, np.array(3)), "0", "1"),
    "two vectors": ((torch.rand(4), torch.tensor([3.0])), "0", "1"),
    "domain and named label": ({"image": IMAGE, "domain": 2, "label": 3}, "image", "label"),
    "named fields": (Domain(IMAGE, 2, 3), "0", "2"),
    "sample number": ({"foo": IMAGE, "index": 17, "kind": 3}, "foo", "kind"),
    "mask of the same sample": ((IMAGE, 3, IMAGE), "0", "1"),
    "tokens": ({"x": [5, 8, 13], "mask": [1, 1, 0], "label": 3}, "x", "label"),
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
        (IMAGE, 3, 17),
        (IMAGE, 3, True),
        (IMAGE, 3, torch.tensor([0, 1, 0])),
        (IMAGE, (IMAGE, 3)),
        {"image": IMAGE, "index": 3},
        {"image": IMAGE, "path": "cat.png"},
        IMAGE,
        (),
        "text",
    ],
)
def test_refuses_ambiguous_samples(sample):
    with pytest.raises(ValueError, match=r"Name the two by their paths: `sample=SampleSpec"):
        SampleSpec.detect(sample)


@pytest.mark.parametrize(
    "label",
    [True, "cat", 2.5, None, IMAGE, torch.tensor([0, 1, 0]), torch.rand(3), {"boxes": [1, 2], "labels": [3, 4]}],
)
def test_second_part_of_pair_is_label_of_any_form(label):
    spec = SampleSpec.detect((IMAGE, label))
    assert spec.inputs == "0"
    assert spec.labels.split(".")[0] == "1"


@pytest.mark.parametrize("label", ["cat", 2.5, None, torch.rand(2, 2)])
def test_named_part_is_label_of_any_form(label):
    assert SampleSpec.detect({"image": IMAGE, "domain": 3, "label": label}) == SampleSpec("image", "label")


def test_error_names_possible_labels():
    message = (
        r"1: int 5\n    2: int 3\n`1` and `2` could each be the label\.\nName .*as `SampleSpec\('0', '1'\)` or `Sam"
    )
    with pytest.raises(AmbiguousLabelError, match=message):
        SampleSpec.detect((IMAGE, 5, 3))


SCALARS = {
    "float": 1.0,
    "fraction": 9.47,
    "float tensor": torch.tensor(0.0),
    "fraction tensor": torch.tensor(0.3),
    "float of shape (1,)": torch.tensor([1.0]),
    "fraction of shape (1,)": torch.tensor([0.3]),
    "NumPy float": np.float32(0.3),
    "bool": True,
    "text": "cat",
    "bytes": b"cat",
    "None": None,
    "one-hot": torch.tensor([0.0, 1.0, 0.0]),
    "one-hot list": [0, 1, 0],
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("kind", [tuple, list])
def test_part_after_input_may_be_the_label_whatever_its_form(name, kind):
    with pytest.raises(
        AmbiguousLabelError, match=r"`1` and `2` could each be the label\.\n.*as `SampleSpec\('0', '1'\)`"
    ):
        SampleSpec.detect(kind([IMAGE, SCALARS[name], 3]))


@pytest.mark.parametrize("value", [True, 1.0, torch.tensor(0.0), np.float32(1), torch.tensor([1.0])], ids=repr)
def test_other_numbers_of_a_dict_may_be_the_label(value):
    with pytest.raises(AmbiguousLabelError, match="`survived` and `site` could each be the label"):
        SampleSpec.detect({"image": IMAGE, "survived": value, "site": 3})


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5), "a.png", None, float("nan")])
def test_other_parts_of_a_dict_are_no_labels(value):
    assert SampleSpec.detect({"image": IMAGE, "other": value, "site": 3}).labels == "site"
    assert SampleSpec.detect({"image": IMAGE, "weight": 1.0, "site": 3}).labels == "site"


@pytest.mark.parametrize("weight", [0.5, 1.0, torch.tensor(1.0), np.float32(1)])
def test_floats_beside_an_integer_after_the_input_are_weights(weight):
    assert SampleSpec.detect((IMAGE, 3, weight)) == SampleSpec("0", "1")
    batch = default_collate([(IMAGE, 3, weight)] * 2)
    assert SampleSpec.detect(batch, batched=True) == SampleSpec("0", "1")


@pytest.mark.parametrize("rest", [(1.0,), (True,), ("cat",), (torch.tensor([1.0]),)], ids=repr)
def test_part_after_input_of_a_batch_may_be_the_label(rest):
    batch = default_collate([(IMAGE, *rest, 3)] * 2)
    with pytest.raises(AmbiguousLabelError, match=r"(?s)but got\n.*`1` and `2` could each be the label"):
        SampleSpec.detect(batch, batched=True)


@pytest.mark.parametrize("value", [True, 1.0, torch.tensor([1.0])], ids=repr)
def test_other_numbers_in_a_batch_of_dicts_may_be_the_label(value):
    batch = default_collate([{"image": IMAGE, "survived": value, "site": 3}] * 2)
    with pytest.raises(AmbiguousLabelError, match="`survived` and `site` could each be the label"):
        SampleSpec.detect(batch, batched=True)
    named = default_collate([{"image": IMAGE, "label": value, "site": 3}] * 2)
    assert SampleSpec.detect(named, batched=True) == SampleSpec("image", "label")


@pytest.mark.parametrize(
    ("sample", "example"),
    [
        ((IMAGE, torch.rand(3), 5), r", as `SampleSpec\('0', '1'\)`\."),
        ((IMAGE, IMAGE, 5), r", as `SampleSpec\('0', '2'\)`\."),
        (("a.png", 5), r", as `SampleSpec\('0', '1'\)`\."),
        ({"a": IMAGE, "b": IMAGE, "c": "cat", "y": "dog"}, r", as `SampleSpec\('a', 'y'\)`\."),
        ({"image": IMAGE, "index": 3}, r"\.\.\.\)`\."),
        (IMAGE, r"\.\.\.\)`\."),
    ],
)
def test_example_has_paths_of_the_sample(sample, example):
    with pytest.raises(ValueError, match=r"SampleSpec\(inputs=..., labels=...\)`") as raised:
        SampleSpec.detect(sample)
    assert re.search(f"{example}$", str(raised.value))


def test_possible_labels_of_batch_depend_on_its_structure_only():
    images = torch.rand(4, 1, 2, 2)
    for weights in (torch.ones(4), torch.rand(4)):
        assert SampleSpec.detect((images, torch.arange(4), weights), batched=True).labels == "1"
        assert SampleSpec.detect((images, weights), batched=True).labels == "1"
        assert SampleSpec.detect({"x": images, "a": weights[:, None]}, batched=True).labels == "a"
        for batch in ((images, weights, weights), (images, weights, torch.arange(4))):
            with pytest.raises(ValueError, match="`1` and `2` could each be the label"):
                SampleSpec.detect(batch, batched=True)
        with pytest.raises(ValueError, match="`a` and `b` could each be the label"):
            SampleSpec.detect({"x": images, "a": torch.arange(4), "b": weights}, batched=True)
    with pytest.raises(ValueError, match="`1` and `2` could each be the label"):
        SampleSpec.detect((images, torch.arange(4), torch.arange(4)), batched=True)


def parity(sample):
    return sample[1] % 2


class Fold:
    def __call__(self, sample):
        return sample[2]


def test_functions_take_the_place_of_paths():
    spec = SampleSpec("0", parity)
    assert spec.labels_in((IMAGE, 3)) == 1
    assert spec == SampleSpec(labels=parity) != SampleSpec()
    assert repr(spec) == "SampleSpec(inputs='0', labels=parity)"
    assert repr(SampleSpec(Fold(), "1")) == "SampleSpec(inputs=Fold, labels='1')"
    assert hash(spec) == hash(SampleSpec("0", parity))
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert spec.labels_in(default_collate([(IMAGE, 3), (IMAGE, 4)])).tolist() == [1, 0]
    assert spec.replace((IMAGE, 3), inputs=7) == (7, 3)
    with pytest.raises(ValueError, match=r"`labels` to be a path, .* but got the function parity\.\nName a path"):
        spec.replace((IMAGE, 3), labels=7)


def test_error_of_function_is_named():
    message = r"function `labels=parity` to return the labels of sample 8, but it raised TypeError: .* for\n    0: "
    with pytest.raises(ValueError, match=message):
        SampleSpec("0", parity).split([(IMAGE, "a")], [8])


def test_positions_may_be_integers():
    assert SampleSpec(0, np.int64(-1)) == SampleSpec("0", "-1")
    assert SampleSpec(0, -1).labels_in((IMAGE, 7, 3)) == 3


@pytest.mark.parametrize(
    ("path", "hint"), [(("meta", "y"), "'meta.y'"), (None, "'views.0'"), (True, "'views.0'"), (1.5, "'views.0'")]
)
def test_refuses_other_paths(path, hint):
    with pytest.raises(TypeError, match=rf"`labels` to be a path in the sample, .*\nJoin nested keys by dots.*{hint}"):
        SampleSpec("0", path)


@pytest.mark.parametrize(
    ("value", "way"),
    [
        (("image", "y"), r"SampleSpec\('image', 'y'\)"),
        ([0, 2], r"SampleSpec\(0, 2\)"),
        ({"inputs": "a", "labels": "b"}, r"SampleSpec\('a', 'b'\)"),
        ("label", r"SampleSpec\(inputs='image', labels='label'\)"),
        (SampleSpec, r"SampleSpec\(inputs='image', labels='label'\)"),
        (3, r"SampleSpec\(inputs='image', labels='label'\)"),
    ],
)
def test_refuses_other_arguments(value, way):
    with pytest.raises(TypeError, match=rf"`sample` to be a `SampleSpec`, but got .*\nWrite `sample={way}"):
        check_sample_spec(value)


def test_accepts_arguments():
    assert check_sample_spec(None) is None
    assert check_sample_spec(SampleSpec("a", "b")) == SampleSpec("a", "b")


def test_split_names_odd_sample():
    pairs = [(IMAGE, 3), (IMAGE, 4)]
    assert SampleSpec().split(pairs, [7, 8]) == ([IMAGE, IMAGE], [3, 4])
    named = SampleSpec("image", "label")
    records = [{"image": IMAGE, "label": 3}, {"image": IMAGE, "label": 4}]
    assert named.split(records, [7, 8])[1] == [3, 4]
    with pytest.raises(UnreadableSampleError, match=r"sample 40 with an input and a label, but got None\.\nRepair"):
        SampleSpec().split([*pairs, None], [38, 39, 40])
    message = (
        r"sample 8 to have the structure of sample 7,\n    image: .*\n    label: int 3\nbut got\n    0: .*\n    1: int"
    )
    with pytest.raises(UnreadableSampleError, match=message):
        named.split([records[0], pairs[0]], [7, 8])
    with pytest.raises(UnreadableSampleError, match=r"sample 7 to have the structure of sample 8,"):
        named.split([pairs[0], records[0]], [7, 8])
    with pytest.raises(ValueError, match=r"Expected sample 7 with a part at `image`, but there is no 'image' among: 0"):
        named.split(pairs, [7, 8])


def test_refuses_missing_sample():
    with pytest.raises(ValueError, match=r"one input and one integer label, but got None\.\nRepair the sample"):
        SampleSpec.detect(None)


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


DOTTED = {"image.png": 5, "meta": {"label.v1": 3, "label": {"v1": 4}}, "a": {"b": 1}}


@pytest.mark.parametrize(("path", "value"), [("image.png", 5), ("meta.label.v1", 3), ("a.b", 1), ("a", {"b": 1})])
def test_keys_may_contain_dots(path, value):
    assert SampleSpec(path).inputs_in(DOTTED) == value


def test_replaces_a_key_with_dots():
    spec = SampleSpec("image.png", "meta.label.v1")
    changed = spec.replace(DOTTED, labels=9)
    assert changed["meta"] == {"label.v1": 9, "label": {"v1": 4}}
    assert DOTTED["meta"]["label.v1"] == 3
    assert spec.replace(DOTTED, inputs=6)["image.png"] == 6


def test_detects_keys_with_dots():
    sample = {"image.png": torch.zeros(1, 4, 4), "label.v1": 3}
    spec = SampleSpec.detect(sample)
    assert (spec.labels_in(sample), spec.inputs_in(sample).shape) == (3, (1, 4, 4))
