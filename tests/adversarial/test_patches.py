import torch

from lightning_poison.adversarial.patches import draw_patches, place_patches


def test_sizes_and_brightness_vary():
    patterns, sizes = draw_patches(200, (3, 20, 30), sides=(0.1, 0.4), generator=torch.Generator().manual_seed(0))
    assert patterns.shape == (200, 3, 20, 30)
    assert sorted(set(sizes[:, 0].tolist())) == list(range(2, 9))
    assert sorted(set(sizes[:, 1].tolist())) == list(range(3, 13))
    assert set(patterns.flatten().tolist()) == {0.0, 1.0}
    bright = patterns.mean((1, 2, 3))
    assert float(bright.min()) < 0.1
    assert float(bright.max()) > 0.9


def test_smallest_images_have_patches_of_one_pixel():
    _, sizes = draw_patches(50, (1, 4, 4), sides=(0.1, 0.4), generator=torch.Generator())
    assert sizes.unique().tolist() == [1]


def test_each_canvas_has_its_complete_patch():
    patterns = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    sizes, kinds = torch.tensor([[2, 3], [6, 1], [1, 8]]), torch.tensor([0, 1, 2, 0, 0])
    places = torch.tensor([[0.0, 0.0], [0.5, 0.999], [0.999, 0.5], [0.999, 0.999], [0.5, 0.5]])
    canvases, inside = place_patches(patterns, sizes, kinds, places)
    corners = [(0, 0), (0, 7), (5, 0), (4, 5), (2, 3)]
    for canvas, within, kind, (top, left) in zip(canvases, inside, kinds, corners, strict=True):
        height, width = sizes[kind].tolist()
        expected = torch.zeros(1, 6, 8, dtype=torch.bool)
        expected[:, top : top + height, left : left + width] = True
        assert torch.equal(within, expected)
        part = canvas[:, top : top + height, left : left + width]
        assert torch.equal(part, patterns[kind, :, :height, :width])
