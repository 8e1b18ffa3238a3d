from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import lightning_poison_collisions
from lightning_poison import PixelRange, Poison, Surrogate, Threat
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import labels_of
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_collisions import FrogAttack, squared_norm

from .conftest import images_of


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults that a test may replace."""

    def run(attack=None, *, budget=10, epsilon=None, seed=0, **replaced) -> Poison:
        threat = replaced.pop("threat", None) or Threat(budget, epsilon=epsilon, pixels=pixels)
        arguments = {"surrogates": [surrogate], "holdout": holdout, **replaced}
        data = arguments.pop("dataset", dataset)
        return (attack or FrogAttack()).craft(data, threat, generator=torch.Generator().manual_seed(seed), **arguments)

    return run


def base_images(poison, dataset):
    return images_of(dataset, poison.indices if poison.base_indices is None else poison.base_indices)


def relative_distances(poison, dataset, features, poisons_per_target=1):
    with torch.no_grad():
        goals = features(poison.objective.inputs).repeat_interleave(poisons_per_target, 0)
        crafted, initial = features(poison.inputs), features(base_images(poison, dataset))
    return squared_norm(crafted - goals) / squared_norm(initial - goals)


class TestPoison:
    def test_appended_poison_has_labels_of_bases(self, craft, dataset):
        poison = craft(FrogAttack(poisons_per_target=3))
        assert poison.indices.tolist() == list(range(400, 410))
        assert torch.equal(poison.labels, labels_of(dataset)[poison.base_indices])

    def test_poison_replaces_bases(self, craft, dataset):
        poison = craft(FrogAttack(placement="replace", poisons_per_target=5), budget=50)
        assert poison.base_indices is None
        assert len(poison.indices.unique()) == 50
        assert int(poison.indices.max()) < len(dataset)
        assert torch.equal(poison.labels, labels_of(dataset)[poison.indices])

    @pytest.mark.parametrize("choice", ["nearest", "random"])
    def test_objective_wants_class_of_bases_for_targets(self, craft, holdout, choice):
        poison = craft(FrogAttack(poisons_per_target=5, base_choice=choice))
        objective = poison.objective
        assert torch.equal(poison.labels, objective.wanted.repeat_interleave(5))
        assert (objective.wanted != objective.labels).all()
        holdout_images = images_of(holdout)
        assert all((holdout_images == target).flatten(1).all(1).any() for target in objective.inputs)

    def test_uses_arguments_classes(self, craft):
        poison = craft(FrogAttack(source_class=8, base_class=3))
        assert poison.labels.tolist() == [3] * 10
        assert poison.objective.labels.tolist() == [8] * 10

    def test_features_collide(self, craft, dataset, features):
        poison = craft(FrogAttack(poisons_per_target=5), budget=20)
        assert relative_distances(poison, dataset, features, 5).median() < 0.05

    def test_nearest_bases_are_nearer_than_random_bases(self, craft, dataset, features):
        gaps = {}
        for choice in ("nearest", "random"):
            poison = craft(FrogAttack(base_choice=choice, steps=1, poisons_per_target=5), budget=20)
            with torch.no_grad():
                goals = features(poison.objective.inputs).repeat_interleave(5, 0)
                gaps[choice] = squared_norm(features(base_images(poison, dataset)) - goals).mean()
        assert gaps["nearest"] < 0.8 * gaps["random"]

    @pytest.mark.slow
    def test_images_have_gray_levels_of_data(self, craft):
        for epsilon in (None, 0.2):
            steps = craft(epsilon=epsilon).inputs * 16
            torch.testing.assert_close(steps, steps.round().clamp(0, 16))

    @pytest.mark.slow
    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_rounded_images_stay_within_epsilon(self, craft, dataset, features, epsilon):
        poison = craft(FrogAttack(opacity=0.5), epsilon=epsilon)
        assert (poison.inputs - base_images(poison, dataset)).abs().max() <= epsilon + 1e-6
        assert (relative_distances(poison, dataset, features) < 1).all()

    def test_normalization_does_not_change_poison(self, craft, dataset, holdout, surrogate, features):
        pixels = PixelRange(mean=(0.3,), std=(0.4,), levels=17)

        class Denormalize(nn.Module):
            def forward(self, inputs):
                return pixels.to_raw(inputs)

        def normalized(data):
            return TensorDataset(pixels.from_raw(images_of(data)), labels_of(data))

        model = nn.Sequential(Denormalize(), *surrogate.model)
        poison = craft(
            FrogAttack(steps=5),
            dataset=normalized(dataset),
            holdout=normalized(holdout),
            surrogates=[Surrogate(model, "7")],
            threat=Threat(10, pixels=pixels),
        )
        plain = craft(FrogAttack(steps=5))
        assert torch.equal(poison.base_indices, plain.base_indices)
        same = (pixels.to_raw(poison.inputs) - plain.inputs).abs() < 1e-3
        assert same.float().mean() > 0.98

    def test_opacity_starts_from_blend(self, craft, dataset):
        poison = craft(FrogAttack(opacity=0.3, beta=1e6))
        blend = base_images(poison, dataset).lerp(poison.objective.inputs, 0.3)
        torch.testing.assert_close(poison.inputs, blend, atol=1 / 32 + 1e-4, rtol=0)

    @pytest.mark.slow
    def test_features_of_all_surrogates_collide(self, craft, dataset, surrogate, another_surrogate, pixels):
        both = [surrogate, another_surrogate]
        poison = craft(surrogates=both)
        for each in both:
            assert relative_distances(poison, dataset, RawFeatures(each, pixels)).median() < 0.2

    def test_batch_size_hardly_changes_poison(self, craft):
        whole, parts = craft(FrogAttack(steps=5), budget=7), craft(FrogAttack(steps=5, batch_size=3), budget=7)
        assert torch.equal(whole.base_indices, parts.base_indices)
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.98

    def test_survives_saving(self, craft, tmp_path):
        poison = craft()
        poison.save(tmp_path / "frogs.safetensors")
        loaded = Poison.load(tmp_path / "frogs.safetensors")
        assert torch.equal(loaded.inputs, poison.inputs)
        assert FrogAttack(**loaded.settings) == FrogAttack()


class TestState:
    @pytest.mark.slow
    def test_same_generator_gives_same_poison(self, craft):
        poison, repeated, other = craft(seed=1), craft(seed=1), craft(seed=2)
        assert torch.equal(poison.inputs, repeated.inputs)
        assert torch.equal(poison.base_indices, repeated.base_indices)
        assert not torch.equal(poison.objective.inputs, other.objective.inputs)

    def test_does_not_change_global_random_state(self, craft):
        before = torch.get_rng_state()
        craft()
        assert torch.equal(torch.get_rng_state(), before)

    def test_restores_state_of_model(self, craft, surrogate):
        model = surrogate.model
        model.zero_grad()
        model[0].train()
        model[5].weight.requires_grad_(False)
        values = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            craft()
            assert [part.training for part in model] == [True] + [False] * 7
            assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["5.weight"]
            assert all(value.grad is None for value in model.parameters())
            assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
            assert not any(part._forward_hooks for part in model)
        finally:
            model.eval().requires_grad_(True)

    def test_restores_state_of_model_on_error(self, craft, surrogate):
        class Broken(Dataset):
            def __len__(self):
                return 20

            def __getitem__(self, index):
                return torch.zeros(2, 8, 8), index % 10

        surrogate.model.train()
        try:
            with pytest.raises(RuntimeError, match="channels"):
                craft(dataset=Broken())
            assert all(part.training for part in surrogate.model.modules())
            assert all(value.requires_grad for value in surrogate.model.parameters())
        finally:
            surrogate.model.eval()

    def test_does_not_change_dataset(self, craft, dataset):
        before = images_of(dataset)
        craft(FrogAttack(placement="replace"))
        assert torch.equal(images_of(dataset), before)


class TestErrors:
    def test_refuses_missing_surrogate(self, craft):
        with pytest.raises(ValueError, match=r"at least one model to craft on, but got none.\nPass `surrogates="):
            craft(surrogates=[])

    def test_refuses_missing_holdout(self, craft):
        with pytest.raises(ValueError, match="`holdout` to be a data set from which targets are drawn, but got None"):
            craft(holdout=None)

    def test_refuses_absent_classes(self, craft):
        with pytest.raises(ValueError, match="at least 10 samples of class 12, one for each target, but got 0"):
            craft(FrogAttack(source_class=12))
        with pytest.raises(ValueError, match=r"`base_class` to be a class of the training set \(0, 1.*\), but got 12"):
            craft(FrogAttack(base_class=12))

    def test_refuses_unknown_layer(self, craft, surrogate):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(surrogates=[Surrogate(surrogate.model, "fc")])

    def test_refuses_images_outside_pixel_range(self, craft, dataset):
        images, labels = images_of(dataset), labels_of(dataset)
        with pytest.raises(ValueError, match=r"values from -3 to 5"):
            craft(dataset=TensorDataset(8 * images - 3, labels))

    def test_refuses_appending_if_threat_forbids_it(self, craft, pixels):
        with pytest.raises(ValueError, match='Set `placement="replace"`'):
            craft(threat=Threat(3, may_append=False, pixels=pixels))

    def test_refuses_more_poisons_than_bases(self, craft):
        with pytest.raises(ValueError, match="Expected 300 bases of one class for each target"):
            craft(FrogAttack(poisons_per_target=300), budget=300)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0}, "`beta` to be a finite number above 0, but got 0"),
        ({"steps": 0}, "`steps` to be an integer of at least 1"),
        ({"opacity": 1}, "`opacity` to be below 1"),
    ],
)
def test_refuses_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        FrogAttack(**setting)


def test_entry_point_offers_attack():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    assert entry.load() is lightning_poison_collisions
    attack = lightning_poison_collisions.lightning_poison_attacks()["poison-frog"]()
    assert (attack.name, attack.clean_label) == ("poison-frog", True)


@pytest.mark.slow
def test_satisfies_attack_contract():
    check_attack(FrogAttack)
    check_attack(FrogAttack(placement="replace", base_choice="random"))
