import math

import pytest
import torch

from lightning_poison.statistics.contamination import (
    Contamination,
    estimate_contamination,
    has_evidence,
    select_by_posterior,
    wrong_label_p_values,
)


def draw_label_scores(truth, generator, *, classes, hard=0.015, confusable=()):
    """Return scores of an accurate model: 0 for the prediction, large margins elsewhere, small ones on hard images."""
    count = len(truth)
    margins = (5 + 1.5 * torch.randn(count, classes, generator=generator)).clamp_min(0.2)
    for first, second in confusable:
        margins[truth == first, second] *= 0.3
        margins[truth == second, first] *= 0.3
    predicted = truth.clone()
    is_hard = torch.rand(count, generator=generator) < hard
    shift = torch.randint(1, classes, (count,), generator=generator)
    predicted[is_hard] = (truth[is_hard] + shift[is_hard]) % classes
    margins[torch.arange(count), predicted] = 0
    small = -torch.rand(count, generator=generator).log() * 1.1
    rows = is_hard.nonzero().flatten()
    margins[rows, truth[rows]] = small[rows]
    return margins + torch.rand(count, 1, generator=generator)


def flip(truth, generator, *, share, classes):
    labels = truth.clone()
    chosen = torch.randperm(len(truth), generator=generator)[: round(share * len(truth))]
    labels[chosen] = (truth[chosen] + torch.randint(1, classes, (len(chosen),), generator=generator)) % classes
    return labels


def simulate(seed, *, share, count=6000, classes=10, **options):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (count,), generator=generator)
    label_scores = draw_label_scores(truth, generator, classes=classes, **options)
    return label_scores, flip(truth, generator, share=share, classes=classes), truth


def simulate_pair(seed, *, share=0.2):
    label_scores, truth, _ = simulate(seed, share=0, confusable=[(4, 9)])
    labels = truth.clone()
    fours = (truth == 4).nonzero().flatten()
    labels[fours[: round(share * len(fours))]] = 9
    return label_scores, labels, truth


def removed_by(contamination):
    return ~select_by_posterior(contamination.posterior, contamination.p_values, 0.01)


def test_counts_well_separated_wrong_labels_exactly():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3000) % 3
    label_scores = 4 + torch.rand(3000, 3, generator=generator)
    label_scores[torch.arange(3000), truth] = 0
    labels = flip(truth, generator, share=0.04, classes=3)
    contamination = estimate_contamination(label_scores, labels)
    assert contamination.rate == pytest.approx(0.04, abs=0.001)
    assert contamination.posterior[labels != truth].min() > 0.9
    assert contamination.posterior[labels == truth].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.02, 0.1, 0.3])
def test_estimate_is_close_to_true_share(share):
    label_scores, labels, _ = simulate(1, share=share)
    contamination = estimate_contamination(label_scores, labels)
    assert contamination.rate == pytest.approx(share, abs=0.003 + 0.1 * share)
    assert contamination.low <= contamination.rate <= contamination.high
    assert has_evidence(contamination)


@pytest.mark.slow
def test_interval_has_nominal_coverage():
    covered = []
    for seed in range(20):
        label_scores, labels, _ = simulate(100 + seed, share=0.05, count=2000)
        contamination = estimate_contamination(label_scores, labels, confidence=0.9)
        covered.append(contamination.low <= 0.05 <= contamination.high)
    assert sum(covered) >= 17


@pytest.mark.parametrize("hard", [0.0, 0.005, 0.015, 0.05])
def test_clean_labels_give_no_evidence(hard):
    label_scores, labels, _ = simulate(2, share=0, hard=hard)
    contamination = estimate_contamination(label_scores, labels)
    assert contamination.rate < 0.002
    assert not has_evidence(contamination)
    assert contamination.pairs == ()
    assert contamination.high > 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_selection_finds_wrong_labels_at_stated_rate(share):
    label_scores, labels, truth = simulate(3, share=share)
    removed = removed_by(estimate_contamination(label_scores, labels))
    wrong = labels != truth
    assert removed[wrong].double().mean() >= 0.9
    assert removed[~wrong].double().mean() <= 0.015


def test_finds_pair_of_classes():
    label_scores, labels, truth = simulate_pair(4)
    contamination = estimate_contamination(label_scores, labels)
    wrong = int((labels != truth).sum())
    (pair,) = contamination.pairs
    assert (pair.labeled, pair.predicted) == (9, 4)
    assert pair.low <= wrong <= pair.high
    assert pair.count >= pair.estimate
    assert pair.p_value < 1e-6
    removed = removed_by(contamination)
    assert removed[labels != truth].double().mean() >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_evenly_spread_flips_give_no_pair(seed):
    label_scores, labels, _ = simulate(seed, share=0.1)
    assert estimate_contamination(label_scores, labels).pairs == ()


@pytest.mark.slow
def test_posterior_is_calibrated():
    posteriors, wrongs = [], []
    for seed in range(6):
        label_scores, labels, truth = simulate(200 + seed, share=0.03, hard=0.05)
        posteriors.append(estimate_contamination(label_scores, labels).posterior)
        wrongs.append(labels != truth)
    posterior, wrong = torch.cat(posteriors), torch.cat(wrongs)
    for low, high in ((0.05, 0.35), (0.35, 0.65), (0.65, 0.95)):
        inside = (posterior > low) & (posterior <= high)
        assert wrong[inside].double().mean().item() == pytest.approx(posterior[inside].mean().item(), abs=0.15)


def test_p_values_of_correctly_labeled_samples_are_about_uniform():
    label_scores, labels, truth = simulate(8, share=0.05)
    p_values = estimate_contamination(label_scores, labels).p_values
    assert ((p_values > 0) & (p_values <= 1)).all()
    correct = p_values[labels == truth]
    for level in (0.01, 0.05, 0.5):
        assert (correct <= level).double().mean().item() == pytest.approx(level, abs=0.003 + 0.05 * level)
    assert p_values[labels != truth].median() < 1e-3


def test_samples_of_which_label_and_prediction_agree_need_no_order():
    label_scores, labels, _ = simulate(9, share=0.05, count=2000)
    whole = estimate_contamination(label_scores, labels)
    part = estimate_contamination(label_scores, labels, only_disagreements=True)
    differs = label_scores.argmin(1) != labels
    assert 50 < int(differs.sum()) < 1000
    assert (part.rate, part.low, part.high, part.pairs) == (whole.rate, whole.low, whole.high, whole.pairs)
    assert torch.equal(part.posterior, whole.posterior)
    for name in ("suspicion", "p_values"):
        assert torch.equal(getattr(part, name)[differs], getattr(whole, name)[differs])
    assert bool((part.p_values[~differs] == 1).all())
    assert torch.equal(removed_by(part), removed_by(whole))


def test_result_is_equivariant_to_order_of_samples_and_classes():
    label_scores, labels, _ = simulate(9, share=0.05, count=2000)
    reference = estimate_contamination(label_scores, labels)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    renamed = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    moved = estimate_contamination(label_scores[order][:, renamed.argsort()], renamed[labels[order]])
    assert moved.rate == pytest.approx(reference.rate, rel=1e-6)
    assert torch.allclose(moved.posterior, reference.posterior[order], atol=1e-6)


@pytest.mark.slow
def test_result_depends_on_margins_only():
    label_scores, labels, _ = simulate(10, share=0.05, count=2000)
    label_scores = label_scores.double()
    offset = 100 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = estimate_contamination(label_scores, labels)
    assert torch.allclose(estimate_contamination(label_scores + offset, labels).posterior, reference.posterior)
    assert torch.allclose(estimate_contamination(7 * label_scores, labels).posterior, reference.posterior)


def test_many_small_classes_borrow_strength():
    label_scores, labels, truth = simulate(11, share=0.05, count=3000, classes=100)
    contamination = estimate_contamination(label_scores, labels)
    assert contamination.rate == pytest.approx(0.05, abs=0.008)
    removed = removed_by(contamination)
    assert removed[labels != truth].double().mean() >= 0.85


def test_class_without_predictions_is_valid():
    label_scores, labels, _ = simulate(12, share=0.02, count=1000, classes=4)
    padded = torch.cat([label_scores, torch.full((1000, 1), 50.0)], 1)
    labels[:3] = 4
    contamination = estimate_contamination(padded, labels)
    assert contamination.posterior.isfinite().all()
    assert math.isfinite(contamination.high)


def test_does_not_modify_arguments():
    label_scores, labels, _ = simulate(13, share=0.02, count=500)
    copies = label_scores.clone(), labels.clone()
    estimate_contamination(label_scores, labels)
    assert label_scores.equal(copies[0])
    assert labels.equal(copies[1])


def test_selection_treats_equal_suspicion_alike_and_stops_at_rate():
    posterior = torch.cat([torch.full((10,), 0.8), torch.full((5,), 0.7), torch.zeros(200)]).double()
    p_values = wrong_label_p_values(posterior, posterior)
    assert (~select_by_posterior(posterior, p_values, 0.01)).nonzero().flatten().equal(torch.arange(10))
    assert (~select_by_posterior(posterior, p_values, 0.005)).sum() == 0
    assert (~select_by_posterior(posterior, p_values, 0.1)).nonzero().flatten().equal(torch.arange(15))


def test_selection_at_extreme_posteriors():
    for posterior, rate in ((torch.zeros(7), 0.5), (torch.full((7,), 0.5), 0.9)):
        assert select_by_posterior(posterior, wrong_label_p_values(posterior, posterior.double()), rate).all()
    assert not select_by_posterior(torch.ones(7), wrong_label_p_values(torch.ones(7), torch.ones(7)), 0.01).any()


def test_posterior_does_not_decrease_with_suspicion_and_sums_to_the_estimate():
    label_scores, labels, _ = simulate(16, share=0.05, count=2000)
    found = estimate_contamination(label_scores, labels)
    differ = label_scores.argmin(1) != labels
    order = found.suspicion[differ].argsort()
    assert (found.posterior[differ][order].diff() >= 0).all()
    assert not found.posterior[~differ].any()
    assert float(found.posterior.sum()) == pytest.approx(2000 * found.rate)


def test_samples_whose_label_is_predicted_are_the_least_suspicious():
    p_values = wrong_label_p_values(torch.tensor([9.0, 1.0, 2.0]), torch.tensor([0.0, 0.5, 0.5]).double())
    assert p_values.argsort().tolist() == [2, 1, 0]


def test_evidence_compares_lower_end_with_natural_error_rate():
    empty = torch.zeros(0)
    contamination = Contamination(0.01, 0.004, 0.02, 0.95, 0.05, (), empty, empty, empty)
    assert has_evidence(contamination)
    assert not has_evidence(contamination, natural_error_rate=0.004)


def normal_margins(seed, *, errors, wrong=0.0, count=2000):
    """Two classes whose margins are normal, of which a share is below 0, and random wrong labels."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % 2
    margin = torch.randn(count, generator=generator) - float(torch.special.ndtri(torch.tensor(errors)))
    label_scores = torch.zeros(count, 2).scatter(1, 1 - truth[:, None], 3 * margin[:, None])
    return label_scores, flip(truth, generator, share=wrong, classes=2)


def test_refuses_an_unknown_distribution_of_hard_samples():
    with pytest.raises(ValueError, match="Expected `hard` to be exponential or normal, but got"):
        estimate_contamination(*normal_margins(0, errors=0.1), hard="gauss")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("errors", [0.12, 0.2])
def test_hard_samples_with_normal_margins_are_no_evidence(errors, seed):
    assert not has_evidence(estimate_contamination(*normal_margins(seed, errors=errors), hard="normal"))


def test_wrong_labels_among_hard_samples_are_estimated():
    found = [estimate_contamination(*normal_margins(seed, errors=0.12, wrong=0.15), hard="normal") for seed in range(4)]
    assert all(has_evidence(each) for each in found)
    assert sum(each.rate for each in found) / 4 == pytest.approx(0.15, abs=0.03)


def test_hard_samples_are_told_from_wrong_labels():
    label_scores, labels, _ = simulate(15, share=0.1, hard=0.4)
    contamination = estimate_contamination(label_scores, labels)
    assert contamination.misclassified_share > 0.25
    assert contamination.rate == pytest.approx(0.1, abs=0.015)
    assert has_evidence(contamination)


@pytest.mark.parametrize(
    ("label_scores", "labels", "message"),
    [
        (torch.rand(3, 2), torch.zeros(2, dtype=torch.int64), "shape"),
        (torch.rand(3), torch.zeros(3, dtype=torch.int64), "shape"),
        (torch.rand(0, 2), torch.zeros(0, dtype=torch.int64), "shape"),
        (torch.rand(2, 2), torch.tensor([0, 2]), r"in \[0, 2\)"),
        (torch.rand(2, 2), torch.tensor([0.0, 1.0]), "int64"),
        (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), "finite"),
        (torch.tensor([[0.0, 1.0]]), torch.tensor([1]), "lowest under the label"),
    ],
)
def test_refuses_invalid_scores(label_scores, labels, message):
    with pytest.raises(ValueError, match=message):
        estimate_contamination(label_scores, labels)


def test_refuses_rates_out_of_range():
    label_scores, labels, _ = simulate(14, share=0, count=100, classes=2)
    with pytest.raises(ValueError, match="confidence"):
        estimate_contamination(label_scores, labels, confidence=95)
    with pytest.raises(ValueError, match="false_positive_rate"):
        select_by_posterior(torch.zeros(3), torch.ones(3), 1.0)
    with pytest.raises(ValueError, match="posterior"):
        select_by_posterior(torch.tensor([1.5]), torch.ones(1), 0.01)
    with pytest.raises(ValueError, match="p_values"):
        select_by_posterior(torch.zeros(3), torch.ones(2), 0.01)


def test_training_margins_move_samples_in_the_ranking_and_not_the_estimate():
    label_scores, labels, truth = simulate(1, share=0.05, count=3000)
    wrong = labels != truth
    margins = torch.where(wrong, -5.0, 5.0)
    plain, informed = (estimate_contamination(label_scores, labels, margins=given) for given in (None, margins))
    assert (informed.rate, informed.low, informed.high) == (plain.rate, plain.low, plain.high)
    assert float(informed.posterior.sum()) == pytest.approx(float(plain.posterior.sum()))
    odd = plain.posterior > 0
    rises = (informed.suspicion - plain.suspicion)[odd]
    assert rises[wrong[odd]].min() > 0 > rises[~wrong[odd]].max()
    assert torch.equal(informed.suspicion[~odd], plain.suspicion[~odd])


def test_equal_training_margins_change_nothing():
    label_scores, labels, _ = simulate(1, share=0.05, count=2000)
    plain, same = (estimate_contamination(label_scores, labels, margins=given) for given in (None, torch.ones(2000)))
    assert torch.equal(plain.posterior, same.posterior)


@pytest.mark.parametrize("margins", [torch.zeros(3), torch.full((200,), torch.nan)])
def test_refuses_other_training_margins(margins):
    labels = torch.arange(200) % 2
    with pytest.raises(ValueError, match="`margins`"):
        estimate_contamination(5 - 5 * torch.eye(2)[labels], labels, margins=margins)


def test_training_margins_do_not_count_where_a_label_is_largely_wrong():
    label_scores, labels, truth = simulate(1, share=0, count=3000)
    labels = torch.where(torch.arange(3000) % 8 == 0, 0, truth)
    margins = torch.where(labels == truth, -5.0, 5.0)  # learned, and therefore misleading
    plain, informed = (estimate_contamination(label_scores, labels, margins=given) for given in (None, margins))
    assert float((plain.posterior - informed.posterior).abs().max()) < 0.01
    assert float(plain.posterior[labels != truth].mean()) > 0.5
