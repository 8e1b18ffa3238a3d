"""The data of an evaluation: how they are opened, divided by seed, and identified."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_digests import digest_samples
from lightning_poison.evaluation.grid import Parts
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.shell.class_paths import instance_of
from lightning_poison.shell.demo_data import load_all
from lightning_poison.shell.evaluate_settings import BUILT_IN_DATA, DataSettings
from lightning_poison.shell.image_files import ImageFiles
from lightning_poison.shell.sources import open_named_source

TRAIN, TEST, HOLDOUT = 0.5, 0.2, 0.2
"""Shares of training, test and held-out data; the rest is trusted. Of data with a test set of their own, 70 % train."""


class StoredImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, 8-bit, with a transform to [0, 1], so that attacks can edit them before it.

    Args:
        data: uint8 `(N, C, H, W)`.
        targets: int64 `(N,)`.

    Example:
        >>> images = StoredImages(torch.full((2, 1, 4, 4), 255).byte(), torch.tensor([0, 1]))
        >>> images[1][0].max(), images[1][1]
        (tensor(1.), 1)
    """

    def __init__(self, data: Tensor, targets: Tensor) -> None:
        self.data, self.targets, self.transform = data, targets, _scaled

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.data[index]), int(self.targets[index])


@dataclass(frozen=True)
class OpenedData:
    """All samples, and the test set if the data have one of their own.

    Args:
        samples: Map-style data set.
        test: Test set. Optional.
        shape: Shape of one input.
        classes: Number of classes.
    """

    samples: Any
    test: Any
    shape: tuple[int, ...]
    classes: int


@functools.lru_cache(maxsize=1)
def opened(settings: DataSettings) -> OpenedData:
    """Open the data, once in each process.

    Raises:
        ValueError: If they cannot be read.
        OSError: If MNIST is not in the folder.
    """
    test = None
    if settings.source in BUILT_IN_DATA:
        root = None if settings.root is None else Path(settings.root)
        images, labels = load_all(settings.source, root)
        samples: Any = StoredImages((255 * images).round().byte(), labels)
    elif is_class_path(settings.source):
        samples, test = _from_datamodule(settings)
    else:
        reading: dict[str, Any] = {"label": settings.label, "path": settings.path, "image_size": settings.image_size}
        found = open_named_source(settings.source, **reading, runtime=LocalRuntime(threads=1, quiet=True))
        samples = _editable(found.dataset)
    labels = labels_of(samples)
    shape = tuple(torch.as_tensor(spec_of(samples).inputs_in(samples[0])).shape)
    return OpenedData(samples, test, shape, int(labels.max()) + 1)


@functools.lru_cache(maxsize=4)
def parts_of(settings: DataSettings, seed: int) -> Parts:
    """Divide the data of a seed at random; no sample is in two parts.

    Args:
        settings: The data.
        seed: Seed of the division.

    Raises:
        ValueError: If there are too few samples.

    Example:
        >>> parts = parts_of(DataSettings("digits", max_samples=100), seed=0)
        >>> [len(part) for part in (parts.train, parts.test, parts.holdout, parts.trusted)]
        [50, 20, 20, 10]
    """
    data = opened(settings)
    order = torch.randperm(len(data.samples), generator=derived_generator(seed, "evaluation data"))
    order = order[: settings.max_samples]
    shares = [TRAIN, TEST, HOLDOUT] if data.test is None else [TRAIN + TEST, 0.0, HOLDOUT]
    counts = [round(share * len(order)) for share in shares]
    train, test, holdout, trusted = torch.split(order, [*counts, len(order) - sum(counts)])
    if min(len(train), len(holdout)) == 0:
        raise ValueError(expected("the data", "enough samples to divide", f"{len(order)} samples"))
    tested = _taken(data.samples, test) if data.test is None else _first(data.test, settings, seed)
    return Parts(_taken(data.samples, train), tested, _taken(data.samples, holdout), _taken(data.samples, trusted))


def pixels_of(settings: DataSettings) -> PixelRange:
    """Return the pixel range of the data."""
    if settings.mean is None and settings.std is None:
        return PixelRange()
    return PixelRange(mean=settings.mean or (0.0,), std=settings.std or (1.0,))


def digest_of_samples(settings: DataSettings) -> str:
    """Return a digest of all samples and labels, for data that are made by a program."""
    data = opened(settings)
    digest = xxhash.xxh3_128()
    for dataset in (data.samples, data.test) if data.test is not None else (data.samples,):
        blocks = index_blocks(torch.arange(len(dataset)), 512)
        for block in read_blocks(dataset, blocks, sample=spec_of(dataset), seed=0):
            digest.update(digest_samples(block.inputs).numpy().tobytes())
        digest.update(labels_of(dataset).numpy().tobytes())
    return str(digest.hexdigest())


def is_class_path(source: str) -> bool:
    """Whether a source is the path of a class, such as `package.module.Digits`.

    Example:
        >>> is_class_path("photos.zip"), is_class_path("my_data.Digits"), is_class_path("my_data:digits")
        (False, True, False)
    """
    parts = source.split(".")
    return (
        len(parts) > 1
        and all(part.isidentifier() for part in parts)
        and parts[-1][:1].isupper()
        and not Path(source).exists()
    )


def _from_datamodule(settings: DataSettings) -> tuple[Any, Any]:
    """Return the training and test data sets of a DataModule; the validation set if there is no test set."""
    module = instance_of(settings.source, json.loads(settings.init_args), "LightningDataModule")
    try:
        module.prepare_data()
        module.setup("fit")
        train = _dataset_of(module.train_dataloader())
        test = None
        for stage, loader in (("test", "test_dataloader"), ("validate", "val_dataloader")):
            module.setup(stage)
            if (test := _dataset_of(_called(module, loader))) is not None:
                break
    except Exception as error:  # (the user's code)
        raise ValueError(f"{printable(settings.source)} failed: {describe_error(error)}") from error
    if train is None:
        raise ValueError(expected(f"`train_dataloader` of {printable(settings.source)}", "a loader", "none"))
    return train, test


def _called(module: Any, name: str) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return getattr(module, name)()
    except (NotImplementedError, MisconfigurationException):  # the DataModule has no such loader
        return None


def _dataset_of(loader: Any) -> Any:
    if isinstance(loader, list | tuple):
        loader = loader[0] if loader else None
    return getattr(loader, "dataset", None)


def _editable(dataset: Any) -> Any:
    """Return images whose values are 8-bit as a data set that attacks can edit, and any other data set as it is."""
    if isinstance(dataset, ImageFiles):
        return StoredImages(dataset.pixels, torch.tensor(dataset.targets))
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2 and dataset.tensors[0].ndim == 4:
        images, labels = dataset.tensors
        levels = (255 * images).round()
        is_level = ((levels - 255 * images).abs() < _LEVEL_TOLERANCE) & (levels >= 0) & (levels <= 255)
        if bool(is_level.all()):
            return StoredImages(levels.byte(), labels)
    return dataset


_LEVEL_TOLERANCE = 1e-2
"""Distance from a gray level, in levels, up to which a floating-point image counts as one of 8 bits."""


def _taken(dataset: Any, indices: Tensor) -> Any:
    if isinstance(dataset, StoredImages):
        return StoredImages(dataset.data[indices], dataset.targets[indices])
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*(tensor[indices] for tensor in dataset.tensors))
    return Subset(dataset, indices.tolist())


def _first(test: Any, settings: DataSettings, seed: int) -> Any:
    """Return the test set, or a part of it if the number of samples is limited."""
    if settings.max_samples is None:
        return test
    order = torch.randperm(len(test), generator=derived_generator(seed, "evaluation test data"))
    return _taken(test, order[: max(1, round(TEST * settings.max_samples))])


def _scaled(image: Tensor) -> Tensor:
    return image.float() / 255
