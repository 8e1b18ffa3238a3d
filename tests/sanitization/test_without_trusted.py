import pytest
import torch

from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.without_trusted import decide_by_wrong_label_null, log_p_by_labels


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


def test_refuses_inaccurate_scorer():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 4
    label_scores = 2 - 2 * torch.eye(4)[labels] + torch.randn(4000, 4, generator=generator)
    with pytest.raises(
        InconclusiveError, match=r"misclassifies at most 10 % .* but it misclassifies an estimated \d\d %"
    ):
        by_null(label_scores, labels)
    assert by_null(label_scores, labels, anyway=True).keep.any()


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
