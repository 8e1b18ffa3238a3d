"""The warning about a head that learns nothing, and its false alarms."""

import re
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.lgm_step import LearningWatch
from lightning_poison.callbacks.lgm_injector import LGMInjector
from lightning_poison.mixins import LGMMixin
from lightning_poison.models.lgm_head import LGMHead

LEARNED_NOTHING = r"Expected the LGM head `.+` to have learned something after 40 steps, but its training accuracy is"


class Injected(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.fc(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Mixed(LGMMixin, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Identity()
        self.add_lgm_head("net", 4, num_classes=3)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OwnLoop(Mixed):
    """The loss of the mixin in a step with manual optimization."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.lgm_loss(*batch).total)
        optimizer.step()


def points(separation, *, count=320, share=1 / 3):
    """Return samples of three classes; class 0 has the given share."""
    generator = torch.Generator().manual_seed(0)
    odds = torch.tensor([share, (1 - share) / 2, (1 - share) / 2])
    labels = torch.multinomial(odds, count, replacement=True, generator=generator)
    return TensorDataset(torch.randn(count, 4, generator=generator) + separation * torch.eye(4)[labels], labels)


def fit(module_class, dataset, *, epochs=1):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[LGMInjector("fc")] if module_class is Injected else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module_class(), DataLoader(dataset, batch_size=8))


@pytest.mark.slow
@pytest.mark.parametrize("module_class", [Injected, Mixed, OwnLoop])
@pytest.mark.parametrize("share", [1 / 3, 0.9])
def test_warns_once_of_a_head_that_learns_nothing(module_class, share):
    dataset = points(0.0, share=share)
    dataset.tensors[0].zero_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module_class, dataset, epochs=3)
    (message,) = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert re.match(LEARNED_NOTHING, message)
    assert "\nLower the learning rate" in message


@pytest.mark.parametrize("module_class", [Injected, Mixed, OwnLoop])
def test_says_nothing_of_a_head_that_learns(module_class):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit(module_class, points(4.0))


def test_says_nothing_after_a_few_steps():
    fit(Mixed, TensorDataset(torch.zeros(80, 4), torch.arange(80) % 3))


def watched(head, batches):
    watch = LearningWatch("fc")
    for features, labels in batches:
        watch.update(head, features, labels)
    return watch


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_chance_is_the_share_of_the_most_frequent_label(classes):
    generator = torch.Generator().manual_seed(0)
    head = LGMHead(4, classes, generator=generator)

    def batches(predictable):
        for _ in range(200):
            labels = torch.randint(classes, (64,), generator=generator)
            features = torch.randn(64, 4, generator=generator)
            known = torch.rand(64, generator=generator) < predictable
            yield torch.where(known[:, None], head.means[labels].detach(), features), labels

    assert watched(head, batches(0.0)).learned_nothing()
    assert not watched(head, batches(0.5)).learned_nothing()


def test_a_slow_start_with_many_classes_is_no_alarm():
    """An accuracy that is low, but above chance by more than its error."""
    generator = torch.Generator().manual_seed(0)
    head = LGMHead(16, 200, normalize=False, generator=generator)

    def batches():
        for _ in range(100):
            labels = torch.randint(200, (64,), generator=generator)
            known = torch.rand(64, generator=generator) < 0.05
            yield torch.where(known[:, None], head.means[labels].detach(), torch.zeros(16)), labels

    assert not watched(head, batches()).learned_nothing()


def test_features_that_are_not_finite_are_an_alarm():
    labels = torch.arange(30) % 3
    assert watched(LGMHead(4, 3), [(torch.full((30, 4), torch.nan), labels)] * 30).learned_nothing()
