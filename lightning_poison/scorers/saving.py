"""Saving and loading fitted scorers: tensors and JSON in one safetensors file, never a pickle."""

import json
import os
from typing import TypeVar

from lightning_poison.checks import instance, printable
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.serialization import read_tensors, write_tensors

ScorerT = TypeVar("ScorerT", bound=Scorer)

_WAY = "A set scorer has no fitted state. Save the members of a combination one by one."


def save_scorer(scorer: Scorer, path: str | os.PathLike[str]) -> None:
    """Save the fitted state of a scorer, atomically.

    Args:
        scorer: Fitted scorer.
        path: File to write.

    Raises:
        NotFittedError: If the scorer is not fitted.
        TypeError: If it is a set scorer or a combination.

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
    instance("scorer", scorer, Scorer, hint=_WAY)
    meta = {"kind": "scorer", "version": 1, "scorer": scorer.name, "settings": dict(scorer.settings())}
    write_tensors(path, dict(scorer.state()), meta)


def load_scorer(scorer: ScorerT, path: str | os.PathLike[str]) -> ScorerT:
    """Load the state that `save_scorer` wrote into a scorer and return it.

    Args:
        scorer: Scorer with the same settings. A file does not contain the architecture of a backbone or module.
        path: File to read.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If the scorer is a set scorer or a combination.
        ValueError: If it is the file of another scorer, of other settings, or of another kind.

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
    instance("scorer", scorer, Scorer, hint=_WAY)
    tensors, meta = read_tensors(path, "scorer")
    if meta.get("scorer") != scorer.name:
        raise ValueError(
            f"Expected a file of the {printable(scorer.name)} scorer, but {path} contains the "
            f"{printable(meta.get('scorer'))} scorer.\nBuild that scorer first: `get_scorer(name)`."
        )
    own, stored = json.loads(json.dumps(dict(scorer.settings()))), meta.get("settings", {})
    differing = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
    if differing:
        listed = ", ".join(f"{name}={stored.get(name)!r}" for name in differing)
        raise ValueError(
            f"Expected a scorer with the settings in {path}, but these differ: {printable(listed)} in the file.\n"
            "Build the scorer with them before loading."
        )
    return scorer.load(tensors)
