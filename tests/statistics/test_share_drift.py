"""Bounds of a share, and alarms when it changes: known answers, false alarms by simulation, delays, and the state."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from lightning_poison.statistics.share_drift import STATE_SIZE, Drift, ReferenceCounts, ShareDrift, confidence_bounds
from lightning_poison.statistics.thresholds import class_thresholds

NOTHING = ReferenceCounts(0, 0, 0)


@pytest.mark.parametrize(("removed", "judged"), [(0, 50), (3, 300), (50, 50), (450, 1000), (1.5, 150)])
def test_bounds_are_where_the_posterior_density_is_alpha(removed, judged):
    low, high = confidence_bounds(removed, judged, alpha=0.01)
    posterior = beta(removed + 1, judged - removed + 1)
    assert low <= removed / judged <= high
    for bound, edge in ((low, 0.0), (high, 1.0)):
        assert bound == edge or posterior.pdf(bound) == pytest.approx(0.01, rel=1e-6)


def test_bounds_hold_at_all_times():
    """Of 400 sequences, fewer than a share α ever leave the bounds, though they are looked at after each sample."""
    generator, alpha, missed = np.random.default_rng(0), 0.1, 0
    for _ in range(400):
        removed = np.cumsum(generator.random(300) < 0.2)
        for judged in range(1, 301, 3):
            low, high = confidence_bounds(int(removed[judged - 1]), judged, alpha=alpha)
            if not low <= 0.2 <= high:
                missed += 1
                break
    assert 0 < missed <= alpha * 400


def alarms_of(drift, shares, *, block=64, seed=0):
    """Return the alarms for blocks of independent samples with given shares."""
    generator = np.random.default_rng(seed)
    found = [drift.update(int(generator.binomial(block, share)), block) for share in shares]
    return [alarm for alarm in found if alarm is not None]


def test_a_constant_share_gives_hardly_any_alarm():
    """At a stated rate of 20 %, far fewer than 20 % of 150 streams have an alarm, whatever their share."""
    for share in (0.01, 0.2):
        false = 0
        for seed in range(75):
            removed = int(np.random.default_rng(1000 + seed).binomial(500, share))
            drift = ShareDrift(ReferenceCounts(500, removed, removed), false_alarm_rate=0.2)
            false += bool(alarms_of(drift, [share] * 60, seed=seed))
        assert false <= 0.2 * 75


def test_thresholds_from_few_samples_give_hardly_any_alarm():
    """The realized rate of a threshold from 100 samples differs from the stated one; the reference allows for it."""
    generator, false = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        trusted, labels = torch.randn(300, generator=generator).double(), torch.arange(300) % 3
        thresholds = class_thresholds(trusted, labels, false_positive_rate=0.02, num_classes=3)
        own = thresholds[labels]
        most = max(float((trusted >= own).sum()), 0.02 * 303)
        drift = ShareDrift(ReferenceCounts(300, int((trusted > own).sum()), most), false_alarm_rate=0.2)
        clean = torch.randn(40, 63, generator=generator).double() > thresholds[torch.arange(63) % 3]
        false += any(drift.update(int(block.sum()), 63) is not None for block in clean)
    assert false <= 0.2 * 60


@pytest.mark.parametrize(
    ("shares", "direction", "onset", "delay"),
    [
        ([0.01] * 40 + [0.06] * 40, "rose", 40 * 64, 1500),
        ([0.05] * 60, "rose", 0, 2500),
        ([0.1] * 40 + [0.01] * 40, "fell", 40 * 64, 1500),
    ],
    ids=["rises", "is higher from the start", "falls"],
)
def test_a_change_is_found_soon_and_once(shares, direction, onset, delay):
    reference = ReferenceCounts(1000, 100, 100) if direction == "fell" else ReferenceCounts(1000, 10, 10)
    drift = ShareDrift(reference)
    (alarm,) = alarms_of(drift, shares)
    assert alarm.direction == direction
    assert onset < alarm.at <= onset + delay
    assert abs(alarm.since - onset) <= 10 * 64
    assert alarm.low <= shares[-1] <= alarm.high
    assert (drift.alarms, drift.last, drift.is_drifting) == (1, alarm, True)


def test_a_share_that_returns_ends_the_episode():
    drift = ShareDrift(ReferenceCounts(2000, 20, 20))
    first, second = alarms_of(drift, [0.01] * 20 + [0.2] * 20 + [0.01] * 40)
    assert (first.direction, first.is_back) == ("rose", False)
    assert (second.direction, second.is_back) == ("fell", True)
    assert not drift.is_drifting
    assert "as calibrated again" in str(second)
    assert alarms_of(drift, [0.2] * 20, seed=1)[0].direction == "rose"


def test_without_a_reference_a_stream_is_compared_with_its_past():
    assert not alarms_of(ShareDrift(NOTHING), [0.3] * 100)
    (alarm,) = alarms_of(ShareDrift(NOTHING), [0.02] * 60 + [0.3] * 20)
    assert alarm.before == pytest.approx(0.02, abs=0.01)


def test_a_few_samples_of_reference_allow_for_more():
    """Of 50 samples, none is suspicious: a share of 5 % is no contradiction."""
    assert not alarms_of(ShareDrift(ReferenceCounts(50, 0, 0.5)), [0.05] * 40)


def test_evidence_of_one_block_is_that_of_the_formula():
    """All samples of the first block are removed: the evidence for each odds ratio is θ^n / (1 − r + θ r)^n / 2."""
    drift = ShareDrift(ReferenceCounts(1000, 10, 10), false_alarm_rate=0.1)
    high = confidence_bounds(10, 1000, alpha=0.05)[1]
    drift.update(1, 1)
    assert drift._evidence[1] == pytest.approx(math.log(2 / (1 - high + 2 * high) / 2))


def test_the_state_continues_where_it_was_taken():
    whole, first = (ShareDrift(ReferenceCounts(500, 5, 5)) for _ in range(2))
    counts = np.random.default_rng(0).binomial(64, [0.01] * 20 + [0.2] * 20 + [0.01] * 40).tolist()
    expected = [whole.update(count, 64) for count in counts]
    found = []
    for count in counts:
        resumed = ShareDrift(ReferenceCounts(500, 5, 5))
        resumed.load(first.state())
        found.append(resumed.update(count, 64))
        first = resumed
    assert found == expected
    assert any(isinstance(each, Drift) for each in found)
    assert first.state() == whole.state()
    assert len(whole.state()) == STATE_SIZE
    with pytest.raises(ValueError, match=f"`state` to be {STATE_SIZE} numbers, but got 3"):
        whole.load([0.0] * 3)


def test_stored_states_keep_their_layout():
    drift = ShareDrift(ReferenceCounts(1000, 10, 10))
    (alarm,) = alarms_of(drift, [0.01] * 40 + [0.06] * 40)
    state = drift.state()
    event = [alarm.at, alarm.since, alarm.share, alarm.low, alarm.high, alarm.before, alarm.is_back]
    assert (len(state), state[:2], state[8], state[9:16]) == (86, [80 * 64, 1], 1, event)
    resumed = ShareDrift(ReferenceCounts(1000, 10, 10))
    resumed.load([*range(9), *event, *range(20), *range(100, 150)])
    assert resumed.state() == [*range(8), 1, *event, *range(20), *range(100, 150)]


@pytest.mark.parametrize("counts", [(5, 4), (-1, 4)])
def test_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match=r"`removed` to be in \[0, 4\]"):
        ShareDrift(NOTHING).update(*counts)
    assert ShareDrift(NOTHING).update(0, 0) is None


@pytest.mark.parametrize("counts", [(10, 5, 4), (10, 0, 11), (10, -1, 3)])
def test_refuses_an_impossible_reference(counts):
    with pytest.raises(ValueError, match="at most `most`, which is at most `judged`"):
        ReferenceCounts(*counts)


@pytest.mark.parametrize("rate", [0, 1, "0.1"])
def test_refuses_an_impossible_rate(rate):
    with pytest.raises(ValueError, match=r"`false_alarm_rate` to be a number in \(0, 1\)"):
        ShareDrift(NOTHING, false_alarm_rate=rate)
