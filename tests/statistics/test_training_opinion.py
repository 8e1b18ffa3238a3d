from dataclasses import replace

import pytest
import torch

from lightning_poison.statistics.contamination import Contamination
from lightning_poison.statistics.training_opinion import TrainingOpinion

COUNT, OPPOSED, WRONG = 4_000, 800, 400


def scene(seed=0, *, gap=3.0, priors=(0.7, 0.3)):
    """The first 400 labels are wrong, the next 400 are hard samples that are misclassified; margins differ by `gap`."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(COUNT)
    predicted = places % 4
    labels = torch.where(places < OPPOSED, (predicted + 1) % 4, predicted)
    margins = torch.randn(COUNT, generator=generator).double()
    margins[WRONG:] += gap
    posterior = torch.zeros(COUNT).double()
    posterior[:WRONG], posterior[WRONG:OPPOSED] = priors
    found = Contamination(0.1, 0.05, 0.15, 0.95, 0.1, (), posterior.clone(), posterior, torch.ones(COUNT).double())
    return found, labels, predicted, margins


def test_distributions_are_those_that_the_margins_were_drawn_from():
    found, *data = scene()
    opinion = TrainingOpinion.of(found, *data)
    assert opinion.correct - opinion.wrong == pytest.approx(3.0, abs=0.15)
    assert opinion.spread == pytest.approx(1.0, abs=0.05)


def test_log_odds_are_those_of_bayes_rule_at_half_the_weight_of_the_margins():
    found, labels, predicted, margins = scene(priors=(0.6, 0.2))
    opinion = TrainingOpinion.of(found, labels, predicted, margins)
    weighed = opinion.weigh(found, labels, predicted, margins)
    rows = torch.arange(OPPOSED)
    center = (opinion.of_label[labels[rows]] + opinion.of_predicted[predicted[rows]]) / 2
    values = margins[rows] - center
    normal = torch.distributions.Normal
    ratio = normal(opinion.wrong, opinion.spread).log_prob(values) - normal(opinion.correct, opinion.spread).log_prob(
        values
    )
    expected = torch.sigmoid(found.posterior[rows].logit() + 0.5 * ratio).clamp(0.001, 0.999)
    torch.testing.assert_close(weighed.posterior[rows], expected)
    assert not weighed.posterior[OPPOSED:].any()


def test_wrong_labels_come_first_and_the_estimate_stays():
    found, *data = scene(gap=4.0)
    weighed = TrainingOpinion.of(found, *data).weigh(found, *data)
    first = weighed.p_values.argsort()[:WRONG]
    assert (first < WRONG).double().mean() > 0.95
    assert (weighed.rate, weighed.low, weighed.high) == (found.rate, found.low, found.high)


def test_samples_with_the_same_margin_keep_the_order_of_the_scores():
    found, labels, predicted, margins = scene()
    opinion = TrainingOpinion.of(found, labels, predicted, margins)
    suspicion = torch.arange(COUNT).double()
    weighed = opinion.weigh(replace(found, suspicion=suspicion), labels, predicted, torch.zeros(COUNT))
    same = (torch.arange(WRONG) % 4 == 0).nonzero().flatten()
    assert (weighed.suspicion[same].diff() > 0).all()


def test_hard_classes_do_not_look_mislabeled():
    found, labels, predicted, margins = scene()
    easier = TrainingOpinion.of(found, labels, predicted, margins)
    harder = margins - 50.0 * (labels == 1) - 50.0 * (predicted == 1)
    opinion = TrainingOpinion.of(found, labels, predicted, harder)
    before, after = (
        each.weigh(found, labels, predicted, values).posterior[:OPPOSED] > 0.5
        for each, values in ((easier, margins), (opinion, harder))
    )
    assert (before == after).double().mean() > 0.95


@pytest.mark.parametrize("gap", [0.0, -3.0])
def test_margins_that_are_not_smaller_for_wrong_labels_say_nothing(gap):
    found, *data = scene(gap=gap, priors=(0.9, 0.1))
    opinion = TrainingOpinion.of(found, *data)
    assert opinion is None or opinion.correct - opinion.wrong < 0.2


def test_few_wrong_labels_are_no_reference():
    found, *data = scene()
    assert TrainingOpinion.of(replace(found, posterior=0.04 * found.posterior), *data) is None
    assert TrainingOpinion.of(found, data[0], data[1], torch.zeros(COUNT)) is None


def test_margins_of_replaced_labels_are_drawn_like_those_of_wrong_ones():
    found, labels, predicted, margins = scene()
    opinion = TrainingOpinion.of(found, labels, predicted, margins)
    replaced = labels.clone()
    replaced[2_000:] = (replaced[2_000:] + 2) % 4
    drawn = opinion.margins_if(replaced, labels, predicted, margins, torch.Generator().manual_seed(1))
    assert torch.equal(drawn[:2_000], margins[:2_000])
    center = (opinion.of_label[replaced[2_000:]] + opinion.of_predicted[predicted[2_000:]]) / 2
    assert float((drawn[2_000:] - center).mean()) == pytest.approx(opinion.wrong, abs=0.07)
    again = opinion.margins_if(replaced, labels, predicted, margins, torch.Generator().manual_seed(1))
    assert torch.equal(again, drawn)


def test_posteriors_are_never_certain():
    found, labels, predicted, margins = scene(gap=200.0)
    weighed = TrainingOpinion.of(found, labels, predicted, margins).weigh(found, labels, predicted, margins)
    assert (float(weighed.posterior[:OPPOSED].min()), float(weighed.posterior.max())) == pytest.approx((0.001, 0.999))
    assert weighed.p_values.min() > 1e-9
