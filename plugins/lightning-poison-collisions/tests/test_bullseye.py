from importlib.metadata import entry_points

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import Poison, Surrogate, Threat
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import labels_of
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_collisions import BullseyePolytope
from lightning_poison_collisions.distances import MeanDistance

from .conftest import images_of

EPSILON = 4 / 16


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults that a test may replace."""

    def run(attack=None, *, budget=10, epsilon=EPSILON, seed=0, **replaced) -> Poison:
        threat = replaced.pop("threat", None) or Threat(budget, epsilon=epsilon, pixels=pixels)
        arguments = {"surrogates": [surrogate], "holdout": holdout, **replaced}
        data = arguments.pop("dataset", dataset)
        generator = torch.Generator().manual_seed(seed)
        return (attack or BullseyePolytope()).craft(data, threat, generator=generator, **arguments)

    return run


@pytest.fixture(scope="module")
def crafted(dataset, holdout, surrogate, pixels):
    """Return poison of 20 samples for four targets."""
    threat = Threat(20, epsilon=EPSILON, pixels=pixels)
    generator = torch.Generator().manual_seed(0)
    return BullseyePolytope().craft(dataset, threat, surrogates=[surrogate], holdout=holdout, generator=generator)


def bullseye(poison, images, features, poisons_per_target=5):
    target_of = torch.arange(len(images)) // poisons_per_target
    with torch.no_grad():
        return MeanDistance([features], poison.objective.inputs, target_of)(images)


class TestPoison:
    def test_poison_has_labels_of_bases(self, craft, dataset):
        poison = craft()
        assert poison.indices.tolist() == list(range(400, 410))
        assert torch.equal(poison.labels, labels_of(dataset)[poison.base_indices])
        assert torch.equal(poison.labels, poison.objective.wanted.repeat_interleave(5))
        assert (poison.objective.labels != poison.objective.wanted).all()

    @pytest.mark.slow
    def test_mean_features_move_onto_targets(self, crafted, dataset, features):
        bases = images_of(dataset, crafted.base_indices)
        before, after = (bullseye(crafted, images, features) for images in (bases, crafted.inputs))
        assert (after < 0.5 * before).all()
        assert after.median() < 0.01

    def test_single_poisons_stay_away_from_targets(self, crafted, features):
        of_means = bullseye(crafted, crafted.inputs, features, poisons_per_target=5)
        with torch.no_grad():
            goals = features(crafted.objective.inputs).repeat_interleave(5, 0)
            gaps = (features(crafted.inputs) - goals).square().sum(1) / goals.square().sum(1) / 2
        assert (gaps.view(-1, 5).mean(1) > 3 * of_means.view(-1, 5)[:, 0]).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_stays_within_epsilon_and_gray_levels(self, craft, dataset, epsilon):
        poison = craft(epsilon=epsilon)
        change = (poison.inputs - images_of(dataset, poison.base_indices)).abs()
        assert 0 < change.max() <= epsilon + 1e-6
        torch.testing.assert_close(poison.inputs * 16, (poison.inputs * 16).round())

    def test_uses_own_epsilon_if_threat_sets_none(self, craft, dataset):
        poison = craft(BullseyePolytope(epsilon=2 / 16), epsilon=None)
        change = (poison.inputs - images_of(dataset, poison.base_indices)).abs().max()
        assert float(change) == pytest.approx(2 / 16)

    def test_poison_replaces_bases(self, craft):
        poison = craft(BullseyePolytope(placement="replace", base_class=3, source_class=8), budget=15)
        assert poison.base_indices is None
        assert len(poison.indices.unique()) == 15
        assert poison.labels.tolist() == [3] * 15
        assert poison.objective.labels.tolist() == [8] * 3

    @pytest.mark.slow
    def test_means_of_all_surrogates_move_onto_targets(self, craft, dataset, surrogate, another_surrogate, pixels):
        both = [surrogate, another_surrogate]
        poison = craft(surrogates=both)
        for each in both:
            features = RawFeatures(each, pixels)
            before = bullseye(poison, images_of(dataset, poison.base_indices), features)
            assert (bullseye(poison, poison.inputs, features) < 0.6 * before).all()

    def test_batch_size_hardly_changes_poison(self, craft):
        whole, parts = craft(BullseyePolytope(steps=5)), craft(BullseyePolytope(steps=5, batch_size=3))
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.98

    def test_settings_rebuild_attack(self, craft):
        attack = BullseyePolytope(steps=2, poisons_per_target=2)
        assert BullseyePolytope(**craft(attack).settings) == attack

    def test_same_generator_gives_same_poison(self, craft):
        attack = BullseyePolytope(steps=2)
        poison, repeated, other = (craft(attack, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(poison.inputs, repeated.inputs)
        assert not torch.equal(poison.objective.inputs, other.objective.inputs)


class TestErrors:
    def test_refuses_missing_surrogate_and_holdout(self, craft):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(surrogates=[])
        with pytest.raises(ValueError, match="`holdout` to be a data set from which targets are drawn"):
            craft(holdout=None)

    def test_refuses_absent_classes(self, craft):
        with pytest.raises(ValueError, match="at least 2 samples of class 12, one for each target, but got 0"):
            craft(BullseyePolytope(source_class=12))
        with pytest.raises(ValueError, match="`base_class` to be a class of the training set"):
            craft(BullseyePolytope(base_class=12))

    def test_refuses_more_poisons_than_class_size(self, craft):
        with pytest.raises(ValueError, match="Expected 200 bases of one class for each target, but got at most"):
            craft(BullseyePolytope(base_class=3, poisons_per_target=200), budget=200)

    def test_refuses_unknown_layer(self, craft, surrogate):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(surrogates=[Surrogate(surrogate.model, "fc")])

    def test_refuses_images_outside_pixel_range(self, craft, dataset):
        data = TensorDataset(8 * images_of(dataset) - 3, labels_of(dataset))
        with pytest.raises(ValueError, match=r"values from -3 to 5"):
            craft(dataset=data)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"epsilon": 8}, "`epsilon` to be in .*but got 8.\nFor a budget of 8 gray levels write `epsilon=8 / 255`"),
            ({"steps": 0}, "`steps` to be an integer of at least 1"),
            ({"poisons_per_target": 0}, "`poisons_per_target` to be an integer of at least 1"),
            ({"base_choice": "far"}, "`base_choice` to be one of 'nearest', 'random'"),
            ({"source_class": 3, "base_class": 3}, "`base_class` to be another class than `source_class`"),
        ],
    )
    def test_refuses_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            BullseyePolytope(**setting)


def test_entry_point_offers_attack():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    attack = entry.load().lightning_poison_attacks()["bullseye-polytope"]()
    assert (attack.name, attack.clean_label) == ("bullseye-polytope", True)


@pytest.mark.slow
def test_satisfies_attack_contract(dataset, holdout, surrogate, pixels):
    check_attack(BullseyePolytope(steps=20))
    check_attack(BullseyePolytope(steps=5, placement="replace", base_choice="random"))
    threat = Threat(6, epsilon=EPSILON, clean_label=True, pixels=pixels)
    check_attack(BullseyePolytope(steps=5), dataset, threat, surrogates=[surrogate], holdout=holdout)
