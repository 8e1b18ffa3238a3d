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
from lightning_poison_collisions.polytope import MeanDistance

from .conftest import images_of

EPSILON = 4 / 16


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults which a test may replace."""

    def run(attack=None, *, budget=10, epsilon=EPSILON, seed=0, **replaced) -> Poison:
        threat = replaced.pop("threat", None) or Threat(budget, epsilon=epsilon, pixels=pixels)
        given = {"surrogates": [surrogate], "holdout": holdout, **replaced}
        data = given.pop("dataset", dataset)
        generator = torch.Generator().manual_seed(seed)
        return (attack or BullseyePolytope()).craft(data, threat, generator=generator, **given)

    return run


def bullseye(poison, images, features, poisons_per_target=5):
    target_of = torch.arange(len(images)) // poisons_per_target
    with torch.no_grad():
        return MeanDistance([features], poison.objective.inputs, target_of)(images)


class TestPoison:
    def test_it_is_labeled_as_its_bases(self, craft, dataset):
        poison = craft()
        assert poison.indices.tolist() == list(range(400, 410))
        assert torch.equal(poison.labels, labels_of(dataset)[poison.base_indices])
        assert torch.equal(poison.labels, poison.objective.wanted.repeat_interleave(5))
        assert (poison.objective.labels != poison.objective.wanted).all()

    def test_the_means_move_onto_the_targets(self, craft, dataset, features):
        poison = craft(budget=20)
        before, after = (
            bullseye(poison, images, features) for images in (images_of(dataset, poison.base_indices), poison.inputs)
        )
        assert (after < 0.5 * before).all()
        assert after.median() < 0.01

    def test_single_poisons_do_not_have_to(self, craft, features):
        poison = craft(budget=20)
        alone = bullseye(poison, poison.inputs, features, poisons_per_target=5)
        with torch.no_grad():
            goals = features(poison.objective.inputs).repeat_interleave(5, 0)
            gaps = (features(poison.inputs) - goals).square().sum(1) / goals.square().sum(1) / 2
        assert (gaps.view(-1, 5).mean(1) > 3 * alone.view(-1, 5)[:, 0]).all()

    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_epsilon_and_grid_are_kept(self, craft, dataset, epsilon):
        poison = craft(epsilon=epsilon)
        change = (poison.inputs - images_of(dataset, poison.base_indices)).abs()
        assert 0 < change.max() <= epsilon + 1e-6
        torch.testing.assert_close(poison.inputs * 16, (poison.inputs * 16).round())

    def test_its_own_epsilon_holds_where_the_threat_sets_none(self, craft, dataset):
        poison = craft(BullseyePolytope(epsilon=2 / 16), epsilon=None)
        change = (poison.inputs - images_of(dataset, poison.base_indices)).abs().max()
        assert float(change) == pytest.approx(2 / 16)

    def test_poison_may_replace_its_bases(self, craft):
        poison = craft(BullseyePolytope(placement="replace", base_class=3, source_class=8), budget=15)
        assert poison.base_indices is None
        assert len(poison.indices.unique()) == 15
        assert poison.labels.tolist() == [3] * 15
        assert poison.objective.labels.tolist() == [8] * 3

    def test_several_surrogates_are_all_hit(self, craft, dataset, surrogate, another_surrogate, pixels):
        both = [surrogate, another_surrogate]
        poison = craft(surrogates=both)
        for each in both:
            features = RawFeatures(each, pixels)
            before = bullseye(poison, images_of(dataset, poison.base_indices), features)
            assert (bullseye(poison, poison.inputs, features) < 0.6 * before).all()

    def test_the_batch_size_only_bounds_memory(self, craft):
        whole, parts = craft(BullseyePolytope(steps=5)), craft(BullseyePolytope(steps=5, batch_size=3))
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.98

    def test_settings_build_it_again(self, craft):
        attack = BullseyePolytope(steps=2, poisons_per_target=2)
        assert BullseyePolytope(**craft(attack).settings) == attack

    def test_the_generator_alone_decides(self, craft):
        attack = BullseyePolytope(steps=2)
        one, same, other = (craft(attack, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.inputs, same.inputs)
        assert not torch.equal(one.objective.inputs, other.objective.inputs)


class TestErrors:
    def test_no_surrogate_and_no_holdout(self, craft):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(surrogates=[])
        with pytest.raises(ValueError, match="`holdout` to be a data set that targets are drawn from"):
            craft(holdout=None)

    def test_absent_classes(self, craft):
        with pytest.raises(ValueError, match="at least 2 samples of class 12, one a target, but got 0"):
            craft(BullseyePolytope(source_class=12))
        with pytest.raises(ValueError, match="`base_class` to be a class of the training set"):
            craft(BullseyePolytope(base_class=12))

    def test_more_poisons_than_the_class_has(self, craft):
        with pytest.raises(ValueError, match="Expected 200 bases of one class for each target, but got at most"):
            craft(BullseyePolytope(base_class=3, poisons_per_target=200), budget=200)

    def test_a_layer_that_does_not_exist(self, craft, surrogate):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(surrogates=[Surrogate(surrogate.model, "fc")])

    def test_images_outside_the_pixel_range(self, craft, dataset):
        data = TensorDataset(8 * images_of(dataset) - 3, labels_of(dataset))
        with pytest.raises(ValueError, match=r"values from -3 to 5.\nSay how the data set normalizes"):
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
    def test_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            BullseyePolytope(**setting)


def test_it_is_found_by_its_entry_point():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    attack = entry.load().lightning_poison_attacks()["bullseye-polytope"]()
    assert (attack.name, attack.clean_label) == ("bullseye-polytope", True)


def test_it_keeps_the_contract_of_attacks(dataset, holdout, surrogate, pixels):
    check_attack(BullseyePolytope(steps=20))
    check_attack(BullseyePolytope(steps=5, placement="replace", base_choice="random"))
    threat = Threat(6, epsilon=EPSILON, clean_label=True, pixels=pixels)
    check_attack(BullseyePolytope(steps=5), dataset, threat, surrogates=[surrogate], holdout=holdout)
