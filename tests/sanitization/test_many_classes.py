"""Decisions about many classes, some of them rare, without trusted data."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.linear_probe import LinearProbeScorer
from lightning_poison.scorers.mahalanobis import MahalanobisScorer

RUNTIME = LocalRuntime(precision="32", threads=1, quiet=True)
RARE = [1, 2, 3, 5, 20]
SIZES = np.geomspace(300, 3, 45).round().astype(int).tolist() + RARE


def mahalanobis():
    return MahalanobisScorer(FeatureModel("auto"), score="posterior")


def vectors(truth, classes, *, size=32, distance=6.0, seed=0):
    """Return vectors of classes whose means are about `distance` apart, with a standard deviation of 1."""
    generator = torch.Generator().manual_seed(seed)
    means = distance / (2 * size) ** 0.5 * torch.randn(classes, size, generator=generator)
    return torch.randn(len(truth), size, generator=generator) + means[truth]


def imbalanced(wrong):
    """Return vectors of 50 classes, of which the largest is 100 times as large as others, their classes and labels.

    So many samples of the largest class are labeled as the second.
    """
    truth = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    labels = truth.clone()
    labels[:wrong] = 1
    return vectors(truth, len(SIZES)), truth, labels


@pytest.mark.parametrize(
    "build", [mahalanobis, LinearProbeScorer, pytest.param(ConfidenceScorer, marks=pytest.mark.slow)]
)
def test_rare_classes_are_named_and_the_others_decided(build):
    inputs, truth, labels = imbalanced(30)
    verdict = sanitize(TensorDataset(inputs, labels), build(), runtime=RUNTIME)
    removed, wrong = ~verdict.keep, labels != truth
    assert float(removed[wrong].double().mean()) >= 0.75
    assert float(removed[~wrong].double().mean()) < 0.01
    few = torch.tensor([number for number, size in enumerate(SIZES) if size <= 30])
    assert float(removed[torch.isin(truth, few)].double().mean()) < 0.05
    assert all((verdict.keep & (labels == number)).any() for number in range(50))
    assert not verdict.judged[labels == 45].any()
    assert any("class 45 " in note or "classes 45, 46 " in note for note in verdict.notes)
    assert verdict.judged[~torch.isin(labels, torch.tensor([45, 46]))].all()
    assert verdict.evidence.low < 30 / len(labels) < verdict.evidence.high


def test_hundreds_of_classes_that_are_too_small_do_not_flood_the_summary():
    truth = torch.cat([torch.arange(600) % 2, torch.arange(2, 302)])
    inputs = vectors(truth, 302)
    verdict = sanitize(TensorDataset(inputs, truth), mahalanobis(), runtime=RUNTIME)
    assert verdict.notes[0].startswith(
        "The 300 samples of classes 2, 3, 4, 5, 6, 7, 8, 9 and 292 more are kept and not judged: too few of a class."
    )
    assert len(str(verdict)) < 1500
    assert int(verdict.judged.sum()) == 600


@pytest.mark.slow
@pytest.mark.parametrize(("build", "caught"), [(mahalanobis, 0.95), (LinearProbeScorer, 0.75)])
def test_a_thousand_classes(build, caught):
    """20 samples of each of 1,000 classes, 5 % random wrong labels."""
    truth = torch.arange(20_000) % 1000
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(20_000, generator=generator) < 0.05
    labels = torch.where(wrong, torch.randint(1000, (20_000,), generator=generator), truth)
    wrong = labels != truth
    verdict = sanitize(TensorDataset(vectors(truth, 1000, size=64, distance=8.0), labels), build(), runtime=RUNTIME)
    assert verdict.evidence.present
    assert float((~verdict.keep[wrong]).double().mean()) > caught
    assert float((~verdict.keep[~wrong]).double().mean()) < 0.01
    assert verdict.evidence.low < float(wrong.double().mean()) < verdict.evidence.high
