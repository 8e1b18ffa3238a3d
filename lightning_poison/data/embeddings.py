"""`EmbeddingDataset`: feature vectors that the user has computed, as a data set of their own."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected, local_path, printable
from lightning_poison.data.labels import as_label


class EmbeddingDataset(Dataset[tuple[Tensor, int]]):
    """Embeddings and the labels of their samples, for `sanitize`, or as the `score_dataset` of a `Sanitizer`.

    Sample i has row i as its input, so samples are in the order of the data set that was embedded.
    `LinearProbeScorer()` and `DeepKNNScorer(FeatureModel("auto"))` score the embeddings as they are.

    Args:
        embeddings: Tensor or array of numbers, `(N, D)`, or the path of a `.npy` file with one, which is memory-mapped.
        labels: Labels, `(N,)`, in any form that data sets may list them.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If embeddings are not numbers.
        ValueError: If embeddings are not `(N, D)`, labels are not as many, or the file is not a `.npy` file of numbers.

    Example:
        >>> EmbeddingDataset(np.eye(2), [4, 7])[1]
        (tensor([0., 1.]), 7)
    """

    def __init__(self, embeddings: Any, labels: Any) -> None:
        self.embeddings = _embeddings(embeddings)
        self.targets = torch.tensor([as_label(label, index) for index, label in enumerate(labels)], dtype=torch.int64)
        count = len(self.embeddings)
        if len(self.targets) != count:
            way = "Embed every sample, in the order of the data set."
            raise ValueError(expected("labels", f"one for each of the {count} embeddings", f"{len(self.targets)}", way))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return _row(self.embeddings[index]), int(self.targets[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [self[index] for index in indices]


def _row(row: Any) -> Tensor:
    return torch.as_tensor(np.array(row, dtype=np.float32) if isinstance(row, np.ndarray) else row).float()


def _embeddings(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        value = _from_file(Path(local_path("embeddings", value)))
    elif isinstance(value, list | tuple):
        value = np.asarray(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        is_number = not value.is_complex() and value.dtype != torch.bool
    else:
        is_number = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    if not is_number:
        raise TypeError(expected("embeddings", "a tensor or an array of numbers (N, D)", describe(value)))
    if value.ndim != 2 or not value.shape[0] or not value.shape[1]:
        came = f"shape {tuple(value.shape)}"
        raise ValueError(expected("embeddings", "vectors (N, D), one for each sample", came, "Flatten or pool them."))
    return value


def _from_file(path: Path) -> Any:
    if path.suffix != ".npy":
        way = "Write one with `numpy.save(path, embeddings)`."
        raise ValueError(expected("embeddings", "the path of a `.npy` file", printable(path), way))
    if not path.is_file():
        raise FileNotFoundError(expected("embeddings", "the path of an existing file", printable(path)))
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        came = f"{printable(path)} ({printable(error)})"
        way = "Write it with `numpy.save(path, embeddings)`; arrays of objects are not read."
        raise ValueError(expected("embeddings", "a file with an array of numbers", came, way)) from error
