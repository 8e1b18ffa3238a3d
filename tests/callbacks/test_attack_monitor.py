import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import AttackMonitor, Poison, SampleSpec
from lightning_poison.attacks.objectives import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.errors import PluginError


def classes(count=60, seed=0):
    """Return points around three centers."""
    labels = torch.arange(count) % 3
    noise = 0.1 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(torch.eye(3)[labels] + noise, labels)


class Steps:
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.losses = []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Module(Steps, pl.LightningModule):
    pass


class Validated(Module):
    def validation_step(self, batch, batch_idx):
        pass


class OldModule(Steps, pytorch_lightning.LightningModule):
    pass


def poisoned():
    """Return points of which class 1 is labeled 2, and the poison."""
    data = classes()
    indices = (data.tensors[1] == 1).nonzero()[:, 0]
    poison = Poison(indices, torch.full_like(indices, 2), ProtectedClassObjective(1, target_class=2), attack="flip")
    labels = data.tensors[1].clone()
    labels[indices] = 2
    return TensorDataset(data.tensors[0], labels), poison


def trainer(*callbacks, package=pl, **settings):
    defaults = {"max_epochs": 8, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return package.Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **defaults, **settings})


@pytest.mark.parametrize(("package", "module"), [(pl, Module), (pytorch_lightning, OldModule)])
def test_success_of_an_attack_rises_and_reaches_the_loggers(tmp_path, package, module):
    data, poison = poisoned()
    logger = package.loggers.CSVLogger(tmp_path, name="", version="")
    run = trainer(AttackMonitor(poison, classes(30, seed=1)), package=package, logger=logger)
    run.fit(module(), DataLoader(data, batch_size=20, shuffle=True))
    logged = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    values = [float(row[logged[0].index("attack_success/flip")]) for row in logged[1:]]
    assert len(values) == 8
    assert values[-1] == float(run.callback_metrics["attack_success/flip"]) >= 0.9
    assert float(run.callback_metrics["clean_accuracy/flip"]) == pytest.approx(2 / 3, abs=0.07)


def test_training_is_the_same_with_and_without_it():
    losses = []
    for callbacks in ([], [AttackMonitor(poisoned()[1], classes(30, seed=1))]):
        model = Module()
        pl.seed_everything(1, verbose=False)
        run = trainer(*callbacks, max_epochs=3)
        run.fit(model, DataLoader(poisoned()[0], batch_size=20, shuffle=True))
        losses.append(model.losses)
        assert all(part.training for part in model.net)
    assert losses[0] == losses[1]


def test_every_n_epochs(tmp_path):
    data, poison = poisoned()
    run = trainer(AttackMonitor(poison, classes(), every_n_epochs=3), logger=CSVLogger(tmp_path, name="", version=""))
    run.fit(Module(), DataLoader(data, batch_size=20))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_log_it_too(stage):
    run = trainer(AttackMonitor(poisoned()[1], classes(), name="mine"))
    getattr(run, stage)(Validated(), DataLoader(classes(), batch_size=20), verbose=False)
    assert set(run.callback_metrics) == {"attack_success/mine", "clean_accuracy/mine"}


def test_validation_during_training_adds_nothing():
    monitor = AttackMonitor(poisoned()[1], classes())
    calls = []
    monitor.evaluate = lambda module: calls.append(1) or {"a": 0.0}
    loader = DataLoader(classes(), batch_size=20)
    trainer(monitor, max_epochs=2).fit(Validated(), loader, loader)
    assert len(calls) == 2


def test_poison_is_loaded_from_its_path(tmp_path):
    poison = poisoned()[1]
    poison.save(tmp_path / "poison.safetensors")
    assert AttackMonitor(tmp_path / "poison.safetensors", classes()).evaluate(nn.Identity()) == {
        "attack_success/flip": 0.0,
        "clean_accuracy/flip": 1.0,
    }


def test_own_prediction_and_structure_of_samples():
    test = [{"x": image, "y": int(label), "id": number} for number, (image, label) in enumerate(classes())]
    spec = SampleSpec(inputs="x", labels="y")

    class Objective(ProtectedClassObjective):
        def evaluation_set(self, data):
            return [(each["x"], each["y"], 2) for each in data if each["y"] == 1]

    def predict(module, inputs):
        return torch.full((len(inputs),), 2)

    monitor = AttackMonitor(Objective(1), test, predict=predict, sample=spec, batch_size=7, name="all")
    found = monitor.evaluate(nn.Identity())
    assert found["attack_success/all"] == 1
    assert found["clean_accuracy/all"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AttackMonitor(3, classes()), TypeError, "poison, its path, or its objective"),
        (lambda: AttackMonitor("nothing.safetensors", classes()), FileNotFoundError, "nothing.safetensors"),
        (lambda: AttackMonitor(ProtectedClassObjective(7), classes()), ValueError, "samples that the attack targets"),
        (lambda: AttackMonitor(AvailabilityObjective(), classes(), every_n_epochs=0), ValueError, "every_n_epochs"),
        (lambda: AttackMonitor(AvailabilityObjective(), classes(), name=3), TypeError, "name"),
    ],
)
def test_refuses_what_it_cannot_evaluate(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_names_the_way_out_if_the_module_returns_something_else():
    monitor = AttackMonitor(AvailabilityObjective(), classes())
    with pytest.raises(ValueError, match=r"logits \(60, C\) or labels \(60,\), but got [\s\S]*Pass `predict=`"):
        monitor.evaluate(nn.Flatten(0))


def test_names_the_attack_whose_objective_fails():
    class Broken(AvailabilityObjective):
        def success(self, *args, **kwargs):
            raise KeyError("nothing")

    with pytest.raises(PluginError, match="the objective of the attack `Broken`"):
        AttackMonitor(Broken(), classes()).evaluate(nn.Identity())
