"""Adversarial training as a strategy: the callback of the same name, given to the Trainer."""

import pickle

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.adversaries import PGD
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.strategies import NAMED_PGD, adversarial

PLAIN = PGD(0.1, steps=2, random_start=False)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.steps = 0

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    images = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(32) % 3), batch_size=8)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        **quiet, enable_checkpointing=False, accelerator="cpu", max_epochs=1, log_every_n_steps=2, **options
    )


def test_the_weights_are_those_of_the_callback():
    model, running = Module(), trainer(strategy=adversarial(SingleDeviceStrategy, PLAIN, device="cpu"))
    other = Module()
    running.fit(model, loader())
    trainer(callbacks=[AdversarialTraining(PLAIN)]).fit(other, loader())
    assert torch.equal(model.net[1].weight, other.net[1].weight)
    assert not any(isinstance(callback, AdversarialTraining) for callback in running.callbacks)
    running.fit_loop.max_epochs = 2
    running.fit(model, loader())
    assert model.steps == 8
    assert "training_step" not in model.__dict__


def test_settings_of_its_own():
    training = AdversarialTraining(PLAIN, warm_up_epochs=1)
    strategy = adversarial(DDPStrategy, PGD(0.3), training=training, find_unused_parameters=True)
    assert strategy.adversarial_training is training
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}


def test_it_survives_a_pickle_and_stays_what_it_is():
    strategy = adversarial(DDPStrategy, PGD(0.2, steps=3), start_method="spawn")
    again = pickle.loads(pickle.dumps(strategy))  # noqa: S301 (our own)
    assert type(again) is type(strategy)
    assert isinstance(again, DDPStrategy)
    assert again.adversarial_training.settings.adversary == PGD(0.2, steps=3)
    assert again._start_method == "spawn"


@pytest.mark.parametrize("namespace", [pl, pytorch_lightning])
@pytest.mark.parametrize("name", ["pgd_ddp", "pgd_ddp_spawn"])
def test_names_in_both_namespaces(namespace, name):
    running = namespace.Trainer(strategy=name, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert isinstance(running.strategy, namespace.strategies.DDPStrategy)
    assert running.strategy.adversarial_training.settings.adversary == NAMED_PGD


def test_everything_is_taken_away_after_an_error():
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError("stop")

    model, running = Failing(), trainer(strategy=adversarial(SingleDeviceStrategy, PLAIN, device="cpu"))
    with pytest.raises(ArithmeticError, match="stop"):
        running.fit(model, loader())
    assert "training_step" not in model.__dict__
    assert not any(isinstance(callback, AdversarialTraining) for callback in running.callbacks)


def test_an_instance_is_no_class():
    with pytest.raises(TypeError, match="a class such as `DDPStrategy`"):
        adversarial(DDPStrategy(), PLAIN)


def test_the_device_is_where_the_module_is():
    model = Module()
    trainer(strategy=adversarial(SingleDeviceStrategy, PLAIN, device="cpu")).fit(model, loader())
    assert model.device == torch.device("cpu")
