import pytest
import torch

from lightning_poison.statistics import label_suspicion as module
from lightning_poison.statistics import row_blocks
from lightning_poison.statistics.label_mixture import find_disagreements, fit_mixture
from lightning_poison.statistics.label_suspicion import label_suspicion


def suspicion_of(label_scores, labels, counts=None):
    found = find_disagreements(label_scores, labels)
    return label_suspicion(label_scores, labels, found, fit_mixture(found).counts if counts is None else counts)


def predictions(seed=0, count=600, classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    logits = 3 * torch.eye(classes)[labels] + torch.randn(count, classes, generator=generator)
    return -logits.double().log_softmax(1), labels


def test_two_classes_have_the_log_odds_of_the_other_class():
    """Two classes that are predicted equally often, with the same rate of wrong labels in both directions."""
    margins = torch.linspace(0.5, 2.5, 41).double()  # median 1.5: not scaled
    label_scores = torch.cat([torch.stack([0 * margins, margins], 1), torch.stack([margins, 0 * margins], 1)])
    labels = torch.cat([torch.zeros(41), torch.ones(41)]).long()
    found = suspicion_of(label_scores, labels)
    assert found.tolist() == pytest.approx((-torch.cat([margins, margins])).tolist())
    flipped = labels.clone()
    flipped[20] = 1
    assert float(suspicion_of(label_scores, flipped)[20]) == pytest.approx(1.5, abs=0.1)


def test_labels_of_a_pair_with_many_wrong_labels_are_more_suspicious():
    label_scores, labels = predictions()
    labels = labels.clone()
    labels[:150:3] = 1  # 50 of class 0
    labels[1:10:3] = 2
    found = find_disagreements(label_scores, labels)
    mixture = fit_mixture(found)
    by_pair = label_suspicion(label_scores, labels, found, mixture.counts)
    alike = label_suspicion(label_scores, labels, found, 0 * mixture.counts)
    difference = by_pair - alike
    wrong, rest = torch.arange(0, 150, 3), (labels == 2).nonzero().flatten()
    assert float(difference[wrong].median()) > 0.5
    assert float(difference[rest].median()) < 0


def test_without_wrong_labels_all_pairs_count_alike():
    label_scores, labels = predictions(1)
    found = find_disagreements(label_scores, labels)
    suspicion = label_suspicion(label_scores, labels, found, torch.zeros(len(found.labeled)).double())
    margin = (label_scores.scatter(1, labels[:, None], torch.inf).min(1).values - label_scores[range(600), labels])[
        label_scores.argmin(1) == labels
    ].median()
    p = (-label_scores * 1.5 / margin).softmax(1)
    p = p / p.mean(0)
    own = p.gather(1, labels[:, None])[:, 0]
    assert suspicion.tolist() == pytest.approx(((p.sum(1) - own) / own).log().tolist())


def test_unit_and_offset_of_scores_do_not_matter():
    label_scores, labels = predictions(2)
    reference = suspicion_of(label_scores, labels)
    offset = torch.randn(600, 1, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(suspicion_of(50 * label_scores + offset, labels), reference)


def test_finite_if_probabilities_underflow():
    label_scores, labels = predictions(3)
    label_scores[0] = torch.tensor([1e6, 0.0, 1e6])
    assert suspicion_of(label_scores, labels).isfinite().all()


def test_constant_scores_are_finite():
    labels = torch.arange(6) % 2
    assert suspicion_of(torch.zeros(6, 2).double(), labels).isfinite().all()


def many_classes(seed=4):
    """40 samples of each of 12 classes, every tenth of which carries another label."""
    label_scores, labels = predictions(seed, count=480, classes=12)
    wrong = torch.arange(480) % 10 == 0
    return label_scores, torch.where(wrong, (labels + 1 + torch.arange(480) % 11) % 12, labels)


def test_agrees_with_bayes_rule_written_out():
    label_scores, labels = many_classes()
    found = find_disagreements(label_scores, labels)
    counts = fit_mixture(found).counts
    own, predicted = label_scores.gather(1, labels[:, None])[:, 0], label_scores.argmin(1)
    other = label_scores.scatter(1, labels[:, None], torch.inf).amin(1)
    margin = (other - own)[predicted == labels].median()
    p = (-1.5 / margin * label_scores).softmax(1)
    p = p / p.mean(0)
    even = torch.bincount(predicted, minlength=12).double()[:, None] * torch.bincount(labels, minlength=12)
    even = even.fill_diagonal_(0) / even.sum() * counts.sum()
    estimated = torch.zeros(12, 12).double()
    estimated[found.predicted, found.labeled] = counts
    rates = ((estimated + 10) / (even + 10)).fill_diagonal_(0)
    expected = ((p * rates.T[labels]).sum(1) / p.gather(1, labels[:, None])[:, 0]).log()
    assert torch.allclose(suspicion_of(label_scores, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_of_samples_and_of_labels_do_not_matter(monkeypatch, dtype):
    label_scores, labels = many_classes()
    reference = suspicion_of(label_scores, labels)
    monkeypatch.setattr(row_blocks, "AT_ONCE", 100)
    monkeypatch.setattr(module, "AT_ONCE", 100)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert torch.allclose(suspicion_of(label_scores.to(dtype), labels), reference, rtol=0, atol=tolerance)


def test_small_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 6
    label_scores = 100 * torch.rand(300, 6, generator=generator)  # exponents far below the least one
    label_scores[torch.arange(300), (labels + (torch.arange(300) < 30)) % 6] = 0
    whole = suspicion_of(label_scores, labels)
    monkeypatch.setattr(row_blocks, "_SMALLER", 2**22 // 40)
    assert torch.equal(suspicion_of(label_scores, labels), whole)
