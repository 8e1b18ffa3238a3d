"""Reading a data set with another image in front of its transform.

A trigger acts on the image as it lies on disk, before the data set's transform, at training and at test time alike.
"""

import bisect
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms.v2 import functional as F

from lightning_poison.checks import describe, expected
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.labels import spec_of
from lightning_poison.data.pixel_range import PixelRange


class RawImages:
    """The samples of a data set as raw images, at an unchanging state of its random transforms.

    Args:
        dataset: a map-style data set.
        pixels: how its samples are normalized.
        seed: seeds random transforms; the global random states are put back.
        batch_size: how many samples are read at once.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> pixels = PixelRange(mean=(0.5,), std=(0.25,))
        >>> images = RawImages(TinyImages(pixels=pixels), pixels, seed=0, batch_size=2)
        >>> found = images(torch.tensor([4, 8, 4]))
        >>> found.shape, bool((found >= 0).all() and (found <= 1).all())
        (torch.Size([3, 1, 8, 8]), True)
    """

    def __init__(self, dataset: "Dataset[Any]", pixels: PixelRange, *, seed: int, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._pixels, self._seed = pixels, seed
        self._sample = spec_of(dataset)

    def __repr__(self) -> str:
        return f"RawImages({type(self.dataset).__name__}, {self._pixels})"

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the raw images at those positions, int64 `(B,)`, one at least: float32 `(B, ...)` in [0, 1].

        Raises:
            UnreadableSampleError: where a sample cannot be read or is not finite.
            ValueError: where images lie outside the pixel range.
        """
        return torch.cat(list(self.blocks(indices)))

    def blocks(self, indices: Tensor) -> Iterator[Tensor]:
        """Yield them a block of `batch_size` at a time; an index may come several times."""
        blocks = index_blocks(indices, self.batch_size)
        for block in read_blocks(self.dataset, blocks, sample=self._sample, seed=self._seed):
            yield as_raw_images(block.inputs, self._pixels)


def as_raw_images(inputs: Tensor, pixels: PixelRange) -> Tensor:
    """Return samples as raw images.

    Args:
        inputs: `(B, ...)`, as a data set returns them.
        pixels: how they are normalized.

    Returns:
        `(B, ...)`, in [0, 1].

    Raises:
        ValueError: where images lie outside the pixel range.

    Example:
        >>> as_raw_images(torch.tensor([[[[-2.0, 2.0]]]]), PixelRange(mean=(0.5,), std=(0.25,)))
        tensor([[[[0., 1.]]]])
    """
    raw = pixels.to_raw(inputs)
    if not pixels.contains(inputs):
        found = f"values from {float(raw.min()):.3g} to {float(raw.max()):.3g}"
        hint = "Say how the data set normalizes: `Threat(..., pixels=PixelRange(mean=..., std=...))`."
        raise ValueError(expected("dataset", f"images that lie in [0, 1] once {pixels} is undone", found, hint))
    return raw.clamp(0, 1)


Edit = Callable[[Tensor], Tensor]
"""Maps a raw image, uint8 `(C, H, W)`, to another of the same shape; never in place."""


_WAY_OUT = """\
Raw images are what a data set hands to its `self.transform`. Use one of torchvision's, or one of your own that calls
`self.transform(image)` in `__getitem__`, with images that are uint8 `(C, H, W)`: `(255 * images).round().byte()` makes
them from floats in [0, 1].

    class Images(torch.utils.data.Dataset):
        def __init__(self, images, labels):
            self.data, self.targets = images, labels
            self.transform = torchvision.transforms.v2.ToDtype(torch.float32, scale=True)

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.transform(self.data[index]), int(self.targets[index])

Authors of attacks: poison of domain "sample" needs no raw images."""


def read_edited(dataset: Any, index: int, edit: Edit) -> Any:
    """Read one sample with its raw image edited before the data set's transform.

    Args:
        dataset: one of torchvision's, any other that calls its `transform` on the image, or a `Subset`, a
            `ConcatDataset` or a filtered view of such.
        index: the position of the sample.
        edit: what is done to the raw image, uint8 `(C, H, W)`.

    Returns:
        The sample as the data set returns it, container and all.

    Raises:
        TypeError: where the data set has no `transform` or does not call it, or its raw images are not 8-bit images.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)  # its transform maps [0, 255] to [0, 1]
        >>> image, label = read_edited(dataset, 1, lambda raw: torch.full_like(raw, 255))
        >>> image.unique(), label
        (tensor([1.]), 1)
        >>> bool(dataset[1][0].eq(image).all())
        False
    """
    leaf, position = resolve(dataset, index)
    view = copy.copy(leaf)
    swap = _Swap(leaf.transform, edit)
    view.transform = swap
    if isinstance(getattr(leaf, "transforms", None), StandardTransform):
        view.transforms = StandardTransform(swap, getattr(leaf, "target_transform", None))
    sample = view[position]
    if not swap.called:
        raise TypeError(
            f"Expected {type(leaf).__name__} to call its `transform` on the raw image, but it did not.\n{_WAY_OUT}"
        )
    return sample


def read_raw(dataset: Any, index: int) -> Tensor:
    """Return the image of one sample as it is before the data set's transform, uint8 `(C, H, W)`.

    Raises:
        TypeError: as `read_edited`.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)
        >>> read_raw(dataset, 2).equal(dataset.data[2]), dataset[2][0].dtype
        (True, torch.float32)
    """
    seen: list[Tensor] = []

    def record(image: Tensor) -> Tensor:
        seen.append(image.clone())
        return image

    read_edited(dataset, index, record)
    return seen[0]


def has_raw(dataset: Any) -> bool:
    """Tell whether the raw images of a data set can be reached.

    Example:
        >>> from torch.utils.data import Subset, TensorDataset
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> has_raw(Subset(TinyImages(3), [2])), has_raw(TensorDataset(torch.zeros(3, 1, 8, 8), torch.arange(3)))
        (True, False)
    """
    try:
        read_raw(dataset, 0)
    except (TypeError, IndexError):
        return False
    return True


def resolve(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow views and concatenations down to the data set that owns a `transform`.

    Raises:
        TypeError: where the data set that is reached has no `transform`.

    Example:
        >>> from torch.utils.data import ConcatDataset, Subset
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> first, second = TinyImages(3), TinyImages(5)
        >>> owner, position = resolve(ConcatDataset([first, Subset(second, [4, 0])]), 3)
        >>> owner is second, position
        (True, 4)
    """
    if hasattr(dataset, "cumulative_sizes") and hasattr(dataset, "datasets"):
        index += len(dataset) if index < 0 else 0
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        start = dataset.cumulative_sizes[part - 1] if part else 0
        return resolve(dataset.datasets[part], index - start)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        return resolve(dataset.dataset, int(dataset.indices[index]))
    if not hasattr(dataset, "transform"):
        raise TypeError(
            "Expected a data set that calls its `transform` on the raw image, "
            f"but got {type(dataset).__name__}, which has none.\n{_WAY_OUT}"
        )
    return dataset, index


class _Swap:
    """Stands in for a data set's transform: edits the image, then transforms it."""

    def __init__(self, transform: Callable[..., Any] | None, edit: Edit) -> None:
        self.transform = transform
        self.edit = edit
        self.called = False

    def __call__(self, image: Any, *rest: Any) -> Any:
        self.called = True
        raw = _to_tensor(image)
        edited = self.edit(raw)
        if edited.shape != raw.shape or edited.dtype != torch.uint8:
            raise ValueError(f"Expected a raw image like {describe(raw)}, but got {describe(edited)}.")
        restored = _like(edited, image)
        if self.transform is None:
            return (restored, *rest) if rest else restored
        return self.transform(restored, *rest)


def _to_tensor(image: Any) -> Tensor:
    if isinstance(image, Image.Image) and image.mode in ("L", "RGB", "RGBA"):
        tensor: Tensor = F.pil_to_tensor(image)
        return tensor
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        array = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return torch.from_numpy(np.array(array, order="C"))
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim in (2, 3):
        return image if image.ndim == 3 else image[None]
    came = f"a PIL image of mode {image.mode}" if isinstance(image, Image.Image) else describe(image)
    raise TypeError(
        f"Expected raw images of 8 bits (PIL of mode L, RGB or RGBA, uint8 arrays or tensors), but got {came}.\n"
        "Keep them so, and scale them in the data set's `transform`; `(255 * images).round().byte()` makes them from "
        'floats in [0, 1].\nAuthors of attacks: poison of domain "sample" needs no raw images.'
    )


def _like(image: Tensor, model: Any) -> Any:
    if isinstance(model, Image.Image):
        return F.to_pil_image(image, mode=model.mode)
    if isinstance(model, np.ndarray):
        array = image.numpy()
        return array[0] if model.ndim == 2 else array.transpose(1, 2, 0)
    return image if model.ndim == 3 else image[0]
