"""Labels of other types, missing, wrong or changing."""

import enum
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch

from .cases import (
    CLASSES,
    COUNT,
    MASKS,
    NAMES,
    binary,
    broken,
    dataset,
    label_at_40,
    label_each,
    label_error,
    labeled,
    one_hot,
)

Kind = enum.IntEnum("Kind", {f"digit_{number}": number for number in range(CLASSES)})

WORKS = {
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
}


CONVERT = "Convert it to a class index with a `target_transform`"


def changing(data, index):
    image, label = data.digits[index]
    if index == 13:
        data.reads.append(index)
        return image, len(data.reads) % CLASSES
    return image, label


REFUSED = {
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
