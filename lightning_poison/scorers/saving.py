"""Fitted scorers on disk: tensors and JSON in one safetensors file, never a pickle."""

import json
import os
from typing import TypeVar

from lightning_poison.checks import printable
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.serialization import read_tensors, write_tensors

ScorerT = TypeVar("ScorerT", bound=Scorer)


def save_scorer(scorer: Scorer, path: str | os.PathLike[str]) -> None:
    """Write what a scorer has fitted, atomically.

    Args:
        scorer: a fitted scorer.
        path: the file.

    Raises:
        NotFittedError: where it is not fitted.

    Example:
        >>> import tempfile, torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> fitted = PixelCountingScorer().fit(TensorDataset(images, torch.arange(20) % 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_scorer(fitted, f"{folder}/scorer.safetensors")
        ...     loaded = load_scorer(PixelCountingScorer(), f"{folder}/scorer.safetensors")
        >>> loaded.score_batch(images, torch.zeros(20).long()).equal(fitted.score_batch(images, torch.zeros(20).long()))
        True
    """
    meta = {"kind": "scorer", "version": 1, "scorer": scorer.name, "settings": dict(scorer.settings())}
    write_tensors(path, dict(scorer.state()), meta)


def load_scorer(scorer: ScorerT, path: str | os.PathLike[str]) -> ScorerT:
    """Fill a scorer with what `save_scorer` wrote, and return it.

    Args:
        scorer: one of the same settings; a network of one's own cannot be built from a file.
        path: the file.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is of another scorer, of other settings, or no such file.

    Example:
        >>> import tempfile, torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> fitted = PixelCountingScorer().fit(TensorDataset(images, torch.arange(20) % 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_scorer(fitted, f"{folder}/scorer.safetensors")
        ...     load_scorer(PixelCountingScorer(), f"{folder}/scorer.safetensors").is_fitted
        True
    """
    tensors, meta = read_tensors(path, "scorer")
    if meta.get("scorer") != scorer.name:
        raise ValueError(
            f"Expected a file of the {printable(scorer.name)} scorer, but {path} holds one of the "
            f"{printable(meta.get('scorer'))} scorer.\nBuild that scorer first: `get_scorer(name)`."
        )
    own, stored = json.loads(json.dumps(dict(scorer.settings()))), meta.get("settings", {})
    differing = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
    if differing:
        listed = ", ".join(f"{name}={stored.get(name)!r}" for name in differing)
        raise ValueError(
            f"Expected a scorer of the settings that {path} was written with, but these differ: "
            f"{printable(listed)} in the file.\nBuild the scorer with them before loading."
        )
    return scorer.load(tensors)
