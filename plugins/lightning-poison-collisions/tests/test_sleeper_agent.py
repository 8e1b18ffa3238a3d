import copy

import pytest
import torch
from torch import nn

from lightning_poison import PixelRange, Surrogate
from lightning_poison.models import FitSettings
from lightning_poison.testing import TinyImages, check_attack
from lightning_poison_collisions import SleeperAgent
from lightning_poison_collisions.gradient_matching import GradientMatch, TrainingGradient
from lightning_poison_collisions.retraining import check_resettable, reset, retrained
from lightning_poison_collisions.sleeper_agent import RetrainedMatch, gradient_norms

from .triggers import craft, network_of, surrogate_of

FIT = FitSettings(epochs=1, batch_size=16, min_steps=0, shift=0)
QUICK = {"steps": 6, "retrain_factor": 1, "fit_settings": FIT, "target_class": 1}
ALONE = {"steps": 15, "retrain_factor": 0, "target_class": 1}


@pytest.mark.slow
def test_satisfies_attack_contract():
    check_attack(SleeperAgent(steps=2, retrain_factor=1, fit_settings=FIT))
    check_attack(
        SleeperAgent(
            steps=2, retrain_factor=0, source_class=1, shift=1, flip=True, layers=["3"], restarts=2, batch_size=4
        )
    )


def misalignment(images, poison, sources, surrogate):
    gradient = TrainingGradient(surrogate, PixelRange(), layers=None, classes=3)
    match = GradientMatch([gradient], sources, 1, poison.labels, batch_size=64)
    return float(match(images.float() / 255)[0])


def test_gradients_become_aligned_with_those_of_triggered_images():
    images = TinyImages()
    surrogate = surrogate_of(images)
    attack = SleeperAgent(**{**ALONE, "steps": 60}, source_class=0)
    poison = craft(attack, images, budget=12, surrogates=[surrogate], epsilon=0.1)
    triggered = torch.stack([poison.objective.trigger(image) for image in images.data[images.targets == 0]])
    before, after = (
        misalignment(each, poison, triggered.float() / 255, surrogate)
        for each in (images.data[poison.indices], poison.inputs)
    )
    assert before > 0.3
    assert after < 0.6 * before


def test_bases_have_largest_gradients():
    images = TinyImages()
    surrogate = surrogate_of(images)
    poison = craft(SleeperAgent(**{**ALONE, "steps": 1}), images, surrogates=[surrogate])
    candidates = (images.targets == 1).nonzero().flatten()
    norms = []
    for index in candidates.tolist():
        surrogate.model.zero_grad()
        nn.functional.cross_entropy(surrogate.model(images[index][0][None]), torch.tensor([1])).backward()
        norms.append(torch.cat([value.grad.flatten() for value in surrogate.model.parameters()]).norm())
    largest = candidates[torch.stack(norms).argsort(descending=True)[:6]]
    assert poison.indices.tolist() == largest.sort().values.tolist()


def test_poison_keeps_labels_and_stays_within_epsilon():
    images = TinyImages()
    poison = craft(SleeperAgent(**ALONE), images, epsilon=8 / 255)
    assert (images.targets[poison.indices] == 1).all()
    assert (poison.labels == 1).all()
    assert 0 < (poison.inputs.int() - images.data[poison.indices].int()).abs().max() <= 8


def test_retraining_changes_poison_and_not_surrogate():
    images = TinyImages()
    surrogate = surrogate_of(images)
    before = copy.deepcopy(surrogate.model.state_dict())
    with_retraining, without = (
        craft(SleeperAgent(**{**QUICK, "retrain_factor": factor}), images, surrogates=[surrogate]) for factor in (1, 0)
    )
    assert torch.equal(with_retraining.indices, without.indices)
    assert not torch.equal(with_retraining.inputs, without.inputs)
    assert all(torch.equal(value, before[name]) for name, value in surrogate.model.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in surrogate.model.parameters())


def test_crafts_without_gradients_enabled():
    with torch.no_grad():
        assert len(craft(SleeperAgent(**QUICK), TinyImages(), surrogates=[Surrogate(network_of(64, 0), "2")])) == 6


class TestRetrainedMatch:
    def test_replaces_surrogates_in_due_calls(self):
        seen = []

        def build(surrogates):
            return lambda images: (surrogates[0], images)

        def retrain(images):
            seen.append(images)
            return [f"after {images}"]

        match = RetrainedMatch(build, ["given"], retrain, [1, 3])
        assert [match(number)[0] for number in range(5)] == ["given", "after 1", "after 1", "after 3", "after 3"]
        assert seen == [1, 3]

    def test_surrogates_are_retrained_at_equal_distances(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "lightning_poison_collisions.sleeper_agent.retrained",
            lambda surrogate, dataset, poison, *, settings, generator: calls.append(settings) or surrogate,
        )
        craft(SleeperAgent(**{**QUICK, "steps": 10, "retrain_factor": 4}), TinyImages())
        assert calls == [FIT] * 4


class TestRetraining:
    def test_copy_learns_poisoned_data(self):
        images = TinyImages()
        surrogate = Surrogate(network_of(64, 0), "2")
        poison = craft(SleeperAgent(**ALONE), images)
        settings = FitSettings(epochs=10, batch_size=16, min_steps=0, shift=0, learning_rate=1e-2)
        trained = retrained(surrogate, images, poison, settings=settings, generator=torch.Generator().manual_seed(0))
        inputs = images.data.float() / 255
        assert trained.feature_layer == "2"
        assert trained.model(inputs).argmax(1).eq(images.targets).float().mean() > 0.9
        assert not any(value.requires_grad for value in trained.model.parameters())
        assert surrogate.model(inputs).argmax(1).eq(images.targets).float().mean() < 0.7

    def test_reset_depends_on_seed_and_restores_statistics(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        model(torch.rand(4, 2))
        reset(model, 0)
        assert model[1].running_mean.tolist() == [0.0, 0.0]
        first = model[0].weight.clone()
        reset(model, 1)
        assert not torch.equal(model[0].weight, first)

    def test_refuses_layers_that_cannot_be_reset(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(1))

            def forward(self, inputs):
                return self.scale * inputs

        model = nn.Sequential(network_of(64, 0), Scaled())
        check_resettable([Surrogate(network_of(64, 0), "2")])
        with pytest.raises(ValueError, match=r"Scaled at '1' without it\.\nSet `retrain_factor=0` to use the given"):
            craft(SleeperAgent(**QUICK), TinyImages(), surrogates=[Surrogate(model, "0")])
        assert len(craft(SleeperAgent(**ALONE), TinyImages(), surrogates=[Surrogate(model, "0")])) == 6


def test_gradient_norms_average_models(generator):
    images = torch.rand(3, 1, 8, 8, generator=generator)
    gradients = [
        TrainingGradient(Surrogate(network_of(64, seed), "2"), PixelRange(), layers=None, classes=3) for seed in (0, 1)
    ]
    alone = [gradient_norms([each], images, 2) for each in gradients]
    torch.testing.assert_close(gradient_norms(gradients, images, 2), (alone[0] + alone[1]) / 2)


def test_settings_rebuild_attack():
    attack = SleeperAgent(**QUICK, layers=["3"])
    poison = craft(attack, TinyImages())
    assert SleeperAgent(**poison.settings) == attack


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrain_factor": -1}, "`retrain_factor` to be an integer of at least 0"),
        ({"retrain_factor": 5, "steps": 5}, r"`retrain_factor` to be below `steps` \(5\), but got 5"),
        ({"restarts": 0}, "`restarts` to be an integer of at least 1"),
        ({"shift": -1}, "`shift` to be an integer of at least 0"),
        ({"layers": "3"}, "`layers` to be a list of layer names"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SleeperAgent(**settings)


def test_refuses_other_fit_settings():
    with pytest.raises(TypeError, match="`fit_settings`"):
        SleeperAgent(fit_settings=3)
