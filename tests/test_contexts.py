import copy

import pytest
import torch
from torch import nn

from lightning_poison.contexts import evaluating, frozen, full_precision, reproducible_kernels, untracked

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Raised on purpose inside a context manager."""


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_restores_training_flags(fails):
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
def test_frozen_restores_requires_grad_flags(fails):
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
def test_reproducible_kernels_restores_settings(fails):
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


def test_untracked_batch_norm_keeps_running_statistics():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with untracked(model):
        found = model(inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, model(inputs))
    assert model[1].num_batches_tracked == 1


def test_full_precision_disables_autocast_and_restores_it():
    rows = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(rows.device):
            assert (rows @ rows).dtype == torch.float32
        assert (rows @ rows).dtype == torch.bfloat16


def test_full_precision_ignores_device_without_autocast():
    device = torch.device("meta")
    with pytest.raises(RuntimeError), torch.autocast(device.type, enabled=False):
        pass
    with full_precision(device) as nothing:
        assert nothing is None
