"""The digits of each case; what depends only on their scores and labels is estimated once."""

import pytest

from lightning_poison.sanitization import without_trusted

from .cases import Digits

ESTIMATES = {}


@pytest.fixture(autouse=True)
def reproducible(single_thread):
    """Make all runs reproducible."""


@pytest.fixture(autouse=True)
def same_scores_are_estimated_once(monkeypatch):
    """Remember the estimates, which take most of the time: many cases are the same digits in another form."""
    estimate = without_trusted.estimate_contamination

    def remembered(label_scores, labels, *, confidence, margins=None, lowest=None, **options):
        tensors = (label_scores, labels, *(() if margins is None else (margins,)))
        key = *(each.numpy().tobytes() for each in tensors), label_scores.shape, confidence, *sorted(options.items())
        if key not in ESTIMATES:
            ESTIMATES[key] = estimate(
                label_scores,
                labels,
                confidence=confidence,
                margins=margins,
                lowest=lowest,
                **options,
            )
        return ESTIMATES[key]

    monkeypatch.setattr(without_trusted, "estimate_contamination", remembered)


@pytest.fixture
def d(digits, centroid_scorer, tmp_path):
    return Digits(digits, centroid_scorer, tmp_path)
