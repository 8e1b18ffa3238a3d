"""Comparison of samples that a data set reads together, by `__getitems__`, with those that it reads one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.labels import read_sample
from lightning_poison.errors import is_signal
from lightning_poison.randomness import seeded_rng

_PROBES = 8
"""Number of samples that are read both alone and together."""


def check_batched_reads(
    dataset: Any,
    label_of: Callable[[Any, int], int],
    input_of: Callable[[Any, int], Tensor],
    *,
    seed: int,
    allowed: Tensor | None,
) -> None:
    """Compare samples read together, by `__getitems__` if there is one, with the same samples read one by one.

    Args:
        dataset: Map-style data set.
        label_of: Returns the label of a sample at a position.
        input_of: Returns its input.
        seed: Seed of random transforms.
        allowed: Positions of the samples that may be read, int64 `(M,)`. `None`: all.

    Raises:
        ValueError: If a label, or an input that is not drawn at random, differs.
        UnreadableSampleError: If a sample cannot be read alone.
    """
    batched = getattr(dataset, "__getitems__", None)
    if batched is None:
        return
    length = len(dataset) if allowed is None else len(allowed)
    places = np.random.default_rng(0).permutation(length)[:_PROBES].tolist()
    positions = places if allowed is None else allowed[places].tolist()
    try:
        with seeded_rng(seed) as drew:
            together = list(batched(positions))
            are_random = drew()
    except (Exception, SystemExit) as error:  # samples are then read one by one
        if is_signal(error):
            raise
        return
    kind = type(dataset).__name__
    if len(together) != len(positions):
        raise ValueError(
            f"Expected `__getitems__` of {kind} to return {len(positions)} samples, but got {len(together)}.\n"
            "Correct it, or remove it: samples are then read with `__getitem__`."
        )
    for index, sample in zip(positions, together, strict=True):
        with seeded_rng(seed) as drew:
            alone = read_sample(dataset, index)
            are_random = are_random or drew()
        label, own = label_of(sample, index), label_of(alone, index)
        if label != own:
            raise ValueError(
                expected("__getitems__", f"in the order of its indices, with label {own} at sample {index}", label)
                + f"\nIt returns other samples than `__getitem__` of {kind}. Correct it, or remove it."
            )
        if not are_random and not _have_same_inputs(dataset, input_of, sample, alone, index):
            raise ValueError(
                f"Expected `__getitems__` of {kind} to return the samples that `__getitem__` returns, but the input of "
                f"sample {index} is another one.\nCorrect it, or remove it: samples are then read with `__getitem__`."
            )


def _have_same_inputs(
    dataset: Any, input_of: Callable[[Any, int], Tensor], sample: Any, alone: Any, index: int
) -> bool:
    """Whether two samples have equal inputs, or the input of this sample differs between reads anyway."""
    first, second = input_of(sample, index), input_of(alone, index)
    if first.shape == second.shape and torch.equal(first, second):
        return True
    return not torch.equal(second, input_of(read_sample(dataset, index), index))
