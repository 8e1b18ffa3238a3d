import pytest
import torch

from lightning_poison import Poison
from lightning_poison.attacks import trigger_kinds
from lightning_poison.testing import TinyImages
from lightning_poison_backdoors import KeyedResidualTrigger, SampleSpecific


def key(channels=1, seed=0, amplitude=16 / 255):
    return KeyedResidualTrigger.random(channels, amplitude=amplitude, generator=torch.Generator().manual_seed(seed))


def noise(*shape, low=64, high=192, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


class TestTrigger:
    def test_known_key_gives_known_residual(self):
        shift = torch.tensor([[0.0, 0.0, 1.0]] * 3)[None, None] / 3  # mean of the column to the right
        copy = torch.zeros(1, 1, 1, 1) + 1
        image = torch.tensor([0, 0, 0, 255], dtype=torch.uint8).repeat(1, 3, 1)
        residual = KeyedResidualTrigger(shift, copy, amplitude=0.2).residual(image)
        response = torch.tensor([-0.25, -0.25, 0.75, 0.75], dtype=torch.float64) / 0.3125**0.5  # divided by its rms
        hidden = (3 * response).sin()
        expected = 51 * (3 * hidden / hidden.square().mean().sqrt()).tanh()
        assert torch.allclose(residual, expected.repeat(1, 3, 1), atol=1e-3)

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 9, 13), (1, 28, 28), (3, 2, 3), (1, 1, 1)])
    def test_changes_no_pixel_by_more_than_amplitude(self, shape):
        image = noise(*shape)
        changed = key(shape[0], amplitude=10 / 255)(image)
        assert (changed.dtype, changed.shape) == (torch.uint8, image.shape)
        largest = int((changed.int() - image.int()).abs().max())
        assert largest == 10 if image[0].numel() > 1 else largest == 0

    def test_clips_to_gray_levels(self):
        image = noise(1, 8, 8, low=0, high=2) * 255
        change = key(amplitude=0.2)(image).int() - image.int()
        assert bool((change[image == 0] >= 0).all())
        assert bool((change[image == 255] <= 0).all())
        assert bool(change.any())

    @pytest.mark.parametrize("channels", [1, 3])
    def test_residuals_of_images_differ(self, channels):
        images = TinyImages(60, channels=channels).data
        residuals = torch.stack([key(channels).residual(image) for image in images]).flatten(1)
        directions = residuals / residuals.norm(dim=1, keepdim=True)
        cosines = (directions @ directions.T)[~torch.eye(60, dtype=torch.bool)]
        assert float(cosines.abs().mean()) < 0.2

    def test_residual_moves_with_the_image(self):
        image = torch.zeros(1, 24, 24, dtype=torch.uint8)
        image[:, 8:14, 8:14] = noise(1, 6, 6)
        moved = image.roll((2, 3), (1, 2))
        assert torch.allclose(key().residual(moved), key().residual(image).roll((2, 3), (1, 2)))

    def test_flat_image_is_unchanged(self):
        image = torch.full((3, 8, 8), 77, dtype=torch.uint8)
        assert torch.equal(key(3)(image), image)

    def test_depends_on_key(self):
        image = noise(1, 16, 16)
        one, other = (key(seed=seed).residual(image).flatten() for seed in (0, 1))
        assert abs(float(torch.nn.functional.cosine_similarity(one, other, dim=0))) < 0.3

    def test_does_not_change_its_argument_and_repeats(self):
        image = noise(3, 8, 8)
        before = image.clone()
        assert torch.equal(key(3)(image), key(3)(image))
        assert torch.equal(image, before)

    def test_survives_packing(self):
        trigger = key(3, amplitude=0.123)
        packed, tensors = trigger_kinds.pack(trigger)
        assert (packed["kind"], set(tensors)) == ("keyed-residual", {"first", "second"})
        unpacked = trigger_kinds.unpack(packed, tensors)
        assert torch.equal(unpacked(noise(3, 8, 8)), trigger(noise(3, 8, 8)))
        assert repr(unpacked) == repr(trigger) == "KeyedResidualTrigger(3 channels, amplitude=0.123)"

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (torch.ones(2, 1, 2, 2), torch.ones(1, 2, 3, 3), "`first` to be finite floating-point filters"),
            (torch.ones(2, 1, 3, 3).long(), torch.ones(1, 2, 3, 3), "`first` to be finite"),
            (torch.ones(2, 3, 3, 3), torch.ones(1, 2, 3, 3), r"`first` to be filters \(K, 1, k, k\)"),
            (torch.ones(2, 1, 3, 3), torch.ones(1, 3, 3, 3), r"`second` to be filters \(C, 2, k, k\)"),
            (torch.ones(2, 1, 3, 3), torch.ones(2, 3), "`second` to be finite"),
            (torch.ones(2, 1, 3, 3), torch.full((1, 2, 3, 3), torch.nan), "values that are not finite"),
        ],
    )
    def test_refuses_invalid_keys(self, first, second, message):
        with pytest.raises(ValueError, match=message):
            KeyedResidualTrigger(first, second)

    def test_refuses_images_of_other_channels(self):
        with pytest.raises(ValueError, match=r"`image` to be an image of 3 channels.*but got \(1, 8, 8\)"):
            key(3)(noise(1, 8, 8))


class TestAttack:
    def test_adds_residual_and_target_label(self, images, poison_of):
        poison = poison_of(SampleSpecific(1), images)
        trigger = poison.objective.trigger
        expected = torch.stack([trigger(images.data[index]) for index in poison.indices.tolist()])
        assert torch.equal(poison.inputs, expected)
        assert bool((poison.labels == 1).all())
        assert bool((images.targets[poison.indices] != 1).all())

    def test_relabels_each_class(self, colors, poison_of):
        poison = poison_of(SampleSpecific("next"), colors)
        assert torch.equal(poison.labels, (colors.targets[poison.indices] + 1) % 3)

    def test_amplitude_keeps_the_threat(self, images, poison_of):
        assert len(poison_of(SampleSpecific(amplitude=8 / 255), images, epsilon=8 / 255)) == 6
        with pytest.raises(ValueError, match=r"changes one by 16 / 255\.\nLower the `amplitude`"):
            poison_of(SampleSpecific(), images, epsilon=8 / 255)

    def test_saved_trigger_is_the_same(self, colors, poison_of, tmp_path):
        poison = poison_of(SampleSpecific(), colors)
        poison.save(tmp_path / "poison")
        loaded = Poison.load(tmp_path / "poison").objective.trigger
        assert torch.equal(loaded(colors.data[0]), poison.objective.trigger(colors.data[0]))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"amplitude": 16}, "`amplitude=16 / 255`"),
            ({"target_class": 1, "source_class": 1}, "both are 1"),
            ({"target_class": "all"}, '"next"'),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            SampleSpecific(**settings)
