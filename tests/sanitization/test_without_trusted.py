import importlib

import pytest
import torch

from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.without_trusted import decide_by_wrong_label_null, log_p_by_labels
from lightning_poison.statistics.contamination import MAX_MISCLASSIFIED_SHARE, estimate_contamination

without_trusted = importlib.import_module("lightning_poison.sanitization.without_trusted")


def by_null(label_scores, labels, *, anyway=False):
    return decide_by_wrong_label_null(label_scores.double(), labels, DecisionSettings(remove_without_evidence=anyway))


def label_scores(wrong, count=3000, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % classes
    scores = 3 + torch.rand(count, classes, generator=generator, dtype=torch.float64)
    scores[torch.arange(count), truth] = 0
    labels = torch.where(torch.arange(count) < wrong, (truth + 1) % classes, truth)
    return scores, labels


@pytest.mark.parametrize("anyway", [False, True])
def test_removes_wrong_labels_with_evidence(anyway):
    scores, labels = label_scores(150)
    found = by_null(scores, labels, anyway=anyway)
    assert found.evidence.present
    assert found.evidence.contamination == pytest.approx(0.05, abs=0.005)
    assert (~found.keep).nonzero().flatten().tolist() == list(range(150))
    assert found.posterior_threshold == float(found.posterior[:150].min())
    assert found.thresholds.isinf().all()
    assert len(found.thresholds) == 3


def test_keeps_everything_without_evidence_by_default():
    scores, labels = label_scores(5)
    found = by_null(scores, labels)
    assert not found.evidence.present
    assert found.keep.all()
    assert found.posterior_threshold == 1
    forced = by_null(scores, labels, anyway=True)
    assert (~forced.keep).nonzero().flatten().tolist() == list(range(5))
    assert not forced.evidence.present


def test_keeps_clean_data():
    found = by_null(*label_scores(0))
    assert found.keep.all()
    assert found.evidence.contamination == 0


@pytest.mark.parametrize("anyway", [False, True])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("scores", ["noise", "constant"])
def test_refuses_scorer_at_chance_level(classes, scores, anyway):
    labels = torch.arange(2000) % classes
    label_scores = torch.rand(2000, classes, generator=torch.Generator().manual_seed(0)) * (scores == "noise")
    with pytest.raises(InconclusiveError, match=r"Cohen's κ at least 0\.3, but got -?0\.0\d: [\s\S]*`score_dataset=`"):
        by_null(label_scores, labels, anyway=anyway)


def heavy_tailed(strength, *, classes, wrong=0.0):
    """Scores with a few very large errors, and labels of which a share is random."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(4000) % classes
    noise = torch.randn(4000, classes, generator=generator)
    noise /= torch.randn(4000, 2, generator=generator).square().mean(1, keepdim=True).sqrt()
    replaced = torch.rand(4000, generator=generator) < wrong
    labels = torch.where(replaced, torch.randint(classes, (4000,), generator=generator), truth)
    return -(strength * torch.eye(classes)[truth] + noise), labels


@pytest.mark.slow
def test_refuses_scorer_that_takes_hard_samples_for_wrong_labels():
    label_scores, labels = heavy_tailed(1.5, classes=6, wrong=0.3)
    with pytest.raises(
        InconclusiveError, match=r"considers \d\d % of the labels wrong, [\s\S]* notices \d+ % of the wrong labels"
    ):
        by_null(label_scores, labels)
    assert by_null(label_scores, labels, anyway=True).keep.any()


def overlapping(classes, separation, *, wrong=0.0, count=2000, seed=0):
    """Scores by Bayes' rule of classes that are normal distributions, labels of which a share is wrong, and which."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (count,), generator=generator)
    features = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    features[torch.arange(count), truth] += separation
    places = torch.randperm(count, generator=generator)[: round(wrong * count)]
    labels = truth.clone()
    labels[places] += torch.randint(1, classes, (len(places),), generator=generator)
    labels %= classes
    is_wrong = labels != truth
    return -(separation * features).log_softmax(1), labels, is_wrong


def exponential_alone(monkeypatch, label_scores, labels):
    with monkeypatch.context() as patch:
        patch.setattr(without_trusted, "_MARGIN_OF_FIT", -torch.inf)
        return by_null(label_scores, labels)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_overlapping_classes_are_no_evidence(monkeypatch, seed):
    label_scores, labels, _ = overlapping(2, 1.2, seed=seed)
    assert exponential_alone(monkeypatch, label_scores, labels).evidence.present
    decision = by_null(label_scores, labels)
    assert not decision.evidence.present
    assert decision.keep.all()


def test_fewer_clean_samples_of_two_overlapping_classes_are_removed(monkeypatch):
    label_scores, labels, is_wrong = overlapping(2, 1.2, wrong=0.1)
    decision, alone = by_null(label_scores, labels), exponential_alone(monkeypatch, label_scores, labels)
    assert decision.evidence.present
    assert float((~decision.keep)[is_wrong].double().mean()) > 0.3
    assert (~decision.keep)[~is_wrong].sum() < 0.6 * (~alone.keep)[~is_wrong].sum()


def test_refuses_an_estimate_that_may_take_hard_samples_for_wrong_labels(monkeypatch):
    """Few count as hard, since the others count as mislabeled: with as few wrong labels as it allows, many are hard."""
    label_scores, labels, _ = overlapping(2, 1.4, wrong=0.1, count=1000)
    raw = estimate_contamination(label_scores, labels)
    assert raw.misclassified_share < MAX_MISCLASSIFIED_SHARE < raw.misclassified_share + raw.rate - raw.low
    monkeypatch.setattr(without_trusted, "_LARGE_RATE", raw.rate - 0.01)
    monkeypatch.setattr(without_trusted, "RELIABLE_RESPONSE", 2.0)
    with pytest.raises(InconclusiveError, match=r"considers \d+ % of the labels wrong"):
        by_null(label_scores, labels)
    assert not by_null(label_scores, labels, anyway=True).keep.all()


@pytest.mark.parametrize("seed", [0, 1])
def test_second_estimate_is_used_only_if_it_is_lower(monkeypatch, seed):
    label_scores, labels, is_wrong = overlapping(4, 1.2, wrong=0.2, count=4000, seed=seed)
    decision = by_null(label_scores, labels)
    assert decision.keep.equal(exponential_alone(monkeypatch, label_scores, labels).keep)
    assert float((~decision.keep)[~is_wrong].double().mean()) < 0.02


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_decides_on_hard_data_if_the_estimate_responds_to_planted_labels(wrong):
    """A quarter of the samples are ambiguous between two classes, as to a calibrated model; the others are plain."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(8000) % 4
    logits = 12.0 * torch.eye(4)[truth]
    hard = torch.rand(8000, generator=generator) < 0.5
    logits[hard, (truth[hard] + 1) % 4] = 12.0 + 0.8 * torch.randn(int(hard.sum()), generator=generator)
    flipped = torch.rand(8000, generator=generator) < wrong
    labels = torch.where(flipped, (truth + 2) % 4, truth)
    decision = by_null(-logits.log_softmax(1), labels)
    assert decision.evidence.power > 0.7
    assert decision.evidence.present == (wrong > 0)
    assert float((~decision.keep)[~flipped].double().mean()) < 0.01
    if wrong:
        assert float((~decision.keep)[flipped].double().mean()) == pytest.approx(decision.evidence.power, abs=0.12)


def test_hard_samples_alone_are_no_evidence_and_widen_the_interval():
    """Predictions as of a calibrated model that is often unsure, with heavy tails that look like wrong labels."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(6000) % 5
    spread = 1 + 2 * torch.rand(6000, 1, generator=generator)
    logits = 4 * torch.eye(5)[truth] + spread * torch.randn(6000, 5, generator=generator)
    decision = by_null(-logits.log_softmax(1), truth)
    found = decision.evidence
    assert decision.keep.all()
    assert not found.present
    assert found.low == 0
    assert found.high > 2 * found.contamination


def test_scorer_without_power_does_not_say_that_there_is_none():
    evidence = Evidence(False, 0.0, 0.0, 0.01, 0.95, 0.003, power=0.1)
    assert str(evidence).startswith("wrong labels can hardly be found here: an estimated 0.00 %")
    assert "no evidence" not in str(evidence)


@pytest.mark.parametrize(("classes", "share"), [(2, 0.3), (10, 0.6)])
def test_accepts_noisy_labels_with_accurate_scorer(classes, share):
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(4000) % classes
    label_scores = 8 - 8 * torch.eye(classes)[truth] + torch.rand(4000, classes, generator=generator)
    wrong = torch.rand(4000, generator=generator) < share
    shift = torch.randint(1, classes, (4000,), generator=generator)
    labels = torch.where(wrong, (truth + shift) % classes, truth)
    decision = by_null(label_scores, labels)
    assert decision.evidence.contamination == pytest.approx(share, abs=0.03)


def test_reference_under_a_label_is_its_samples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    labels[labels == 2] = 0
    label_scores = torch.randn(400, 4, generator=generator).double() + 8 * (torch.arange(4) != labels[:, None])
    log_p = log_p_by_labels(label_scores, labels)
    own = log_p.gather(1, labels[:, None])[:, 0]
    assert abs(float(own.exp().mean()) - 0.5) < 0.02
    assert torch.equal(log_p[:, [0, 1, 3]].argmax(1), label_scores[:, [0, 1, 3]].argmin(1))
    assert float(log_p[:, 2].max()) <= float(log_p.min())


def test_margins_in_another_network_tell_wrong_labels_from_hard_samples():
    label_scores, labels, is_wrong = overlapping(4, 2.0, wrong=0.1, count=4000)
    generator = torch.Generator().manual_seed(1)
    margins = torch.randn(4000, generator=generator) + torch.where(is_wrong, -2.0, 1.0)
    settings = DecisionSettings()
    alone = decide_by_wrong_label_null(label_scores, labels, settings)
    both = decide_by_wrong_label_null(label_scores, labels, settings, other_margins=margins)
    caught, lost = (
        [float((~each.keep)[part].double().mean()) for each in (alone, both)] for part in (is_wrong, ~is_wrong)
    )
    assert caught[1] > caught[0] + 0.1
    assert lost[1] < 0.01
    assert both.evidence.power == pytest.approx(caught[1], abs=0.1)
    assert (both.evidence.contamination, both.evidence.low) == (alone.evidence.contamination, alone.evidence.low)


def test_margins_in_another_network_are_no_evidence_by_themselves():
    label_scores, labels, _ = overlapping(4, 2.0, count=4000)
    margins = torch.where(torch.arange(4000) < 400, -20.0, 1.0)
    decision = decide_by_wrong_label_null(label_scores, labels, DecisionSettings(), other_margins=margins)
    assert not decision.evidence.present
    assert decision.keep.all()
