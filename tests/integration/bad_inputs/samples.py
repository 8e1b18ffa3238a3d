"""Samples of other structures."""

import dataclasses
from collections import namedtuple

import torch
from torch.utils.data import ConcatDataset

from lightning_poison.data import SampleSpec
from lightning_poison.errors import UnreadableSampleError

from .cases import MASKS, NAMES, label_error, one_sample, samples, spec

Named = namedtuple("Named", "label image")


@dataclasses.dataclass
class Pair:
    image: torch.Tensor
    label: int


class Holder:
    def __init__(self, image, label):
        self.picture, self.number = image, label


WORKS = {
    "dicts": samples(lambda image, label, _: {"image": image, "label": label}),
    "dicts of unusual keys": samples(lambda image, label, _: {"foo": image, "bar": label}),
    "dicts with numbers as keys": samples(lambda image, label, _: {0: image, 1: label}),
    "nested dicts": samples(lambda image, label, _: {"in": {"image": image}, "meta": {"label": label, "id": "a"}}),
    "named tuples in another order": samples(lambda image, label, _: Named(label, image)),
    "dataclasses": samples(lambda image, label, _: Pair(image, label)),
    "label first": samples(lambda image, label, _: (label, image)),
    "triples with the index": samples(lambda image, label, index: (image, index, label)),
    "triples with a path": samples(lambda image, label, index: (image, label, f"{index}.png")),
    "triples with a path before the label": samples(lambda image, label, index: (image, f"{index}.png", label)),
    "float labels and the index": samples(lambda image, label, index: (image, float(label), index)),
    "triples with a weight": samples(lambda image, label, _: (image, label, 0.5)),
    "two views with paths": samples(lambda image, label, _: (image, image, label), sample=SampleSpec(1, 2)),
    "objects with paths": samples(lambda *pair: Holder(*pair[:2]), sample=SampleSpec("picture", "number")),
    "an extra part in one sample": one_sample(lambda d: (*d.pairs[40], "a note")),
    "paths as numbers": spec(lambda: SampleSpec(0, 1)),
    "a path from the end": spec(lambda: SampleSpec(0, -1)),
    "a function for the label": spec(lambda: SampleSpec(labels=lambda sample: sample[1])),
}

STRUCTURE = (
    r"one integer label, but got\n(.|\n)*Name the two by their paths: `sample=SampleSpec\(inputs=..., labels=...\)`"
)
ALIKE = r"Expected sample {} to have the structure of sample {},\n(.|\n)*Return samples of one structure"

REFUSED = {
    "a domain before the label": (
        samples(lambda image, label, index: (image, index % 3, label)),
        (
            ValueError,
            r"`1` and `2` could each be the label.\nName the two .*`SampleSpec\('0', '1'\)` or `.*'0', '2'\)`",
        ),
    ),
    "a float label before a domain": (
        samples(lambda image, label, index: (image, float(label > 2), index % 3)),
        (ValueError, r"`1` and `2` could each be the label.\nName the two .*`SampleSpec\('0', '1'\)`"),
    ),
    "a text label before a domain": (
        samples(lambda image, label, index: (image, "abcdef"[label], index % 3)),
        (ValueError, r"`1` and `2` could each be the label.\nName the two .*`SampleSpec\('0', '1'\)`"),
    ),
    "a text label before the index": (
        samples(lambda image, label, index: (image, "abcdef"[label], index)),
        label_error("the text '[a-f]'", NAMES),
    ),
    "a regression before the index": (
        samples(lambda image, label, index: (image, label / 7, index)),
        label_error("the number .*, as in regression", "divide the values into classes"),
    ),
    "two views": (samples(lambda image, label, _: (image, image, label)), (ValueError, STRUCTURE)),
    "dicts of two views": (
        samples(lambda image, label, _: {"a": image, "b": image, "label": label}),
        (ValueError, STRUCTURE),
    ),
    "images alone": (samples(lambda image, *_: image), (ValueError, STRUCTURE)),
    "labels alone": (samples(lambda _, label, __: label), (ValueError, STRUCTURE)),
    "empty tuples": (samples(lambda *_: ()), (ValueError, STRUCTURE)),
    "other objects": (samples(lambda *pair: Holder(*pair[:2])), (ValueError, STRUCTURE)),
    "one None": (
        one_sample(lambda d: None),
        (UnreadableSampleError, "sample 40 .*but got None.\nRepair .*leave it out"),
    ),
    "None first": (
        one_sample(lambda d: None, index=0),
        (UnreadableSampleError, "sample 0 .*but got None.\nRepair the sample, or leave it out"),
    ),
    "one dict": (
        one_sample(lambda d: {"image": d.images[40], "label": 3}),
        (UnreadableSampleError, ALIKE.format(40, 0)),
    ),
    "one without a label": (one_sample(lambda d: (d.images[40],)), (UnreadableSampleError, ALIKE.format(40, 0))),
    "a ConcatDataset of two forms": (
        lambda d: d.judge(ConcatDataset([d.pairs[:300], [{"image": image, "label": y} for image, y in d.pairs[300:]]])),
        (UnreadableSampleError, ALIKE.format(300, 256)),
    ),
    "a wrong path": (
        spec(lambda: SampleSpec("img", 1)),
        (ValueError, "no 'img' among: 0, 1.\nName the parts by their paths"),
    ),
    "a wrong position": (
        spec(lambda: SampleSpec(0, 5)),
        (ValueError, "sample 0 with a part at `5`(.|\n)*Name the parts"),
    ),
    "paths the wrong way round": (spec(lambda: SampleSpec(1, 0)), label_error("a float32 tensor", MASKS)),
    "a list as a path": (
        spec(lambda: SampleSpec(["a", "b"], 1)),
        (TypeError, "`inputs` to be a path(.|\n)*dots: 'a.b'"),
    ),
    "None as a path": (
        spec(lambda: SampleSpec(None, 1)),
        (TypeError, "`inputs` to be a path in the sample.*but got None"),
    ),
    "a function that fails": (
        spec(lambda: SampleSpec(labels=lambda sample: sample["x"])),
        (ValueError, "return the labels of sample 0, but it raised TypeError(.|\n)*Correct the function"),
    ),
}
