"""GPU results equal CPU results up to rounding. The same tests run on the CPU."""

from functools import partial
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.pgd import perturb_against
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.lgm_head import LGMHead
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.activation_clustering import ActivationClusteringScorer
from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.discriminator.scorer import DiscriminatorScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.mahalanobis import MahalanobisScorer
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer

pytestmark = pytest.mark.slow

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FEW = "ignore:The false-positive rate is calibrated on:UserWarning"


def quick():
    return LikelihoodScorer(fit_settings=FitSettings(epochs=5, batch_size=32, min_steps=60))


@pytest.mark.parametrize("device", DEVICES)
def test_head_loss_matches_cpu(device):
    head = LGMHead(8, 3, covariance="diagonal", generator=torch.Generator().manual_seed(0))
    features, labels = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    expected = head.loss(features, labels).total
    found = head.to(device).loss(features.to(device), labels.to(device)).total
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_perturbation_stays_on_device_and_in_ball(device):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(device)
    images, labels = torch.rand(6, 1, 8, 8, device=device), torch.arange(6, device=device) % 3
    generator = torch.Generator().manual_seed(0)
    found = perturb_against(network, images, labels, epsilon=0.1, steps=3, generator=generator)
    assert found.device == images.device
    assert float((found - images).abs().max()) <= 0.1 + 1e-6
    assert network[1].weight.grad is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings(FEW)
def test_decision_is_deterministic_and_close_to_cpu(device, blobs):
    data, trusted = blobs(600, flipped=30), blobs(600, seed=1)
    one, two = (
        sanitize(data, quick(), trusted=trusted, runtime=LocalRuntime(device, precision="32")) for _ in range(2)
    )
    assert torch.equal(one.keep, two.keep)
    assert one.scores.device.type == "cpu"
    own = sanitize(data, quick(), trusted=trusted, runtime=LocalRuntime(precision="32"))
    assert float((one.keep == own.keep).double().mean()) > 0.98


QUICK = FitSettings(epochs=2, batch_size=32, min_steps=60)
FILTERS = {
    "discriminator": lambda: DiscriminatorScorer(fit_settings=QUICK),
    "confidence": lambda: ConfidenceScorer(fit_settings=QUICK),
    "mahalanobis": lambda: MahalanobisScorer(FeatureModel(feature_size=8, fit_settings=QUICK)),
    "characteristic vectors": lambda: CharacteristicVectorScorer(FeatureModel(fit_settings=QUICK)),
    "k-NN": lambda: DeepKNNScorer(FeatureModel(feature_size=8, fit_settings=QUICK), k=10),
    "spectral": lambda: SpectralSignatureScorer(FeatureModel(feature_size=8, fit_settings=QUICK)),
    "clustering": lambda: ActivationClusteringScorer(FeatureModel(feature_size=8, fit_settings=QUICK)),
    "robust features": lambda: RobustFeatureScorer(FeatureModel(feature_size=8, fit_settings=QUICK)),
    "combination": lambda: CombinedScorer([FILTERS["confidence"](), FILTERS["k-NN"]()]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.filterwarnings(FEW)
def test_filters_agree_with_cpu(device, name, blobs):
    data, trusted = blobs(300, flipped=15), blobs(600, seed=1)
    runtime = LocalRuntime(device, precision="32")
    verdict = sanitize(data, FILTERS[name](), trusted=trusted, max_removed=1, runtime=runtime)
    assert verdict.scores.device.type == "cpu"
    assert all(vote.device.type == "cpu" for vote in verdict.votes.values())
    own = sanitize(data, FILTERS[name](), trusted=trusted, max_removed=1, runtime=LocalRuntime(precision="32"))
    assert float((verdict.keep == own.keep).double().mean()) > 0.95


@pytest.mark.parametrize("device", DEVICES)
def test_groups_are_found_without_trusted_data(device, blobs):
    """Part of class 0 is far away but not poison; the group tests still run on the device."""
    data = blobs(300)
    far = (data.tensors[1] == 0).nonzero().flatten()[:40]
    data.tensors[0][far, -1] += 40
    backbone = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    scorer = RobustFeatureScorer(FeatureModel(backbone=backbone, feature_size=8, fit_settings=QUICK))
    verdict = sanitize(data, scorer, runtime=LocalRuntime(device, precision="32"))
    assert verdict.calibration == "group tests"
    assert [group.label for group in verdict.evidence.groups if group.size == 40] == [0]


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watched(LikelihoodScorer):
    """Records the device of its inputs."""

    devices: ClassVar = set()

    def score_labels(self, inputs):
        self.devices.add(inputs.device.type)
        return super().score_labels(inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_sanitizer_uses_device_of_trainer(device, blobs, tmp_path, single_thread):
    Watched.devices.clear()
    sanitizer = Sanitizer(Watched(fit_settings=FitSettings(epochs=5, batch_size=32, min_steps=60)))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator=device, devices=1, max_epochs=1, callbacks=[sanitizer], default_root_dir=tmp_path, **quiet
    )
    trainer.fit(Plain(), DataLoader(blobs(300, flipped=15), batch_size=32, shuffle=True))
    assert Watched.devices == {device}
    assert not sanitizer.verdict.keep[-15:].all()


def unsharded():
    return "auto"


def fully_sharded():
    return FSDPStrategy()


def deepspeed(stage):
    pytest.importorskip("deepspeed")
    return DeepSpeedStrategy(stage=stage)


SHARDING = [pytest.param("cpu", unsharded, id="cpu")]
SHARDING += [pytest.param("gpu", fully_sharded, id="fsdp", marks=pytest.mark.gpu)]
SHARDING += [
    pytest.param("gpu", partial(deepspeed, stage), id=f"deepspeed {stage}", marks=pytest.mark.gpu)
    for stage in (1, 2, 3)
]


@pytest.mark.parametrize(("accelerator", "make_strategy"), SHARDING)
def test_mask_does_not_depend_on_the_strategy(blobs, tmp_path, accelerator, make_strategy):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.trainer.model.parameters(), lr=1e-3)

    data, sanitizer = blobs(300, flipped=15), Sanitizer(quick(), report=False)
    trainer = Trainer(
        accelerator=accelerator, devices=1, strategy=make_strategy(), max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        callbacks=[sanitizer], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(data, batch_size=32))
    alone = sanitize(data, quick(), runtime=LocalRuntime("cuda" if accelerator == "gpu" else "cpu"))
    assert torch.equal(sanitizer.verdict.keep, alone.keep)
    assert torch.equal(sanitizer.verdict.scores, alone.scores)


RUNS = [("cpu", "32-true"), ("cpu", "bf16-mixed")]
RUNS += [pytest.param("gpu", precision, marks=pytest.mark.gpu) for precision in ("16-mixed", "bf16-mixed", "32-true")]


@pytest.mark.parametrize(("accelerator", "precision"), RUNS)
@pytest.mark.parametrize("recipe", [Madry(), TRADES(), Free()], ids=repr)
def test_adversarial_training(digits, accelerator, precision, recipe):
    """Under float16 a scaler multiplies the loss, and small gradients of the inputs would be 0 without a scale."""

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
            self.seen = []

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            self.seen.append(batch[0].detach().float().cpu())
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=3e-3)

    model = Module()
    trainer = Trainer(
        accelerator=accelerator, devices=1, precision=precision, max_epochs=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10,
        callbacks=[AdversarialTraining(PGD(0.1, steps=3), recipe=recipe)],
    )  # fmt: skip
    trainer.fit(model, DataLoader(digits, batch_size=64))
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert figures["train/clean_accuracy"] > 0.6
    assert figures["train/robust_loss"] > figures["train/clean_loss"]
    if isinstance(recipe, Madry):
        away = (torch.cat(model.seen[: len(model.seen) // 4]) - digits.tensors[0]).abs()
        assert float((away > 0.09).double().mean()) > 0.3
        assert float(away.max()) < 0.102


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_scaled_training_matches_manual_loop(digits, device):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, net = Module(), Module().net.to(device)
    scalers = [torch.amp.GradScaler(device, init_scale=2.0**8) for _ in range(2)]
    loader = DataLoader(Subset(digits, range(320)), batch_size=32)
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1, logger=False, log_every_n_steps=2,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        plugins=[MixedPrecision("16-mixed", device, scaler=scalers[0])],
        callbacks=[AdversarialTraining(PGD(0.1, 0.05, steps=3, random_start=False))],
    )  # fmt: skip
    trainer.fit(model, loader)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for images, labels in ((each.to(device) for each in batch) for batch in loader):
        with torch.autocast(device, torch.float16):
            changed = images
            for _ in range(3):
                leaf = changed.detach().requires_grad_()
                losses = F.cross_entropy(net.eval()(leaf).float(), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(2**14 * losses, leaf)
                changed = (changed + 0.05 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
            loss = F.cross_entropy(net.train()(changed), labels)
        scalers[1].scale(loss).backward()
        scalers[1].step(optimizer)
        scalers[1].update()
        optimizer.zero_grad()
    for (name, found), expected in zip(model.net.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(found.to(device), expected, rtol=1e-3, atol=1e-3, msg=name)
