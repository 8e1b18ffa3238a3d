import pytest
import torch

from lightning_poison.errors import NothingKeptError
from lightning_poison.sanitization.limits import with_limits
from lightning_poison.sanitization.pipeline import sanitize


def judged(sizes, suspicious, **settings):
    """Return a verdict and the labels for classes of these sizes, with so many wrong labels each, of class 0."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    truth = labels.clone()
    for number, count in enumerate(suspicious):
        truth[(labels == number).nonzero().flatten()[:count]] = 0 if number else 1
    spread = 0.002 * torch.rand(len(labels), 1, generator=torch.Generator().manual_seed(0))
    pred_probs = (1 - 0.02 * len(sizes) - spread) * torch.eye(len(sizes))[truth] + 0.02 + spread / len(sizes)
    return sanitize(labels=labels, pred_probs=pred_probs, **settings), labels


@pytest.mark.parametrize(("size", "count"), [(4, 3), (4, 4), (19, 12)])
def test_small_class_is_kept_and_named(size, count):
    verdict, labels = judged([200, 200, size], [4, 0, count])
    assert verdict.keep[labels == 2].all()
    assert int((~verdict.keep[labels == 0]).sum()) == 4
    assert verdict.notes == (
        f"{count} suspicious samples are kept, since most of class 2 would be removed, which has fewer than 20 "
        "samples: it is not judged. Check them by hand.",
    )
    assert torch.equal(verdict.judged, labels != 2)
    assert verdict.summary().startswith("400 samples scored by pred_probs; 4 removed (1.00 %)")
    assert (verdict.posterior[labels == 2] > 0.5).sum() == count


def test_small_classes_are_listed():
    verdict, labels = judged([300, 300] + [5] * 10, [3] + [0] + [3] * 10)
    assert torch.equal(verdict.judged, labels < 2)
    assert verdict.notes[0].startswith("30 suspicious samples are kept, since most of classes 2, 3, 4, 5, 6, 7, 8, 9 ")
    assert verdict.notes[0].endswith(
        "9 and 2 more would be removed, which have fewer than 20 samples each: they are not judged. Check them by hand."
    )


def test_limits_of_a_limited_verdict_change_nothing():
    verdict, _ = judged([200, 200, 4], [4, 0, 3])
    assert with_limits(verdict, 0.5) is verdict


def test_less_than_half_of_a_small_class_is_removed():
    verdict, labels = judged([200, 200, 8], [4, 0, 4])
    assert int((~verdict.keep[labels == 2]).sum()) == 4
    assert verdict.notes == ()
    assert verdict.judged is None


def test_limit_of_a_small_class_is_that_of_all():
    verdict, labels = judged([200, 200, 8, 8], [4, 0, 6, 8], max_removed=0.8)
    assert int((~verdict.keep[labels == 2]).sum()) == 6
    assert verdict.keep[labels == 3].all()
    assert "most of class 3 would" in verdict.notes[0]


def test_larger_classes_are_an_error():
    with pytest.raises(NothingKeptError, match=r"at most 50 % of each class, but 65\.0 % of class 2 are suspicious"):
        judged([200, 200, 20], [4, 0, 13])


def test_too_many_suspicious_samples_are_an_error_of_all():
    verdict, _ = judged([8, 8, 100], [8, 5, 0], max_removed=1)
    assert with_limits(verdict, 0.01) is verdict


def test_rare_class_of_many_samples_is_kept_and_named():
    """A class of 25 of 2,600 samples; in a smaller set, so many wrong labels are an error."""
    verdict, labels = judged([1300, 1300, 25], [20, 0, 20])
    assert verdict.keep[labels == 2].all()
    assert verdict.notes[0].endswith(
        "since most of class 2 would be removed, which has at most 1 % of the samples: it is not judged. Check them by "
        "hand."
    )
    with pytest.raises(NothingKeptError, match="of class 2 are suspicious"):
        judged([300, 300, 25], [20, 0, 20])


def test_class_of_more_than_100_samples_is_an_error():
    with pytest.raises(NothingKeptError, match="of class 2 are suspicious"):
        judged([6000, 6000, 101], [100, 0, 60])
