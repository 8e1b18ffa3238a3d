import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_poison_collisions.grid import to_grid


@given(
    levels=st.sampled_from([2, 17, 256]),
    epsilon=st.one_of(st.none(), st.sampled_from([1 / 255, 8 / 255, 1 / 16, 0.07, 0.3])),
    on_grid=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_images_come_to_lie_on_the_grid_and_inside_the_ball(levels, epsilon, on_grid, seed):
    generator = torch.Generator().manual_seed(seed)
    bases, images = torch.rand(2, 3, 20, generator=generator)
    if on_grid:
        bases = (bases * (levels - 1)).round() / (levels - 1)
    if epsilon is not None:
        images = images.clamp(bases - epsilon, bases + epsilon)
    rounded = to_grid(images, levels=levels, bases=bases, epsilon=epsilon)
    steps = rounded * (levels - 1)
    aligned = (steps - steps.round()).abs() < 1e-3
    assert (aligned | (rounded == bases)).all()
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    if on_grid:
        assert aligned.all()
    if epsilon is not None:
        assert (rounded - bases).abs().max() <= epsilon + 1e-5


def test_a_whole_number_of_levels_may_be_used_up():
    bases = torch.arange(256.0)[None] / 255
    rounded = to_grid((bases + 8 / 255).clamp(max=1), levels=256, bases=bases, epsilon=8 / 255)
    assert ((rounded - bases) * 255).round()[0, :248].tolist() == [8.0] * 248


def test_a_continuous_range_is_left_alone():
    images = torch.tensor([[0.123]])
    assert to_grid(images, levels=None, bases=images) is images
