"""Seeded random states and generators, one independent stream for each purpose."""

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch


@contextmanager
def seeded_rng(*seed: int) -> Iterator[Callable[[], bool]]:
    """Seed the global random states of Python, NumPy and torch (CPU), and restore them on exit.

    Yields:
        A function that returns whether a random number has been drawn from one of them, and seeds them again.

    Example:
        >>> state = torch.get_rng_state()
        >>> with seeded_rng(0, 3) as drew:
        ...     before, first, after = drew(), (random.random(), torch.rand(2).tolist()), drew()
        >>> before, after
        (False, True)
        >>> with seeded_rng(0, 3):
        ...     first == (random.random(), torch.rand(2).tolist())
        True
        >>> torch.get_rng_state().equal(state)
        True
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (transforms use it)
    words = _words(*seed)
    try:
        _seed(words)
        yield partial(_drew, words, torch.get_rng_state())
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def reseed(*seed: int) -> None:
    """Seed the global random states again, inside `seeded_rng`, which restores them.

    Saving and restoring them takes ten times as long as seeding them, so readers of many samples do it once.

    Example:
        >>> with seeded_rng(0, 3):
        ...     first = random.random(), torch.rand(2).tolist()
        ...     reseed(0, 3)
        ...     first == (random.random(), torch.rand(2).tolist())
        True
    """
    _seed(_words(*seed))


def _words(*seed: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]


def _seed(words: list[int]) -> None:
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    torch.default_generator.manual_seed(words[2])


def _drew(words: list[int], state: torch.Tensor) -> bool:
    """Return whether a random number has been drawn since the states were seeded, and seed them again.

    The next numbers are compared with the first ones: comparing states of Python and NumPy takes ten times as long.
    """
    torch_drew = not torch.equal(torch.get_rng_state(), state)
    found = random.getrandbits(64), np.random.bytes(8)  # noqa: NPY002
    _seed(words)
    first = random.getrandbits(64), np.random.bytes(8)  # noqa: NPY002
    _seed(words)
    return torch_drew or found != first


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random states, including that of a CUDA device, and restore them on exit.

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
    """Derive a seed for one purpose from the user's seed.

    If two purposes used the same seed, they would draw the same numbers: an attack that selects samples and a control
    that removes samples at random would then select the same ones.

    Args:
        seed: User's seed, at least 0.
        purpose: Name of the purpose, such as `"folds"`.
        numbers: Further indices, such as the number of a fold, each at least 0.

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
    """Return a generator seeded for one purpose; see `derived_seed`.

    Args:
        seed: User's seed, at least 0.
        purpose: Name of the purpose.
        numbers: Further indices, each at least 0.

    Example:
        >>> folds, fit = derived_generator(0, "folds"), derived_generator(0, "fit")
        >>> bool((torch.rand(4, generator=folds) == torch.rand(4, generator=fit)).any())
        False
    """
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *numbers))
