"""What users pass by mistake, and the answer that each gets: it works, with or without a warning, or it is refused.

The tables list the cases: odd labels, inputs, samples, data sets, trusted data, settings, loaders and files. Where a
case works, its verdict is right: it removes most of the wrong labels of 600 digits and few correct ones.
"""

import dataclasses
import enum
import os
import signal
from collections import deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_poison.callbacks import Sanitizer
from lightning_poison.data import SampleSpec
from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import InconclusiveError, NothingKeptError, UnreadableSampleError, UnsupportedDataError
from lightning_poison.models import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import Verdict, sanitize
from lightning_poison.scorers import LikelihoodScorer

pytestmark = pytest.mark.slow

COUNT, CLASSES = 600, 6
Named = namedtuple("Named", "label image")
Kind = enum.IntEnum("Kind", {f"digit_{number}": number for number in range(CLASSES)})


@dataclasses.dataclass
class Pair:
    image: torch.Tensor
    label: int


class Holder:
    def __init__(self, image, label):
        self.picture, self.number = image, label


class Digits:
    """600 digits of 6 classes, 30 of them with a wrong label, and the other 483 as trusted data."""

    def __init__(self, digits, scorer, path):
        generator = torch.Generator().manual_seed(0)
        images, truth = (each[digits.tensors[1] < CLASSES] for each in digits.tensors)
        self.scorer, self.path = scorer, path
        self.images, self.truth = images[:COUNT].clone(), truth[:COUNT].clone()
        self.trusted_images, self.trusted_labels = images[COUNT:].clone(), truth[COUNT:].clone()
        self.wrong = torch.zeros(COUNT, dtype=torch.bool)
        self.wrong[torch.randperm(COUNT, generator=generator)[:30]] = True
        shifted = (self.truth + torch.randint(1, CLASSES, (COUNT,), generator=generator)) % CLASSES
        self.labels = torch.where(self.wrong, shifted, self.truth)
        self.data = TensorDataset(self.images, self.labels)
        self.trusted = TensorDataset(self.trusted_images, self.trusted_labels)
        self.pairs = [(image, int(label)) for image, label in zip(self.images, self.labels, strict=True)]
        self.file = path / "a file"
        self.file.write_text("x")

    def judge(self, data, **settings):
        return sanitize(data, self.scorer(), **settings)

    def fit(self, data=None, *, wrapped=False, trainer=None, **settings):
        """Train with the callback, or with the wrapper, and return the verdict."""
        loader = DataLoader(self.data, 64, shuffle=True) if data is None else data
        if wrapped:
            loader = sanitizer = SanitizedDataModule(loader, self.scorer(), **settings)
        else:
            sanitizer = Sanitizer(self.scorer(), **settings)
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        given = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": self.path, **(trainer or {})}
        callbacks = [] if wrapped else [sanitizer]
        pl.Trainer(**dict.fromkeys(off, False), **given, callbacks=callbacks).fit(Module(), loader)
        return sanitizer.verdict

    def __getitem__(self, index):
        return self.pairs[index]


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0].reshape(-1, 64)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.fixture(autouse=True)
def reproducible(single_thread):
    """Make all runs reproducible."""


@pytest.fixture
def d(digits, centroid_scorer, tmp_path):
    return Digits(digits, centroid_scorer, tmp_path)


def broken(*_):
    raise ZeroDivisionError("division by zero")


def labeled(labels):
    """Judge the digits with their labels in another form."""
    return lambda d: d.judge(TensorDataset(d.images, labels(d.labels)))


def label_each(form):
    """Judge the digits with each label, an int, in another form."""
    return lambda d: d.judge([(image, form(label)) for image, label in d.pairs])


def label_at_40(label):
    return one_sample(lambda d: (d.images[40], label))


def inputs(form):
    """Judge the digits with their images in another form, all at once."""
    return lambda d: d.judge(TensorDataset(form(d.images), d.labels))


def input_each(form):
    return lambda d: d.judge([(form(image), label) for image, label in d.pairs])


def pixel(index, value):
    def run(d):
        d.images[index, 0, 3, 3] = value
        return d.judge(TensorDataset(d.images, d.labels))

    return run


def one_sample(sample, index=40):
    """Judge the digits with one sample in place of another."""
    return lambda d: d.judge([sample(d) if place == index else each for place, each in enumerate(d.pairs)])


def samples(form, **settings):
    """Judge samples `form(image, label, index)`."""
    return lambda d: d.judge([form(*pair, index) for index, pair in enumerate(d.pairs)], **settings)


def spec(make):
    return lambda d: d.judge(d.data, sample=make())


def dataset(**members):
    """Judge a data set of the digits with other members, functions of `(self, ...)`; `self.digits` has the digits."""
    return lambda d: d.judge(mine(d, **members))


def mine(d, **members):
    own = {"digits": d, "__len__": lambda self: COUNT, "__getitem__": lambda self, index: self.digits.pairs[index]}
    return type("Mine", (Dataset,), {**own, **members})()


def fails_at_40(error):
    def read(self, index):
        if index == 40:
            raise error
        return self.digits.pairs[index]

    return dataset(__getitem__=read)


def batched(form):
    """Judge a data set whose `__getitems__` returns `form(samples, indices)`."""
    return dataset(__getitems__=lambda self, indices: form([self.digits.pairs[each] for each in indices], indices))


def trusted(form):
    return lambda d: d.judge(d.data, trusted=form(d))


def trusted_as(images=lambda images: images, labels=lambda labels: labels):
    return trusted(lambda d: TensorDataset(images(d.trusted_images), labels(d.trusted_labels)))


def setting(**settings):
    return lambda d: d.judge(d.data, **settings)


def loader(**settings):
    return lambda d: d.judge(DataLoader(d.data, **settings))


def dies(how, workers=2):
    """Judge a loader of which a worker process dies at sample 300."""

    def run(d):
        main = os.getpid()

        def read(self, index):
            if index == 300 and os.getpid() != main:
                how()
            return self.digits.pairs[index]

        return d.judge(DataLoader(mine(d, __getitem__=read), num_workers=workers))

    return run


def binary(form):
    """Judge the digits 0 and 1, every 20th with the other label, in another form."""

    def run(d):
        chosen = d.truth < 2
        images, truth = d.images[chosen], d.truth[chosen]
        wrong = torch.arange(len(truth)) % 12 == 5
        found = form(torch.where(wrong, 1 - truth, truth))
        return d.judge(list(zip(images, found, strict=True))), wrong

    return run


def drawn(sampler, name="sampler"):
    """Judge the first 500 digits only, since the sampler draws no others."""

    def run(d):
        verdict = d.judge(DataLoader(d.data, **{name: sampler(d)}))
        assert verdict.judged.nonzero().flatten().tolist() == list(range(500))
        return verdict

    return run


def drop_none(found):
    return default_collate([each for each in found if each is not None])


def one_hot(labels):
    return nn.functional.one_hot(labels, CLASSES)


WORKS = {
    # labels
    "whole floats": labeled(lambda labels: labels.float()),
    "bfloat16 labels": labeled(lambda labels: labels.bfloat16()),
    "uint16 labels": labeled(lambda labels: labels.to(torch.uint16)),
    "uint64 labels": labeled(lambda labels: labels.to(torch.uint64)),
    "labels of shape (1,)": labeled(lambda labels: labels[:, None]),
    "float labels of shape (1,)": labeled(lambda labels: labels[:, None].float()),
    "labels that require grad": labeled(lambda labels: labels.float().requires_grad_()),
    "one-hot labels": labeled(one_hot),
    "one-hot float labels": labeled(lambda labels: one_hot(labels).float()),
    "one-hot boolean labels": labeled(lambda labels: one_hot(labels).bool()),
    "one-hot lists": label_each(lambda label: one_hot(torch.tensor(label)).tolist()),
    "one-hot arrays": label_each(lambda label: np.eye(CLASSES)[label]),
    "one-hot sparse labels": labeled(lambda labels: one_hot(labels).to_sparse()),
    "lists of one label": label_each(lambda label: [label]),
    "NumPy integers": label_each(np.int64),
    "NumPy floats": label_each(np.float32),
    "0-dim arrays": label_each(np.array),
    "object arrays of one label": label_each(lambda label: np.array([label], dtype=object)),
    "long doubles": label_each(np.longdouble),
    "fractions": label_each(Fraction),
    "integer enums": label_each(Kind),
    "boolean tensors": binary(lambda labels: labels.bool()),
    "Python booleans": binary(lambda labels: [bool(label) for label in labels]),
    "NumPy booleans": binary(lambda labels: list(labels.bool().numpy())),
    "labels from 1": labeled(lambda labels: labels + 1),
    "labels with gaps": labeled(lambda labels: labels * 1000),
    "label -1 for a sample": label_at_40(-1),
    "a class of one sample": label_at_40(255),
    "a class of one sample with a huge number": label_at_40(2**40),
    # inputs
    "uint8 images": inputs(lambda images: (images * 255).to(torch.uint8)),
    "integer codes": inputs(lambda images: (images * 16).long()),
    "float images up to 255": inputs(lambda images: images * 255),
    "float64 images": inputs(lambda images: images.double()),
    "float16 images": inputs(lambda images: images.half()),
    "bfloat16 images": inputs(lambda images: images.bfloat16()),
    "images without channels": inputs(lambda images: images[:, 0]),
    "images with the channels last": inputs(lambda images: images.permute(0, 2, 3, 1)),
    "volumes": inputs(lambda images: images[:, :, None]),
    "token ids": inputs(lambda images: (images * 16).long().flatten(1)),
    "sparse images": input_each(lambda image: image.to_sparse()),
    "images that require grad": input_each(lambda image: image.clone().requires_grad_()),
    "parameters as images": input_each(nn.Parameter),
    "object arrays of numbers": input_each(lambda image: image.numpy().astype(object)),
    "float16 arrays": input_each(lambda image: image.half().numpy()),
    "arrays of the other byte order": input_each(lambda image: image.numpy().astype(">f4")),
    "arrays with negative strides": input_each(lambda image: image.numpy()[:, ::-1]),
    "masked arrays without a mask": input_each(lambda image: np.ma.masked_array(image.numpy())),
    "gray-scale uint8 arrays": input_each(lambda image: (image[0] * 255).numpy().astype(np.uint8)),
    "lists of numbers": input_each(lambda image: image.flatten().tolist()),
    "one class in float64": samples(lambda image, label, _: (image.double() if label == 3 else image, label)),
    "complex images as real ones": inputs(lambda images: torch.view_as_real(images.to(torch.complex64))),
    "magnitudes of complex images": inputs(lambda images: images.to(torch.complex64).abs()),
    # samples
    "dicts": samples(lambda image, label, _: {"image": image, "label": label}),
    "dicts of unusual keys": samples(lambda image, label, _: {"foo": image, "bar": label}),
    "dicts with numbers as keys": samples(lambda image, label, _: {0: image, 1: label}),
    "nested dicts": samples(lambda image, label, _: {"in": {"image": image}, "meta": {"label": label, "id": "a"}}),
    "named tuples in another order": samples(lambda image, label, _: Named(label, image)),
    "dataclasses": samples(lambda image, label, _: Pair(image, label)),
    "label first": samples(lambda image, label, _: (label, image)),
    "triples with the index": samples(lambda image, label, index: (image, index, label)),
    "triples with a path": samples(lambda image, label, index: (image, label, f"{index}.png")),
    "triples with a weight": samples(lambda image, label, _: (image, label, 0.5)),
    "two views with paths": samples(lambda image, label, _: (image, image, label), sample=SampleSpec(1, 2)),
    "objects with paths": samples(lambda *pair: Holder(*pair[:2]), sample=SampleSpec("picture", "number")),
    "an extra part in one sample": one_sample(lambda d: (*d.pairs[40], "a note")),
    "paths as numbers": spec(lambda: SampleSpec(0, 1)),
    "a path from the end": spec(lambda: SampleSpec(0, -1)),
    "a function for the label": spec(lambda: SampleSpec(labels=lambda sample: sample[1])),
    # data sets
    "a pair of tensors": lambda d: d.judge((d.images, d.labels)),
    "a list of two arrays": lambda d: d.judge([d.images.numpy(), d.labels.numpy()]),
    "a dict of columns": lambda d: d.judge({"x": d.images, "label": d.labels}),
    "a dict by index": lambda d: d.judge(dict(enumerate(d.pairs))),
    "a tuple of pairs": lambda d: d.judge(tuple(d.pairs)),
    "a deque": lambda d: d.judge(deque(d.pairs)),
    "a StackDataset": lambda d: d.judge(StackDataset(image=d.images, label=d.labels)),
    "a Subset by negative indices": lambda d: d.judge(Subset(d.data, list(range(-COUNT, 0)))),
    "a ConcatDataset": lambda d: d.judge(
        ConcatDataset([Subset(d.data, range(300)), Subset(d.data, range(300, COUNT))])
    ),
    "a length as a tensor": dataset(__len__=lambda self: torch.tensor(COUNT)),
    "targets raise": dataset(targets=property(broken)),
    "classes raise": dataset(classes=property(broken)),
    "tensors raise": dataset(tensors=property(broken)),
    "targets of another length": dataset(targets=[1, 2, 3]),
    "targets are texts": dataset(targets=["a"] * COUNT),
    "targets are a method": dataset(targets=lambda self: self.digits.labels),
    "targets are ragged": dataset(targets=[[1] * (index % 3) for index in range(COUNT)]),
    "targets contain NaN": dataset(targets=[float("nan")] * COUNT),
    "targets are whole floats": dataset(targets=property(lambda self: self.digits.labels.float())),
    "classes are a number": dataset(classes=CLASSES),
    "more classes than labels": dataset(classes=list(range(20))),
    "`__getitems__` raises": batched(broken),
    "`__getitems__` is None": dataset(__getitems__=None),
    "`__getitems__` is a generator": batched(lambda found, _: (each for each in found)),
    "random noise on images": dataset(
        __getitem__=lambda self, index: (self.digits[index][0] + torch.randn(1, 8, 8) / 100, self.digits[index][1])
    ),
    # settings
    "false_positive_rate of NumPy": setting(false_positive_rate=np.float32(0.01)),
    "false_positive_rate as a fraction": setting(false_positive_rate=Fraction(1, 100)),
    "folds of NumPy": setting(folds=np.int64(3)),
    "seed of NumPy": setting(seed=np.uint64(0)),
    "largest seed": setting(seed=2**63 - 1),
    "natural_error_rate of NumPy": setting(natural_error_rate=np.float64(0.003)),
    "max_removed of NumPy": setting(max_removed=np.int64(1)),
    "remove_without_evidence of NumPy": setting(remove_without_evidence=np.bool_(True)),
    "threads of NumPy": lambda d: d.judge(d.data, runtime=LocalRuntime(threads=np.int64(1))),
    # loaders
    "a loader": loader(batch_size=8),
    "a loader that shuffles": loader(batch_size=8, shuffle=True),
    "a loader without batches": loader(batch_size=None),
    "a loader with a worker": loader(batch_size=8, num_workers=1),
    "a loader of a part": drawn(lambda d: SubsetRandomSampler(range(500))),
    "a batch sampler of a part": drawn(
        lambda d: BatchSampler(SubsetRandomSampler(range(500)), 8, drop_last=False), name="batch_sampler"
    ),
    "a collate_fn that leaves out None": lambda d: d.judge(
        DataLoader([None if index == 40 else d[index] for index in range(COUNT)], 8, collate_fn=drop_none)
    ),
    # training
    "training": lambda d: d.fit(),
    "training with the wrapper": lambda d: d.fit(wrapped=True),
    "training without batches": lambda d: d.fit(DataLoader(d.data, batch_size=None)),
    "training on float labels": lambda d: d.fit(DataLoader(TensorDataset(d.images, d.labels.float()), 64)),
    "training on one-hot labels, wrapped": lambda d: d.fit(
        DataLoader(TensorDataset(d.images, one_hot(d.labels)), 64), wrapped=True
    ),
    "training on weighted samples": lambda d: d.fit(
        DataLoader(d.data, 64, sampler=WeightedRandomSampler((torch.arange(COUNT) < 500).float(), 300))
    ),
    "training with a batch sampler": lambda d: d.fit(
        DataLoader(d.data, batch_sampler=BatchSampler(RandomSampler(d.data), 64, drop_last=False))
    ),
    "training without None samples": lambda d: d.fit(
        DataLoader([None if index == 40 else d[index] for index in range(COUNT)], 64, collate_fn=drop_none)
    ),
    "training, targets raise": lambda d: d.fit(DataLoader(mine(d, targets=property(broken)), 64)),
    "training, classes raise, wrapped": lambda d: d.fit(
        DataLoader(mine(d, classes=property(broken)), 64), wrapped=True
    ),
    "training with NumPy settings": lambda d: d.fit(false_positive_rate=np.float32(0.01), seed=np.int64(0)),
    "training with a name of letters": lambda d: d.fit(name="größe"),
    "training with a fast run": lambda d: d.fit(trainer={"fast_dev_run": True}),
    "training, only flagged": lambda d: d.fit(action="flag"),
}


def label_error(came, way, index=0):
    return ValueError, rf"class index as the label of sample {index}, but got {came}(.|\n)*{way}"


def input_error(came, way, index=0):
    return UnreadableSampleError, rf"a tensor as the input of sample {index}, but got {came}(.|\n)*{way}"


def argument_error(name, what, came, kind=ValueError, way=""):
    return kind, rf"Expected `{name}` to be {what}, but got {came}(.|\n)*{way}"


NAMES = "Map names to numbers from 0"
MASKS = "not masks. Reduce a mask to a class"
SCALE = "Scale them in the transform: subtract the mean"
RATE = "For 1 % write `false_positive_rate=0.01`"
STREAM = "Samples are removed by their index"
CONVERT = "Convert it to a class index with a `target_transform`"

REFUSED_LABELS = {
    "NaN": (label_at_40(float("nan")), label_error("NaN", "Correct the label", 40)),
    "NaN in a tensor": (
        labeled(lambda labels: torch.where(torch.arange(COUNT) == 40, torch.nan, labels.float())),
        label_error("NaN", "leave it out", 40),
    ),
    "infinity": (label_at_40(float("inf")), label_error("inf, which is too large", "Number the classes from 0", 40)),
    "too large": (label_at_40(2**70), label_error(r"1.181e\+21, which is too large", "Number the classes", 40)),
    "negative": (
        label_at_40(-2),
        (ValueError, "label of sample 40, or -1 for no label, but got -2.\nNumber the classes"),
    ),
    "ignored index": (label_at_40(-100), (ValueError, "label of sample 40, or -1 for no label, but got -100")),
    "a half": (label_at_40(0.5), label_error("the number 0.5, as in regression", "divide the values into classes", 40)),
    "regression": (
        labeled(lambda labels: labels / 7),
        label_error("the number .*, as in regression", "divide the values into classes"),
    ),
    "texts": (label_each(lambda label: "abcdefghij"[label]), label_error("the text '[a-f]'", NAMES)),
    "texts of digits": (label_each(str), label_error("the text '[0-5]'", NAMES)),
    "NumPy texts": (label_each(lambda label: np.str_(label)), label_error("the text '[0-5]'", NAMES)),
    "bytes": (label_each(lambda label: b"abcdefghij"[label : label + 1]), label_error("the text b'[a-f]'", NAMES)),
    "one text": (label_at_40("cat"), label_error("the text 'cat'", NAMES, 40)),
    "terminal codes": (label_at_40("\x1b[2Jcat"), label_error(r"the text '\\x1b\[2Jcat'", NAMES, 40)),
    "None": (label_at_40(None), label_error("None", "Give samples without a label the label -1", 40)),
    "all None": (label_each(lambda _: None), label_error("None", "Give samples without a label the label -1")),
    "soft": (
        labeled(lambda labels: one_hot(labels) * 0.9 + 0.1 / CLASSES),
        label_error(".*a soft label", "the most probable class"),
    ),
    "masks": (
        labeled(lambda labels: labels[:, None, None].expand(-1, 8, 8)),
        label_error(".*as in segmentation", MASKS),
    ),
    "mask arrays": (label_each(lambda _: np.zeros((8, 8), np.uint8)), label_error("uint8 values of shape", MASKS)),
    "several classes": (
        labeled(lambda labels: torch.stack([labels >= 0, labels > 3, labels < 20], 1).long()),
        label_error(r"the vector \[1, ., 1\], as in multi-label", "Judge one label at a time"),
    ),
    "two numbers": (label_at_40((1, 2)), label_error(r"the vector \[1, 2\], as for several labels", CONVERT, 40)),
    "boxes": (
        label_each(lambda label: {"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 2])}),
        label_error("the vector", "`sample=SampleSpec\\(labels='path'\\)`"),
    ),
    "an empty list": (label_at_40([]), label_error(r"the vector \[\]", CONVERT, 40)),
    "complex": (label_each(complex), label_error("complex", CONVERT)),
    "decimals": (label_each(Decimal), label_error("Decimal", CONVERT)),
    "sets": (label_each(lambda label: {label}), label_error("set", CONVERT)),
    "one class": (
        labeled(torch.zeros_like),
        (ValueError, "at least two classes, but got class 0 alone.\nA label can only"),
    ),
    "none at all": (
        labeled(lambda labels: -torch.ones_like(labels)),
        (ValueError, "but got none.\n600 samples without a"),
    ),
    "more than classes": (
        dataset(classes=["a", "b"]),
        (ValueError, "below 2, .*the data set lists .a, b.(.|\n)*list its class"),
    ),
    "classes without a text": (
        dataset(classes=[type("Odd", (), {"__str__": broken})()]),
        (ValueError, "whose text cannot be read(.|\n)*list its class in `classes`"),
    ),
    "random": (
        dataset(
            own=np.random.default_rng(0),
            __getitem__=lambda self, index: (self.digits[index][0], int(self.own.integers(CLASSES))),
        ),
        (
            ValueError,
            "same label whenever it is read, but sample [0-9]+ had . and then .(.|\n)*depend on its index alone",
        ),
    ),
    "one that changes": (
        dataset(reads=[], __getitem__=lambda self, index: changing(self, index)),
        (ValueError, "same label whenever it is read, but sample 13 had . and then .(.|\n)*depend on its index alone"),
    ),
}


def changing(data, index):
    image, label = data.digits[index]
    if index == 13:
        data.reads.append(index)
        return image, len(data.reads) % CLASSES
    return image, label


REFUSED_INPUTS = {
    "no channels": (inputs(lambda images: images[:, :0]), input_error(r"an empty one, .*\(0, 8, 8\)", "Repair")),
    "complex": (inputs(lambda images: images.to(torch.complex64)), input_error("a complex64", "`torch.view_as_real")),
    "int64 up to 255": (
        inputs(lambda images: (images * 255).long()),
        input_error(".*0 to 239", r"`image.float\(\) / 255`"),
    ),
    "12-bit": (inputs(lambda images: (images * 4095).int()), input_error(".*0 to 3839", r"`image.float\(\) / 4095`")),
    "uint16": (
        inputs(lambda images: (images * 65535).int().to(torch.uint16)),
        input_error(".*uint16 tensor .*with values from 0 to", r"Scale it in the transform: `image.float\(\) / 65535`"),
    ),
    "signed": (inputs(lambda images: (images * 255 - 128).short()), input_error(".*from -128", "- mean. / std`")),
    "up to 1e30": (
        inputs(lambda images: images * 1e30),
        (ValueError, rf"values from 0 to 1e\+30 \(mean(.|\n)*{SCALE}"),
    ),
    "up to 1e-30": (
        inputs(lambda images: images * 1e-30),
        (ValueError, rf"values from 0 to 1e-30 \(mean(.|\n)*{SCALE}"),
    ),
    "offset of 1e4": (inputs(lambda images: images + 1e4), (ValueError, rf"from 10000 to 10001 \(mean(.|\n)*{SCALE}")),
    "vectors up to 1e20": (inputs(lambda images: images.flatten(1) * 1e20), (ValueError, rf"to 1e\+20(.|\n)*{SCALE}")),
    "one pixel of 1e38": (
        pixel(17, 1e38),
        (UnreadableSampleError, r"sample 17 contains .*1e\+38 and others up to 1.\nRepair"),
    ),
    "one pixel of 1e5": (
        pixel(17, 1e5),
        (UnreadableSampleError, r"sample 17 contains .*1e\+05 and others up to 1.\nRepair"),
    ),
    "one pixel of NaN": (
        pixel(40, torch.nan),
        (UnreadableSampleError, "finite inputs, but sample 40 .*\nRepair or remove"),
    ),
    "one infinite pixel": (pixel(40, -torch.inf), (UnreadableSampleError, "sample 40 contains NaN or infinite values")),
    "meta tensors": (
        input_each(lambda image: image.to("meta")),
        input_error(".*the device meta", "Return ordinary tensors"),
    ),
    "object arrays": (
        input_each(lambda _: np.array([None, {}], dtype=object)),
        input_error(".*object array", r"`array.astype\(np.float32\)`"),
    ),
    "arrays of texts": (
        input_each(lambda _: np.array(["a", "b"])),
        input_error("an array of texts", "Convert texts to numbers"),
    ),
    "masked arrays": (
        input_each(lambda image: np.ma.masked_array(image.numpy(), image.numpy() > 0.9)),
        input_error("a masked array", r"`array.filled\(0\)`"),
    ),
    "PIL images": (
        input_each(lambda image: Image.fromarray((image[0] * 255).numpy().astype(np.uint8))),
        input_error("a PIL image", r"`ToImage\(\)` and `ToDtype"),
    ),
    "one text": (one_sample(lambda d: ("x.png", 3)), input_error("'x.png'", "Convert texts to numbers", 40)),
    "one of another size": (
        one_sample(lambda d: (d.images[40][:, :4], 3)),
        (UnreadableSampleError, r"sample 40 has \(1, 4, 8\) and sample 0 has \(1, 8, 8\).\nPass a view .*resizes"),
    ),
    "one of another size, later": (
        one_sample(lambda d: (d.images[0][:, :4], 3), index=300),
        (UnreadableSampleError, r"sample 300 has \(1, 4, 8\) and sample 256 has \(1, 8, 8\)"),
    ),
    "one with colors": (
        one_sample(lambda d: (d.images[40].expand(3, 8, 8), 3)),
        (UnreadableSampleError, r"sample 40 has \(3, 8, 8\)(.|\n)*Convert images to one number of channels"),
    ),
    "ragged sequences": (
        samples(lambda image, label, index: (image.flatten()[: 40 + index % 20], label)),
        (UnreadableSampleError, r"sample 1 has \(41,\) and sample 0 has \(40,\).\nPad sequences"),
    ),
    "one class in uint8": (
        samples(lambda image, label, _: ((image * 255).to(torch.uint8) if label == 3 else image, label)),
        (
            UnreadableSampleError,
            "type uint8 and sample 0 of type float32.\nuint8 is scaled(.|\n)*Convert all samples to one",
        ),
    ),
    "one class as floats up to 255": (
        samples(lambda image, label, _: (image * 255 if label == 3 else (image * 255).to(torch.uint8), label)),
        (
            UnreadableSampleError,
            "type float32 and sample 0 of type uint8.\nuint8 is scaled(.|\n)*Convert all samples to one",
        ),
    ),
    "the last in uint8": (
        one_sample(lambda d: ((d.images[599] * 255).to(torch.uint8), 3), index=599),
        (UnreadableSampleError, "sample 599 is of type uint8 and sample 0 of type float32"),
    ),
    "noise": (
        inputs(lambda images: torch.rand(images.shape, generator=torch.Generator().manual_seed(0))),
        (InconclusiveError, r"agree with the labels(.|\n)*stronger `backbone=`(.|\n)*The inputs have values from"),
    ),
}

STRUCTURE = (
    r"one integer label, but got\n(.|\n)*Name the two by their paths: `sample=SampleSpec\(inputs=..., labels=...\)`"
)
ALIKE = r"Expected sample {} to have the structure of sample {},\n(.|\n)*Return samples of one structure"

REFUSED_SAMPLES = {
    "a domain before the label": (
        samples(lambda image, label, index: (image, index % 3, label)),
        (ValueError, r"`1` and `2` could each be the label.\nName the two .*`SampleSpec\('0', '2'\)`"),
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
        (ValueError, "but got None.\nRepair the sample, or leave it out"),
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


def data_error(came, way, kind=UnsupportedDataError):
    return kind, rf"Expected `dataset` to be a map-style data set.*but got {came}(.|\n)*{way}"


def read_error(came, index=40):
    return (
        UnreadableSampleError,
        rf"Expected to read sample {index} of Mine, but it raised {came}(.|\n)*Repair or remove",
    )


REFUSED_DATA = {
    "a path": (lambda d: d.judge("data"), data_error("the path 'data'", "Read the files.*`ImageFolder")),
    "a list of paths": (lambda d: d.judge(["a.png", "b.png"]), data_error("a list of texts", "Read the files")),
    "a class": (lambda d: d.judge(Stream), data_error("the class Stream", r"Create the data set: `Stream\(...\)`")),
    "a stream": (lambda d: d.judge(Stream()), data_error("Stream", STREAM)),
    "a generator": (lambda d: d.judge(pair for pair in d.pairs), data_error("generator", STREAM)),
    "a loader's iterator": (lambda d: d.judge(iter(DataLoader(d.data))), data_error("_Single", STREAM)),
    "a loader of a stream": (lambda d: d.judge(DataLoader(Stream())), data_error("Stream", STREAM)),
    "no length": (lambda d: d.judge(type("Endless", (), {"__getitem__": broken})()), data_error("Endless", STREAM)),
    "inputs alone": (lambda d: d.judge(d.images), data_error(".*without labels", r"as a pair: `\(X, y\)`")),
    "arrays of two lengths": (lambda d: d.judge((d.images, d.labels[1:])), (ValueError, "600 inputs, 599 labels")),
    "columns without labels": (
        lambda d: d.judge({"x": d.images, "z": d.labels}),
        (UnsupportedDataError, "one column of labels.*but got columns x, z.\nRename the column of labels to `label`"),
    ),
    "two columns of labels": (
        lambda d: d.judge({"x": d.images, "label": d.labels, "y": d.labels}),
        (UnsupportedDataError, "columns x, label, y.\nRename the column"),
    ),
    "a dict of splits": (
        lambda d: d.judge({"train": d.data, "test": d.data}),
        data_error("a dict of 2 data", "one at a time"),
    ),
    "a list of loaders": (
        lambda d: d.judge([DataLoader(d.data)]),
        data_error("a list of 1 loaders", "Pass one at a time"),
    ),
    "empty": (lambda d: d.judge([]), (ValueError, "Expected `dataset` to have at least one sample, but it is empty")),
    "an empty Subset": (lambda d: d.judge(Subset(d.data, [])), (ValueError, "at least one sample, but it is empty")),
    "one sample": (
        lambda d: d.judge(d.pairs[:1]),
        (ValueError, "at least two classes, but got none.\nThe only sample"),
    ),
    "a Subset beyond the end": (
        lambda d: d.judge(Subset(d.data, list(range(500, 700)))),
        (UnreadableSampleError, "sample 100 of Subset, but it raised IndexError: index 600(.|\n)*Repair or remove"),
    ),
    "a length that is too large": (dataset(__len__=lambda self: COUNT + 5), read_error("IndexError", COUNT)),
    "no `__getitem__`": (dataset(__getitem__=Dataset.__getitem__), read_error("NotImplementedError", 0)),
    "endless recursion": (dataset(__getitem__=lambda self, index: self[index]), read_error("RecursionError", 0)),
    "a truncated file": (fails_at_40(OSError("truncated")), read_error("OSError: truncated")),
    "a missing key": (fails_at_40(KeyError("label")), read_error("KeyError: 'label'")),
    "an index beyond the end": (fails_at_40(IndexError("beyond")), read_error("IndexError: beyond")),
    "an iterator that ends": (fails_at_40(StopIteration("ended")), read_error("StopIteration: ended")),
    "no memory": (fails_at_40(MemoryError("16 GiB")), read_error("MemoryError: 16 GiB")),
    "an error without a text": (
        fails_at_40(type("Odd", (Exception,), {"__str__": broken})()),
        read_error("Odd: <Odd whose text cannot be read>"),
    ),
    "`__getitems__` leaves one out": (
        batched(lambda found, _: found[1:]),
        (ValueError, "8 samples, but got 7.\nCorrect it"),
    ),
    "`__getitems__` repeats": (batched(lambda found, _: found * 2), (ValueError, "8 samples, but got 16.\nCorrect it")),
    "`__getitems__` gives columns": (
        batched(lambda found, _: {"image": [each[0] for each in found], "label": [each[1] for each in found]}),
        (ValueError, "`__getitems__` of Mine to return 8 samples, but got 2.\nCorrect it, or remove it"),
    ),
    "`__getitems__` turns the order": (
        batched(lambda found, _: found[::-1]),
        (
            ValueError,
            "in the order of its indices, with label . at sample [0-9]+, but got .(.|\n)*Correct it, or remove",
        ),
    ),
    "`__getitems__` sorts": (
        dataset(__getitems__=lambda self, indices: [self.digits[each] for each in sorted(indices)]),
        (ValueError, "in the order of its indices, with label . at sample(.|\n)*Correct it, or remove"),
    ),
    "a sampler with replacement": (
        lambda d: d.judge(DataLoader(d.data, sampler=RandomSampler(d.data, replacement=True))),
        (UnsupportedDataError, r"one with a RandomSampler.\nThis sampler .*`Subset\(dataset, indices\)`"),
    ),
    "a list of batches": (
        lambda d: d.judge(DataLoader(d.data, batch_sampler=[[0, 1], [2, 3]])),
        (UnsupportedDataError, r"one with a list.\nThis sampler .*`Subset\(dataset, indices\)`"),
    ),
    "a sampler that draws nothing": (
        lambda d: d.judge(DataLoader(d.data, sampler=SubsetRandomSampler([]))),
        (ValueError, "at least one sample, but it is empty"),
    ),
    "a worker that exits": (
        dies(lambda: os._exit(3)),
        (UnreadableSampleError, "samples from 256 on(.|\n)*Use fewer workers"),
    ),
    "a worker that is killed": (
        dies(lambda: os.kill(os.getpid(), signal.SIGKILL)),
        (UnreadableSampleError, "worker processes to read samples from 256 on, but one ended(.|\n)*`num_workers=0`"),
    ),
    "a worker that fails": (dies(broken, 1), read_error("ZeroDivisionError: division by zero", 300)),
}

SCALES = "trusted samples on the scale of the training data, 0 to 1 with mean 0.3.*, but got {}(.|\n)*same transform"
SHARED = (
    "samples that are not judged, but {} of .* are in the training data too.\n.*Remove them from the training data or"
)

REFUSED_TRUSTED = {
    "the data": (trusted(lambda d: d.data), (ValueError, SHARED.format("600"))),
    "a copy of the data": (
        trusted(lambda d: TensorDataset(d.images.clone(), d.labels.clone())),
        (ValueError, SHARED.format("600")),
    ),
    "a part of the data": (
        trusted(lambda d: ConcatDataset([d.trusted, Subset(d.data, range(100))])),
        (ValueError, SHARED.format("100")),
    ),
    "up to 255": (trusted_as(lambda images: images * 255), (ValueError, SCALES.format("0 to 255"))),
    "in [-1, 1]": (trusted_as(lambda images: images * 2 - 1), (ValueError, SCALES.format("-1 to 1"))),
    "inverted": (trusted_as(lambda images: 1 - images), (ValueError, SCALES.format("0 to 1 with mean 0.[67]"))),
    "vectors": (
        trusted_as(lambda images: images.flatten(1)),
        (ValueError, r"shape \(1, 8, 8\).*got \(64,\).\nGive both"),
    ),
    "another size": (
        trusted_as(lambda images: images[..., :4]),
        (ValueError, r"but got \(1, 8, 4\).\nGive both the same"),
    ),
    "no samples": (
        trusted(lambda d: []),
        (ValueError, "Expected `trusted` to have at least one sample, but it is empty"),
    ),
    "a class missing": (
        trusted(lambda d: Subset(d.trusted, (d.trusted_labels != 3).nonzero().flatten().tolist())),
        (ValueError, "every class, but there is none of class 3.\nAdd some, or omit `trusted`"),
    ),
    "one sample per class": (
        trusted(lambda d: [(d.trusted_images[d.trusted_labels == label][0], label) for label in range(CLASSES)]),
        (ValueError, "at least two samples of class 0, but got 1.\nFitting and calibration need one sample each"),
    ),
    "some without a label": (
        trusted_as(labels=lambda labels: labels.where(torch.arange(len(labels)) > 2, -1)),
        (ValueError, "`trusted` to be samples with labels, but got 3 without.\nRemove them"),
    ),
    "inputs alone": (
        trusted(lambda d: d.trusted_images),
        (UnsupportedDataError, "Expected `trusted` to be .*\n.*as a pair"),
    ),
    "a path": (
        trusted(lambda d: "clean"),
        (UnsupportedDataError, "Expected `trusted` to be .*the path 'clean'.\nRead the"),
    ),
    "a stream": (trusted(lambda d: Stream()), (UnsupportedDataError, "Expected `trusted` to be .*but got Stream")),
}

REFUSED_SETTINGS = {
    **{
        f"false_positive_rate {came!r}": (
            setting(false_positive_rate=came),
            argument_error("false_positive_rate", r"a number in \(0, 1\)", ".*", way=RATE),
        )
        for came in (1, 0, -1, 1.5, float("nan"), "0.01", None, True, [0.01], Decimal("0.01"))
    },
    **{
        f"folds {came!r}": (setting(folds=came), argument_error("folds", "an integer of at least 2", ".*"))
        for came in (1, 0, 3.5, "3", None, True)
    },
    "folds 10**30": (setting(folds=10**30), argument_error("folds", r"an integer below 2\*\*63", r"1e\+30")),
    "seed 2**70": (setting(seed=2**70), argument_error("seed", r"an integer below 2\*\*63", r"1.18e\+21")),
    "seed -1": (setting(seed=-1), argument_error("seed", "an integer of at least 0", "-1")),
    "seed None": (setting(seed=None), argument_error("seed", "an integer of at least 0", "None")),
    "natural_error_rate 1.1": (setting(natural_error_rate=1.1), argument_error("natural_error_rate", ".*0, 1]", "1.1")),
    "max_removed 0": (
        setting(max_removed=0),
        argument_error("max_removed", "a number in .*", "0", way="Use 1 for no limit"),
    ),
    "max_removed '50%'": (
        setting(max_removed="50%"),
        argument_error("max_removed", ".*", "'50%'", way="Use 1 for no limit"),
    ),
    "max_removed 0.01": (
        setting(max_removed=0.01),
        (NothingKeptError, "at most 1 % of the samples, but 5.* % are suspicious.\n.*raise `max_removed`"),
    ),
    "remove_without_evidence 'no'": (
        setting(remove_without_evidence="no"),
        argument_error("remove_without_evidence", "True or False", "'no'"),
    ),
    "remove_without_evidence 1": (
        setting(remove_without_evidence=1),
        argument_error("remove_without_evidence", "True or False", "1"),
    ),
    "known as a path": (
        setting(known="v.safetensors"),
        argument_error("known", "a `Verdict`", "the str", TypeError, way=r"`Verdict.load\(path\)`"),
    ),
    "known as a class": (
        setting(known=Verdict),
        argument_error("known", "a `Verdict`", "the class Verdict", TypeError),
    ),
    "runtime 'cuda'": (
        setting(runtime="cuda"),
        argument_error(
            "runtime", "an object .*", "the str 'cuda'", TypeError, way=r'Write `runtime=LocalRuntime\("cuda"\)`'
        ),
    ),
    "runtime as a class": (
        setting(runtime=LocalRuntime),
        argument_error("runtime", ".*", "the class Local", TypeError),
    ),
    "precision 16": (
        lambda d: LocalRuntime(precision=16),
        argument_error("precision", "one of 'auto', '32', 'bf16'", "16"),
    ),
    **{
        f"scorer, {case}": (
            lambda d, came=came: sanitize(d.data, came),
            (TypeError, r"Expected `scorer` to be a scorer such as .*\n`get_scorer\(name\)` builds"),
        )
        for case, came in (
            ("None", None),
            ("a name", "likelihood"),
            ("a class", LikelihoodScorer),
            ("a network", nn.Flatten()),
            ("a list", [LikelihoodScorer()]),
        )
    },
    "data and scorer the wrong way round": (
        lambda d: sanitize(d.scorer(), d.data),
        (TypeError, "Expected `scorer` to be a scorer .*but got TensorDataset"),
    ),
    "epochs 0": (lambda d: FitSettings(epochs=0), argument_error("epochs", "an integer of at least 1", "0")),
    "learning_rate 'x'": (
        lambda d: FitSettings(learning_rate="x"),
        argument_error("learning_rate", ".*above 0", "'x'"),
    ),
    "a backbone of another size": (
        lambda d: sanitize(d.data, LikelihoodScorer(backbone=nn.Flatten())),
        (ValueError, r"Expected `backbone` to return features .*, 64\).\nSet `feature_size=64`"),
    ),
}

REFUSED_IN_TRAINING = {
    **{
        f"{case} as name": (lambda d, came=came: d.fit(name=came), argument_error("name", what, ".*", kind))
        for case, came, what, kind in (
            ("a number", 5, "a `str`", TypeError),
            ("dots", "..", "letters, digits, - and _", ValueError),
            ("a path", "a/b", "letters, digits, - and _", ValueError),
            ("a long text", "a" * 300, "at most 100 bytes, since it names a folder", ValueError),
        )
    },
    **{
        f"{case} as dirpath": (lambda d, came=came: d.fit(dirpath=came), argument_error("dirpath", what, ".*", kind))
        for case, came, what, kind in (
            ("a number", 5, "a path, as `str` or `Path`", TypeError),
            ("bytes", b"x", "a path, as `str` or `Path`", TypeError),
            ("no text", "", "a path of the file system", ValueError),
            ("a zero byte", "a\0b", "a path of the file system", ValueError),
            ("a bucket", "s3://bucket/x", "a folder of a local file system", ValueError),
        )
    },
    **{
        f"{name} as dirpath": (
            lambda d, below=below: d.fit(dirpath=Path(str(d.file) + below)),
            (
                OSError,
                "`dirpath` to be a folder .*cannot be written: .*\nNothing has been scored yet. Correct the path",
            ),
        )
        for name, below in (("a file", ""), ("a folder below a file", "/x"), ("a long name", "a" * 300))
    },
    "manifest 5": (
        lambda d: d.fit(manifest=5),
        argument_error("manifest", "a path, as `str` or `Path`", "5", TypeError),
    ),
    "a missing manifest": (
        lambda d: d.fit(manifest=d.path / "no.csv"),
        (FileNotFoundError, "there is no file at .*no.csv"),
    ),
    "another file as manifest": (
        lambda d: d.fit(manifest=d.file),
        (ValueError, "in line 1 of the manifest .*\nSave the file"),
    ),
    "cache 'no'": (lambda d: d.fit(cache="no"), argument_error("cache", "True or False", "'no'")),
    "action 'delete'": (
        lambda d: d.fit(action="delete"),
        argument_error("action", "one of 'remove', 'flag'", "delete"),
    ),
    "sample as a tuple": (
        lambda d: d.fit(sample=(0, 1)),
        (TypeError, r"`sample` to be a `SampleSpec`, but got .*\n.*`sample=SampleSpec\("),
    ),
    "seed 2**70, wrapped": (
        lambda d: d.fit(wrapped=True, seed=2**70),
        argument_error("seed", r"an integer below 2\*\*63", r"1.18e\+21"),
    ),
    "loaders as a text": (
        lambda d: d.fit(loaders="labeled"),
        argument_error("loaders", "a list of at least one text", "'labeled'", way=r"`loaders=\['labeled'\]`"),
    ),
    "an unknown loader": (
        lambda d: d.fit({"labeled": DataLoader(d.data, 64)}, loaders=["x"]),
        (ValueError, r"`loaders` to be paths or keys of the training loaders, \['labeled'\], but got 'x'"),
    ),
    "the data as trusted": (lambda d: d.fit(trusted=d.data), (ValueError, SHARED.format("600"))),
    "a shorter score_dataset": (
        lambda d: d.fit(score_dataset=Subset(d.data, range(10))),
        (ValueError, "`score_dataset` to contain the 600 samples .*got 10 samples.*\nBuild it like the training set"),
    ),
    "texts as labels, wrapped": (
        lambda d: d.fit(DataLoader([(image, "a") for image, _ in d.pairs]), wrapped=True),
        label_error("the text 'a'", NAMES),
    ),
    "None as a sample": (
        lambda d: d.fit(DataLoader([*d.pairs[:40], None, *d.pairs[41:]])),
        (UnreadableSampleError, "sample 40 with an input and a label, but got None.\nRepair"),
    ),
    "a domain before the label": (
        lambda d: d.fit(DataLoader([(image, index % 3, y) for index, (image, y) in enumerate(d.pairs)], 64)),
        (ValueError, "`1` and `2` could each be the label"),
    ),
    "`__getitems__` in another order, wrapped": (
        lambda d: d.fit(
            DataLoader(mine(d, __getitems__=lambda self, indices: [self.digits[each] for each in indices[::-1]]), 64),
            wrapped=True,
        ),
        (ValueError, "`__getitems__` to be in the order of its indices"),
    ),
    "a data set instead of a loader": (
        lambda d: d.fit(d.data),
        (UnsupportedDataError, "the training loader to be a torch DataLoader, but got TensorDataset"),
    ),
    **{
        f"the wrapper around {name}": (
            lambda d, data=data: SanitizedDataModule(data, d.scorer()),
            (
                TypeError,
                "Expected `data` to be a DataModule, a DataLoader.*\n(A data set needs a loader|Build it first)",
            ),
        )
        for name, data in (("a path", "x"), ("samples", [1, 2]), ("nothing", []), ("a class", pl.LightningDataModule))
    },
}

REFUSED = {
    f"{table}: {name}": case
    for table, cases in {
        "label": REFUSED_LABELS,
        "input": REFUSED_INPUTS,
        "sample": REFUSED_SAMPLES,
        "data": REFUSED_DATA,
        "trusted": REFUSED_TRUSTED,
        "setting": REFUSED_SETTINGS,
        "training": REFUSED_IN_TRAINING,
    }.items()
    for name, case in cases.items()
}

FEW_TRUSTED = "The false-positive rate is calibrated on .* held-out trusted samples in the smallest class"

SAME_AS_TRUSTED = {
    "a loader": trusted(lambda d: DataLoader(d.trusted, 8)),
    "arrays": trusted(lambda d: (d.trusted_images.numpy(), d.trusted_labels.numpy())),
    "dicts": trusted(lambda d: [{"image": image, "label": label} for image, label in d.trusted]),
    "whole floats": trusted_as(labels=lambda labels: labels.float()),
    "uint8": trusted_as(lambda images: (images * 255).to(torch.uint8)),
}

WARNED = {
    "other labels listed than carried": (
        dataset(targets=property(lambda self: self.digits.truth)),
        "30 of 600 differ, the first at sample .*The carried labels are used. Correct `targets` or `labels`",
    ),
    "a cache below a file": (
        lambda d: d.judge(d.data, cache=d.file / "x"),
        "Unfinished work is not saved: writing to .*a file/x.*Scoring continues",
    ),
    "a run in a folder that is a file": (
        lambda d: d.fit(trainer={"default_root_dir": d.file}, cache=False),
        "Verdict and manifest of `sanitizer` will not be written to .*Training continues",
    ),
    "fewer samples than a batch": (
        lambda d: d.fit(DataLoader(d.data, 590, drop_last=True)),
        "the 5[67]. samples that are kept do not fill a batch of 590, and `drop_last` drops the rest: 0 steps",
    ),
}


def assert_right(found, wrong):
    """Assert that most wrong labels among those that were judged are removed, and few correct ones."""
    verdict, wrong = found if isinstance(found, tuple) else (found, wrong)
    judged = torch.ones_like(verdict.keep) if verdict.judged is None else verdict.judged
    removed, wrong = ~verdict.keep[judged], wrong[judged]
    assert verdict.evidence.present
    assert removed[wrong].float().mean() >= 0.8
    assert removed[~wrong].float().mean() <= 0.02


@pytest.mark.parametrize("name", WORKS)
def test_works(name, d):
    assert_right(WORKS[name](d), d.wrong)


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_a_way_out(name, d):
    run, (error, match) = REFUSED[name]
    with pytest.raises(error, match=match):
        run(d)


@pytest.mark.parametrize("name", WARNED)
@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning", "ignore:Total length of")
def test_works_with_a_warning(name, d):
    run, match = WARNED[name]
    with pytest.warns(UserWarning, match=match):
        found = run(d)
    assert_right(found, d.wrong)


@pytest.mark.parametrize("name", SAME_AS_TRUSTED)
@pytest.mark.filterwarnings(f"ignore:{FEW_TRUSTED}")
def test_takes_trusted_samples_in_many_forms(name, d):
    plain = d.judge(d.data, trusted=d.trusted)
    assert torch.equal(SAME_AS_TRUSTED[name](d).keep, plain.keep)
    assert plain.evidence.present
