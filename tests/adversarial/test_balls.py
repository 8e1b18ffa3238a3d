import pytest
import torch

from lightning_poison.adversarial.balls import L2Ball, LinfBall

CENTER = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.95]])


def ball(shape, *, radius=0.2, length=0.1, movable=None):
    return shape(CENTER, radius, length, (0.0, 1.0), movable)


def test_sign_steps_stop_at_radius_and_range():
    points, gradient = CENTER, torch.tensor([[7.0, 0.0, -1.0], [-7.0, 1e-9, 2.0]])
    visited = []
    for _ in range(3):
        points = ball(LinfBall).step(points, gradient)
        visited.append(points)
    assert torch.allclose(visited[0], torch.tensor([[0.6, 0.5, 0.0], [0.4, 0.6, 1.0]]))
    assert torch.allclose(visited[2], torch.tensor([[0.7, 0.5, 0.0], [0.3, 0.7, 1.0]]))


def test_gradient_steps_are_projected_onto_ball():
    points = ball(L2Ball, length=0.2).step(CENTER, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    assert torch.allclose(points - CENTER, torch.tensor([[0.2, 0.0, 0.0]] * 2))
    turned = ball(L2Ball, length=0.2).step(points, torch.tensor([[0.0, 1.0, 0.0]] * 2))
    assert torch.allclose(turned - CENTER, torch.tensor([[0.2, 0.2, 0.0]] * 2) / 2**0.5)


def test_pixels_at_end_of_range_stay():
    points = ball(L2Ball, length=0.2).step(CENTER, torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    assert points[:, 2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("shape", [LinfBall, L2Ball])
def test_zero_gradient_changes_nothing(shape):
    assert torch.equal(ball(shape).step(CENTER, torch.zeros(2, 3)), CENTER)


@pytest.mark.parametrize("shape", [LinfBall, L2Ball])
def test_masked_pixels_keep_their_value(shape):
    movable = torch.tensor([[True, False, False], [False, True, False]])
    masked = ball(shape, radius=0.25, length=0.25, movable=movable)
    started = masked.start(torch.Generator().manual_seed(0))
    moved = masked.step(CENTER, torch.ones(2, 3))
    assert torch.equal(started[~movable], CENTER[~movable])
    assert (started[movable] != 0.5).all()
    assert torch.equal(moved, torch.where(movable, 0.75, CENTER))


def test_start_is_uniform_over_movable_pixels():
    """Half of the points of a segment are within half of its length, regardless of the dimension of the image."""
    center = torch.full((4000, 50), 0.5)
    movable = torch.zeros(4000, 50, dtype=torch.bool)
    movable[:, 7] = True
    points = L2Ball(center, 0.2, 0.1, (0.0, 1.0), movable).start(torch.Generator().manual_seed(0))
    assert float(((points - 0.5).norm(dim=1) < 0.1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_radius_per_image():
    radius = torch.tensor([[0.05], [0.0]])
    for shape in (LinfBall, L2Ball):
        moved = ball(shape, radius=radius, length=1.0).step(CENTER, torch.tensor([[1.0, 0.0, 0.0]] * 2))
        assert torch.allclose(moved - CENTER, torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.0, 0.0]]), atol=1e-6)
