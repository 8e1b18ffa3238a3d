"""Random generators derived from one seed, so that no two purposes draw the same numbers."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_rng(*seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU random states from integers, and put all three back afterwards.

    Example:
        >>> state = torch.get_rng_state()
        >>> with seeded_rng(0, 3):
        ...     first = random.random(), torch.rand(2).tolist()
        >>> with seeded_rng(0, 3):
        ...     first == (random.random(), torch.rand(2).tolist())
        True
        >>> torch.get_rng_state().equal(state)
        True
    """
    found = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (the transforms' own)
    words = np.random.SeedSequence(seed).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))  # noqa: NPY002
        torch.default_generator.manual_seed(int(words[2]))
        yield
    finally:
        random.setstate(found[0])
        np.random.set_state(found[1])  # noqa: NPY002
        torch.set_rng_state(found[2])


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all random states, a CUDA device's among them, and put them back afterwards.

    Example:
        >>> state = torch.get_rng_state()
        >>> with isolated_rng(0, torch.device("cpu")):
        ...     first = torch.rand(2)
        >>> with isolated_rng(0, torch.device("cpu")):
        ...     torch.rand(2).equal(first)
        True
        >>> torch.get_rng_state().equal(state)
        True
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), seeded_rng(seed):
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed that belongs to a purpose.

    Two purposes that took the user's seed as it is would draw the same numbers: an attack that chooses its samples and
    a control that removes samples at random would then choose the same ones.

    Args:
        seed: the user's, at least 0.
        purpose: what is drawn, such as `"folds"`.
        numbers: which of several, such as the number of a fold, each at least 0.

    Returns:
        An integer in [0, 2⁶³).

    Example:
        >>> seeds = [derived_seed(0, "fit", fold) for fold in (1, 1, 2)]
        >>> seeds[0] == seeds[1], seeds[0] == seeds[2]
        (True, False)
    """
    words = (seed, zlib.crc32(purpose.encode()), len(numbers), *numbers)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def derived_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a generator that belongs to a purpose; see `derived_seed`.

    Args:
        seed: the user's, at least 0.
        purpose: what is drawn.
        numbers: which of several, each at least 0.

    Example:
        >>> folds, fit = derived_generator(0, "folds"), derived_generator(0, "fit")
        >>> bool((torch.rand(4, generator=folds) == torch.rand(4, generator=fit)).any())
        False
    """
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *numbers))
