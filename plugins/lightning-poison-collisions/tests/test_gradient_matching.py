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
from lightning_poison_collisions.matching import GradientMatch, TrainingGradient

from .conftest import images_of

EPSILON = 4 / 16
QUICK = {"steps": 15}


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults which a test may replace."""

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
    """Return the objective for each target, at those images in place of the poison's."""
    gradient = TrainingGradient(surrogate, PixelRange(levels=17), layers=layers, classes=10)
    goal = poison.objective
    groups = torch.arange(len(images)).tensor_split(len(goal.labels))
    return [
        float(GradientMatch([gradient], target[None], wanted, poison.labels[group], batch_size=64)(images[group])[0])
        for target, wanted, group in zip(goal.inputs, goal.wanted.tolist(), groups, strict=True)
    ]


class TestPoison:
    def test_it_takes_the_place_of_bases_of_the_class_it_wants(self, craft, dataset):
        poison = craft(source_class=8, base_class=3)
        assert poison.base_indices is None
        assert torch.equal(poison.labels, labels_of(dataset)[poison.indices])
        assert poison.labels.tolist() == [3] * 10
        assert (poison.objective.labels.tolist(), poison.objective.wanted.tolist()) == ([8], [3])

    def test_it_may_be_appended(self, craft, dataset):
        poison = craft(placement="append")
        assert poison.indices.tolist() == list(range(400, 410))
        assert torch.equal(poison.labels, labels_of(dataset)[poison.base_indices])

    def test_the_gradients_become_aligned(self, craft, dataset, surrogate):
        poison = craft(steps=40)
        before, after = (
            misalignments(poison, images, surrogate)[0]
            for images in (images_of(dataset, poison.indices), poison.inputs)
        )
        assert before > 0.7
        assert after < 0.4

    def test_targets_share_the_budget(self, craft, dataset, surrogate):
        poison = craft(10, targets=3, steps=40)
        assert len(poison.objective.labels) == 3
        assert torch.equal(poison.labels, poison.objective.wanted.repeat_interleave(torch.tensor([4, 3, 3])))
        clean = misalignments(poison, images_of(dataset, poison.indices), surrogate)
        assert sum(misalignments(poison, poison.inputs, surrogate)) < 0.7 * sum(clean)

    def test_the_last_layers_alone(self, craft, dataset, surrogate):
        poison = craft(steps=40, layers=["7"])
        before, after = (
            misalignments(poison, images, surrogate, layers=["7"])[0]
            for images in (images_of(dataset, poison.indices), poison.inputs)
        )
        assert after < 0.5 * before

    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2])
    def test_epsilon_and_grid_are_kept(self, craft, dataset, epsilon):
        poison = craft(epsilon=epsilon)
        change = (poison.inputs - images_of(dataset, poison.indices)).abs()
        assert 0 < change.max() <= epsilon + 1e-6
        torch.testing.assert_close(poison.inputs * 16, (poison.inputs * 16).round())

    def test_its_own_epsilon_holds_where_the_threat_sets_none(self, craft, dataset):
        poison = craft(GradientMatching().targets, epsilon=None, threat=Threat(4, pixels=PixelRange(levels=17)))
        change = (poison.inputs - images_of(dataset, poison.indices)).abs().max()
        assert float(change) == pytest.approx(1 / 16)  # of 16 / 255, the whole levels that fit

    def test_restarts_keep_the_best(self, craft, surrogate):
        reached = []
        for seed in range(3):  # the first start may be the best one
            poisons = [craft(restarts=number, seed=seed) for number in (1, 4)]
            reached.append([misalignments(poison, poison.inputs, surrogate)[0] for poison in poisons])
        assert all(often <= once for once, often in reached)
        assert any(often < once for once, often in reached)

    def test_several_surrogates_are_all_matched(self, craft, dataset, surrogate, another_surrogate):
        both = [surrogate, another_surrogate]
        poison = craft(steps=40, surrogates=both)
        for each in both:
            clean = misalignments(poison, images_of(dataset, poison.indices), each)
            assert misalignments(poison, poison.inputs, each)[0] < 0.7 * clean[0]

    def test_the_batch_size_only_bounds_memory(self, craft):
        whole, parts = craft(steps=3), craft(steps=3, batch_size=3)
        assert torch.equal(whole.indices, parts.indices)
        assert ((whole.inputs - parts.inputs).abs() < 1e-3).float().mean() > 0.95

    def test_settings_build_it_again(self, craft):
        attack = GradientMatching(**QUICK, layers=["5", "7"])
        assert GradientMatching(**craft(layers=["5", "7"]).settings) == attack


class TestState:
    def test_the_generator_alone_decides(self, craft):
        one, same, other = (craft(steps=2, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.inputs, same.inputs)
        assert not torch.equal(one.inputs, other.inputs)

    def test_the_model_is_given_back_as_it_was(self, craft, surrogate):
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
    def test_no_surrogate(self, craft):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(surrogates=[])

    def test_absent_classes(self, craft):
        with pytest.raises(ValueError, match="at least 1 samples of class 12, one a target, but got 0"):
            craft(source_class=12)
        with pytest.raises(ValueError, match="`base_class` to be a class of the training set"):
            craft(base_class=12)

    def test_a_budget_larger_than_the_class(self, craft):
        with pytest.raises(ValueError, match="Expected 200 bases of one class for each target, but got at most"):
            craft(200, base_class=3)

    def test_a_budget_below_the_number_of_targets(self, craft):
        with pytest.raises(ValueError, match=r"`targets` to be at most the budget \(3\), but got 4"):
            craft(3, targets=4)

    def test_layers_that_do_not_exist(self, craft, surrogate):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(surrogates=[Surrogate(surrogate.model, "fc")])
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, .*\), but got 'fc'"):
            craft(layers=["fc"])

    def test_a_surrogate_with_too_few_outputs(self, craft):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        with pytest.raises(ValueError, match=r"(?s)for the 10 classes of the data or more, .*\(1, 4\).*was trained on"):
            craft(surrogates=[Surrogate(model, "1")])

    def test_images_outside_the_pixel_range(self, craft, dataset):
        data = TensorDataset(8 * images_of(dataset) - 3, labels_of(dataset))
        with pytest.raises(ValueError, match=r"values from -3 to 5.\nSay how the data set normalizes"):
            craft(data=data)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"epsilon": 16}, "`epsilon` to be in .*but got 16.\nFor a budget of 16 gray levels write"),
            ({"restarts": 0}, "`restarts` to be an integer of at least 1"),
            ({"step_size": 0}, "`step_size` to be a finite number above 0"),
            ({"layers": []}, r"`layers` to be a list of layer names, but got \[\].\nFor all layers leave it out"),
            ({"layers": "fc"}, "`layers` to be a list of layer names, but got 'fc'"),
            ({"placement": "prepend"}, "`placement` to be one of 'append', 'replace'"),
        ],
    )
    def test_settings_out_of_range(self, setting, message):
        with pytest.raises(ValueError, match=message):
            GradientMatching(**setting)


def test_it_is_found_by_its_entry_point():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    attack = entry.load().lightning_poison_attacks()["gradient-matching"]()
    assert (attack.name, attack.clean_label) == ("gradient-matching", True)


def test_it_keeps_the_contract_of_attacks(dataset, holdout, surrogate, pixels):
    check_attack(GradientMatching(steps=10))
    check_attack(GradientMatching(steps=3, targets=2, placement="append", base_choice="nearest", layers=["3"]))
    threat = Threat(6, epsilon=EPSILON, clean_label=True, may_append=False, pixels=pixels)
    check_attack(GradientMatching(steps=3), dataset, threat, surrogates=[surrogate], holdout=holdout)
