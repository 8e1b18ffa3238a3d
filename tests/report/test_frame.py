import pytest

from lightning_poison.report.frame import Frame, log_place, lowest_power, powers_of_ten

FRAME = Frame(480, 360, left=62, right=466, top=12, base=316)


def test_ends_of_the_axes():
    assert (FRAME.x(0), FRAME.x(1)) == (62, 466)
    assert (FRAME.y(0), FRAME.y(1)) == (316, 12)
    assert FRAME.base - FRAME.bar(0.3) == FRAME.y(0.3)


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_shares_beyond_the_axes_are_at_their_ends(share):
    assert FRAME.x(share) in (62, 466)
    assert FRAME.y(share) in (316, 12)


def test_powers_of_ten_are_evenly_spaced():
    places = [log_place(power, -4) for power in powers_of_ten(-4)]
    assert places == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(("count", "power"), [(1, -1), (10, -1), (11, -2), (1000, -3), (10**6, -4)])
def test_axis_reaches_to_one_of_the_samples(count, power):
    assert lowest_power(count) == power
