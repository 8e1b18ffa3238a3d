import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange, Threat, craft, get_attack
from lightning_poison.attacks import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.data import labels_of
from lightning_poison_perturbations import fgsm, random_sign


@pytest.mark.parametrize("name", ["fgsm", "pgd", "random-sign", "smooth-pattern"])
def test_ink_only_leaves_the_ground_alone(change, name):
    poison, originals = change(get_attack(name, source_class=3, ink_above=0.5, epsilon=0.2))
    moved = poison.inputs != originals
    assert moved.any()
    assert not (moved & (originals <= 0.5)).any()


def test_ink_of_one_channel_moves_all_three(generator):
    images = torch.full((4, 3, 5, 5), 0.3)
    images[:, 1, 2] = 0.6
    dataset = TensorDataset(images, torch.arange(4) % 2)
    attack = random_sign(ink_above=0.5, epsilon=0.25)
    moved = craft(attack, dataset, Threat(4), generator=generator).inputs != images
    assert moved[:, :, 2].any(0).all()
    assert not moved[:, :, [0, 1, 3, 4]].any()


def test_labels_stay_and_the_share_is_of_the_class(change, dataset):
    poison, _ = change(random_sign(source_class=7, class_fraction=0.5))
    labels = labels_of(dataset)
    assert len(poison) == round(0.5 * int((labels == 7).sum()))
    assert (labels[poison.indices] == 7).all()
    assert (poison.labels == 7).all()


def test_the_objective_is_the_class_or_everything(change):
    named, all_ = (change(random_sign(source_class=source_class))[0].objective for source_class in (7, None))
    assert isinstance(named, ProtectedClassObjective)
    assert (named.protected_class, named.target_class) == (7, -1)
    assert isinstance(all_, AvailabilityObjective)


def test_the_threat_sets_the_radius(change):
    for limits, epsilon in (({}, 0.2), ({"epsilon": 0.4}, 0.4)):
        poison, originals = change(random_sign(epsilon=0.2), **limits)
        levels = int(epsilon * 16)
        assert float((poison.inputs - originals).abs().max()) == pytest.approx(levels / 16)
        assert poison.settings["epsilon"] == epsilon


def test_pixels_that_stay_keep_their_bits(generator):
    """Normalizing and undoing it again moves the last bit of many values."""
    pixels = PixelRange(mean=(0.1307,), std=(0.3081,))
    raw = (torch.rand(40, 1, 6, 6, generator=generator) * 255).round() / 255
    dataset = TensorDataset(pixels.from_raw(raw), torch.arange(40) % 2)
    poison = craft(random_sign(ink_above=0.9), dataset, Threat(40, pixels=pixels), generator=generator)
    ground = raw[poison.indices] <= 0.9
    assert torch.equal(poison.inputs[ground], dataset.tensors[0][poison.indices][ground])


class TestRefusals:
    def test_a_class_that_is_not_there(self, change):
        with pytest.raises(ValueError, match=r"`source_class` to be a class of the data set \(0, 1, .*9\), but got 12"):
            change(random_sign(source_class=12))

    def test_a_budget_larger_than_the_class(self, change):
        with pytest.raises(ValueError, match="the samples of class 3, but got 500"):
            change(random_sign(source_class=3), budget=500)

    def test_images_outside_the_pixel_range(self, surrogate, generator):
        gray_levels = TensorDataset(torch.full((20, 1, 8, 8), 200.0), torch.arange(20) % 10)
        with pytest.raises(ValueError, match=r"values from 200 to 200(.|\n)*mean=\.\.\., std"):
            craft(fgsm(), gray_levels, Threat(5), surrogates=[surrogate], generator=generator)

    def test_no_ink(self, generator):
        black = TensorDataset(torch.zeros(8, 1, 4, 4), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"brighter than, but got 0\.3, and none is"):
            craft(random_sign(ink_above=0.3), black, Threat(4), generator=generator)

    @pytest.mark.parametrize("epsilon", [0.01, 0.06249])
    def test_less_than_a_gray_level(self, change, epsilon):
        with pytest.raises(ValueError, match=rf"at least one gray level, 1 / 16, but got {epsilon}"):
            change(random_sign(epsilon=epsilon))
