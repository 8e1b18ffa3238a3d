import pytest
import torch
import torch.nn.functional as F

from lightning_poison_collisions.augmentation import Augmentation

POSITIONS = torch.arange(40)


@pytest.fixture
def images(generator):
    return torch.rand(40, 2, 4, 5, generator=generator)


def versions(image, *, shift, flip):
    """Return every augmented version of one image."""
    padded = F.pad(image[None], (shift,) * 4, mode="replicate")[0]
    crops = [padded[:, row : row + 4, column : column + 5] for row in range(2 * shift + 1) for column in range(3)]
    return crops + [crop.flip(-1) for crop in crops] if flip else crops


@pytest.mark.parametrize("flip", [False, True])
def test_draws_all_shifts_and_mirror_images(images, generator, flip):
    same = images[:1].expand(200, -1, -1, -1)
    drawn = Augmentation(shift=1, flip=flip).draw(200, generator)(same, torch.arange(200))
    allowed = versions(images[0], shift=1, flip=flip)
    found = {next(number for number, each in enumerate(allowed) if torch.equal(each, image)) for image in drawn}
    assert found == set(range(len(allowed)))


def test_flip_alone_mirrors_about_half(images, generator):
    drawn = Augmentation(flip=True).draw(40, generator)(images, POSITIONS)
    mirrored = drawn.eq(images.flip(-1)).flatten(1).all(1)
    assert 10 < int(mirrored.sum()) < 30
    assert torch.equal(drawn[~mirrored], images[~mirrored])


def test_batches_get_same_draw_as_whole(images, generator):
    augment = Augmentation(shift=2, flip=True).draw(40, generator)
    parts = [augment(images[block], block) for block in POSITIONS.split(7)]
    assert torch.equal(torch.cat(parts), augment(images, POSITIONS))


def test_gradient_flows_to_pixels_that_remain(images, generator):
    leaf = images.clone().requires_grad_()
    Augmentation(shift=1, flip=True).draw(40, generator)(leaf, POSITIONS).sum().backward()
    assert leaf.grad.sum() == images.numel()  # each augmented pixel is one of the image, edges perhaps twice


def test_nothing_is_drawn_without_augmentation(images, generator):
    before = generator.get_state()
    assert Augmentation().draw(40, generator)(images, POSITIONS) is images
    assert torch.equal(generator.get_state(), before)


def test_refuses_vectors_and_settings_out_of_range(generator):
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\), but got .*\nSet `shift=0` and `flip=False`"):
        Augmentation(shift=1).draw(3, generator)(torch.rand(3, 8), torch.arange(3))
    with pytest.raises(ValueError, match="`shift` to be an integer of at least 0"):
        Augmentation(shift=-1)
    with pytest.raises(ValueError, match="`flip` to be True or False"):
        Augmentation(flip="yes")
