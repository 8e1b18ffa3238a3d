"""How samples are kept and get to a device changes no bit of what is computed from them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.data import inference, kept_inputs, transfer
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.kept_inputs import KeptInputs
from lightning_poison.models import fitting
from lightning_poison.models.fitting import FitSettings, fit_module
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
QUICK = FitSettings(epochs=1, batch_size=32, min_steps=30)
SCORERS = {
    "likelihood": lambda: LikelihoodScorer(feature_size=8, fit_settings=QUICK),
    "spectral": lambda: SpectralSignatureScorer(FeatureModel(feature_size=8, fit_settings=QUICK)),
}


class Route:
    """How samples in memory get to a device, also if that is the CPU."""

    def __init__(self, monkeypatch):
        self.kept = []
        self._patch = monkeypatch

    def as_float(self):
        self._patch.setattr(kept_inputs, "SCALINGS", ())

    def to_device(self, *, once):
        """Gather blocks as for a GPU, from a copy of all samples or from copies of each block."""
        self._patch.setattr(transfer, "free_device_memory", lambda _: 2**40 if once else 0)
        for module in (fitting, inference):
            self._patch.setattr(module, "read_on_device", self._read)

    def _read(self, dataset, blocks, device, *, order=None, checked=iter, **how):
        assert isinstance(dataset, MemoryDataset)
        self.kept.append(dataset.stored)
        if device.type == "cuda":
            return transfer.read_on_device(dataset, blocks, device, order=order, checked=checked, **how)
        chosen = blocks if order is None else (blocks[number] for number in order)
        copy = transfer.copy_on_device(dataset.stored, device)
        return transfer.gathered(dataset, chosen, device, checked, copy=copy)


ROUTES = {
    "float": Route.as_float,
    "bytes": lambda _: None,
    "copied": lambda route: route.to_device(once=True),
    "sent": lambda route: route.to_device(once=False),
}


@pytest.fixture(scope="module")
def pictures(digits):
    """Digits as 8-bit images, in two halves."""
    images, labels = digits.tensors
    images = (images[:400] * 255).round() / 255
    return TensorDataset(images[:200], labels[:200]), TensorDataset(images[200:], labels[200:400])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on:UserWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCORERS)
def test_decision_does_not_depend_on_the_route(monkeypatch, pictures, name, device):
    data, trusted = pictures
    runtime, verdicts = LocalRuntime(device, threads=1, quiet=True), {}
    for each, choose in ROUTES.items():
        with monkeypatch.context() as patch:
            route = Route(patch)
            choose(route)
            verdicts[each] = sanitize(data, SCORERS[name](), trusted=trusted, max_removed=1, runtime=runtime)
        if each in ("copied", "sent"):
            assert {kept.scaling for kept in route.kept} == {kept_inputs.SCALINGS[0]}
            assert all((runtime.device in transfer._COPIES.get(kept, {})) == (each == "copied") for kept in route.kept)
    for verdict in verdicts.values():
        assert torch.equal(verdict.scores, verdicts["float"].scores)
        assert torch.equal(verdict.keep, verdicts["float"].keep)
        assert verdict.fingerprint == verdicts["float"].fingerprint


@pytest.mark.parametrize("device", DEVICES)
def test_weights_do_not_depend_on_the_route(monkeypatch, pictures, device):
    images, labels = pictures[0].tensors
    levels, (scaling,) = kept_inputs.levels_of(images)
    runtime, weights = LocalRuntime(device, threads=1, quiet=True), []
    for as_bytes, once in ((False, None), (False, True), (True, None), (True, True), (True, False)):
        stored = KeptInputs(levels, scaling) if as_bytes else KeptInputs(images)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
        with monkeypatch.context() as patch:
            if once is not None:
                Route(patch).to_device(once=once)
            data = MemoryDataset(stored, labels).subset(torch.arange(199, 49, -1))
            fit_module(network, data, cross_entropy, settings=QUICK, runtime=runtime)
        weights.append(torch.cat([each.detach().cpu().double().flatten() for each in network.state_dict().values()]))
    assert all(torch.equal(each, weights[0]) for each in weights)


def cross_entropy(module, inputs, labels):
    return F.cross_entropy(module(inputs).float(), labels)
