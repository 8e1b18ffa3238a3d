import numpy as np
import pytest
import torch

from lightning_poison.report.page_calibration import calibration_of, expected_clean, promises_of
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.verdict import Verdict

CLEAN = Evidence(False, 0.0, 0.0, 0.01, 0.95, 0.003, power=0.8)


def verdict_of(p_values, keep=None, **parts):
    size = len(p_values)
    keep = torch.ones(size, dtype=torch.bool) if keep is None else keep
    posterior = (~keep).double() * 0.9
    p_values = p_values.clamp_min(1e-300)
    zeros = torch.zeros(size, dtype=torch.int64)
    return Verdict(
        posterior, p_values, keep, zeros, zeros, torch.tensor([torch.inf]).double(), **{
            "evidence": CLEAN, "calibration": "wrong-label null", "false_positive_rate": 0.01, "scorer": "likelihood",
            "fingerprint": "5f0c", "posterior": posterior, "posterior_threshold": 0.5, **parts,
        },
    )  # fmt: skip


def points(line):
    return np.array([[float(each) for each in point.split(",")] for point in line.split()])


def test_uniform_p_values_lie_on_the_diagonal():
    calibration = calibration_of(verdict_of((torch.arange(20_000).double() + 1) / 20_000))
    assert [row.judged for row in calibration.rows] == pytest.approx([row.p_value for row in calibration.rows])
    x0, y0, x1, y1 = calibration.diagonal
    line = points(calibration.judged)
    share = (line[:, 0] - x0) / (x1 - x0)
    assert np.abs(line[:, 1] - (y0 + share * (y1 - y0)))[20:].max() < 2  # where there are many samples
    assert calibration.judged == calibration.kept


def test_small_p_values_are_above_the_diagonal_and_kept_samples_below():
    p_values = (torch.arange(1000).double() + 1) / 1000
    p_values[500:600] = 1e-300
    keep = p_values > 0.01
    rows = {row.p_value: row for row in calibration_of(verdict_of(p_values, keep)).rows}
    assert rows[0.01].judged == pytest.approx(0.11)
    assert rows[0.01].kept == 0
    assert rows[1.0].judged == rows[1.0].kept == 1


@pytest.mark.parametrize("p_values", [[1.0], [1e-300], [1.0, 1.0], [0.5] * 7])
def test_few_and_extreme_p_values_stay_inside_the_drawing(p_values):
    calibration = calibration_of(verdict_of(torch.tensor(p_values).double()))
    frame = calibration.frame
    for line in (points(calibration.judged), points(calibration.kept)):
        assert np.isfinite(line).all()
        assert (line[:, 0] >= frame.left).all()
        assert (line[:, 0] <= frame.right).all()
        assert (line[:, 1] >= frame.top).all()
        assert (line[:, 1] <= frame.base).all()


def test_only_judged_samples_count():
    judged = torch.tensor([True, True, False, False])
    p_values = torch.tensor([0.001, 0.5, 1.0, 1.0]).double()
    rows = {row.p_value: row.judged for row in calibration_of(verdict_of(p_values, judged=judged)).rows}
    assert rows[0.1] == 0.5


def test_expected_number_of_clean_samples_among_the_removed():
    keep = torch.tensor([False] * 10 + [True] * 10)
    p_values = torch.full((20,), 0.5).double()
    assert expected_clean(verdict_of(p_values, keep)) == pytest.approx(1.0)
    by_hand = verdict_of(p_values, keep).with_removed(torch.arange(10, 20))
    assert expected_clean(by_hand) == pytest.approx(1.0)
    assert promises_of(by_hand)[0].removed == 10
    trusted = verdict_of(p_values, posterior=None, posterior_threshold=None, calibration="trusted")
    assert expected_clean(trusted) is None


def test_power_is_that_of_each_scorer():
    single = promises_of(verdict_of(torch.ones(4).double()))
    assert [(each.scorer, each.kind, each.power, each.removed) for each in single] == [
        ("likelihood", "wrong labels", 0.8, 0)
    ]
    groups = Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003, kind="groups")
    findings = (Finding("a\x1b", 2, CLEAN), Finding("b", 3, groups), Finding("c", 0, None, failure="too few"))
    several = promises_of(verdict_of(torch.ones(4).double(), findings=findings))
    assert [(each.scorer, each.power) for each in several] == [(r"a\x1b", 0.8), ("b", None)]
    assert several[1].estimate == "10.00 % (5.00 to 20.00 %)"
