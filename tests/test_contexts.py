import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_poison.contexts import evaluating, frozen, reproducible_kernels, untracked
from lightning_poison.randomness import isolated_rng, seeded_rng

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Raised in a scope on purpose."""


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002, S311


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_restores_each_flag(fails):
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    net[1].eval()
    try:
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert [part.training for part in net.modules()] == [True, True, False]


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_each_flag(fails):
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    try:
        with frozen(net):
            assert not any(parameter.requires_grad for parameter in net.parameters())
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert net.weight.requires_grad
    assert not net.bias.requires_grad


@pytest.mark.parametrize("fails", [False, True])
def test_reproducible_kernels_restores(fails):
    cudnn = torch.backends.cudnn
    found = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark = True
    try:
        with reproducible_kernels(CPU, 1):
            assert (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic) == (1, False, True)
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic) == (found[0], True, found[2])
    cudnn.benchmark = found[1]


def test_a_seed_decides_all_three_sources():
    with seeded_rng(3, 4):
        first = draws()
    with seeded_rng(3, 4):
        assert draws() == first
    with seeded_rng(3, 5):
        other = draws()
    assert all(one != two for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("scope", [lambda: seeded_rng(1), lambda: isolated_rng(1, CPU)])
@pytest.mark.parametrize("fails", [False, True])
def test_random_states_come_back(scope, fails):
    found = states()
    try:
        with scope():
            draws()
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert states() == found


def test_scopes_nest():
    with seeded_rng(1):
        expected = draws()
    with seeded_rng(1):
        with seeded_rng(2):
            draws()
        assert draws() == expected


def test_untracked_batch_norm_normalizes_by_the_batch_and_remembers_nothing():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with untracked(model):
        found = model(inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, model(inputs))
    assert model[1].num_batches_tracked == 1
