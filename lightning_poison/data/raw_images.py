"""Raw images: the images before a data set's transform.

A trigger changes the image as it is stored, before the data set's transform, at training and test time alike.
"""

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
from lightning_poison.data.views import locate

Edit = Callable[[Tensor], Tensor]
"""Maps a raw image, uint8 `(C, H, W)`, to another of the same shape; never in place."""

_WAY_OUT = """\
Raw images are what a data set passes to its `self.transform`. Use a data set of torchvision, or one of your own that
calls `self.transform(image)` in `__getitem__` on uint8 images `(C, H, W)`. `(255 * images).round().byte()` converts
floats in [0, 1].

    class Images(torch.utils.data.Dataset):
        def __init__(self, images, labels):
            self.data, self.targets = images, labels
            self.transform = torchvision.transforms.v2.ToDtype(torch.float32, scale=True)

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.transform(self.data[index]), int(self.targets[index])

For authors of attacks: poison of domain "sample" needs no raw images."""


def read_edited(dataset: Any, index: int, edit: Edit) -> Any:
    """Read one sample with its raw image edited before the data set's transform.

    Args:
        dataset: A data set of torchvision, any other that calls its `transform` on the image, or a `Subset`, a
            `ConcatDataset` or a filtered view of such.
        index: Position of the sample.
        edit: Edits the raw image, uint8 `(C, H, W)`.

    Returns:
        The sample in the container that the data set returns.

    Raises:
        TypeError: If the data set has no `transform` or does not call it, or its raw images are not 8-bit images.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)  # its transform maps [0, 255] to [0, 1]
        >>> image, label = read_edited(dataset, 1, lambda raw: torch.full_like(raw, 255))
        >>> image.unique(), label
        (tensor([1.]), 1)
        >>> bool(dataset[1][0].eq(image).all())
        False
    """
    owner, position = transform_owner(dataset, index)
    view = copy.copy(owner)
    wrapper = _EditedTransform(owner.transform, edit)
    view.transform = wrapper
    if isinstance(getattr(owner, "transforms", None), StandardTransform):
        view.transforms = StandardTransform(wrapper, getattr(owner, "target_transform", None))
    sample = view[position]
    if not wrapper.called:
        raise TypeError(
            f"Expected {type(owner).__name__} to call its `transform` on the raw image, but it did not.\n{_WAY_OUT}"
        )
    return sample


def read_raw(dataset: Any, index: int) -> Tensor:
    """Return the raw image of one sample, uint8 `(C, H, W)`.

    Raises:
        TypeError: As `read_edited`.

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
    """Whether the raw images of a data set can be read.

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


def transform_owner(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow views down to the data set whose `transform` is applied to a sample, and return the position in it.

    Raises:
        TypeError: If that data set has no `transform`.

    Example:
        >>> from torch.utils.data import ConcatDataset, Subset
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> first, second = TinyImages(3), TinyImages(5)
        >>> owner, position = transform_owner(ConcatDataset([first, Subset(second, [4, 0])]), 3)
        >>> owner is second, position
        (True, 4)
    """
    owner, position = locate(dataset, index)
    if not hasattr(owner, "transform"):
        raise TypeError(
            "Expected a data set that calls its `transform` on the raw image, "
            f"but got {type(owner).__name__}, which has none.\n{_WAY_OUT}"
        )
    return owner, position


class RawImages:
    """The samples of a data set as raw images in [0, 1], with the random transforms under a fixed seed.

    Args:
        dataset: Map-style data set.
        pixels: Normalization of its samples.
        seed: Seed of random transforms. Global random states are restored.
        batch_size: Number of samples per block.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> pixels = PixelRange(mean=(0.5,), std=(0.25,))
        >>> images = RawImages(TinyImages(pixels=pixels), pixels, seed=0, batch_size=2)
        >>> raw = images(torch.tensor([4, 8, 4]))
        >>> raw.shape, bool((raw >= 0).all() and (raw <= 1).all())
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
        """Return the raw images at `indices`, int64 `(B,)`, at least one: float32 `(B, ...)` in [0, 1].

        Raises:
            UnreadableSampleError: If a sample cannot be read or is not finite.
            ValueError: If an image is outside the pixel range.
        """
        return torch.cat(list(self.blocks(indices)))

    def blocks(self, indices: Tensor) -> Iterator[Tensor]:
        """Yield the raw images in blocks of `batch_size`. Indices may repeat."""
        blocks = index_blocks(indices, self.batch_size)
        for block in read_blocks(self.dataset, blocks, sample=self._sample, seed=self._seed):
            yield as_raw_images(block.inputs, self._pixels)


def as_raw_images(inputs: Tensor, pixels: PixelRange) -> Tensor:
    """Undo the normalization of samples.

    Args:
        inputs: Samples `(B, ...)`, as a data set returns them.
        pixels: Their normalization.

    Returns:
        Raw images `(B, ...)` in [0, 1].

    Raises:
        ValueError: If an image is outside the pixel range.

    Example:
        >>> as_raw_images(torch.tensor([[[[-2.0, 2.0]]]]), PixelRange(mean=(0.5,), std=(0.25,)))
        tensor([[[[0., 1.]]]])
    """
    raw = pixels.to_raw(inputs)
    if not pixels.contains(inputs):
        came = f"values from {float(raw.min()):.3g} to {float(raw.max()):.3g}"
        hint = "Declare the normalization of the data set: `Threat(..., pixels=PixelRange(mean=..., std=...))`."
        raise ValueError(expected("dataset", f"images in [0, 1] after undoing {pixels}", came, hint))
    return raw.clamp(0, 1)


class _EditedTransform:
    """Replaces a data set's transform: edits the raw image, then applies the transform."""

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
        f"Expected 8-bit raw images (PIL of mode L, RGB or RGBA, or uint8 arrays or tensors), but got {came}.\n"
        "Scale them in the data set's `transform` instead. `(255 * images).round().byte()` converts floats in [0, 1].\n"
        'For authors of attacks: poison of domain "sample" needs no raw images.'
    )


def _like(image: Tensor, model: Any) -> Any:
    if isinstance(model, Image.Image):
        return F.to_pil_image(image, mode=model.mode)
    if isinstance(model, np.ndarray):
        array = image.numpy()
        return array[0] if model.ndim == 2 else array.transpose(1, 2, 0)
    return image if model.ndim == 3 else image[0]
