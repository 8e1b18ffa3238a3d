"""The likelihood scorer finds mislabeled digits without trusted data."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import LikelihoodScorer, Sanitizer


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.seen = 0

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen += len(labels)
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.slow
def test_removes_mislabeled_digits(world, digits):
    images, truth = digits[:900]
    generator = torch.Generator().manual_seed(0)
    wrong = torch.randperm(len(truth), generator=generator)[:45]
    labels = truth.clone()
    labels[wrong] = (truth[wrong] + torch.randint(1, 10, (45,), generator=generator)) % 10
    flipped = labels != truth

    sanitizer, module = Sanitizer(LikelihoodScorer()), Classifier()
    world.trainer(sanitizer).fit(module, DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True))

    verdict = sanitizer.verdict
    assert verdict.evidence.present
    assert verdict.evidence.low < 0.05 < verdict.evidence.high
    assert (~verdict.keep)[flipped].double().mean() > 0.85
    assert (~verdict.keep)[~flipped].double().mean() < 0.015
    assert (verdict.suggested_labels == truth)[flipped].double().mean() > 0.85
    assert module.seen == int(verdict.keep.sum())
