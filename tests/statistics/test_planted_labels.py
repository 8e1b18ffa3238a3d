from dataclasses import replace

import pytest
import torch

from lightning_poison.statistics.contamination import Contamination
from lightning_poison.statistics.planted_labels import corrected_for_response, plant_labels, planted_result


def estimate_of(rate, posterior, *, low=None, high=None, misclassified=0.0):
    """Return an estimate whose suspicion is the posterior."""
    ends = rate if low is None else low, rate if high is None else high
    return Contamination(rate, *ends, 0.95, misclassified, (), posterior, posterior, torch.ones_like(posterior))


def test_replaces_labels_by_others_evenly():
    labels = torch.arange(20_000) % 4
    replaced, planted = plant_labels(labels, 0.3, num_classes=4, seed=1)
    assert len(planted) == 6_000
    assert torch.equal((replaced != labels).nonzero().flatten(), planted.sort().values)
    steps = torch.bincount((replaced[planted] - labels[planted]) % 4, minlength=4)
    assert steps[0] == 0
    assert steps[1:].min() > 1_850
    again, _ = plant_labels(labels, 0.3, num_classes=4, seed=1)
    assert torch.equal(again, replaced)


def test_power_and_response_of_a_decision_that_misses_half():
    truth = torch.arange(5_000) % 2

    def estimate(labels):
        wrong = (labels != truth) & (torch.arange(5_000) < 2_500)
        return estimate_of(2 * float(wrong.double().mean()), wrong.double())

    found = planted_result(
        truth, estimate, lambda each, *_: each.posterior == 0, rate=0.0, num_classes=2, share=0.2, repeats=4
    )
    assert found.power == pytest.approx(0.5, abs=0.04)
    assert found.response == pytest.approx(1.0, abs=0.08)


def test_decision_that_finds_nothing_has_no_power():
    labels = torch.arange(100) % 5
    none = estimate_of(0.1, torch.zeros(100))
    found = planted_result(labels, lambda _: none, lambda each, *_: each.posterior == 0, rate=0.1, num_classes=5)
    assert (found.power, found.response) == (0.0, 0.0)


def test_decision_is_made_with_the_response_and_the_planted_labels():
    labels, given, replaced = torch.arange(400) % 2, [], []

    def decide(_, response, planted):
        given.append(response)
        replaced.append(int((planted != labels).sum()))
        return labels == 0

    none = estimate_of(0.02, torch.zeros(400))
    found = planted_result(labels, lambda _: none, decide, rate=0.0, num_classes=2)
    assert given == [pytest.approx(0.4)] * 2
    assert replaced == [20, 20]
    assert found.response == pytest.approx(0.4)


def test_small_sets_have_enough_planted_labels():
    counts = []

    def estimate(labels):
        counts.append(int((labels != torch.arange(len(labels)) % 3).sum()))
        return estimate_of(0.0, torch.zeros(len(labels)))

    for count in (40, 150, 4_000):
        labels = torch.arange(count) % 3
        found = planted_result(
            labels, estimate, lambda each, *_: each.posterior == 0, rate=0.0, num_classes=3, repeats=1
        )
        assert found.share == pytest.approx(counts[-1] / count)
    assert counts == [8, 20, 200]


def test_estimate_that_sees_all_planted_labels_is_not_corrected():
    found = estimate_of(0.05, torch.tensor([0.7, 0.2, 0.0]).double(), low=0.045, high=0.06, misclassified=0.3)
    same = corrected_for_response(found, 1.2)
    assert (same.rate, same.low, same.high) == (0.05, 0.045, 0.06)
    assert torch.equal(same.posterior, found.posterior)


def test_estimate_that_sees_little_is_uncertain_in_both_directions():
    found = estimate_of(0.055, torch.tensor([0.7, 0.2, 0.0]).double(), low=0.044, high=0.066, misclassified=0.306)
    corrected = corrected_for_response(found, 0.32)
    assert corrected.low == 0
    assert corrected.high == pytest.approx(0.066 / 0.32)
    assert corrected.rate == pytest.approx((0.055 - 0.25 * 0.306 * 0.68) / 0.32**0.4)
    assert torch.equal(corrected.posterior, found.posterior), "only what is almost certain is removed"
    assert corrected_for_response(found, -0.1).high == pytest.approx(0.066 / 0.3)


def test_posteriors_and_p_values_are_corrected_together():
    found = estimate_of(0.5, torch.tensor([0.8, 0.6, 0.0]).double(), misclassified=0.2)
    corrected = corrected_for_response(found, 0.9**2.5)
    assert corrected.posterior.tolist() == pytest.approx([0.8 / 0.9, 0.6 / 0.9, 0.0])
    correct = 1 - corrected.posterior
    assert corrected.p_values.tolist() == pytest.approx((correct.cumsum(0) / correct.sum()).tolist())


def test_posteriors_of_a_vague_estimate_add_up_to_it():
    posterior = torch.tensor([0.99, 0.95, 0.8, 0.6, 0.3, 0.0]).double()
    rate = float(posterior.mean())
    found = estimate_of(rate, posterior, low=0.5 * rate, high=0.9, misclassified=0.3)
    corrected = corrected_for_response(found, 0.6)
    assert corrected.rate == pytest.approx(rate - 0.25 * 0.3 * 0.4)
    assert float(corrected.posterior.mean()) == pytest.approx(corrected.rate)
    log_odds = torch.logit(corrected.posterior) - torch.logit(posterior)
    assert log_odds[:5].tolist() == pytest.approx([float(log_odds[0])] * 5), "all by the same factor"


def test_correction_is_continuous_where_estimates_become_precise():
    posterior = torch.tensor([0.999, 0.99, 0.98, 0.9, 0.5, 0.3, 0.1, 0.0]).double()
    rate = float(posterior.mean())
    found = estimate_of(rate, posterior, low=0.8 * rate, high=0.9, misclassified=0.1)
    precise = corrected_for_response(found, 0.6)
    nearly = corrected_for_response(replace(found, low=0.7999 * rate), 0.6)
    assert nearly.rate == pytest.approx(precise.rate, rel=1e-3)
    assert nearly.posterior.tolist() == pytest.approx(precise.posterior.tolist(), abs=1e-3)
    middle = corrected_for_response(replace(found, low=0.7 * rate), 0.6)
    vague = corrected_for_response(replace(found, low=0.6 * rate), 0.6)
    assert float(precise.posterior.sum()) > float(middle.posterior.sum()) > float(vague.posterior.sum())


def test_vague_posteriors_add_up_to_an_estimate_below_the_lower_end_of_the_interval():
    posterior = torch.tensor([0.9, 0.1, 0, 0, 0, 0, 0, 0, 0, 0]).double()
    found = estimate_of(0.1, posterior, low=0.055, high=0.2, misclassified=0.5)
    corrected = corrected_for_response(found, 0.6)
    assert (corrected.rate, corrected.low) == (pytest.approx(0.05), 0)
    assert float(corrected.posterior.mean()) == pytest.approx(0.05)


def test_estimate_of_none_has_no_precision():
    found = estimate_of(0.0, torch.zeros(3).double(), misclassified=0.3)
    assert corrected_for_response(found, 0.6).posterior.tolist() == [0, 0, 0]


@pytest.mark.parametrize("posterior", [torch.ones(3), torch.zeros(3)], ids=["all wrong", "none wrong"])
def test_posteriors_that_cannot_have_the_sum(posterior):
    found = estimate_of(0.5, posterior.double(), low=0.35, high=0.6, misclassified=0.3)
    corrected = corrected_for_response(found, 0.6)
    assert torch.isfinite(corrected.posterior).all()
    assert ((corrected.posterior >= 0) & (corrected.posterior < 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"num_classes": 1}, "num_classes"),
        ({"labels": torch.tensor([3])}, "labels"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "two classes"),
        ({"labels": torch.tensor([0.5])}, "labels"),
    ],
)
def test_refuses_invalid_arguments(arguments, message):
    given = {"labels": torch.tensor([0, 1]), "share": 0.5, "num_classes": 2, "seed": 0, **arguments}
    labels, share = given.pop("labels"), given.pop("share")
    with pytest.raises(ValueError, match=message):
        plant_labels(labels, share, **given)


def test_labels_are_replaced_by_classes_that_occur():
    labels = torch.tensor([2, 50, 400])[torch.arange(300) % 3]
    replaced, planted = plant_labels(labels, 0.3, num_classes=401, seed=0)
    assert set(replaced.tolist()) == {2, 50, 400}
    compact, _ = plant_labels(torch.arange(300) % 3, 0.3, num_classes=3, seed=0)
    assert torch.equal(torch.tensor([2, 50, 400])[compact], replaced)
    assert len(planted) == 90
