"""Trusted samples that are training data, of another scale or too few."""

import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_poison.errors import UnsupportedDataError

from .cases import CLASSES, SHARED, Stream, trusted, trusted_as

SCALES = "trusted samples on the scale of the training data, 0 to 1 with mean 0.3.*, but got {}(.|\n)*same transform"

REFUSED = {
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

FEW_TRUSTED = "The false-positive rate is calibrated on .* held-out trusted samples in the smallest class"

SAME_AS_TRUSTED = {
    "a loader": trusted(lambda d: DataLoader(d.trusted, 8)),
    "arrays": trusted(lambda d: (d.trusted_images.numpy(), d.trusted_labels.numpy())),
    "dicts": trusted(lambda d: [{"image": image, "label": label} for image, label in d.trusted]),
    "whole floats": trusted_as(labels=lambda labels: labels.float()),
    "uint8": trusted_as(lambda images: (images * 255).to(torch.uint8)),
}
