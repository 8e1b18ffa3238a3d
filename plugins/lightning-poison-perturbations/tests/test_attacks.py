import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.door import craft
from lightning_poison.labels import labels_of
from lightning_poison.objectives import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.pixels import PixelRange
from lightning_poison.registry import available_attacks, get_attack
from lightning_poison.testing import check_attack
from lightning_poison.threat import Surrogate, Threat
from lightning_poison_perturbations import fgsm, pgd, random_sign, smooth_pattern

NAMES = ("fgsm", "pgd", "random-sign", "smooth-pattern")


@pytest.fixture
def change(dataset, surrogate, pixels):
    """Return a function that crafts poison of the digits and hands back the originals beside it."""

    def crafted(attack, budget=80, seed=0, **limits):
        generator = torch.Generator().manual_seed(seed)
        threat = Threat(budget, clean_label=True, pixels=pixels, **limits)
        poison = craft(attack, dataset, threat, surrogates=[surrogate], generator=generator)
        return poison, torch.stack([dataset[index][0] for index in poison.indices.tolist()])

    return crafted


@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_through_its_entry_point(name):
    (offer,) = [offer for offer in available_attacks() if offer.name == name]
    assert (offer.source.plugin, offer.source.distribution) == ("perturbations", "lightning-poison-perturbations")
    assert offer.summary
    assert get_attack(name, source_class=1).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"source_class": 1, "class_fraction": 0.15}, {"ink_above": 0.4}])
def test_it_keeps_the_contract(name, settings):
    check_attack(get_attack(name, **settings))


def test_several_restarts_keep_it_too():
    check_attack(pgd(restarts=2, steps=2, batch_size=4))
    check_attack(pgd(random_start=False))


class TestOnDigits:
    """The surrogate itself reads the changed images; random signs do little to it."""

    def accuracy(self, model, poison):
        return float((model(poison.inputs).argmax(1) == poison.labels).float().mean())

    @pytest.mark.parametrize("source_class", [3, None])
    def test_gradients_make_images_misread(self, change, model, source_class):
        attacks = [attack(source_class=source_class, epsilon=3 / 16) for attack in (fgsm, pgd, random_sign)]
        after_fgsm, after_pgd, after_signs = (self.accuracy(model, change(attack)[0]) for attack in attacks)
        assert after_signs > 0.8
        assert after_fgsm < after_signs - 0.4
        assert after_pgd <= after_fgsm

    def test_more_restarts_do_not_lower_the_loss(self, change, model):
        losses = []
        for restarts in (1, 4):
            poison, _ = change(pgd(source_class=5, restarts=restarts, epsilon=2 / 16, steps=3))
            losses.append(nn.functional.cross_entropy(model(poison.inputs), poison.labels))
        assert losses[1] >= losses[0]

    def test_a_wrong_model_helps_less(self, change, dataset, model, pixels, generator):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        attack, threat = fgsm(source_class=3, epsilon=3 / 16), Threat(80, pixels=pixels)
        blind = craft(attack, dataset, threat, surrogates=[Surrogate(untrained, "0")], generator=generator)
        assert self.accuracy(model, blind) > self.accuracy(model, change(attack)[0]) + 0.3


@pytest.mark.parametrize("name", NAMES)
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


def test_fgsm_is_the_sign_of_the_gradient(change, model):
    poison, originals = change(fgsm(source_class=3, epsilon=0.2))
    leaf = originals.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), poison.labels, reduction="sum").backward()
    assert torch.allclose(poison.inputs, (originals + 3 / 16 * leaf.grad.sign()).clamp(0, 1), atol=1e-5)


def test_random_signs_are_a_coin_for_each_pixel(change):
    poison, originals = change(random_sign(epsilon=1 / 16))
    steps = ((poison.inputs - originals) * 16).round()[(originals > 0) & (originals < 1)]
    assert set(steps.tolist()) == {-1.0, 1.0}
    assert float(steps.mean()) == pytest.approx(0, abs=0.1)


def test_the_pattern_is_smooth_and_the_same_for_all_images_and_channels(generator):
    grey = TensorDataset(torch.full((6, 3, 28, 28), 0.5), torch.arange(6) % 2)
    attack, threat = smooth_pattern(epsilon=0.1), Threat(6, pixels=PixelRange(levels=None))
    changes = craft(attack, grey, threat, generator=generator).inputs - 0.5
    assert torch.equal(changes, changes[:1, :1].expand_as(changes))
    assert float(changes.abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert float(changes[0, 0].diff(dim=0).abs().max()) < 0.05
    assert float(changes[0, 0].std()) > 0.02


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


def test_settings_are_flat_and_complete(change):
    poison, _ = change(pgd(source_class=3, steps=2))
    assert poison.settings == {
        "source_class": 3,
        "class_fraction": None,
        "epsilon": 0.1,
        "ink_above": None,
        "steps": 2,
        "step_size": 0.25,
        "random_start": True,
        "restarts": 1,
        "batch_size": 256,
    }


def test_several_surrogates_share_the_loss(dataset, model, surrogate, pixels):
    def crafted(*surrogates):
        generator = torch.Generator().manual_seed(0)
        attack = fgsm(source_class=3, epsilon=0.2)
        return craft(attack, dataset, Threat(20, pixels=pixels), surrogates=surrogates, generator=generator).inputs

    weaker = Surrogate(nn.Sequential(model, nn.Linear(10, 10)), "0")
    assert torch.equal(crafted(surrogate), crafted(surrogate, surrogate))
    assert not torch.equal(crafted(surrogate), crafted(surrogate, weaker))


def test_pixels_that_stay_keep_their_bits(generator):
    """Normalising and undoing it again moves the last bit of many values."""
    pixels = PixelRange(mean=(0.1307,), std=(0.3081,))
    raw = (torch.rand(40, 1, 6, 6, generator=generator) * 255).round() / 255
    dataset = TensorDataset(pixels.from_raw(raw), torch.arange(40) % 2)
    poison = craft(random_sign(ink_above=0.9), dataset, Threat(40, pixels=pixels), generator=generator)
    ground = raw[poison.indices] <= 0.9
    assert torch.equal(poison.inputs[ground], dataset.tensors[0][poison.indices][ground])


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"epsilon": 8}, "epsilon=8 / 255"),
            ({"epsilon": 0}, "`epsilon`"),
            ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
            ({"class_fraction": 0.5}, "a `source_class` to take `class_fraction` of"),
            ({"source_class": 1, "class_fraction": 0.0}, "`class_fraction` to be above 0"),
            ({"source_class": 1, "class_fraction": 30}, r"`class_fraction` to be a number in \[0, 1\]"),
            ({"ink_above": 25}, r"`ink_above` to be a number in \[0, 1\]"),
            ({"ink_above": 1}, "`ink_above` to be below 1"),
        ],
    )
    @pytest.mark.parametrize("name", NAMES)
    def test_settings(self, name, settings, said):
        with pytest.raises(ValueError, match=said):
            get_attack(name, **settings)

    @pytest.mark.parametrize(
        ("attack", "settings"),
        [
            (pgd, {"steps": 0}),
            (pgd, {"restarts": 0}),
            (pgd, {"step_size": 0.0}),
            (fgsm, {"batch_size": 0}),
            (smooth_pattern, {"cells": 1}),
        ],
    )
    def test_settings_of_a_change(self, attack, settings):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
            attack(**settings)

    def test_restarts_without_a_random_start(self, change):
        with pytest.raises(ValueError, match="`restarts` to be 1 without a random start"):
            change(pgd(restarts=2, random_start=False))

    def test_a_class_that_is_not_there(self, change):
        with pytest.raises(ValueError, match=r"`source_class` to be a class of the data set \(0, 1, .*9\), but got 12"):
            change(random_sign(source_class=12))

    def test_a_budget_larger_than_the_class(self, change):
        with pytest.raises(ValueError, match="the samples of class 3, but got 500"):
            change(random_sign(source_class=3), budget=500)

    @pytest.mark.parametrize("attack", [fgsm, pgd])
    def test_no_surrogate(self, dataset, pixels, generator, attack):
        with pytest.raises(ValueError, match="at least one model to craft on"):
            craft(attack(), dataset, Threat(5, pixels=pixels), generator=generator)

    @pytest.mark.parametrize("outputs", [3, 12])
    def test_a_surrogate_of_other_classes(self, dataset, pixels, generator, outputs):
        other = Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(64, outputs)).train(), "0")
        with pytest.raises(ValueError, match=rf"`surrogates\[0\]` to be a model with 10 outputs.*\(5, {outputs}\)"):
            craft(fgsm(), dataset, Threat(5, pixels=pixels), surrogates=[other], generator=generator)
        assert other.model.training
        assert all(parameter.requires_grad for parameter in other.model.parameters())

    def test_images_outside_the_pixel_range(self, surrogate, generator):
        grey_levels = TensorDataset(torch.full((20, 1, 8, 8), 200.0), torch.arange(20) % 10)
        with pytest.raises(ValueError, match=r"values from 200 to 200(.|\n)*mean=\.\.\., std"):
            craft(fgsm(), grey_levels, Threat(5), surrogates=[surrogate], generator=generator)

    def test_no_ink(self, generator):
        black = TensorDataset(torch.zeros(8, 1, 4, 4), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"brighter than, but got 0\.3, and none is"):
            craft(random_sign(ink_above=0.3), black, Threat(4), generator=generator)

    def test_less_than_a_grey_level(self, change):
        with pytest.raises(ValueError, match=r"at least one grey level, 1 / 16, but got 0\.01"):
            change(random_sign(epsilon=0.01))

    def test_a_pattern_on_vectors(self, generator):
        vectors = TensorDataset(torch.rand(8, 6, generator=generator), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"images \(C, H, W\)"):
            craft(smooth_pattern(), vectors, Threat(4), generator=generator)
