import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_poison.scorers.discriminator.noise import (
    _ROUNDING_ERROR,
    gaussian_noise,
    log_uniform,
    mixed_noise,
    patterned_signs,
    perturbed,
    sign_noise,
    smooth_noise,
    textured,
)

FAMILIES = [sign_noise, patterned_signs, gaussian_noise, smooth_noise, mixed_noise]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=4, channels=1, side=12, *, levels=256, seed=1):
    return torch.rand(count, channels, side, side, generator=seeded(seed)).mul(levels - 1).round().div(levels - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_depends_on_the_generator_and_not_on_the_global_state(family):
    found = torch.get_rng_state()
    one, two, other = (family((8, 2, 12, 12), generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == (8, 2, 12, 12)
    assert one.dtype == torch.float32
    assert -1 <= one.min() < -0.5
    assert 0.5 < one.max() <= 1
    assert torch.equal(torch.get_rng_state(), found)


def test_signs_are_equally_frequent():
    noise = sign_noise((100, 100), generator=seeded())
    assert set(noise.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(noise.mean())) < 0.03


def test_gaussian_noise_is_normal_before_clipping():
    noise = gaussian_noise((400, 400), generator=seeded())
    within = [float((noise.abs() < limit).float().mean()) for limit in (0.5, 1.0)]
    assert within == pytest.approx([0.683, 0.954], abs=0.005)


def test_smooth_noise_matches_the_grid_at_the_corners():
    noise = smooth_noise((1, 1, 29, 29), generator=seeded())
    coarse = 2 * torch.rand(1, 1, 7, 7, generator=seeded()) - 1
    corners = noise[0, 0, ::28, ::28] / coarse[0, 0, ::6, ::6]
    torch.testing.assert_close(corners, corners[0, 0].expand(2, 2))
    assert float(noise.diff(dim=-1).abs().mean()) < 0.25 * float(sign_noise((1, 1, 29, 29), generator=seeded()).std())


def test_smooth_noise_peaks_at_one_in_each_image():
    noise = smooth_noise((5, 3, 16, 10), generator=seeded())
    torch.testing.assert_close(noise.abs().amax((1, 2, 3)), torch.ones(5))


def test_patterned_signs_follow_filtered_noise():
    noise = patterned_signs((300, 1, 16, 16), generator=seeded())
    assert set(noise.unique().tolist()) == {-1.0, 1.0}
    agreement = (noise[..., 1:] == noise[..., :-1]).flatten(1).double().mean(1)
    share = (noise > 0).flatten(1).double().mean(1)
    assert float((agreement < 0.45).double().mean()) > 0.03
    assert float((agreement > 0.7).double().mean()) > 0.2
    assert float(share.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(((share < 0.16) | (share > 0.84)).double().mean()) == pytest.approx(0.317, abs=0.1)  # beyond 1 sigma


def test_mixture_contains_families_in_their_shares():
    noise = mixed_noise((500, 1, 16, 16), generator=seeded())
    signs = (noise.abs() == 1).flatten(1).all(1)
    smooth = noise.diff(dim=-1).abs().flatten(1).mean(1) < 0.3
    fair = signs & ((noise > 0).flatten(1).double().mean(1) - 0.5).abs().lt(0.1)
    assert abs(int(signs.sum()) - 300) < 35
    assert abs(int((smooth & ~signs).sum()) - 100) < 30
    assert 100 < int(fair.sum()) < 220


def test_mixture_for_vectors_is_signs_and_gaussian_noise():
    noise = mixed_noise((200, 6), generator=seeded())
    signs = (noise.abs() == 1).all(1)
    assert abs(int(signs.sum()) - 120) < 30
    assert 0.4 < float(noise[~signs].std()) < 0.55


def test_log_uniform_has_uniform_logarithms():
    drawn = log_uniform(4000, 0.02, 0.3, generator=seeded())
    assert 0.02 <= float(drawn.min()) < 0.0202
    assert 0.297 < float(drawn.max()) <= 0.3
    assert float((drawn < 0.0775).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(log_uniform(3, 0.1, 0.1, generator=seeded()), torch.full((3,), 0.1))


@settings(max_examples=40, deadline=None)
@example(family=sign_noise, epsilon=0.99999, levels=2, channels=1, seed=0)
@given(
    family=st.sampled_from(FAMILIES),
    epsilon=st.floats(0, 1),
    levels=st.sampled_from([None, 2, 17, 256]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_change_is_bounded_on_the_grid_and_masked(family, epsilon, levels, channels, seed):
    clean = images(channels=channels, levels=levels or 256)
    mask = torch.rand(4, 1, 12, 12, generator=seeded(seed)) > 0.5
    noise = family(clean.shape, generator=seeded(seed))
    changed = perturbed(clean, noise, epsilon, levels=levels, mask=mask)
    assert changed.shape == clean.shape
    assert changed.dtype == clean.dtype
    rounding = 1e-6 + (_ROUNDING_ERROR / (levels - 1) if levels is not None else 0)
    assert float((changed - clean).abs().max()) <= epsilon + rounding
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed[~mask.expand_as(clean)], clean[~mask.expand_as(clean)])
    if levels is not None:
        steps = changed * (levels - 1)
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


def test_change_is_the_largest_whole_number_of_levels():
    gray, noise = torch.full((2, 1, 4, 4), 102 / 255), sign_noise((2, 1, 4, 4), generator=seeded())
    changed = perturbed(gray, noise, torch.tensor([8 / 255, 0.05]))
    torch.testing.assert_close(
        (changed - gray).abs().amax((1, 2, 3)) * 255, torch.tensor([8.0, 12.0]), atol=1e-3, rtol=0
    )
    assert torch.equal((changed - gray).sign(), noise)


def test_image_off_the_grid_keeps_its_offset():
    clean = images() * 0.5 + 0.2503
    changed = perturbed(clean, sign_noise(clean.shape, generator=seeded()), 0.1)
    off = [(each * 255 - (each * 255).round()).abs() for each in (clean, changed)]
    torch.testing.assert_close(off[0], off[1], atol=1e-3, rtol=0)


def test_vectors_have_no_limits():
    points = torch.tensor([[5.0, -7.0]])
    assert torch.equal(perturbed(points, torch.ones(1, 2), 0.5, levels=None, limits=None), points + 0.5)


def test_images_do_not_change():
    clean = images()
    before = clean.clone()
    perturbed(clean, sign_noise(clean.shape, generator=seeded()), 0.3)
    assert torch.equal(clean, before)


class TestTexture:
    def test_ink_of_either_polarity(self):
        page = torch.zeros(1, 1, 6, 6)
        page[..., 2:4, 2:4] = torch.tensor([[1.0, 0.9], [0.2, 0.05]])
        ink = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
        ink[..., 2:4, 2:4] = torch.tensor([[True, True], [True, False]])
        assert torch.equal(textured(page), ink)
        assert torch.equal(textured(1 - page), ink)

    def test_color_images_where_neighbors_differ(self):
        image = torch.full((1, 3, 8, 8), 0.4)
        image[:, 1, :, 4:] = 0.6
        columns = torch.arange(8)
        assert torch.equal(textured(image), ((columns == 3) | (columns == 4)).expand(1, 1, 8, 8))

    def test_flat_image_has_none(self):
        for channels in (1, 3):
            assert not textured(torch.full((2, channels, 8, 8), 0.7)).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perturbed(images(), torch.zeros(4, 1, 12, 11), 0.1), r"`noise` to be of the shape of the samples"),
        (lambda: patterned_signs((4, 3), generator=seeded()), r"`shape` to be the shape of images"),
        (lambda: smooth_noise((4, 3), generator=seeded()), r"`shape` to be the shape of images \(B, C, H, W\)"),
        (lambda: smooth_noise((1, 1, 8, 8), generator=seeded(), cells=1), "`cells` to be an integer of at least 2"),
        (lambda: log_uniform(3, 0.0, 0.1, generator=seeded()), "`low` to be a finite number above 0"),
        (lambda: log_uniform(3, 0.2, 0.1, generator=seeded()), r"`high` to be at least `low` \(0.2\), but got 0.1"),
        (lambda: textured(torch.zeros(3, 8, 8)), r"`images` to be images \(B, C, H, W\)"),
    ],
)
def test_refuses_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
