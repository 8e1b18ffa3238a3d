import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from lightning_poison import PixelRange, Poison, Surrogate, Threat
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import labels_of
from lightning_poison_collisions import FrogAttack
from lightning_poison_collisions.distance import squared_norm

from .conftest import images_of


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults which a test may replace."""

    def run(attack=None, *, budget=10, epsilon=None, seed=0, **replaced) -> Poison:
        threat = replaced.pop("threat", None) or Threat(budget, epsilon=epsilon, pixels=pixels)
        given = {"surrogates": [surrogate], "holdout": holdout, **replaced}
        data = given.pop("dataset", dataset)
        return (attack or FrogAttack()).craft(data, threat, generator=torch.Generator().manual_seed(seed), **given)

    return run


def base_images(poison, dataset):
    return images_of(dataset, poison.indices if poison.base_indices is None else poison.base_indices)


def relative_distances(poison, dataset, features, poisons_per_target=1):
    with torch.no_grad():
        goals = features(poison.objective.inputs).repeat_interleave(poisons_per_target, 0)
        crafted, initial = features(poison.inputs), features(base_images(poison, dataset))
    return squared_norm(crafted - goals) / squared_norm(initial - goals)


class TestPoison:
    def test_appended_poison_carries_the_label_of_its_base(self, craft, dataset):
        poison = craft(FrogAttack(poisons_per_target=3))
        assert poison.indices.tolist() == list(range(400, 410))
        assert torch.equal(poison.labels, labels_of(dataset)[poison.base_indices])

    def test_poison_may_replace_its_bases(self, craft, dataset):
        poison = craft(FrogAttack(placement="replace", poisons_per_target=5), budget=50)
        assert poison.base_indices is None
        assert len(poison.indices.unique()) == 50
        assert int(poison.indices.max()) < len(dataset)
        assert torch.equal(poison.labels, labels_of(dataset)[poison.indices])

    @pytest.mark.parametrize("choice", ["nearest", "random"])
    def test_the_objective_wants_targets_read_as_their_bases(self, craft, holdout, choice):
        poison = craft(FrogAttack(poisons_per_target=5, base_choice=choice))
        objective = poison.objective
        assert torch.equal(poison.labels, objective.wanted.repeat_interleave(5))
        assert (objective.wanted != objective.labels).all()
        held = images_of(holdout)
        assert all((held == target).flatten(1).all(1).any() for target in objective.inputs)

    def test_the_classes_asked_for(self, craft):
        poison = craft(FrogAttack(source_class=8, base_class=3))
        assert poison.labels.tolist() == [3] * 10
        assert poison.objective.labels.tolist() == [8] * 10

    def test_features_collide(self, craft, dataset, features):
        poison = craft(FrogAttack(poisons_per_target=5), budget=20)
        assert relative_distances(poison, dataset, features, 5).median() < 0.05

    def test_nearest_bases_are_nearer_than_random_ones(self, craft, dataset, features):
        gaps = {}
        for choice in ("nearest", "random"):
            poison = craft(FrogAttack(base_choice=choice, steps=1, poisons_per_target=5), budget=20)
            with torch.no_grad():
                goals = features(poison.objective.inputs).repeat_interleave(5, 0)
                gaps[choice] = squared_norm(features(base_images(poison, dataset)) - goals).mean()
        assert gaps["nearest"] < 0.8 * gaps["random"]

    def test_images_lie_on_the_grid_of_the_data(self, craft):
        for epsilon in (None, 0.2):
            steps = craft(epsilon=epsilon).inputs * 16
            torch.testing.assert_close(steps, steps.round().clamp(0, 16))

    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_epsilon_is_kept_after_rounding(self, craft, dataset, features, epsilon):
        poison = craft(FrogAttack(opacity=0.5), epsilon=epsilon)
        assert (poison.inputs - base_images(poison, dataset)).abs().max() <= epsilon + 1e-6
        assert (relative_distances(poison, dataset, features) < 1).all()

    def test_normalization_changes_nothing(self, craft, dataset, holdout, surrogate, features):
        pixels = PixelRange(mean=(0.3,), std=(0.4,), levels=17)

        class Undo(nn.Module):
            def forward(self, inputs):
                return pixels.to_raw(inputs)

        def normalized(data):
            return TensorDataset(pixels.from_raw(images_of(data)), labels_of(data))

        model = nn.Sequential(Undo(), *surrogate.model)
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

    def test_opacity_starts_from_a_blend(self, craft, dataset):
        poison = craft(FrogAttack(opacity=0.3, beta=1e6))
        blend = base_images(poison, dataset).lerp(poison.objective.inputs, 0.3)
        torch.testing.assert_close(poison.inputs, blend, atol=1 / 32 + 1e-4, rtol=0)

    def test_several_surrogates_are_all_fooled(self, craft, dataset, surrogate, another_surrogate, pixels):
        both = [surrogate, another_surrogate]
        poison = craft(surrogates=both)
        for each in both:
            assert relative_distances(poison, dataset, RawFeatures(each, pixels)).median() < 0.2

    def test_the_batch_size_only_bounds_memory(self, craft):
        whole, parts = craft(FrogAttack(steps=5), budget=7), craft(FrogAttack(steps=5, batch_size=3), budget=7)
        assert torch.equal(whole.base_indices, parts.base_indices)
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.98

    def test_it_is_saved_and_read_back(self, craft, tmp_path):
        poison = craft()
        poison.save(tmp_path / "frogs.safetensors")
        again = Poison.load(tmp_path / "frogs.safetensors")
        assert torch.equal(again.inputs, poison.inputs)
        assert FrogAttack(**again.settings) == FrogAttack()


class TestState:
    def test_the_generator_alone_decides(self, craft):
        one, same, other = craft(seed=1), craft(seed=1), craft(seed=2)
        assert torch.equal(one.inputs, same.inputs)
        assert torch.equal(one.base_indices, same.base_indices)
        assert not torch.equal(one.objective.inputs, other.objective.inputs)

    def test_the_global_random_state_is_left_alone(self, craft):
        before = torch.get_rng_state()
        craft()
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_model_is_given_back_as_it_was(self, craft, surrogate):
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

    def test_the_model_is_given_back_when_crafting_fails(self, craft, surrogate):
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

    def test_the_data_set_is_not_changed(self, craft, dataset):
        before = images_of(dataset)
        craft(FrogAttack(placement="replace"))
        assert torch.equal(images_of(dataset), before)


class TestErrors:
    def test_no_surrogate(self, craft):
        with pytest.raises(ValueError, match=r"at least one model to craft on, but got none.\nPass `surrogates="):
            craft(surrogates=[])

    def test_no_holdout(self, craft):
        with pytest.raises(ValueError, match="`holdout` to be a data set that targets are drawn from, but got None"):
            craft(holdout=None)

    def test_absent_classes(self, craft):
        with pytest.raises(ValueError, match="at least 10 samples of class 12, one a target, but got 0"):
            craft(FrogAttack(source_class=12))
        with pytest.raises(ValueError, match=r"`base_class` to be a class of the training set \(0, 1.*\), but got 12"):
            craft(FrogAttack(base_class=12))

    def test_a_wrong_feature_layer(self, craft, surrogate):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(surrogates=[Surrogate(surrogate.model, "fc")])

    def test_images_outside_the_pixel_range(self, craft, dataset):
        images, labels = images_of(dataset), labels_of(dataset)
        with pytest.raises(ValueError, match=r"values from -3 to 5.\nSay how the data set normalizes"):
            craft(dataset=TensorDataset(8 * images - 3, labels))

    def test_a_threat_that_forbids_appending(self, craft, pixels):
        with pytest.raises(ValueError, match='Set `placement="replace"`'):
            craft(threat=Threat(3, may_append=False, pixels=pixels))

    def test_more_poisons_than_bases(self, craft):
        with pytest.raises(ValueError, match="Expected 300 bases of one class for each target"):
            craft(FrogAttack(poisons_per_target=300), budget=300)
