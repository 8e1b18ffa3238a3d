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
from lightning_poison_collisions.adversarial_poisoning import fit_head, positions_along, rotation_axes

from .conftest import images_of

EPSILON = 3 / 16


@pytest.fixture
def craft(dataset, surrogate, pixels):
    """Return a function that crafts with defaults that a test may replace."""

    def run(attack=None, *, budget=40, epsilon=EPSILON, seed=0, **replaced) -> Poison:
        threat = replaced.pop("threat", None) or Threat(budget, epsilon=epsilon, pixels=pixels, may_append=False)
        arguments = {"surrogates": [surrogate], "holdout": None, **replaced}
        data = arguments.pop("dataset", dataset)
        generator = torch.Generator().manual_seed(seed)
        return (attack or AdversarialPoisoning()).craft(data, threat, generator=generator, **arguments)

    return run


def progress(poison, dataset, features, *, shift=1):
    """Return by how much each poison moved along the axis of its class."""
    with torch.no_grad():
        known = features(images_of(dataset))
        moved, found = features(poison.inputs), known[poison.indices]
    head = fit_head(known, labels_of(dataset), kind="svm", c=100.0, seed=0)
    axes = rotation_axes(head.weights, shift)[poison.labels]
    return positions_along(moved, axes, head.scale) - positions_along(found, axes, head.scale)


class TestPoison:
    def test_replaces_bases_and_keeps_labels(self, craft, dataset):
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

    def test_matches_closed_form_for_linear_features(self, pixels):
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
    def test_stays_within_epsilon_and_gray_levels(self, craft, dataset, epsilon):
        poison = craft(epsilon=epsilon)
        change = (poison.inputs - images_of(dataset, poison.indices)).abs()
        assert 0 < change.max() <= epsilon + 1e-6
        torch.testing.assert_close(poison.inputs * 16, (poison.inputs * 16).round())

    def test_uses_own_epsilon_if_threat_sets_none(self, craft, dataset):
        poison = craft(AdversarialPoisoning(epsilon=2 / 16), epsilon=None)
        change = (poison.inputs - images_of(dataset, poison.indices)).abs().max()
        assert float(change) == pytest.approx(2 / 16)

    def test_moves_only_base_class(self, craft):
        assert craft(AdversarialPoisoning(base_class=4), budget=20).labels.tolist() == [4] * 20

    def test_supports_logistic_head(self, craft, dataset, features):
        poison = craft(AdversarialPoisoning(head="logistic"))
        assert progress(poison, dataset, features).median() > 0.1

    @pytest.mark.slow
    def test_moves_features_of_all_surrogates(self, craft, dataset, surrogate, another_surrogate, pixels):
        both = [surrogate, another_surrogate]
        poison = craft(surrogates=both)
        for each in both:
            assert progress(poison, dataset, RawFeatures(each, pixels)).median() > 0.1

    def test_batch_size_hardly_changes_poison(self, craft):
        whole, parts = craft(), craft(AdversarialPoisoning(batch_size=7))
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.98

    def test_settings_rebuild_attack(self, craft):
        attack = AdversarialPoisoning(steps=2, c=10.0)
        assert AdversarialPoisoning(**craft(attack).settings) == attack

    def test_same_generator_gives_same_poison(self, craft):
        poison, repeated, other = (craft(AdversarialPoisoning(steps=2), seed=seed) for seed in (1, 1, 2))
        assert torch.equal(poison.inputs, repeated.inputs)
        assert not torch.equal(poison.indices, other.indices)


class TestErrors:
    def test_refuses_missing_surrogate(self, craft):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(surrogates=[])

    def test_refuses_absent_class(self, craft):
        with pytest.raises(ValueError, match=r"`base_class` to be a class of the training set \(0, 1.*\), but got 12"):
            craft(AdversarialPoisoning(base_class=12))

    def test_refuses_budget_above_class_size(self, craft, dataset):
        count = int((labels_of(dataset) == 4).sum())
        with pytest.raises(ValueError, match=f"`budget` to be at most the {count} samples of class 4, but got 200.\nL"):
            craft(AdversarialPoisoning(base_class=4), budget=200)
        with pytest.raises(ValueError, match="at most the 400 samples of the training set, but got 401"):
            craft(budget=401)

    def test_refuses_dataset_of_one_class(self, craft, dataset):
        data = TensorDataset(images_of(dataset), torch.zeros(400, dtype=torch.int64))
        with pytest.raises(ValueError, match="`dataset` to be a training set of at least two classes, but got 1"):
            craft(dataset=data)

    def test_refuses_shift_of_number_of_classes(self, craft):
        with pytest.raises(ValueError, match=r"`shift` to be below the number of classes .*\(10\), but got 10"):
            craft(AdversarialPoisoning(shift=10))

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
            ({"epsilon": 3}, "`epsilon` to be in .*but got 3.\nFor a budget of 3 gray levels write `epsilon=3 / 255`"),
            ({"head": "ridge"}, "`head` to be one of 'svm', 'logistic'"),
            ({"c": 0}, "`c` to be a finite number above 0"),
            ({"shift": 0}, "`shift` to be an integer of at least 1"),
            ({"steps": 0}, "`steps` to be an integer of at least 1"),
            ({"base_class": -1}, "`base_class` to be an integer of at least 0"),
        ],
    )
    def test_refuses_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            AdversarialPoisoning(**setting)


def test_entry_point_offers_attack():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    attack = entry.load().lightning_poison_attacks()["adversarial-poisoning"]()
    assert (attack.name, attack.clean_label) == ("adversarial-poisoning", True)


@pytest.mark.slow
def test_satisfies_attack_contract(dataset, surrogate, pixels):
    check_attack(AdversarialPoisoning)
    check_attack(AdversarialPoisoning(head="logistic", base_class=1))
    threat = Threat(30, epsilon=EPSILON, clean_label=True, may_append=False, pixels=pixels)
    check_attack(AdversarialPoisoning(steps=3), dataset, threat, surrogates=[surrogate])


@pytest.fixture
def blobs(generator):
    """Three classes, 2, 5 and 9, around the corners of a triangle."""
    centers = 10 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    labels = torch.arange(90) % 3
    return centers[labels] + torch.randn(90, 2, generator=generator), torch.tensor([2, 5, 9])[labels]


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_head_separates_classes(blobs, kind):
    features, labels = blobs
    head = fit_head(features, labels, kind=kind, c=10.0, seed=0)
    assert head.classes.tolist() == [2, 5, 9]
    assert torch.equal(head.classes[(features @ head.weights.T).argmax(1)], labels)
    assert head.scale == pytest.approx(float(features.norm(dim=1).mean()))


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_rows_are_opposite_for_two_classes(blobs, kind):
    features, labels = (part[blobs[1] != 9] for part in blobs)
    head = fit_head(features, labels, kind=kind, c=1.0, seed=0)
    assert torch.equal(head.weights[0], -head.weights[1])
    assert torch.equal(head.classes[(features @ head.weights.T).argmax(1)], labels)


def test_svm_matches_closed_form():
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0]]).repeat(50, 1)
    head = fit_head(features, torch.arange(100) % 2, kind="svm", c=1e4, seed=0)
    w = float((head.weights[1] - head.weights[0])[0])
    assert w / head.scale == pytest.approx(1.0, abs=0.02)  # the widest margin lies between 2 and 4


def test_head_is_independent_of_feature_scale(blobs):
    features, labels = blobs
    one, other = (fit_head(factor * features, labels, kind="svm", c=1.0, seed=0) for factor in (1.0, 64.0))
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-3, atol=1e-4)
    assert other.scale == pytest.approx(64 * one.scale)


def test_axes_point_to_shifted_class():
    weights = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(rotation_axes(weights, 1), torch.tensor([[-0.6, 0.8], [0.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(rotation_axes(weights, 2), torch.tensor([[-1.0, 0.0], [0.6, -0.8], [0.0, 1.0]]))


def test_axes_reverse_head_for_two_classes():
    weights = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(rotation_axes(weights, 1), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_positions_are_products_in_units_of_scale():
    axes = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    found = positions_along(torch.tensor([[10.0, 5.0], [-4.0, 9.0]]), axes, 2.0)
    torch.testing.assert_close(found, torch.tensor([5.0, -2.0]))
