import pytest
import torch

from lightning_poison.statistics.label_mixture import EvenSpread, count_variances, find_disagreements, fit_mixture


def two_classes(mislabeled, hard, *, agreeing=1000):
    """Return 0s predicted as 0 with margins around 6, then 0s labeled 1, and 1s predicted as 0 with a small margin."""
    generator = torch.Generator().manual_seed(0)
    wide = 6 + torch.randn(agreeing + mislabeled, generator=generator, dtype=torch.float64)
    short = -torch.rand(hard, generator=generator, dtype=torch.float64).log() * 1.5
    of_label_1 = torch.cat([wide, short])
    label_scores = torch.stack([torch.zeros_like(of_label_1), of_label_1], 1)
    labels = torch.cat([torch.zeros(agreeing), torch.ones(mislabeled + hard)]).long()
    return label_scores, labels


def test_margins_are_in_units_of_typical_margin():
    label_scores = torch.tensor([[0.0, 2.0], [0.0, 4.0], [0.0, 4.0], [0.0, 4.0], [0.0, 9.0], [0.0, 1.0], [3.0, 1.0]])
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 0])
    found = find_disagreements(label_scores.double(), labels)
    assert found.index.tolist() == [5, 6]
    assert found.predicted[found.pair].tolist() == [0, 1]
    assert found.labeled[found.pair].tolist() == [1, 0]
    assert found.margin.tolist() == [0.25, 0.5]
    assert torch.allclose(found.wrong.sum(1), torch.ones(2, dtype=torch.float64))


def test_wrong_label_distribution_matches_agreeing_samples():
    found = find_disagreements(*two_classes(50, 0))
    margin_bins = torch.arange(41)
    below_typical = found.wrong[0, margin_bins < 40].sum().item()
    below_half = found.wrong[0, margin_bins < 20].sum().item()
    assert below_typical == pytest.approx(0.5, abs=0.02)
    assert below_half < 0.01


@pytest.mark.parametrize(("mislabeled", "hard"), [(100, 0), (0, 100), (50, 50), (10, 200), (300, 20)])
def test_fit_recovers_both_counts(mislabeled, hard):
    mixture = fit_mixture(find_disagreements(*two_classes(mislabeled, hard)))
    assert mixture.counts.sum().item() == pytest.approx(mislabeled, abs=3 + 0.05 * hard)


def test_posterior_increases_with_margin():
    found = find_disagreements(*two_classes(50, 50))
    posterior = fit_mixture(found).posterior[found.margin.argsort()]
    assert (posterior.diff() > -0.02).all()
    assert posterior[0] < 0.05
    assert posterior[-1] > 0.95


def test_refit_from_fit_is_stable():
    found = find_disagreements(*two_classes(50, 50))
    mixture = fit_mixture(found)
    again = fit_mixture(found, start=mixture)
    assert again.counts.item() == pytest.approx(mixture.counts.item(), abs=0.01)


def test_variance_grows_with_overlap():
    separate = find_disagreements(*two_classes(100, 0))
    overlapping = find_disagreements(*two_classes(100, 100))
    variances = [count_variances(found, fit_mixture(found))[1].item() for found in (separate, overlapping)]
    assert 0 <= variances[0] < variances[1]


def test_no_disagreements_are_valid():
    found = find_disagreements(*two_classes(0, 0))
    mixture = fit_mixture(found)
    assert mixture.counts.sum() == 0
    assert count_variances(found, mixture)[1] == 0


def test_even_spread_is_that_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    predictions, labels = torch.randint(5, (2, 200), generator=generator)
    product = torch.bincount(predictions, minlength=6).double()[:, None] * torch.bincount(labels, minlength=6)
    product.fill_diagonal_(0)
    shares = EvenSpread.of(predictions, labels, 6).shares(torch.arange(6)[:, None], torch.arange(6))
    assert torch.equal(shares, product / product.sum())


def test_many_classes_have_only_the_pairs_that_occur():
    """A hundred classes of twenty; the first samples of thirty of them are labeled as the next class."""
    truth = torch.arange(2000) % 100
    label_scores = 4 + torch.rand(2000, 100, generator=torch.Generator().manual_seed(0))
    label_scores[torch.arange(2000), truth] = 0
    labels = torch.where(torch.arange(2000) < 30, (truth + 1) % 100, truth)
    found = find_disagreements(label_scores, labels)
    assert found.predicted.tolist() == list(range(30))
    assert found.labeled.tolist() == list(range(1, 31))
    agreeing = label_scores[100 + 7 :: 100, 8]  # the other samples of class 7 under the label 8
    assert float(found.margin[7]) == pytest.approx(float(label_scores[7, 8] / agreeing.median()))


def test_single_precision_of_scores_is_enough():
    label_scores, labels = two_classes(30, 20)
    double, single = (
        find_disagreements(each, labels) for each in (label_scores.float().double(), label_scores.float())
    )
    assert torch.equal(double.margin, single.margin)
    assert torch.equal(double.wrong, single.wrong)


def test_rare_pairs_borrow_the_distribution_of_wrong_labels():
    """Three samples are too few for a typical margin of their own: that of the other pairs applies."""
    truth = torch.tensor([0] * 40 + [1] * 40 + [2] * 3)
    label_scores = 5 * (1 - torch.eye(3)[truth])
    labels = truth.clone()
    labels[[0, 40, 80]] = torch.tensor([1, 2, 0])
    found = find_disagreements(label_scores, labels)
    assert found.margin.tolist() == [1, 1, 1]
    assert torch.allclose(found.wrong[2], found.wrong[0], atol=0.02)
    assert (fit_mixture(found).posterior > 0.9).all()
