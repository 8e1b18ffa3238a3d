from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange, Poison, Surrogate, Threat
from lightning_poison.attacks import AvailabilityObjective, RawFeatures
from lightning_poison.data import labels_of
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_collisions import AdversarialPoisoning
from lightning_poison_collisions.axes import fit_head, positions_along, rotation_axes

from .conftest import images_of

EPSILON = 3 / 16


@pytest.fixture
def craft(dataset, surrogate, pixels):
    """Return a function that crafts with defaults which a test may replace."""

    def run(attack=None, *, budget=40, epsilon=EPSILON, seed=0, **replaced) -> Poison:
        threat = replaced.pop("threat", None) or Threat(budget, epsilon=epsilon, pixels=pixels, may_append=False)
        given = {"surrogates": [surrogate], "holdout": None, **replaced}
        data = given.pop("dataset", dataset)
        generator = torch.Generator().manual_seed(seed)
        return (attack or AdversarialPoisoning()).craft(data, threat, generator=generator, **given)

    return run


def progress(poison, dataset, features, *, shift=1):
    """Return how far each poison came along the axis of its class."""
    with torch.no_grad():
        known = features(images_of(dataset))
        moved, found = features(poison.inputs), known[poison.indices]
    head = fit_head(known, labels_of(dataset), kind="svm", c=100.0, seed=0)
    axes = rotation_axes(head.weights, shift)[poison.labels]
    return positions_along(moved, axes, head.scale) - positions_along(found, axes, head.scale)


class TestPoison:
    def test_it_takes_the_place_of_its_bases_and_keeps_their_labels(self, craft, dataset):
        poison = craft()
        assert len(poison.indices.unique()) == 40
        assert int(poison.indices.max()) < len(dataset)
        assert poison.base_indices is None
        assert torch.equal(poison.labels, labels_of(dataset)[poison.indices])
        assert isinstance(poison.objective, AvailabilityObjective)

    @pytest.mark.parametrize("shift", [1, 3])
    def test_every_class_moves_along_its_axis(self, craft, dataset, features, shift):
        poison = craft(AdversarialPoisoning(shift=shift), budget=200)
        moved = progress(poison, dataset, features, shift=shift)
        assert set(poison.labels.tolist()) == set(range(10))
        assert (moved > 0.1).all()

    def test_a_linear_extractor_has_a_closed_form(self, pixels):
        generator = torch.Generator().manual_seed(0)
        inputs = 0.5 + 0.2 * torch.rand(60, 1, 1, 4, generator=generator)
        labels = torch.arange(60) % 2
        inputs[labels == 0, ..., 0] -= 0.2
        inputs[labels == 0, ..., 3] += 0.2
        data = TensorDataset(inputs, labels)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(torch.eye(4))
        threat = Threat(60, epsilon=0.1, pixels=PixelRange(levels=None))
        poison = AdversarialPoisoning().craft(
            data, threat, surrogates=[Surrogate(model, "1")], holdout=None, generator=generator
        )
        head = fit_head(inputs.flatten(1), labels, kind="svm", c=100.0, seed=0)
        toward = (head.weights.flip(0) - head.weights)[labels].sign()
        torch.testing.assert_close(poison.inputs.flatten(1), inputs.flatten(1) + 0.1 * toward)

    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_epsilon_and_grid_are_kept(self, craft, dataset, epsilon):
        poison = craft(epsilon=epsilon)
        change = (poison.inputs - images_of(dataset, poison.indices)).abs()
        assert 0 < change.max() <= epsilon + 1e-6
        torch.testing.assert_close(poison.inputs * 16, (poison.inputs * 16).round())

    def test_its_own_epsilon_holds_where_the_threat_sets_none(self, craft, dataset):
        poison = craft(AdversarialPoisoning(epsilon=2 / 16), epsilon=None)
        change = (poison.inputs - images_of(dataset, poison.indices)).abs().max()
        assert float(change) == pytest.approx(2 / 16)

    def test_one_class_alone(self, craft):
        assert craft(AdversarialPoisoning(base_class=4), budget=20).labels.tolist() == [4] * 20

    def test_a_logistic_head(self, craft, dataset, features):
        poison = craft(AdversarialPoisoning(head="logistic"))
        assert progress(poison, dataset, features).median() > 0.1

    def test_several_surrogates_are_all_turned(self, craft, dataset, surrogate, another_surrogate, pixels):
        both = [surrogate, another_surrogate]
        poison = craft(surrogates=both)
        for each in both:
            assert progress(poison, dataset, RawFeatures(each, pixels)).median() > 0.1

    def test_the_batch_size_only_bounds_memory(self, craft):
        whole, parts = craft(), craft(AdversarialPoisoning(batch_size=7))
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.98

    def test_settings_build_it_again(self, craft):
        attack = AdversarialPoisoning(steps=2, c=10.0)
        assert AdversarialPoisoning(**craft(attack).settings) == attack

    def test_the_generator_alone_decides(self, craft):
        one, same, other = (craft(AdversarialPoisoning(steps=2), seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.inputs, same.inputs)
        assert not torch.equal(one.indices, other.indices)


class TestErrors:
    def test_no_surrogate(self, craft):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(surrogates=[])

    def test_an_absent_class(self, craft):
        with pytest.raises(ValueError, match=r"`base_class` to be a class of the training set \(0, 1.*\), but got 12"):
            craft(AdversarialPoisoning(base_class=12))

    def test_a_budget_larger_than_the_class(self, craft, dataset):
        count = int((labels_of(dataset) == 4).sum())
        with pytest.raises(ValueError, match=f"`budget` to be at most the {count} samples of class 4, but got 200.\nL"):
            craft(AdversarialPoisoning(base_class=4), budget=200)
        with pytest.raises(ValueError, match="at most the 400 samples of the training set, but got 401"):
            craft(budget=401)

    def test_one_class_only(self, craft, dataset):
        data = TensorDataset(images_of(dataset), torch.zeros(400, dtype=torch.int64))
        with pytest.raises(ValueError, match="`dataset` to be a training set of two classes or more, but got 1"):
            craft(dataset=data)

    def test_a_shift_that_leads_nowhere(self, craft):
        with pytest.raises(ValueError, match=r"`shift` to be below the number of classes .*\(10\), but got 10"):
            craft(AdversarialPoisoning(shift=10))

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
            ({"epsilon": 3}, "`epsilon` to be in .*but got 3.\nFor a budget of 3 gray levels write `epsilon=3 / 255`"),
            ({"head": "ridge"}, "`head` to be one of 'svm', 'logistic'"),
            ({"c": 0}, "`c` to be a finite number above 0"),
            ({"shift": 0}, "`shift` to be an integer of at least 1"),
            ({"steps": 0}, "`steps` to be an integer of at least 1"),
            ({"base_class": -1}, "`base_class` to be an integer of at least 0"),
        ],
    )
    def test_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            AdversarialPoisoning(**setting)


def test_it_is_found_by_its_entry_point():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    attack = entry.load().lightning_poison_attacks()["adversarial-poisoning"]()
    assert (attack.name, attack.clean_label) == ("adversarial-poisoning", True)


def test_it_keeps_the_contract_of_attacks(dataset, surrogate, pixels):
    check_attack(AdversarialPoisoning)
    check_attack(AdversarialPoisoning(head="logistic", base_class=1))
    threat = Threat(30, epsilon=EPSILON, clean_label=True, may_append=False, pixels=pixels)
    check_attack(AdversarialPoisoning(steps=3), dataset, threat, surrogates=[surrogate])
