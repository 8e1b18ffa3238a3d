"""Derived seeds: repeatable, and apart for every purpose, number and seed."""

import itertools

import torch

from lightning_poison.randomness import derived_generator, derived_seed


def test_the_same_words_give_the_same_seed():
    assert derived_seed(3, "fit", 2) == derived_seed(3, "fit", 2)


def test_seed_purpose_and_numbers_all_tell_seeds_apart():
    seeds = [
        derived_seed(seed, purpose, *numbers)
        for seed, purpose, numbers in itertools.product((0, 1, 2), ("folds", "fit", "split"), ((), (0,), (1,), (0, 1)))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_two_purposes_draw_different_numbers():
    folds, fit = (torch.randperm(1000, generator=derived_generator(0, name)) for name in ("folds", "fit"))
    assert int((folds == fit).sum()) < 20
