"""A digest of what a data set holds in memory, which shows that it may have changed without reading a sample."""

from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

_MOST_BYTES = 2 * 1024**3
"""Arrays are covered as long as all of them together are no larger, so that a check takes little time."""

_MOST_ITEMS = 1_000_000
"""Largest number of items of lists and dicts that are covered."""

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})


def memory_digest(dataset: Any) -> int:
    """Return a digest of the arrays, lists and dicts in a data set and in those that it contains.

    It covers tensors, arrays, columns of pandas, and lists and dicts of them and of numbers and texts: up to 2 GiB and
    a million items. It covers no files, no memory-mapped arrays, no numbers that are attributes themselves, such as the
    number of an epoch, and no other objects. Nothing is read from the data set, and no property is evaluated.

    Args:
        dataset: Map-style data set.

    Returns:
        64 bits that are comparable within a process.

    Example:
        >>> from torch.utils.data import Subset, TensorDataset
        >>> data = Subset(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0])), [0, 2])
        >>> before = memory_digest(data)
        >>> data.dataset.tensors[1][0] = 1
        >>> memory_digest(data) == before
        False
    """
    digest = _MemoryDigest()
    digest.add_parts(dataset)
    return digest.hash.intdigest()


class _MemoryDigest:
    def __init__(self) -> None:
        self.hash = xxhash.xxh3_64()
        self._bytes, self._items = _MOST_BYTES, _MOST_ITEMS
        self._seen: set[int] = set()

    def add_parts(self, dataset: Any) -> None:
        """Add the attributes of a data set, or the items of one that is a list or a dict."""
        items = [("", dataset)] if isinstance(dataset, list | tuple | dict | Tensor | np.ndarray) else []
        for name, value in [*items, *getattr(dataset, "__dict__", {}).items()]:
            if type(value) not in _PLAIN:
                self._note(str(name))
                try:
                    self._add(value)
                except Exception as error:  # noqa: BLE001 (an object of unknown kind; what it holds is not covered)
                    self._note(type(error).__name__)

    def _add(self, value: Any) -> None:
        if type(value) in _PLAIN or isinstance(value, np.generic):
            self._note(repr(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self._add_array(value)
        elif type(value).__module__.partition(".")[0] == "pandas":
            self._add_columns(value)
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            if isinstance(value, dict):
                self._add_items([*value.keys(), *value.values()])
            elif isinstance(value, list | tuple):
                self._add_items(value)
            elif hasattr(type(value), "__getitem__"):
                self.add_parts(value)

    def _add_items(self, items: list[Any] | tuple[Any, ...]) -> None:
        self._note(f"{type(items)}{len(items)}")
        items = items[: self._items]
        self._items -= len(items)
        if set(map(type, items)) <= _PLAIN:
            self._note(str(hash(tuple(items))))
            return
        for item in items:
            self._add(item)

    def _add_tensor(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided or tensor.is_meta:
            return
        plain = tensor.detach().as_subclass(Tensor)
        self._note(f"{plain.dtype}{tuple(plain.shape)}")
        if plain.numel() and self._fits(plain.numel() * plain.element_size()):
            self.hash.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _add_array(self, array: np.ndarray) -> None:
        self._note(f"{array.dtype}{array.shape}")
        if array.dtype.kind == "O":
            self._add_items(array.reshape(-1).tolist())
        elif not isinstance(array, np.memmap) and array.size and self._fits(array.nbytes):
            self.hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _add_columns(self, frame: Any) -> None:
        if hasattr(frame, "columns"):
            self._note(str(list(frame.columns)))
            for place in range(len(frame.columns)):
                self._add_array(frame.iloc[:, place].to_numpy())
        elif hasattr(frame, "to_numpy"):
            self._add_array(frame.to_numpy())

    def _note(self, text: str) -> None:
        self.hash.update(text.encode(errors="surrogatepass"))

    def _fits(self, size: int) -> bool:
        fits = size <= self._bytes
        self._bytes -= size if fits else 0
        return fits
