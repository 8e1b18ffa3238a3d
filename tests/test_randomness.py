"""Tests of seeded random states and derived seeds."""

import itertools
import random

import numpy as np
import pytest
import torch

from lightning_poison.randomness import derived_generator, derived_seed, isolated_rng, seeded_rng

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Raised on purpose inside a context manager."""


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002, S311


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_seed_determines_all_random_states():
    with seeded_rng(3, 4):
        first = draws()
    with seeded_rng(3, 4):
        assert draws() == first
    with seeded_rng(3, 5):
        other = draws()
    assert all(one != two for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("make_context", [lambda: seeded_rng(1), lambda: isolated_rng(1, CPU)])
@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_restored(make_context, fails):
    before = states()
    try:
        with make_context():
            draws()
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert states() == before


def test_contexts_can_be_nested():
    with seeded_rng(1):
        expected = draws()
    with seeded_rng(1):
        with seeded_rng(2):
            draws()
        assert draws() == expected


def test_same_arguments_give_same_seed():
    assert derived_seed(3, "fit", 2) == derived_seed(3, "fit", 2)


def test_seed_purpose_and_numbers_change_derived_seed():
    seeds = [
        derived_seed(seed, purpose, *numbers)
        for seed, purpose, numbers in itertools.product((0, 1, 2), ("folds", "fit", "split"), ((), (0,), (1,), (0, 1)))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_two_purposes_draw_different_numbers():
    folds, fit = (torch.randperm(1000, generator=derived_generator(0, name)) for name in ("folds", "fit"))
    assert int((folds == fit).sum()) < 20


DRAWS = {
    "python": random.random,
    "python, normal": lambda: random.gauss(0, 1),
    "python, seeded": lambda: random.seed(5),
    "numpy": np.random.rand,
    "numpy, 624 words": lambda: np.random.bytes(4 * 624),  # noqa: NPY002
    "numpy, normal": np.random.randn,
    "numpy, seeded": lambda: np.random.seed(5),  # noqa: NPY002
    "torch": lambda: torch.rand(()),
    "torch, seeded": lambda: torch.manual_seed(5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_draw_is_noticed(name):
    with seeded_rng(1, 2) as drew:
        assert not drew()
        DRAWS[name]()
        assert drew()


def test_looking_for_draws_changes_no_later_one():
    with seeded_rng(1, 2):
        expected = draws()
    with seeded_rng(1, 2) as drew:
        assert not drew()
        assert draws() == expected
        assert drew()
        assert draws() == expected
