import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.statistics.thresholds import class_thresholds, tail_log_p_values, tail_p_values


def zeros(count):
    return torch.zeros(count, dtype=torch.int64)


def one_class(scores, reference):
    return tail_p_values(scores, zeros(len(scores)), reference, zeros(len(reference)), num_classes=1)


DRAWS = {
    "normal": lambda *size, generator: torch.randn(*size, generator=generator),
    "chi-square": lambda *size, generator: torch.randn(*size, 8, generator=generator).square().sum(-1),
    "lognormal": lambda *size, generator: torch.randn(*size, generator=generator).exp(),
    "student-2": lambda *size, generator: (
        torch.randn(*size, generator=generator) / torch.randn(*size, 2, generator=generator).square().mean(-1).sqrt()
    ),
}


def test_p_value_counts_reference_scores_at_or_above_score():
    reference = torch.arange(1.0, 200.0)
    p_values = one_class(torch.tensor([0.0, 1.0, 1.5, 150.0, 190.0]), reference)
    assert torch.allclose(p_values, torch.tensor([200, 200, 199, 51, 11], dtype=torch.float64) / 200)


def test_tail_of_exponential_scores_is_exponential():
    size = 100_000
    reference = -(torch.arange(1, size + 1).double() / size).log()
    p_values = torch.tensor([1e-5, 1e-7, 1e-10], dtype=torch.float64)
    assert one_class(-p_values.log(), reference).tolist() == pytest.approx(p_values.tolist(), rel=0.01)


def test_tail_decreases_strictly_from_empirical_p_value():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(500, generator=generator)
    start = reference.topk(5).values[-1].item()
    scores = torch.linspace(start, start + 100, 1000, dtype=torch.float64)
    p_values = one_class(scores, reference)
    assert p_values[0].item() == pytest.approx(6 / 501)
    assert one_class(torch.tensor([start + 1e-6], dtype=torch.float64), reference).item() == pytest.approx(
        5 / 501, rel=1e-4
    )
    assert (p_values.diff() < 0).all()


@pytest.mark.parametrize("name", DRAWS)
def test_tail_never_falls_below_reference_scores(name):
    generator = torch.Generator().manual_seed(1)
    reference = DRAWS[name](500, generator=generator)
    exceeding = (reference[None] >= reference[:, None]).sum(1)
    assert (one_class(reference, reference) >= exceeding / 501 - 1e-9).all()


def test_rare_reference_scores_keep_their_frequency():
    reference = torch.cat([torch.zeros(497), torch.ones(3)])
    assert one_class(torch.ones(1), reference).item() >= 3 / 501


def test_p_values_of_extreme_scores_have_finite_logarithm():
    p_values = one_class(torch.tensor([1e30, math.inf]), torch.randn(50, generator=torch.Generator().manual_seed(0)))
    assert p_values.log10().isfinite().all()


def test_constant_reference_is_conservative():
    reference = torch.full((99,), 3.0)
    p_values = one_class(torch.tensor([2.0, 3.0, 4.0, 1e9]), reference)
    assert p_values.tolist() == pytest.approx([1.0, 1.0, 0.01, 0.01])
    at_one_percent = class_thresholds(reference, zeros(99), false_positive_rate=0.01, num_classes=1)
    assert at_one_percent.item() == 3.0
    assert class_thresholds(reference, zeros(99), false_positive_rate=0.005, num_classes=1).item() == math.inf


def test_each_class_has_its_own_tail():
    reference = torch.cat([torch.arange(100.0), 1000 + torch.arange(100.0)])
    labels = torch.arange(2).repeat_interleave(100)
    scores = torch.tensor([50.0, 1050.0, 1050.0])
    p_values = tail_p_values(scores, torch.tensor([0, 1, 0]), reference, labels, num_classes=2)
    assert p_values[0] == p_values[1]
    assert p_values[2] < 1e-6


@pytest.mark.slow
@given(
    reference=st.lists(st.integers(-20, 20), min_size=1, max_size=150),
    others=st.lists(st.floats(-60, 60, width=32), max_size=20),
    rate=st.sampled_from([0.0005, 0.003, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.9]),
)
@settings(max_examples=200, deadline=None)
def test_threshold_is_consistent_with_p_values(reference, others, rate):
    reference_scores = torch.tensor(reference, dtype=torch.float64)
    scores = torch.cat([reference_scores, torch.tensor(others, dtype=torch.float64)])
    threshold = class_thresholds(reference_scores, zeros(len(reference)), false_positive_rate=rate, num_classes=1)
    p_values = one_class(scores, reference_scores)
    close = (p_values / rate - 1).abs() < 1e-9
    exact = p_values * (len(reference) + 1) % 1 == 0
    decided = ~close | exact
    assert ((scores > threshold) == (p_values <= rate))[decided].all()


@pytest.mark.slow
@given(reference=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=120))
@settings(max_examples=100, deadline=None)
def test_p_values_are_in_unit_interval_and_decrease(reference):
    reference_scores = torch.tensor(reference, dtype=torch.float64)
    scores = torch.cat([reference_scores, torch.linspace(-2e6, 2e6, 101, dtype=torch.float64)]).sort().values
    p_values = one_class(scores, reference_scores)
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert (p_values.diff() <= 0).all()


@pytest.mark.parametrize("rate", [0.01, 0.05])
@pytest.mark.parametrize("name", DRAWS)
def test_realized_false_positive_rate_is_close_to_stated_rate(name, rate):
    generator = torch.Generator().manual_seed(2)
    classes = 10
    labels = torch.arange(classes).repeat_interleave(500)
    fresh_labels = torch.arange(classes).repeat_interleave(5000)
    realized = []
    for _ in range(3):
        reference = DRAWS[name](len(labels), generator=generator)
        fresh = DRAWS[name](len(fresh_labels), generator=generator)
        thresholds = class_thresholds(reference, labels, false_positive_rate=rate, num_classes=classes)
        realized.append((fresh > thresholds[fresh_labels]).double().mean().item())
    assert all(0.5 * rate <= value <= 1.5 * rate for value in realized)


def test_error_names_absent_class():
    with pytest.raises(ValueError, match="none of class 1, 3"):
        class_thresholds(torch.rand(4), torch.tensor([0, 0, 2, 2]), num_classes=4)


def test_small_classes_are_valid():
    for size in (1, 2, 9, 25):
        reference = torch.arange(float(size))
        p_values = one_class(torch.tensor([-1.0, size / 2, size + 5.0]), reference)
        assert p_values.isfinite().all()
        assert p_values[0] == 1


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.tensor([math.nan]), zeros(1), "free of NaN"),
        (torch.rand(2), zeros(1), "of the shape of `labels`"),
        (torch.rand(1), torch.tensor([7]), r"in \[0, 1\)"),
        (torch.rand(1), torch.tensor([0.5]), "int64"),
    ],
)
def test_refuses_invalid_arguments(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        tail_p_values(scores, labels, torch.rand(9), zeros(9), num_classes=1)


def test_refuses_infinite_reference_scores():
    with pytest.raises(ValueError, match="finite"):
        class_thresholds(torch.tensor([1.0, math.inf]), zeros(2), num_classes=1)


def test_log_p_values_match_p_values_and_do_not_underflow():
    generator = torch.Generator().manual_seed(0)
    reference, known = torch.randn(600, generator=generator), torch.arange(600) % 3
    scores, labels = 3 * torch.randn(300, generator=generator), torch.arange(300) % 3
    p_values = tail_p_values(scores, labels, reference, known, num_classes=3)
    log_p = tail_log_p_values(scores, labels, reference, known, num_classes=3)
    torch.testing.assert_close(log_p.exp(), p_values)
    far = torch.tensor([1e6, 2e6])
    assert tail_p_values(far, labels[:2] * 0, reference, known, num_classes=3).unique().numel() == 1
    near, further = tail_log_p_values(far, labels[:2] * 0, reference, known, num_classes=3).tolist()
    assert further < near < -1000


def test_log_p_values_without_scale():
    known = torch.zeros(99).long()
    log_p = tail_log_p_values(torch.tensor([1.0, 0.0]), known[:2], torch.zeros(99), known, num_classes=1)
    torch.testing.assert_close(log_p.exp(), torch.tensor([0.01, 1.0]).double())
