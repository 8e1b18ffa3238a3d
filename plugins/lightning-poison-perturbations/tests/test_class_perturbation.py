import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange, Threat, available_attacks, craft, get_attack
from lightning_poison.attacks import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.data import labels_of
from lightning_poison.testing import check_attack
from lightning_poison_perturbations import FGSM, PGD, RandomSign
from lightning_poison_perturbations.class_perturbation import draw_from_class

NAMES = ("fgsm", "pgd", "random-sign", "smooth-pattern")
LABELS = torch.arange(60) % 3


@pytest.mark.parametrize("name", NAMES)
def test_entry_point_offers_attack(name):
    (offer,) = [offer for offer in available_attacks() if offer.name == name]
    assert (offer.source.plugin, offer.source.distribution) == ("perturbations", "lightning-poison-perturbations")
    assert offer.summary
    assert get_attack(name, source_class=1).name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"source_class": 1, "class_fraction": 0.15}, {"ink_above": 0.4}])
def test_satisfies_attack_contract(name, settings):
    check_attack(get_attack(name, **settings))


def test_settings_are_flat_and_complete(craft_on_digits):
    poison, _ = craft_on_digits(PGD(source_class=3, steps=2))
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


@pytest.mark.parametrize("name", NAMES)
def test_ink_above_leaves_background_unchanged(craft_on_digits, name):
    poison, originals = craft_on_digits(get_attack(name, source_class=3, ink_above=0.5, epsilon=0.2))
    changed = poison.inputs != originals
    assert changed.any()
    assert not (changed & (originals <= 0.5)).any()


def test_one_bright_channel_unmasks_all_channels(generator):
    images = torch.full((4, 3, 5, 5), 0.3)
    images[:, 1, 2] = 0.6
    dataset = TensorDataset(images, torch.arange(4) % 2)
    attack = RandomSign(ink_above=0.5, epsilon=0.25)
    changed = craft(attack, dataset, Threat(4), generator=generator).inputs != images
    assert changed[:, :, 2].any(0).all()
    assert not changed[:, :, [0, 1, 3, 4]].any()


def test_perturbs_share_of_class_and_keeps_labels(craft_on_digits, dataset):
    poison, _ = craft_on_digits(RandomSign(source_class=7, class_fraction=0.5))
    labels = labels_of(dataset)
    assert len(poison) == round(0.5 * int((labels == 7).sum()))
    assert (labels[poison.indices] == 7).all()
    assert (poison.labels == 7).all()


def test_objective_is_class_or_overall_accuracy(craft_on_digits):
    of_class, overall = (
        craft_on_digits(RandomSign(source_class=source_class))[0].objective for source_class in (7, None)
    )
    assert isinstance(of_class, ProtectedClassObjective)
    assert (of_class.protected_class, of_class.target_class) == (7, -1)
    assert isinstance(overall, AvailabilityObjective)


def test_threat_sets_radius(craft_on_digits):
    for threat_settings, epsilon in (({}, 0.2), ({"epsilon": 0.4}, 0.4)):
        poison, originals = craft_on_digits(RandomSign(epsilon=0.2), **threat_settings)
        levels = int(epsilon * 16)
        assert float((poison.inputs - originals).abs().max()) == pytest.approx(levels / 16)
        assert poison.settings["epsilon"] == epsilon


def test_unchanged_pixels_keep_their_bits(generator):
    """Normalizing an image and undoing it changes the last bit of many values."""
    pixels = PixelRange(mean=(0.1307,), std=(0.3081,))
    raw = (torch.rand(40, 1, 6, 6, generator=generator) * 255).round() / 255
    dataset = TensorDataset(pixels.from_raw(raw), torch.arange(40) % 2)
    poison = craft(RandomSign(ink_above=0.9), dataset, Threat(40, pixels=pixels), generator=generator)
    background = raw[poison.indices] <= 0.9
    assert torch.equal(poison.inputs[background], dataset.tensors[0][poison.indices][background])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 8}, "epsilon=8 / 255"),
        ({"epsilon": 0}, "`epsilon`"),
        ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
        ({"class_fraction": 0.5}, "a `source_class` with `class_fraction`"),
        ({"source_class": 1, "class_fraction": 0.0}, "`class_fraction` to be above 0"),
        ({"source_class": 1, "class_fraction": 30}, r"`class_fraction` to be a number in \[0, 1\]"),
        ({"ink_above": 25}, r"`ink_above` to be a number in \[0, 1\]"),
        ({"ink_above": 1}, "`ink_above` to be below 1"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_refuses_settings_out_of_range(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get_attack(name, **settings)


class TestRefusals:
    def test_refuses_absent_class(self, craft_on_digits):
        with pytest.raises(
            ValueError, match=r"`source_class` to be a class of the training set \(0, 1, .*9\), but got 12"
        ):
            craft_on_digits(RandomSign(source_class=12))

    def test_refuses_budget_above_class_size(self, craft_on_digits):
        with pytest.raises(ValueError, match="the samples of class 3, but got 500"):
            craft_on_digits(RandomSign(source_class=3), budget=500)

    def test_refuses_images_outside_pixel_range(self, surrogate, generator):
        gray_levels = TensorDataset(torch.full((20, 1, 8, 8), 200.0), torch.arange(20) % 10)
        with pytest.raises(ValueError, match=r"values from 200 to 200(.|\n)*mean=\.\.\., std"):
            craft(FGSM(), gray_levels, Threat(5), surrogates=[surrogate], generator=generator)

    def test_refuses_images_without_bright_pixels(self, generator):
        black = TensorDataset(torch.zeros(8, 1, 4, 4), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"`ink_above` to be below the brightest pixel, 0, but got 0\.3"):
            craft(RandomSign(ink_above=0.3), black, Threat(4), generator=generator)

    @pytest.mark.parametrize("epsilon", [0.01, 0.06249])
    def test_refuses_epsilon_below_gray_level(self, craft_on_digits, epsilon):
        with pytest.raises(ValueError, match=rf"at least one gray level, 1 / 16, but got {epsilon}"):
            craft_on_digits(RandomSign(epsilon=epsilon))


class TestDrawFromClass:
    def draw(self, budget=10, *, source_class=None, class_fraction=None, seed=0):
        return draw_from_class(
            LABELS,
            budget,
            source_class=source_class,
            class_fraction=class_fraction,
            generator=torch.Generator().manual_seed(seed),
        )

    def test_draws_as_many_as_budget(self):
        drawn = self.draw(source_class=2)
        assert len(set(drawn.tolist())) == 10
        assert (LABELS[drawn] == 2).all()
        assert torch.equal(drawn, drawn.sort().values)
        assert not torch.equal(drawn, self.draw(source_class=2, seed=1))

    @pytest.mark.parametrize(("fraction", "count"), [(1.0, 20), (0.3, 6), (0.001, 1)])
    def test_draws_share_of_class(self, fraction, count):
        assert len(self.draw(20, source_class=1, class_fraction=fraction)) == count

    def test_draws_from_all_classes_by_default(self):
        assert set(LABELS[self.draw(30)].tolist()) == {0, 1, 2}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"source_class": 3}, r"`source_class` to be a class of the training set \(0, 1, 2\), but got 3"),
            (
                {"source_class": 1, "budget": 21},
                r"`budget` to be at most 20, the samples of class 1, but got 21.*\n.*1\.0",
            ),
            ({"budget": 61}, "at most 60, the samples of the training set"),
            (
                {"source_class": 1, "class_fraction": 0.6},
                "at least 12, `class_fraction` 0.6 of class 1, but got 10",
            ),
        ],
    )
    def test_refuses_impossible_draws(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.draw(**options)
