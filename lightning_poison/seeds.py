"""Random generators derived from one seed, so that no two purposes draw the same numbers."""

import zlib

import numpy as np
import torch


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
