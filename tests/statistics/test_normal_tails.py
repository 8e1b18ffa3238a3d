import pytest
import torch

from lightning_poison.statistics.label_mixture import find_disagreements, fit_mixture, log_likelihood
from lightning_poison.statistics.normal_tails import fit_normal_mixture, normal_tails


@pytest.mark.parametrize("errors", [0.01, 0.1, 0.3])
def test_tail_is_that_of_drawn_margins(errors):
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(400_000, generator=generator).double() - torch.special.ndtri(torch.tensor(errors).double())
    median = margins[margins > 0].median()
    drawn = (-margins[margins < 0] / median * 10).clamp(max=10).long().bincount(minlength=11).double()
    found = normal_tails(torch.tensor([errors]).double(), 10)[0]
    assert (drawn / drawn.sum() - found).abs().max() < 0.02
    assert float(found.sum()) == pytest.approx(1)


def test_more_errors_have_longer_tails_up_to_a_limit():
    first_bins = normal_tails(torch.tensor([0.0, 0.05, 0.2, 0.4, 0.45, 0.6, 1.0]).double(), 20)[:, 0]
    assert (first_bins[:-3].diff() < 0).all()
    assert first_bins[-3:].tolist() == pytest.approx([float(first_bins[4])] * 3)


def two_classes(wrong=0, errors=0.16, count=6000):
    """Two classes whose margins are normal, of which a share is below 0, and some labels that are exchanged."""
    generator = torch.Generator().manual_seed(1)
    margin = torch.randn(count, generator=generator).double() - torch.special.ndtri(torch.tensor(errors).double())
    labels = torch.arange(count) % 2
    label_scores = torch.zeros(count, 2).double().scatter(1, 1 - labels[:, None], margin[:, None])
    labels[:wrong] = 1 - labels[:wrong]
    return find_disagreements(label_scores, labels)


def test_wrong_labels_are_counted_beside_hard_samples():
    found = two_classes(wrong=600)
    mixture, tails, least, longest = fit_normal_mixture(found)
    assert float(mixture.counts.sum()) == pytest.approx(600, rel=0.25)
    assert float(least.counts.sum()) < float(mixture.counts.sum())
    assert tails.shape == longest.shape == (2, found.wrong.shape[1])


def test_hard_samples_are_not_counted_as_wrong_labels():
    found = two_classes()
    assert float(fit_normal_mixture(found)[0].counts.sum()) < 0.01 * 6000


def test_tails_that_fit_are_more_likely():
    found = two_classes()
    short, long = (normal_tails(torch.full((2,), share).double(), found.wrong.shape[1] - 1) for share in (0.01, 0.16))
    likely, unlikely = (log_likelihood(found, fit_mixture(found, tails=each), tails=each) for each in (long, short))
    assert likely > unlikely + 10
