"""What users pass by mistake: 600 digits in any form, and functions that judge them or train on them.

The other modules of this folder are tables of cases: what works, with or without a warning, and what is refused. Where
a case works, its verdict is right: it removes most of the wrong labels and few correct ones.
"""

import os

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from lightning_poison.callbacks import Sanitizer
from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import UnreadableSampleError, UnsupportedDataError
from lightning_poison.sanitization import sanitize

COUNT, CLASSES = 600, 6


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


def label_error(came, way, index=0):
    return ValueError, rf"class index as the label of sample {index}, but got {came}(.|\n)*{way}"


def input_error(came, way, index=0):
    return UnreadableSampleError, rf"a tensor as the input of sample {index}, but got {came}(.|\n)*{way}"


def argument_error(name, what, came, kind=ValueError, way=""):
    return kind, rf"Expected `{name}` to be {what}, but got {came}(.|\n)*{way}"


RATE = "For 1 % write `false_positive_rate=0.01`"
NAMES = "Map names to numbers from 0"
MASKS = "not masks. Reduce a mask to a class"
SHARED = (
    "samples that are not judged, but {} of .* are in the training data too.\n.*Remove them from the training data or"
)


def data_error(came, way, kind=UnsupportedDataError):
    return kind, rf"Expected `dataset` to be a map-style data set.*but got {came}(.|\n)*{way}"


def read_error(came, index=40):
    return (
        UnreadableSampleError,
        rf"Expected to read sample {index} of Mine, but it raised {came}(.|\n)*Repair or remove",
    )


def assert_right(found, wrong):
    """Assert that most wrong labels among those that were judged are removed, and few correct ones."""
    verdict, wrong = found if isinstance(found, tuple) else (found, wrong)
    judged = torch.ones_like(verdict.keep) if verdict.judged is None else verdict.judged
    removed, wrong = ~verdict.keep[judged], wrong[judged]
    assert verdict.evidence.present
    assert removed[wrong].float().mean() >= 0.8
    assert removed[~wrong].float().mean() <= 0.02


def assert_refused(run, d, error, match):
    """Assert that a case raises one error with a way out."""
    with pytest.raises(error, match=match):
        run(d)


def assert_warned(run, d, match):
    """Assert that a case warns and works."""
    with pytest.warns(UserWarning, match=match):
        found = run(d)
    assert_right(found, d.wrong)
