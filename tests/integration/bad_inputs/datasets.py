"""Data sets and loaders of other kinds, with broken members and broken worker processes."""

import os
import signal
from collections import deque

import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
)

from lightning_poison.errors import UnreadableSampleError, UnsupportedDataError

from .cases import (
    CLASSES,
    COUNT,
    Stream,
    batched,
    broken,
    data_error,
    dataset,
    dies,
    drawn,
    drop_none,
    fails_at_40,
    loader,
    read_error,
)

WORKS = {
    "a sampler with replacement": lambda d: d.judge(
        DataLoader(d.data, sampler=RandomSampler(d.data, replacement=True))
    ),
    "a list of batches": lambda d: d.judge(DataLoader(d.data, batch_sampler=torch.arange(COUNT).split(50))),
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
}

STREAM = "Samples are removed by their index"

REFUSED = {
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
    "a list of few batches": (
        lambda d: d.judge(DataLoader(d.data, batch_sampler=[[0, 1], [2, 3]])),
        (ValueError, "at least two classes, but got none.\n596 samples that the sampler never draws"),
    ),
    "a sampler that draws nothing": (
        lambda d: d.judge(DataLoader(d.data, sampler=SubsetRandomSampler([]))),
        (ValueError, "to draw at least one sample, but a SubsetRandomSampler draws none"),
    ),
    "a worker that exits": (
        dies(lambda: os._exit(3)),
        (UnreadableSampleError, "samples from 256 on(.|\n)*Use fewer workers"),
    ),
    "a worker that is killed": (
        dies(lambda: os.kill(os.getpid(), signal.SIGKILL)),
        (
            UnreadableSampleError,
            "worker processes to read samples from 256 on, but one was killed by SIGKILL(.|\n)*`num_workers=0`",
        ),
    ),
    "a worker that fails": (dies(broken, 1), read_error("ZeroDivisionError: division by zero", 300)),
}

WARNED = {
    "other labels listed than carried": (
        dataset(targets=property(lambda self: self.digits.truth)),
        "30 of 600 differ, the first at sample .*The carried labels are used. Correct `targets` or `labels`",
    ),
}
