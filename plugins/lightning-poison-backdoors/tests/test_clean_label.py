import pytest
import torch
from torch import nn

from lightning_poison import PixelRange, Surrogate
from lightning_poison.testing import TinyImages
from lightning_poison_backdoors import CleanLabelBackdoor, Sig, SinusoidTrigger
from lightning_poison_backdoors.triggers import corner_patches

NORMALIZED = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


def losses(surrogate, images, labels):
    with torch.no_grad():
        return nn.functional.cross_entropy(surrogate.model(images.float() / 255), labels, reduction="none")


def uncovered(images):
    """Return the rows that no 3 × 3 corner patch covers."""
    return images[..., 3:-3, :]


def test_perturbs_target_class_within_epsilon_and_adds_patch(images, poison_of, surrogate_of):
    surrogate = surrogate_of(images)
    attack = CleanLabelBackdoor(1, epsilon=8 / 255, steps=10)
    poison = poison_of(attack, images, surrogates=[surrogate], clean_label=True)
    before = images.data[poison.indices]
    assert (images.targets[poison.indices] == 1).all()
    assert (poison.labels == 1).all()
    change = uncovered(poison.inputs).int() - uncovered(before).int()
    assert change.abs().max() == 8
    assert (change != 0).float().mean() > 0.8
    assert torch.equal(torch.stack([poison.objective.trigger(image) for image in poison.inputs]), poison.inputs)
    unpatched = before.clone()
    unpatched[..., 3:-3, :] = uncovered(poison.inputs)
    assert (losses(surrogate, unpatched, poison.labels) > losses(surrogate, before, poison.labels)).all()


@pytest.mark.parametrize("corners", [1, 4])
def test_patches_are_in_corners(images, poison_of, surrogate_of, corners):
    pattern = torch.tensor([[[200, 100]]], dtype=torch.uint8)
    attack = CleanLabelBackdoor(corners=corners, pattern=pattern, steps=1, amplitude=0.5, test_amplitude=1.0)
    poison = poison_of(attack, images, surrogates=[surrogate_of(images)])
    assert repr(poison.objective.trigger) == repr(corner_patches(pattern, corners=corners))
    drawn = poison.objective.trigger(torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert int((drawn > 0).sum()) == 2 * corners


@pytest.mark.parametrize("corners", [1, 4])
def test_default_patch_is_white_and_scales_with_image(images, poison_of, surrogate_of, corners):
    poison = poison_of(CleanLabelBackdoor(steps=1, corners=corners), images, surrogates=[surrogate_of(images)])
    drawn = poison.objective.trigger(torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert int((drawn == 255).sum()) == 2 * 2 * corners
    assert (poison.inputs[..., -2:, -2:] == 255).all()
    assert poison.settings["pattern"] is None


def test_l2_norm_bounds_length_of_change(images, poison_of, surrogate_of):
    attack = CleanLabelBackdoor(norm="l2", epsilon=0.5, steps=10, corners=1, pattern=[[0]])
    poison = poison_of(attack, images, surrogates=[surrogate_of(images)])
    change = (poison.inputs.double() - images.data[poison.indices]) / 255
    change[..., -1, -1] = 0
    lengths = change.flatten(1).norm(dim=1)
    assert (lengths <= 0.5 + 1e-6).all()
    assert (lengths > 0.4).all()


def test_perturbs_normalized_color_images(poison_of):
    images = TinyImages(30, channels=3, pixels=NORMALIZED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    inputs_seen = []
    model[0].register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0].detach()))
    attack = CleanLabelBackdoor(epsilon=4 / 255, steps=3)
    poison = poison_of(attack, images, surrogates=[Surrogate(model, "0")], pixels=NORMALIZED)
    change = uncovered(poison.inputs).int() - uncovered(images.data[poison.indices]).int()
    assert change.abs().max() == 4
    assert all(NORMALIZED.contains(inputs) for inputs in inputs_seen)
    assert max(float(inputs.max()) for inputs in inputs_seen) > 1


def test_surrogates_contribute_equally(images, poison_of, surrogate_of):
    both = [surrogate_of(images, seed=seed) for seed in (0, 1)]
    attack = CleanLabelBackdoor(epsilon=0.1, steps=10, corners=1, pattern=[[0]])
    shared, *alone = (poison_of(attack, images, surrogates=each) for each in (both, both[:1], both[1:]))
    for surrogate, own, other in zip(both, alone, reversed(alone), strict=True):
        values = [losses(surrogate, each.inputs, each.labels).mean() for each in (own, shared, other)]
        assert values[0] >= values[1] >= values[2]


def test_batch_size_hardly_changes_result(images, poison_of, surrogate_of):
    surrogate = surrogate_of(images)
    whole, parts = (
        poison_of(CleanLabelBackdoor(epsilon=0.1, steps=20, batch_size=size), images, surrogates=[surrogate])
        for size in (256, 4)
    )
    assert torch.equal(whole.indices, parts.indices)
    assert (uncovered(whole.inputs) == uncovered(parts.inputs)).float().mean() > 0.8


class TestCleanLabelErrors:
    def test_refuses_missing_or_unfit_surrogates(self, images, poison_of, surrogate_of):
        with pytest.raises(ValueError, match=r"at least one model to craft on, but got none.\nPass `surrogates="):
            poison_of(CleanLabelBackdoor(), images)
        few = [surrogate_of(images), surrogate_of(images, outputs=2)]
        with pytest.raises(ValueError, match=r"`surrogates\[1\]` to be a model that returns logits \(B, 3\).*\(1, 2\)"):
            poison_of(CleanLabelBackdoor(), images, surrogates=few)
        maps = Surrogate(nn.Conv2d(1, 3, 3), "")
        with pytest.raises(ValueError, match=r"logits \(B, 3\).*\(1, 3, 6, 6\)"):
            poison_of(CleanLabelBackdoor(), images, surrogates=[maps])

    def test_refuses_absent_class_and_large_budget(self, images, poison_of, surrogate_of):
        surrogates = [surrogate_of(images)]
        with pytest.raises(ValueError, match="at most 32, the number of samples of class 0, but got 33"):
            poison_of(CleanLabelBackdoor(), images, budget=33, surrogates=surrogates)
        with pytest.raises(ValueError, match="`target_class` to be a class of the training set"):
            poison_of(CleanLabelBackdoor(7), images, surrogates=surrogates)

    def test_refuses_patch_larger_than_image(self, images, poison_of, surrogate_of):
        attack = CleanLabelBackdoor(pattern=[[0] * 9], steps=1)
        with pytest.raises(ValueError, match=r"trigger inside the image.*\(1, 1, 9\)"):
            poison_of(attack, images, surrogates=[surrogate_of(images)])

    def test_refuses_images_outside_pixel_range(self, poison_of, surrogate_of):
        images = TinyImages(30, channels=3, pixels=NORMALIZED)
        with pytest.raises(
            ValueError, match=r"images in \[0, 1\] after .* has values from -.*\nDeclare the normalization"
        ):
            poison_of(CleanLabelBackdoor(), images, surrogates=[surrogate_of(images)])

    def test_refuses_transform_that_crops(self, images, poison_of, surrogate_of):
        surrogate = surrogate_of(images)
        images.transform = lambda image: image[:, 1:].float() / 255
        with pytest.raises(ValueError, match=r"float \(1, 8, 8\), but sample \d+ is .*\(1, 7, 8\).\nPass a data set"):
            poison_of(CleanLabelBackdoor(), images, surrogates=[surrogate])

    def test_threat_epsilon_bounds_patch_and_perturbation(self, images, poison_of, surrogate_of):
        with pytest.raises(ValueError, match=r"epsilon of 0\.3, but the trigger changes one by"):
            poison_of(CleanLabelBackdoor(), images, surrogates=[surrogate_of(images)], epsilon=0.3)
        attack = CleanLabelBackdoor(epsilon=0.1, amplitude=0.1, steps=2)
        assert len(poison_of(attack, images, surrogates=[surrogate_of(images)], epsilon=0.3)) == 6

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epsilon": 8}, "For a budget of 8 gray levels write `epsilon=8 / 255`"),
            ({"epsilon": 0, "norm": "l2"}, "`epsilon` to be a finite number above 0"),
            ({"steps": 0}, "`steps`"),
            ({"step_size": -1}, "`step_size`"),
            ({"norm": "l1"}, "`norm` to be one of 'linf', 'l2'"),
            ({"corners": 3}, "`corners` to be one of 1, 4"),
            ({"amplitude": 255}, "write `amplitude=255 / 255`"),
            ({"test_amplitude": 0}, "`test_amplitude`"),
            ({"batch_size": 0}, "`batch_size`"),
            ({"target_class": -1}, "`target_class`"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CleanLabelBackdoor(**settings)


class TestSig:
    def test_adds_stripes_to_target_class_and_keeps_labels(self, images, poison_of):
        poison = poison_of(
            Sig(2, amplitude=30 / 255, frequency=2), images, budget=10, clean_label=True, epsilon=30 / 255
        )
        assert (images.targets[poison.indices] == 2).all()
        assert (poison.labels == 2).all()
        trigger = SinusoidTrigger(amplitude=30 / 255, frequency=2)
        assert torch.equal(poison.inputs, torch.stack([trigger(images.data[index]) for index in poison.indices]))

    def test_test_amplitude_applies_at_test_time(self, images, poison_of):
        objective = poison_of(Sig(2, amplitude=0.1, test_amplitude=0.3), images).objective
        assert (objective.trigger.amplitude, objective.target_class) == (0.3, 2)
        evaluation = objective.evaluation_set(images)
        assert {evaluation[position][1:] for position in range(len(evaluation))} == {(0, 2), (1, 2)}

    def test_refuses_absent_class_and_large_budget(self, images, poison_of):
        assert len(poison_of(Sig(1), images, budget=32)) == 32
        with pytest.raises(ValueError, match="at most 32, the number of samples of class 1, but got 33"):
            poison_of(Sig(1), images, budget=33)
        with pytest.raises(
            ValueError, match=r"`target_class` to be a class of the training set \(0, 1, 2\), but got 5"
        ):
            poison_of(Sig(5), images)

    def test_refuses_stripes_above_epsilon(self, images, poison_of):
        with pytest.raises(ValueError, match=r"epsilon of 0.03137, but the trigger changes one by 40 / 255"):
            poison_of(Sig(frequency=2), images, epsilon=8 / 255)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"amplitude": 30}, "write `amplitude=30 / 255`"),
            ({"test_amplitude": 60}, "write `test_amplitude=60 / 255`"),
            ({"frequency": -1}, "`frequency`"),
            ({"target_class": "next"}, "`target_class` to be an integer"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Sig(**settings)
