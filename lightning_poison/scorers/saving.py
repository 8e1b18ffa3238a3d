"""Saving and loading fitted scorers: tensors and JSON in one safetensors file, never a pickle."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_poison.checks import describe, every, expected, instance, printable
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.serialization import read_tensors, valid_parts, write_tensors

ScorerT = TypeVar("ScorerT", bound=Scorer)

_WAY = "A set scorer has no fitted state. Save the members of a combination one by one."

_VERSION = 1
"""Format of a scorer file."""


def save_scorer(scorer: Scorer, path: str | os.PathLike[str]) -> None:
    """Save the fitted state of a scorer, atomically.

    Args:
        scorer: Fitted scorer.
        path: File to write.

    Raises:
        NotFittedError: If the scorer is not fitted.
        OSError: If the file cannot be written.
        TypeError: If it is a set scorer or a combination.
        ValueError: If its state contains NaN.

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
    meta, state = parts_of_scorer(scorer)
    write_tensors(path, state, {"kind": "scorer", "version": _VERSION, **meta})


def parts_of_scorer(scorer: Scorer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return name and settings of a fitted scorer as JSON values, and its state; errors as for `save_scorer`."""
    instance("scorer", scorer, Scorer, hint=_WAY)
    state = dict(scorer.state())
    _check_numbers(state)
    return {"scorer": scorer.name, "settings": dict(scorer.settings())}, state


def load_scorer(scorer: ScorerT, path: str | os.PathLike[str]) -> ScorerT:
    """Load the state that `save_scorer` wrote into a scorer and return it.

    Args:
        scorer: Scorer with the same settings. A file does not contain the architecture of a backbone or module.
        path: File to read.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If the scorer is a set scorer or a combination.
        ValueError: If it is no scorer file of this version, the file of another scorer or of other settings, a tensor
            does not fit or contains NaN, or the file was damaged or changed since it was written. The message names
            file, field and value, and the scorer stays as it was.

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
    tensors, meta = read_tensors(path, "scorer", version=_VERSION)
    return load_parts(scorer, tensors, meta, path)


def load_parts(
    scorer: ScorerT, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: str | os.PathLike[str]
) -> ScorerT:
    """Load what `parts_of_scorer` returned into a scorer and return it; errors as for `load_scorer`.

    Args:
        scorer: Scorer with the same settings.
        tensors: The state.
        meta: Name and settings.
        path: The file from which they are, for messages.
    """
    instance("scorer", scorer, Scorer, hint=_WAY)
    shown = printable(os.fspath(path), limit=500)
    if meta.get("scorer") != scorer.name:
        raise ValueError(
            f"Expected a file of the {printable(scorer.name)} scorer, but {shown} contains the "
            f"{printable(meta.get('scorer'))} scorer.\nBuild that scorer first: `get_scorer(name)`."
        )
    with valid_parts(path, "scorer"):
        stored = instance("settings", meta.get("settings"), Mapping)
        _check_numbers(tensors)
    own: dict[str, Any] = json.loads(json.dumps(dict(scorer.settings())))
    differing = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
    if differing:
        listed = ", ".join(f"{name}={stored.get(name)!r}" for name in differing)
        raise ValueError(
            f"Expected a scorer with the settings in {shown}, but these differ: {printable(listed)} in the file.\n"
            "Build the scorer with them before loading."
        )
    with _unchanged_on_error(scorer), valid_parts(path, "scorer"):
        loaded = scorer.load(tensors)
        _check_loaded(dict(loaded.state()), tensors)
    return loaded


def _check_numbers(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() or value.is_complex():
            every(name, value, ~value.isnan(), "free of NaN")


def _check_loaded(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise if a scorer took something else from a file than what is in it."""
    for name in sorted(state.keys() | tensors.keys()):
        taken, given = state.get(name), tensors.get(name)
        if taken is None or given is None:
            raise ValueError(expected(name, "a tensor of this scorer", describe(given)))
        if taken.dtype != given.dtype or not torch.equal(taken.cpu(), given):
            raise ValueError(expected(name, describe(taken), f"{describe(given)} that does not fit"))


@contextlib.contextmanager
def _unchanged_on_error(scorer: Scorer) -> Iterator[None]:
    """Restore attributes and state of a scorer if the block raises. A network of the user is part of the state."""
    attributes = dict(vars(scorer))
    state = dict(scorer.state()) if scorer.is_fitted else None
    try:
        yield
    except BaseException:
        vars(scorer).clear()
        vars(scorer).update(attributes)
        if state is not None:
            scorer.load(state)
        raise
