import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange, Surrogate, Threat, craft
from lightning_poison.testing import check_attack
from lightning_poison_perturbations import FGSM, PGD, RandomSign, SmoothPattern


class TestOnDigits:
    """The surrogate itself classifies the perturbed images; random signs change few of its predictions."""

    def accuracy(self, model, poison):
        return float((model(poison.inputs).argmax(1) == poison.labels).float().mean())

    @pytest.mark.parametrize("source_class", [3, None])
    def test_gradients_lower_accuracy(self, craft_on_digits, model, source_class):
        attacks = [attack(source_class=source_class, epsilon=3 / 16) for attack in (FGSM, PGD, RandomSign)]
        after_fgsm, after_pgd, after_signs = (self.accuracy(model, craft_on_digits(attack)[0]) for attack in attacks)
        assert after_signs > 0.8
        assert after_fgsm < after_signs - 0.4
        assert after_pgd <= after_fgsm

    def test_restarts_do_not_lower_loss(self, craft_on_digits, model):
        losses = []
        for restarts in (1, 4):
            poison, _ = craft_on_digits(PGD(source_class=5, restarts=restarts, epsilon=2 / 16, steps=3))
            losses.append(nn.functional.cross_entropy(model(poison.inputs), poison.labels))
        assert losses[1] >= losses[0]

    def test_untrained_surrogate_is_less_effective(self, craft_on_digits, dataset, model, pixels, generator):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        attack, threat = FGSM(source_class=3, epsilon=3 / 16), Threat(80, pixels=pixels)
        poison = craft(attack, dataset, threat, surrogates=[Surrogate(untrained, "0")], generator=generator)
        assert self.accuracy(model, poison) > self.accuracy(model, craft_on_digits(attack)[0]) + 0.3


@pytest.mark.slow
def test_pgd_variants_satisfy_attack_contract():
    check_attack(PGD(restarts=2, steps=2, batch_size=4))
    check_attack(PGD(random_start=False))


def test_fgsm_steps_along_gradient_sign(craft_on_digits, model):
    poison, originals = craft_on_digits(FGSM(source_class=3, epsilon=0.2))
    leaf = originals.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), poison.labels, reduction="sum").backward()
    assert torch.allclose(poison.inputs, (originals + 3 / 16 * leaf.grad.sign()).clamp(0, 1), atol=1e-5)


def test_random_signs_are_independent_per_pixel(craft_on_digits):
    poison, originals = craft_on_digits(RandomSign(epsilon=1 / 16))
    steps = ((poison.inputs - originals) * 16).round()[(originals > 0) & (originals < 1)]
    assert set(steps.tolist()) == {-1.0, 1.0}
    assert float(steps.mean()) == pytest.approx(0, abs=0.1)


def test_pattern_is_smooth_and_shared_by_images_and_channels(generator):
    gray = TensorDataset(torch.full((6, 3, 28, 28), 0.5), torch.arange(6) % 2)
    attack, threat = SmoothPattern(epsilon=0.1), Threat(6, pixels=PixelRange(levels=None))
    changes = craft(attack, gray, threat, generator=generator).inputs - 0.5
    assert torch.equal(changes, changes[:1, :1].expand_as(changes))
    assert float(changes.abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert float(changes[0, 0].diff(dim=0).abs().max()) < 0.05
    assert float(changes[0, 0].std()) > 0.02


def test_surrogates_contribute_equally(dataset, model, surrogate, pixels):
    def crafted(*surrogates):
        generator = torch.Generator().manual_seed(0)
        attack = FGSM(source_class=3, epsilon=0.2)
        return craft(attack, dataset, Threat(20, pixels=pixels), surrogates=surrogates, generator=generator).inputs

    weaker = Surrogate(nn.Sequential(model, nn.Linear(10, 10)), "0")
    assert torch.equal(crafted(surrogate), crafted(surrogate, surrogate))
    assert not torch.equal(crafted(surrogate), crafted(surrogate, weaker))


class TestRefusals:
    @pytest.mark.parametrize(
        ("attack", "settings"),
        [
            (PGD, {"steps": 0}),
            (PGD, {"restarts": 0}),
            (PGD, {"step_size": 0.0}),
            (FGSM, {"batch_size": 0}),
            (SmoothPattern, {"cells": 1}),
        ],
    )
    def test_refuses_settings_out_of_range(self, attack, settings):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
            attack(**settings)

    def test_refuses_restarts_without_random_start(self, craft_on_digits):
        with pytest.raises(ValueError, match="`restarts` to be 1"):
            craft_on_digits(PGD(restarts=2, random_start=False))

    @pytest.mark.parametrize("attack", [FGSM, PGD])
    def test_refuses_missing_surrogate(self, dataset, pixels, generator, attack):
        with pytest.raises(ValueError, match="at least one"):
            craft(attack(), dataset, Threat(5, pixels=pixels), generator=generator)

    @pytest.mark.parametrize("outputs", [3, 12])
    def test_refuses_surrogate_for_other_classes(self, dataset, pixels, generator, outputs):
        other = Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(64, outputs)).train(), "0")
        with pytest.raises(ValueError, match=rf"`surrogates\[0\]` to be a model with 10 outputs.*\(5, {outputs}\)"):
            craft(FGSM(), dataset, Threat(5, pixels=pixels), surrogates=[other], generator=generator)
        assert other.model.training
        assert all(parameter.requires_grad for parameter in other.model.parameters())

    def test_refuses_pattern_on_vectors(self, generator):
        vectors = TensorDataset(torch.rand(8, 6, generator=generator), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"images \(C, H, W\)"):
            craft(SmoothPattern(), vectors, Threat(4), generator=generator)
