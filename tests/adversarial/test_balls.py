import pytest
import torch

from lightning_poison.adversarial.balls import L2Ball, LinfBall

CENTER = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.95]])


def ball(shape, *, radius=0.2, length=0.1, movable=None):
    return shape(CENTER, radius, length, (0.0, 1.0), movable)


def test_signed_steps_stop_at_the_radius_and_at_the_range():
    points, gradient = CENTER, torch.tensor([[7.0, 0.0, -1.0], [-7.0, 1e-9, 2.0]])
    seen = []
    for _ in range(3):
        points = ball(LinfBall).step(points, gradient)
        seen.append(points)
    assert torch.allclose(seen[0], torch.tensor([[0.6, 0.5, 0.0], [0.4, 0.6, 1.0]]))
    assert torch.allclose(seen[2], torch.tensor([[0.7, 0.5, 0.0], [0.3, 0.7, 1.0]]))


def test_steps_along_the_gradient_turn_at_the_radius():
    points = ball(L2Ball, length=0.2).step(CENTER, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    assert torch.allclose(points - CENTER, torch.tensor([[0.2, 0.0, 0.0]] * 2))
    turned = ball(L2Ball, length=0.2).step(points, torch.tensor([[0.0, 1.0, 0.0]] * 2))
    assert torch.allclose(turned - CENTER, torch.tensor([[0.2, 0.2, 0.0]] * 2) / 2**0.5)


def test_pixels_at_the_end_of_the_range_stay_there():
    points = ball(L2Ball, length=0.2).step(CENTER, torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    assert points[:, 2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("shape", [LinfBall, L2Ball])
def test_without_a_gradient_nothing_moves(shape):
    assert torch.equal(ball(shape).step(CENTER, torch.zeros(2, 3)), CENTER)


@pytest.mark.parametrize("shape", [LinfBall, L2Ball])
def test_pixels_that_may_not_move_keep_their_value(shape):
    movable = torch.tensor([[True, False, False], [False, True, False]])
    masked = ball(shape, radius=0.25, length=0.25, movable=movable)
    started = masked.start(torch.Generator().manual_seed(0))
    moved = masked.step(CENTER, torch.ones(2, 3))
    assert torch.equal(started[~movable], CENTER[~movable])
    assert (started[movable] != 0.5).all()
    assert torch.equal(moved, torch.where(movable, 0.75, CENTER))


def test_a_start_with_few_movable_pixels_is_uniform_among_these():
    """Half of a segment's points lie within half of its length, whatever the dimension of the image."""
    center = torch.full((4000, 50), 0.5)
    movable = torch.zeros(4000, 50, dtype=torch.bool)
    movable[:, 7] = True
    points = L2Ball(center, 0.2, 0.1, (0.0, 1.0), movable).start(torch.Generator().manual_seed(0))
    assert float(((points - 0.5).norm(dim=1) < 0.1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_radius_for_each_image():
    radius = torch.tensor([[0.05], [0.0]])
    for shape in (LinfBall, L2Ball):
        moved = ball(shape, radius=radius, length=1.0).step(CENTER, torch.tensor([[1.0, 0.0, 0.0]] * 2))
        assert torch.allclose(moved - CENTER, torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.0, 0.0]]), atol=1e-6)
