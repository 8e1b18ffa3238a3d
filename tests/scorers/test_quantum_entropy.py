import pytest
import torch

from lightning_poison import sanitize
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.quantum_entropy import QuantumEntropyScorer


def features(count, size=16):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0))


def test_finds_few_samples_of_one_class_that_no_variance_shows():
    rows, labels = features(1000) * torch.linspace(1, 20, 16), torch.arange(1000) % 2
    rows[:48:2, 0] += 14
    scores = QuantumEntropyScorer().score_features(rows, labels)
    assert (scores > 0).nonzero().flatten().tolist() == list(range(0, 48, 2))


def test_normal_classes_have_no_suspects():
    scores = QuantumEntropyScorer().score_features(features(400), torch.arange(400) % 2)
    assert not bool((scores > 0).any())


@pytest.mark.parametrize(("name", "value"), [("alpha", -1), ("support", 1.0), ("max_components", 0)])
def test_refuses_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        QuantumEntropyScorer(**{name: value})


@pytest.mark.slow
def test_separates_a_backdoor(images_with_a_backdoor):
    data, poison = images_with_a_backdoor(torch.zeros_like)
    runtime = LocalRuntime(precision="32", threads=1, quiet=True)
    verdict = sanitize(data, QuantumEntropyScorer(), runtime=runtime, remove_without_evidence=True)
    (group,) = [each for each in verdict.evidence.groups if each.label == 0]
    assert group.size > 0.7 * len(poison)
    assert not group.is_poison  # in three classes, a gap must be wider for its effect to be evidence
    removed = ~verdict.keep & (verdict.labels == 0)
    assert float(removed[poison].double().mean()) > 0.7
    assert removed.sum() - removed[poison].sum() <= 5
