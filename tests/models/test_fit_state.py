import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.adversarial.loss import AdversarialLoss
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.models import fit_state
from lightning_poison.models.fitting import FitSettings, fit_module
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.units import FileUnits

SETTINGS = FitSettings(epochs=3, batch_size=16, min_steps=0, shift=1)


class InterruptedFitError(Exception):
    pass


class StoppingUnits(FileUnits):
    """Interrupts the run after a number of saves."""

    saves = 0
    limit = 10**9

    def save(self, name, tensors, meta):
        super().save(name, tensors, meta)
        StoppingUnits.saves += 1
        if StoppingUnits.saves >= StoppingUnits.limit:
            raise InterruptedFitError


@pytest.fixture
def always_due(monkeypatch):
    monkeypatch.setattr(fit_state.SaveTimer, "is_due", lambda self: True)


def network():
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(180, 2))


def cross_entropy(module, inputs, labels):
    return nn.functional.cross_entropy(module(inputs), labels)


def adversarial():
    return AdversarialLoss(FGSM(0.1), warm_up=10, generator=torch.Generator().manual_seed(3))


def fit(units=None, *, loss=cross_entropy, seed=0):
    images = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(70) % 2)
    runtime = LocalRuntime(precision="32", threads=1)
    if units is not None:
        runtime.units = units
    torch.manual_seed(7)  # of the dropout
    generator = torch.Generator().manual_seed(seed)
    return fit_module(network(), data, loss, settings=SETTINGS, runtime=runtime, generator=generator).state_dict()


@pytest.mark.parametrize("build_loss", [lambda: cross_entropy, adversarial], ids=["plain", "adversarial"])
@pytest.mark.parametrize("step", [1, 4, 5, 11])
def test_interrupted_fit_continues_bit_for_bit(tmp_path, monkeypatch, always_due, build_loss, step):
    whole = fit(loss=build_loss())
    monkeypatch.setattr(StoppingUnits, "limit", step)
    monkeypatch.setattr(StoppingUnits, "saves", 0)
    with pytest.raises(InterruptedFitError):
        fit(StoppingUnits(tmp_path, SampleDigests(0)), loss=build_loss())
    continued = fit(FileUnits(tmp_path, SampleDigests(0)), loss=build_loss())
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_interrupted_fit_does_only_the_remaining_steps(tmp_path, monkeypatch, always_due):
    monkeypatch.setattr(StoppingUnits, "limit", 5)
    monkeypatch.setattr(StoppingUnits, "saves", 0)
    with pytest.raises(InterruptedFitError):
        fit(StoppingUnits(tmp_path, SampleDigests(0)))
    steps = []

    def counted(module, inputs, labels):
        steps.append(len(inputs))
        return cross_entropy(module, inputs, labels)

    fit(FileUnits(tmp_path, SampleDigests(0)), loss=counted)
    assert len(steps) == 12 - 5


def test_finished_fit_is_not_repeated(tmp_path, always_due):
    units = FileUnits(tmp_path, SampleDigests(0))
    first = fit(units)

    def fail(module, inputs, labels):
        raise AssertionError

    again = fit(units, loss=fail)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_other_fit_does_not_continue(tmp_path, always_due):
    units = FileUnits(tmp_path, SampleDigests(0))
    fit(units, seed=1)
    plain, other = fit(seed=2), fit(units, seed=2)
    assert all(torch.equal(plain[name], other[name]) for name in plain)
