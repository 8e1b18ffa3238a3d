import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange, Surrogate, Threat, craft
from lightning_poison_perturbations import fgsm, pgd, random_sign, smooth_pattern


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
    gray = TensorDataset(torch.full((6, 3, 28, 28), 0.5), torch.arange(6) % 2)
    attack, threat = smooth_pattern(epsilon=0.1), Threat(6, pixels=PixelRange(levels=None))
    changes = craft(attack, gray, threat, generator=generator).inputs - 0.5
    assert torch.equal(changes, changes[:1, :1].expand_as(changes))
    assert float(changes.abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert float(changes[0, 0].diff(dim=0).abs().max()) < 0.05
    assert float(changes[0, 0].std()) > 0.02


def test_several_surrogates_share_the_loss(dataset, model, surrogate, pixels):
    def crafted(*surrogates):
        generator = torch.Generator().manual_seed(0)
        attack = fgsm(source_class=3, epsilon=0.2)
        return craft(attack, dataset, Threat(20, pixels=pixels), surrogates=surrogates, generator=generator).inputs

    weaker = Surrogate(nn.Sequential(model, nn.Linear(10, 10)), "0")
    assert torch.equal(crafted(surrogate), crafted(surrogate, surrogate))
    assert not torch.equal(crafted(surrogate), crafted(surrogate, weaker))


class TestRefusals:
    def test_restarts_without_a_random_start(self, change):
        with pytest.raises(ValueError, match="`restarts` to be 1 without a random start"):
            change(pgd(restarts=2, random_start=False))

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

    def test_a_pattern_on_vectors(self, generator):
        vectors = TensorDataset(torch.rand(8, 6, generator=generator), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"images \(C, H, W\)"):
            craft(smooth_pattern(), vectors, Threat(4), generator=generator)
