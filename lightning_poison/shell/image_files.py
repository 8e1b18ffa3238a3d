"""Image files read once, as a person would see them, into one block of pixels."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_poison.checks import describe_error, expected, positive_int, printable
from lightning_poison.data.labels import UNLABELED
from lightning_poison.runtime import LocalRuntime, Runtime

LARGEST_SIDE = 96
"""Images with a longer side are reduced to this many pixels in each direction, as are images of several sizes."""

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")

_GRAY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}

_AT_ONCE = 256
"""Files that are decoded before their pixels are stored."""

_IN_MEMORY = 2**31
"""Bytes of pixels that are held in memory; more are in a file that is mapped into it."""


@dataclass(frozen=True)
class Unreadable:
    """A file that was left out.

    Args:
        name: Its name, untrusted text.
        reason: Why it was left out.
    """

    name: str
    reason: str


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images of one size, `(C, H, W)` in [0, 1], with labels and the paths of their files.

    Args:
        pixels: Pixels, uint8 `(N, C, H, W)`.
        samples: Path and label of each image, −1 for a missing label.
        classes: Name of each class.
    """

    def __init__(self, pixels: Tensor, samples: Sequence[tuple[str, int]], classes: Sequence[str]) -> None:
        self.pixels, self.samples, self.classes = pixels, list(samples), list(classes)
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index].float() / 255, self.targets[index]


def find_images(folder: Path) -> tuple[list[tuple[str, str]], list[Unreadable]]:
    """Return path and class of each image below a folder, and the files that are left out.

    Classes are the folders in it, by their names. Hidden files and files without the ending of an image format are
    ignored. Links are followed, unless they point out of the folder or into one that is read already.

    Args:
        folder: Folder in the layout of torchvision's `ImageFolder`.

    Raises:
        ValueError: If there is no image.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> (folder / "cat").mkdir()
        >>> Image.new("L", (8, 8)).save(folder / "cat" / "0.png")
        >>> [(Path(path).name, name) for path, name in find_images(folder)[0]]
        [('0.png', 'cat')]
    """
    root = folder.resolve()
    found: list[tuple[str, str]] = []
    left_out: list[Unreadable] = []
    seen: set[Path] = set()
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        for path, reason in _walk(folder / name, root, seen):
            if reason:
                left_out.append(Unreadable(str(path), reason))
            elif path.suffix.lower() in EXTENSIONS:
                found.append((str(path), name))
    if not found:
        loose = any(entry.suffix.lower() in EXTENSIONS for entry in folder.iterdir())
        came = "images but no subfolders" if loose else "no images in its subfolders"
        hint = "Put the images of each class into a separate folder: FOLDER/CLASS/IMAGE.png."
        raise ValueError(expected(str(folder), "a folder with one subfolder of images per class", came, hint))
    return found, left_out


def read_images(
    files: Sequence[tuple[str, str | None]],
    *,
    image_size: int | None = None,
    runtime: Runtime | None = None,
    store: Path | None = None,
    open_file: Callable[[str], Any] = str,
) -> tuple[ImageFiles, list[Unreadable]]:
    """Read image files into one block of pixels, and list those that cannot be read.

    Images are turned as their EXIF data say, transparent pixels are white, 16-bit images are reduced to 8 bits, and of
    animations the first frame is read. If all are gray, there is one channel, otherwise three. Images of one size of up
    to 96 pixels keep it. Others are scaled to squares without cropping, since a trigger may be at the border.

    Args:
        files: Path and class of each image, `None` for a missing label.
        image_size: Height and width to scale to, in pixels. Default: the common size, or the longest side, but at most
            96.
        runtime: Number of threads that decode, and progress bar. Default: `LocalRuntime()`.
        store: File for the pixels if they need more than 2 GiB. Default: they are held in memory.
        open_file: Returns the path or a binary stream of an image by its name in `files`. Called from several threads.
            Default: the names are paths.

    Raises:
        ValueError: If no image can be read.
    """
    if image_size is not None:
        positive_int("image_size", image_size, minimum=8)
    left_out: list[Unreadable] = []
    runtime = runtime or LocalRuntime()
    with ThreadPoolExecutor(runtime.threads) as pool, runtime.progress(len(files), "Reading images") as progress:
        headers = pool.map(lambda file: _header(open_file, file[0]), files)
        with_header = list(_successes(files, headers, left_out))
        progress.advance(len(left_out))
        if not with_header:
            raise ValueError(expected("the source", "images that can be read", _described(left_out)))
        readable, shapes = zip(*with_header, strict=True)
        size = _size(shapes, image_size)
        channels = 1 if all(is_gray for _, is_gray in shapes) else 3
        pixels = _empty((len(readable), channels, *size), store)
        kept: list[tuple[str, str | None]] = []
        for first in range(0, len(readable), _AT_ONCE):
            part = readable[first : first + _AT_ONCE]
            decoded = pool.map(lambda file: _decode(open_file, file[0], size, channels), part)
            for file, image in _successes(part, decoded, left_out):
                pixels[len(kept)] = image
                kept.append(file)
            progress.advance(len(part))
    if not kept:
        raise ValueError(expected("the source", "images that can be read", _described(left_out)))
    classes = sorted({name for _, name in kept if name is not None})
    number: dict[str | None, int] = {name: position for position, name in enumerate(classes)}
    samples = [(path, number.get(name, UNLABELED)) for path, name in kept]
    return ImageFiles(torch.from_numpy(pixels[: len(kept)]), samples, classes), left_out


def _successes(
    files: Sequence[tuple[str, str | None]], results: Iterable[Any], left_out: list[Unreadable]
) -> Iterator[tuple[tuple[str, str | None], Any]]:
    """Yield files with what was read of them; add those whose result is a text, the reason, to `left_out`."""
    for file, result in zip(files, results, strict=True):
        if isinstance(result, str):
            left_out.append(Unreadable(file[0], result))
        else:
            yield file, result


def _walk(folder: Path, root: Path, seen: set[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder in the order of their names, with a reason for those that are left out."""
    real = folder.resolve()
    if not real.is_relative_to(root):
        yield folder, "a link that points outside the folder"
        return
    if real in seen:
        yield folder, "a link to a folder that has already been read"
        return
    seen.add(real)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield folder, describe_error(error, limit=200)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, root, seen)
        elif entry.is_symlink() and not entry.resolve().is_relative_to(root):
            yield entry, "a link that points outside the folder"
        else:
            yield entry, ""


def _header(open_file: Callable[[str], Any], path: str) -> tuple[tuple[int, int], bool] | str:
    """Return height and width as seen, and whether the image is gray; or why it cannot be read."""
    try:
        with Image.open(open_file(path)) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:
                width, height = height, width
            return (height, width), image.mode in _GRAY
    except Exception as error:  # noqa: BLE001 (image files are untrusted, and their decoders raise anything)
        return describe_error(error, limit=200)


def _decode(open_file: Callable[[str], Any], path: str, size: tuple[int, int], channels: int) -> np.ndarray | str:
    """Return pixels, uint8 `(C, H, W)`; or why they cannot be read."""
    try:
        with Image.open(open_file(path)) as opened:
            opened.draft("RGB", (4 * size[1], 4 * size[0]))
            image = _as_seen(ImageOps.exif_transpose(opened), channels)
            if image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=3.0)
            array = np.asarray(image, dtype=np.uint8)
            return array[None] if channels == 1 else array.transpose(2, 0, 1)
    except Exception as error:  # noqa: BLE001 (image files are untrusted, and their decoders raise anything)
        return describe_error(error, limit=200)


def _as_seen(image: Any, channels: int) -> Any:
    """Convert an image of any mode to 8 bits, without transparency."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(
            (values * _scale_of(image.mode, float(values.max()))).clip(0, 255).round().astype(np.uint8)
        )
    if image.has_transparency_data:
        front = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), front)
    return image.convert("L" if channels == 1 else "RGB")


def _scale_of(mode: str, largest: float) -> float:
    """Return the factor from the values of an image to 8 bits. Those of 32 bits may have values of fewer bits."""
    if mode.startswith("I;16"):
        return 255 / 65535
    if mode == "F":
        return 255 if largest <= 1 else 1
    return 255 / 65535 if largest > 255 else 1


def _size(shapes: Sequence[tuple[tuple[int, int], bool]], image_size: int | None) -> tuple[int, int]:
    if image_size is not None:
        return image_size, image_size
    sizes = {size for size, _ in shapes}
    longest = max(max(size) for size in sizes)
    if len(sizes) == 1 and longest <= LARGEST_SIDE:
        return next(iter(sizes))
    side = max(8, min(LARGEST_SIDE, longest))
    return side, side


def _empty(shape: tuple[int, ...], store: Path | None) -> np.ndarray:
    if store is None or np.prod(shape) <= _IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("wb+") as file:
        _reserve(file.fileno(), int(np.prod(shape)))
        pixels = np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)
    with contextlib.suppress(OSError):  # Windows removes no open files
        store.unlink()  # its space is free again when the process ends, however it ends
    return pixels


def _reserve(handle: int, size: int) -> None:
    """Take the space of a file, so that a full disk is an error now, and not a signal when pixels are written."""
    try:
        os.posix_fallocate(handle, 0, size)
    except (AttributeError, OSError) as error:  # not every system has it, and not every file system
        if getattr(error, "errno", errno.EINVAL) not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        os.ftruncate(handle, size)


def _described(left_out: Sequence[Unreadable]) -> str:
    first = left_out[0]
    return f"{len(left_out):,} that cannot, such as {printable(first.name, limit=200)} ({first.reason})"
