from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange, Poison, Surrogate, Threat
from lightning_poison.data import labels_of
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_collisions import GradientMatching
from lightning_poison_collisions.augmentation import Augmentation
from lightning_poison_collisions.gradient_matching import GradientMatch, TrainingGradient, misalignment_and_slope

from .conftest import images_of

LABELS = torch.tensor([2, 2, 1, 0, 2])
EPSILON = 4 / 16
QUICK = {"steps": 15}
SHIFTED = {"shift": 1, "flip": True}


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults that a test may replace."""

    def run(budget=10, *, epsilon=EPSILON, seed=0, data=None, surrogates=None, threat=None, **settings) -> Poison:
        return GradientMatching(**{**QUICK, **settings}).craft(
            dataset if data is None else data,
            threat or Threat(budget, epsilon=epsilon, pixels=pixels),
            surrogates=[surrogate] if surrogates is None else surrogates,
            holdout=holdout,
            generator=torch.Generator().manual_seed(seed),
        )

    return run


def misalignments(poison, images, surrogate, *, layers=None):
    """Return the objective for each target, for the given images instead of those of the poison."""
    gradient = TrainingGradient(surrogate, PixelRange(levels=17), layers=layers, classes=10)
    goal = poison.objective
    groups = torch.arange(len(images)).tensor_split(len(goal.labels))
    return [
        float(GradientMatch([gradient], target[None], wanted, poison.labels[group], batch_size=64)(images[group])[0])
        for target, wanted, group in zip(goal.inputs, goal.wanted.tolist(), groups, strict=True)
    ]


def gradient_of(model, *, layers=None, pixels=None, classes=3):
    return TrainingGradient(Surrogate(model, ""), pixels or PixelRange(), layers=layers, classes=classes)


class TestPoison:
    def test_replaces_bases_of_wanted_class(self, craft, dataset):
        poison = craft(source_class=8, base_class=3)
        assert poison.base_indices is None
        assert torch.equal(poison.labels, labels_of(dataset)[poison.indices])
        assert poison.labels.tolist() == [3] * 10
        assert (poison.objective.labels.tolist(), poison.objective.wanted.tolist()) == ([8], [3])

    def test_poison_may_be_appended(self, craft, dataset):
        poison = craft(placement="append")
        assert poison.indices.tolist() == list(range(400, 410))
        assert torch.equal(poison.labels, labels_of(dataset)[poison.base_indices])

    def test_gradients_become_aligned(self, craft, dataset, surrogate):
        poison = craft(steps=40)
        before, after = (
            misalignments(poison, images, surrogate)[0]
            for images in (images_of(dataset, poison.indices), poison.inputs)
        )
        assert before > 0.7
        assert after < 0.4

    @pytest.mark.slow
    def test_targets_share_budget(self, craft, dataset, surrogate):
        poison = craft(10, targets=3, steps=40)
        assert len(poison.objective.labels) == 3
        assert torch.equal(poison.labels, poison.objective.wanted.repeat_interleave(torch.tensor([4, 3, 3])))
        clean = misalignments(poison, images_of(dataset, poison.indices), surrogate)
        assert sum(misalignments(poison, poison.inputs, surrogate)) < 0.7 * sum(clean)

    def test_matches_gradients_of_last_layer(self, craft, dataset, surrogate):
        poison = craft(steps=40, layers=["7"])
        before, after = (
            misalignments(poison, images, surrogate, layers=["7"])[0]
            for images in (images_of(dataset, poison.indices), poison.inputs)
        )
        assert after < 0.5 * before

    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_stays_within_epsilon_and_gray_levels(self, craft, dataset, epsilon):
        poison = craft(epsilon=epsilon)
        change = (poison.inputs - images_of(dataset, poison.indices)).abs()
        assert 0 < change.max() <= epsilon + 1e-6
        torch.testing.assert_close(poison.inputs * 16, (poison.inputs * 16).round())

    def test_uses_own_epsilon_if_threat_sets_none(self, craft, dataset):
        poison = craft(GradientMatching().targets, epsilon=None, threat=Threat(4, pixels=PixelRange(levels=17)))
        change = (poison.inputs - images_of(dataset, poison.indices)).abs().max()
        assert float(change) == pytest.approx(1 / 16)  # of 16 / 255, the whole levels that fit

    @pytest.mark.slow
    def test_restarts_keep_best_start(self, craft, surrogate):
        reached = []
        for seed in range(3):  # the first start may be the best one
            poisons = [craft(restarts=number, seed=seed) for number in (1, 4)]
            reached.append([misalignments(poison, poison.inputs, surrogate)[0] for poison in poisons])
        assert all(often <= once for once, often in reached)
        assert any(often < once for once, often in reached)

    @pytest.mark.slow
    def test_gradients_of_all_surrogates_become_aligned(self, craft, dataset, surrogate, another_surrogate):
        both = [surrogate, another_surrogate]
        poison = craft(steps=40, surrogates=both)
        for each in both:
            clean = misalignments(poison, images_of(dataset, poison.indices), each)
            assert misalignments(poison, poison.inputs, each)[0] < 0.7 * clean[0]

    def test_batch_size_hardly_changes_poison(self, craft):
        whole, parts = craft(steps=3), craft(steps=3, batch_size=3)
        assert torch.equal(whole.indices, parts.indices)
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.95

    def test_augmentation_changes_poison_and_batches_share_draw(self, craft):
        plain, whole, parts = (craft(steps=3, **each) for each in ({}, SHIFTED, {**SHIFTED, "batch_size": 3}))
        assert not torch.equal(plain.inputs, whole.inputs)
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.95

    def test_settings_rebuild_attack(self, craft):
        attack = GradientMatching(**QUICK, layers=["5", "7"])
        assert GradientMatching(**craft(layers=["5", "7"]).settings) == attack


class TestState:
    def test_same_generator_gives_same_poison(self, craft):
        poison, repeated, other = (craft(steps=2, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(poison.inputs, repeated.inputs)
        assert not torch.equal(poison.inputs, other.inputs)

    def test_restores_state_of_model(self, craft, surrogate):
        model = surrogate.model
        model.zero_grad()
        model[0].train()
        model[5].weight.requires_grad_(False)
        values = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            craft(steps=2)
            assert [part.training for part in model] == [True] + [False] * 7
            assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["5.weight"]
            assert all(value.grad is None for value in model.parameters())
            assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        finally:
            model.eval().requires_grad_(True)


class TestErrors:
    def test_refuses_missing_surrogate(self, craft):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(surrogates=[])

    def test_refuses_absent_classes(self, craft):
        with pytest.raises(ValueError, match="at least 1 samples of class 12, one for each target, but got 0"):
            craft(source_class=12)
        with pytest.raises(ValueError, match="`base_class` to be a class of the training set"):
            craft(base_class=12)

    def test_refuses_budget_above_class_size(self, craft):
        with pytest.raises(ValueError, match="Expected 200 bases of one class for each target, but got at most"):
            craft(200, base_class=3)

    def test_refuses_budget_below_number_of_targets(self, craft):
        with pytest.raises(ValueError, match=r"`targets` to be at most the budget \(3\), but got 4"):
            craft(3, targets=4)

    def test_refuses_unknown_layers(self, craft, surrogate):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(surrogates=[Surrogate(surrogate.model, "fc")])
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(layers=["fc"])

    def test_refuses_surrogate_with_too_few_outputs(self, craft):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        with pytest.raises(
            ValueError, match=r"(?s)for at least the 10 classes of the data, .*\(1, 4\).*was trained on"
        ):
            craft(surrogates=[Surrogate(model, "1")])

    def test_refuses_images_outside_pixel_range(self, craft, dataset):
        data = TensorDataset(8 * images_of(dataset) - 3, labels_of(dataset))
        with pytest.raises(ValueError, match=r"values from -3 to 5"):
            craft(data=data)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"epsilon": 16}, "`epsilon` to be in .*but got 16.\nFor a budget of 16 gray levels write"),
            ({"shift": -1}, "`shift` to be an integer of at least 0"),
            ({"flip": 1}, "`flip` to be True or False"),
            ({"restarts": 0}, "`restarts` to be an integer of at least 1"),
            ({"step_size": 0}, "`step_size` to be a finite number above 0"),
            ({"layers": []}, r"`layers` to be a list of layer names, but got \[\].\nOmit it for all layers"),
            ({"layers": "fc"}, "`layers` to be a list of layer names, but got 'fc'"),
            ({"placement": "prepend"}, "`placement` to be one of 'append', 'replace'"),
        ],
    )
    def test_refuses_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            GradientMatching(**setting)


def test_entry_point_offers_attack():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    attack = entry.load().lightning_poison_attacks()["gradient-matching"]()
    assert (attack.name, attack.clean_label) == ("gradient-matching", True)


@pytest.mark.slow
def test_satisfies_attack_contract(dataset, holdout, surrogate, pixels):
    check_attack(GradientMatching(steps=10))
    check_attack(GradientMatching(steps=3, targets=2, placement="append", base_choice="nearest", layers=["3"]))
    threat = Threat(6, epsilon=EPSILON, clean_label=True, may_append=False, pixels=pixels)
    check_attack(GradientMatching(steps=3), dataset, threat, surrogates=[surrogate], holdout=holdout)


@pytest.fixture
def network(generator):
    """A small smooth network in double precision, six inputs, three classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture
def images(generator):
    return torch.rand(5, 1, 2, 3, generator=generator).double()


class TestTrainingGradient:
    def test_matches_closed_form_for_linear_model(self, images, generator):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
        flat = images.flatten(1)
        errors = model(images).softmax(1) - nn.functional.one_hot(LABELS, 3)
        expected = torch.cat([(errors.T @ flat).flatten(), errors.sum(0)]).detach()
        torch.testing.assert_close(gradient_of(model)(images, LABELS), expected)

    def test_normalizes_images(self, images):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
        pixels = PixelRange(mean=(0.4,), std=(0.2,))
        found = gradient_of(model, pixels=pixels)(images, LABELS)
        torch.testing.assert_close(found, gradient_of(model)(pixels.from_raw(images), LABELS))

    @pytest.mark.parametrize(("layers", "sizes"), [(None, 53), (["3"], 18), (["1", "3"], 53), (["1"], 35)])
    def test_uses_given_layers(self, network, images, layers, sizes):
        assert gradient_of(network, layers=layers)(images, LABELS).shape == (sizes,)

    def test_does_not_change_model(self, network, images):
        network.requires_grad_(False)
        gradient_of(network)(images, LABELS)
        assert all(value.grad is None and not value.requires_grad for value in network.parameters())

    def test_refuses_unknown_layer(self, network):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, 2, 3\), but got 'head'"):
            gradient_of(network, layers=["head"])

    def test_refuses_layer_without_parameters(self, network):
        with pytest.raises(ValueError, match="`layers` to be layers with parameters, but got none in the layers '2'"):
            gradient_of(network, layers=["2"])

    def test_refuses_too_few_outputs(self, network, images):
        with pytest.raises(
            ValueError, match=r"logits \(5, C\) for at least the 4 classes .* but got a float64 tensor of shape"
        ):
            gradient_of(network, classes=4)(images, LABELS)

    def test_refuses_outputs_that_are_not_logits(self, images):
        model = nn.Sequential(nn.Conv2d(1, 3, 1)).double()
        with pytest.raises(ValueError, match=r"model that returns logits \(5, C\)"):
            gradient_of(model)(images, LABELS)


class TestMisalignment:
    def test_value_at_known_angles(self):
        across = torch.tensor([0.0, 2.0])
        for gradient, value in (([0.0, 5.0], 0.0), ([3.0, 0.0], 1.0), ([0.0, -1.0], 2.0), ([0.0, 0.0], 1.0)):
            assert float(misalignment_and_slope(torch.tensor(gradient), across)[0]) == pytest.approx(value)

    def test_slope_matches_finite_differences(self, generator):
        gradient, goal = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        slope = misalignment_and_slope(gradient, goal)[1]
        for direction in torch.eye(7, dtype=torch.float64):
            ahead, behind = (misalignment_and_slope(gradient + step * direction, goal)[0] for step in (1e-6, -1e-6))
            assert float((ahead - behind) / 2e-6) == pytest.approx(float(slope @ direction), abs=1e-8)

    def test_slope_is_zero_for_zero_gradient(self):
        assert misalignment_and_slope(torch.zeros(2), torch.ones(2))[1].tolist() == [0.0, 0.0]


class TestGradientMatch:
    @pytest.fixture
    def match(self, network, generator):
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        return lambda size=8: GradientMatch([gradient_of(network)], target, 2, LABELS, batch_size=size)

    def test_poison_equal_to_target_is_aligned(self, network, generator):
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        match = GradientMatch([gradient_of(network)], target, 2, torch.tensor([2, 2]), batch_size=8)
        assert float(match(target.repeat(2, 1, 1, 1))[0]) == pytest.approx(0, abs=1e-6)

    def test_gradient_matches_finite_differences(self, match, images):
        objective = match()
        slopes = objective(images)[1]
        for number in range(3):
            change = torch.zeros_like(images).flatten()
            change[7 * number] = 1e-5
            change = change.view_as(images)
            slope = (objective(images + change)[0] - objective(images - change)[0]) / 2e-5
            assert float(slope) == pytest.approx(float(slopes.flatten()[7 * number]), rel=1e-5, abs=1e-8)

    def test_batch_size_does_not_change_value(self, match, images):
        (value, slopes), (same_value, same_slopes) = match(8)(images), match(2)(images)
        torch.testing.assert_close(value, same_value)
        torch.testing.assert_close(slopes, same_slopes, atol=1e-7, rtol=1e-4)

    def test_averages_surrogates(self, network, images, generator):
        other = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        models = [gradient_of(network), gradient_of(other)]
        alone = [GradientMatch([model], target, 2, LABELS, batch_size=8)(images) for model in models]
        value, slopes = GradientMatch(models, target, 2, LABELS, batch_size=8)(images)
        torch.testing.assert_close(value, (alone[0][0] + alone[1][0]) / 2)
        torch.testing.assert_close(slopes, (alone[0][1] + alone[1][1]) / 2)

    def test_augmented_value_is_that_of_augmented_images(self, network, images, generator):
        """Padding of images that are constant changes nothing; the mirror image of a symmetric one neither."""
        flat = images.mean((2, 3), keepdim=True).expand_as(images).contiguous()
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        plain, augmented = (
            GradientMatch([gradient_of(network)], target, 2, LABELS, batch_size=2, augmentation=each)
            for each in (Augmentation(), Augmentation(shift=1, flip=True))
        )
        torch.testing.assert_close(augmented(flat)[0], plain(flat)[0])
        assert not torch.allclose(augmented(images)[0], plain(images)[0])
        assert not torch.allclose(augmented(images)[0], augmented(images)[0])

    def test_gradients_of_targets_are_summed(self, network, generator):
        targets = torch.rand(3, 1, 2, 3, generator=generator).double()
        match = GradientMatch([gradient_of(network)], targets, 2, torch.tensor([2, 2, 2]), batch_size=2)
        assert float(match(targets)[0]) == pytest.approx(0, abs=1e-6)

    def test_works_under_no_grad(self, match, images):
        with torch.no_grad():
            assert match()(images)[1].abs().max() > 0
