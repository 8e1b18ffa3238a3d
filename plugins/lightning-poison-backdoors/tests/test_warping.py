import pytest
import torch

from lightning_poison import Poison
from lightning_poison.attacks import COVER
from lightning_poison_backdoors import WaNet, WarpTrigger


def test_constant_field_shifts_the_image():
    image = torch.randint(256, (3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    right = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)])
    shifted = WarpTrigger(right, strength=2.0)(image)
    assert torch.equal(shifted[:, :, :5], image[:, :, 2:])
    assert torch.equal(shifted[:, :, 5:], image[:, :, -1:].expand(-1, -1, 2))
    down = WarpTrigger(right.flip(0), strength=1.0)(image)
    assert torch.equal(down[:, :8], image[:, 1:])


def test_displacement_is_interpolated_between_control_points():
    field = torch.zeros(2, 2, 2)
    field[0, :, 1] = 1.0  # 0 on the left, 1 on the right
    image = (20 * torch.arange(11)).to(torch.uint8).repeat(1, 5, 1)
    moved = (WarpTrigger(field, strength=2.0)(image).float() - image) / 20
    assert moved[0, 0, 0] == 0
    assert moved[0, 0, 5] == pytest.approx(1.0, abs=0.05)
    assert bool((moved[0, :, :6].diff(dim=1) >= 0).all())


def test_all_images_have_the_same_warp_and_the_target_label(images, poison_of):
    poison = poison_of(WaNet(1, strength=1.0), images)
    trigger = poison.objective.trigger
    expected = torch.stack([trigger(images.data[index]) for index in poison.indices.tolist()])
    assert torch.equal(poison.inputs, expected)
    assert bool((poison.labels == 1).all())
    assert bool((images.targets[poison.indices] != 1).all())
    assert float(trigger.field.abs().mean()) == pytest.approx(1.0)


def test_warp_depends_on_the_generator(images, poison_of):
    first, second = (poison_of(WaNet(1), images, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.objective.trigger.field, second.objective.trigger.field)


def test_saved_trigger_is_the_same(images, poison_of, tmp_path):
    poison = poison_of(WaNet("next", control_points=3), images)
    poison.save(tmp_path / "poison.safetensors")
    loaded = Poison.load(tmp_path / "poison.safetensors")
    assert torch.equal(loaded.objective.trigger.field, poison.objective.trigger.field)
    assert torch.equal(loaded.objective.trigger(images.data[0]), poison.objective.trigger(images.data[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control_points": 1}, "control_points"),
        ({"strength": 0}, "strength"),
        ({"target_class": -1}, "target_class"),
        ({"cover_share": 1}, "cover_share"),
        ({"noise": 0}, "noise"),
    ],
)
def test_refuses_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        WaNet(**settings)


@pytest.mark.parametrize(
    "field",
    [torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(3, 2, 2), torch.zeros(2, 1, 1), torch.zeros(2, 2, 2).long()],
)
def test_refuses_invalid_fields(field):
    with pytest.raises(ValueError, match="field"):
        WarpTrigger(field)


class TestCover:
    def test_keeps_labels_and_has_noise_of_its_own(self, images, poison_of):
        poison = poison_of(WaNet(1, cover_share=2 / 3), images, budget=30)
        cover = poison.role == COVER
        trigger = poison.objective.trigger
        warped = torch.stack([trigger(images.data[index]) for index in poison.indices.tolist()])
        assert int(cover.sum()) == 20
        assert torch.equal(poison.inputs[~cover], warped[~cover])
        assert bool((poison.inputs[cover] != warped[cover]).flatten(1).any(1).all())
        assert torch.equal(poison.labels[cover], images.targets[poison.indices[cover]])
        assert bool((poison.labels[~cover] == 1).all())

    def test_noise_is_bounded(self, images, poison_of):
        poison = poison_of(WaNet(1, cover_share=0.9, noise=1e-6), images)
        trigger = poison.objective.trigger
        warped = torch.stack([trigger(images.data[index]) for index in poison.indices.tolist()])
        assert int((poison.inputs.int() - warped.int()).abs().max()) <= 1

    def test_there_is_none_by_default(self, images, poison_of):
        assert poison_of(WaNet(1), images).role.tolist() == [0] * 6

    def test_noise_displaces_single_pixels(self):
        image = (20 * torch.arange(11)).to(torch.uint8).repeat(1, 5, 1)
        noise = torch.zeros(2, 5, 11)
        noise[0, 2, 3] = 1.0
        moved = WarpTrigger(torch.zeros(2, 2, 2)).warped(image, noise)
        assert int(moved[0, 2, 3]) == 80
        assert int((moved != image).sum()) == 1
