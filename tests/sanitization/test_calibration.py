import pytest
import torch

from lightning_poison.sanitization.with_trusted import decide_by_trusted
from lightning_poison.statistics.thresholds import log_p_by_trusted

RATES = {"false_positive_rate": 0.01, "natural_error_rate": 0.003}


def by_trusted(scores, labels, trusted_scores, trusted_labels, **rates):
    return decide_by_trusted(scores, labels, trusted_scores, trusted_labels, **{**RATES, **rates})


def normal(count, seed, *, classes=2):
    labels = torch.arange(count) % classes
    scores = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores + 10 * labels, labels


def test_the_cut_is_the_quantile_of_each_class():
    trusted = torch.cat([torch.arange(99.0), 1000 + torch.arange(99.0)]).double()
    labels = torch.arange(2).repeat_interleave(99)
    judged = torch.tensor([89.0, 89.5, 1089.0, 1089.5]).double()
    found = by_trusted(judged, torch.tensor([0, 0, 1, 1]), trusted, labels, false_positive_rate=0.1)
    assert found.thresholds.tolist() == [89, 1089]
    assert found.keep.tolist() == [True, False, True, False]
    assert found.posterior is None
    assert found.posterior_threshold is None


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_realised_rate_is_the_stated_one(rate):
    scores, labels = normal(20_000, 0)
    found = by_trusted(scores, labels, *normal(2_000, 1), false_positive_rate=rate)
    removed = float((~found.keep).double().mean())
    assert 0.5 * rate <= removed <= 1.5 * rate
    assert not found.evidence.present
    assert found.evidence.contamination < 0.01
    assert torch.equal(found.keep, found.p_values > rate)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_excess_above_the_cut_is_the_contamination(share):
    scores, labels = normal(10_000, 0)
    scores[: int(10_000 * share)] += 50
    found = by_trusted(scores, labels, *normal(2_000, 3))
    assert found.evidence.present
    assert found.evidence.low <= share <= found.evidence.high
    assert found.evidence.contamination == pytest.approx(share, abs=0.006)
    assert not found.keep[: int(10_000 * share)].any()


@pytest.mark.parametrize("names", [(3, 7), (0, 5)])
def test_labels_with_gaps_and_classes_of_the_trusted_data_alone(names):
    scores, labels = normal(400, 0)
    trusted_scores, trusted_labels = normal(600, 1)
    plain = by_trusted(scores, labels, trusted_scores, trusted_labels)
    rename = torch.tensor(names)
    more_scores = torch.cat([trusted_scores, torch.tensor([99.0, 98.0]).double()])
    more_labels = torch.cat([rename[trusted_labels], torch.tensor([1, 9])])
    found = by_trusted(scores, rename[labels], more_scores, more_labels)
    assert len(found.thresholds) == 10
    assert torch.equal(found.thresholds[rename], plain.thresholds)
    assert found.thresholds.isinf().sum() == 8
    assert torch.equal(found.p_values, plain.p_values)
    assert torch.equal(found.keep, plain.keep)
    assert found.evidence == plain.evidence


def test_a_member_s_p_values_are_those_of_its_class():
    trusted, known = torch.cat([torch.arange(99.0), 1000 + torch.arange(99.0)]), torch.tensor([2] * 99 + [7] * 99)
    scores, labels = torch.tensor([50.0, 1050.0]).double(), torch.tensor([2, 7])
    log_p = log_p_by_trusted(scores, labels, trusted.double(), known)
    torch.testing.assert_close(log_p.exp(), torch.tensor([0.5, 0.5]).double())
    alone = log_p_by_trusted(scores[:1], labels[:1], trusted.double(), known)
    torch.testing.assert_close(alone, log_p[:1])


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        (torch.tensor([1.0, 2.0, 3.0, 9.0]), "at least two held-out samples of class 1, but got 1"),
        (torch.tensor([1.0, 2.0, 3.0, 9.0, 9.0, 9.0]), "differ among the 3 held-out trusted samples of class 1"),
    ],
)
def test_a_class_of_which_nothing_could_ever_be_removed(trusted, message):
    labels = torch.tensor([0, 0, 0, 1, 1, 1])[: len(trusted)]
    with pytest.raises(ValueError, match=message):
        by_trusted(torch.tensor([1.0, 50.0]).double(), torch.tensor([0, 1]), trusted.double(), labels)


def test_scores_that_are_the_same_but_many_enough_for_the_rate_have_a_cut():
    trusted, labels = torch.zeros(200).double(), torch.zeros(200).long()
    found = by_trusted(torch.tensor([0.0, 1.0]).double(), labels[:2], trusted, labels)
    assert found.keep.tolist() == [True, False]
