"""Small pictures of samples for the HTML report, or their first values if they are no images."""

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_poison.checks import describe, describe_error, printable
from lightning_poison.data.labels import read_sample, spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import locate
from lightning_poison.errors import is_signal
from lightning_poison.manifest.matching import raw_image
from lightning_poison.randomness import reseed, seeded_rng

_SIDES = (64, 48, 32, 24, 16, 8)
"""Largest sides of a picture in pixels, tried in this order until its file is small enough."""

_CHANNELS = (1, 3, 4)
"""Numbers of channels of an image: gray, color, and color with transparency, which is dropped."""

_MIN_SIDE = 4
"""Smallest side of a matrix that is shown as a gray image."""

_VALUES = 6
"""Number of values shown of a vector, and of parts shown of a sample."""

_MAX_TEXT = 200
"""Number of characters shown of a text."""


class Picture(NamedTuple):
    """A picture of a sample, or a text in its place.

    Args:
        source: The picture as a `data:` address, or empty.
        width: Width in pixels; 0 without a picture.
        height: Height in pixels; 0 without a picture.
        text: What is shown if there is no picture; printable.
    """

    source: str
    width: int
    height: int
    text: str


class Pictures:
    """Pictures of the samples of a data set, each made once.

    Images are shown before the transform of the data set if accessible. A sample that cannot be read has its error in
    place of a picture.

    Args:
        dataset: Map-style data set.
        sample: Location of the input in a sample. Default: detected.
        positions: Positions of the samples that may be read to detect it, int64 `(M,)`. Default: all.
        limit: Maximum number of characters of an address.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> picture = Pictures(TinyImages(3), None, limit=4_000)(1)
        >>> picture.source[:22], picture.width, picture.height
        ('data:image/png;base64,', 8, 8)
        >>> Pictures([(torch.tensor([0.5, -2.0]), 1)], None, limit=4_000)(0).text
        '0.5, -2'
    """

    def __init__(self, dataset: Any, sample: SampleSpec | None, *, positions: Tensor | None = None, limit: int) -> None:
        self._dataset, self._sample = dataset, sample
        self._positions, self._limit = positions, limit
        self._is_seeded = False
        self._without_raw: set[int] = set()
        self._made: dict[int, Picture] = {}
        self._detected = sample is not None

    def __call__(self, index: int) -> Picture:
        """Return the picture of the sample at `index`."""
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def _make(self, index: int) -> Picture:
        try:
            return picture_of(self.read(index), limit=self._limit)
        except (Exception, SystemExit) as error:  # a data set may raise anything
            if is_signal(error):
                raise
            return Picture("", 0, 0, f"cannot be shown: {describe_error(error, limit=_MAX_TEXT)}")

    def read(self, index: int) -> Any:
        """Return the input of the sample at `index`, before the transform of the data set if accessible."""
        owner, _ = locate(self._dataset, index)
        if id(owner) not in self._without_raw:
            raw = raw_image(self._dataset, index)
            if raw is not None:
                return raw
            self._without_raw.add(id(owner))
        if not self._detected:
            self._sample, self._detected = _spec_or_none(self._dataset, self._positions), True
        with nullcontext() if self._is_seeded else seeded_rng(0):
            reseed(0)
            sample = read_sample(self._dataset, index)
            return sample if self._sample is None else self._sample.inputs_in(sample)

    @contextmanager
    def reading_many(self) -> Iterator[None]:
        """Save and restore the global random states once for all samples that are read inside, which is faster."""
        with seeded_rng(0):
            self._is_seeded = True
            try:
                yield
            finally:
                self._is_seeded = False


def picture_of(value: Any, *, limit: int) -> Picture:
    """Return a picture of an input, at most 64 pixels wide and high, or its first values.

    8-bit images and values in [0, 1] are shown as they are; others are rescaled from their range to [0, 1].

    Args:
        value: Image, tensor, array, text, or a collection of such.
        limit: Maximum number of characters of the address. A larger picture is reduced further.

    Example:
        >>> picture_of(torch.rand(3, 640, 320), limit=40_000)[1:]
        (32, 64, '')
        >>> picture_of({"text": "good", "length": 4}, limit=0).text
        'text: good; length: 4'
    """
    pixels = pixels_of(value)
    if pixels is None:
        return Picture("", 0, 0, printable(_values(value), limit=_MAX_TEXT))
    image = Image.fromarray(pixels)
    for side in _SIDES:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=9)
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if len(source) <= limit:
            break
    return Picture(source, *image.size, "")


def pixels_of(value: Any) -> np.ndarray | None:
    """Return an image as it is shown, uint8 `(H, W)` or `(H, W, 3)`, or `None` if the value is no image.

    Example:
        >>> pixels_of(torch.ones(1, 8, 9)).shape, pixels_of(torch.ones(9)) is None
        ((8, 9), True)
    """
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("L" if value.mode == "L" else "RGB"))
    array = as_array(value)
    return None if array is None else _pixels(array)


def _spec_or_none(dataset: Any, positions: Tensor | None) -> SampleSpec | None:
    """Return where the input is in a sample, or `None` if that cannot be detected, as for texts."""
    try:
        return spec_of(dataset, positions)
    except ValueError:
        return None


def as_array(value: Any) -> np.ndarray | None:
    """Return a tensor or an array of numbers as an array, others as `None`."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        plain = plain.to_dense() if plain.layout != torch.strided else plain
        array: np.ndarray = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    elif isinstance(value, np.ndarray | np.number):
        array = np.asarray(value)
    else:
        return None
    return array if array.dtype.kind in "buif" and array.size else None


def _pixels(array: np.ndarray) -> np.ndarray | None:
    """Return an image as uint8 `(H, W)` or `(H, W, 3)`, or `None` if it is none."""
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] in _CHANNELS:
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]
    elif array.ndim != 2 or min(array.shape) < _MIN_SIDE:
        return None
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.nan_to_num(array.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if array.dtype.kind in "ui" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    span = high - low if high > low else 1.0
    return np.ascontiguousarray((255 * ((values - low) / span)).round().clip(0, 255).astype(np.uint8))


def _values(value: Any) -> str:
    """Return the first values of an input, which is no image, as text."""
    array = as_array(value)
    if array is not None:
        shown = ", ".join(f"{number:.4g}" for number in array.flatten()[:_VALUES].tolist())
        return shown if array.size <= _VALUES else f"{shown}, … ({array.size:,} values)"
    if isinstance(value, str | bytes | int | float):
        return printable(value, limit=_MAX_TEXT)
    if isinstance(value, Mapping):
        parts = [f"{printable(name, limit=40)}: {_leaf(part)}" for name, part in list(value.items())[:_VALUES]]
    elif isinstance(value, list | tuple):
        parts = [_leaf(part) for part in value[:_VALUES]]
    else:
        return describe(value)
    return "; ".join(parts) + ("; …" if len(value) > _VALUES else "")


def _leaf(value: Any) -> str:
    return describe(value) if isinstance(value, Mapping | list | tuple) else _values(value)
