"""Each attack with a hidden trigger in the setting for which it is designed, undefended: real digits."""

import pytest
import torch
from torch import nn

from lightning_poison import PixelRange, PoisonedDataset, Surrogate, Threat
from lightning_poison.attacks import RawFeatures
from lightning_poison.models import FitSettings
from lightning_poison_collisions import HiddenTrigger, SleeperAgent

from .conftest import FEATURE_LAYER, fit, images_of, train

SETTINGS = {
    "target_class": 3,
    "source_class": 8,
    "epsilon": 0.3,
    "pattern": [[255, 0, 255], [0, 255, 0], [255, 0, 255]],
}


class RawDigits(torch.utils.data.Dataset):
    """Digits as 8-bit images, with a transform that scales them."""

    def __init__(self, images, labels):
        self.data, self.targets = (255 * images).round().to(torch.uint8), labels
        self.transform = lambda image: image.float() / 255

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(self.data[index]), int(self.targets[index])


@pytest.fixture(scope="session")
def raw(digits):
    return RawDigits(*digits[800:1400])


@pytest.fixture(scope="session")
def test_digits(digits):
    return RawDigits(*digits[1400:])


def success(poison, test, predict):
    items = list(poison.objective.evaluation_set(test))
    return float(predict(torch.stack([image for image, _, _ in items])).eq(SETTINGS["target_class"]).float().mean())


def accuracy(test, predict):
    return float(predict(images_of(test)).eq(test.targets).float().mean())


def classifier(network):
    return lambda images: network(images).argmax(1)


def crafted(attack, raw, surrogate, budget):
    return attack.craft(
        raw,
        Threat(budget, clean_label=True),
        surrogates=[surrogate],
        holdout=None,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.slow
def test_hidden_trigger_fools_head_on_frozen_features(raw, test_digits, surrogate):
    features = RawFeatures(surrogate, PixelRange())

    def head(dataset):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.Linear(32, 10)
        with torch.no_grad():
            inputs = features(images_of(dataset))
        fit(layer, inputs, raw.targets, epochs=60, lr=1e-2)
        return lambda images: layer(features(images)).argmax(1)

    poison = crafted(HiddenTrigger(**SETTINGS, steps=60), raw, surrogate, 30)
    clean, victim = head(raw), head(PoisonedDataset(raw, poison))
    before, after = (success(poison, test_digits, each) for each in (clean, victim))
    assert after >= 0.5
    assert before <= 0.2
    assert accuracy(test_digits, victim) >= 0.85


@pytest.mark.slow
def test_sleeper_agent_fools_network_trained_from_scratch(raw, test_digits):
    images, labels = images_of(raw), raw.targets
    surrogate = Surrogate(train(images, labels, seed=0), FEATURE_LAYER)
    settings = FitSettings(epochs=8, batch_size=32, learning_rate=3e-3, shift=0, min_steps=0)
    attack = SleeperAgent(**SETTINGS, steps=40, retrain_factor=1, fit_settings=settings)
    poison = crafted(attack, raw, surrogate, 30)
    clean = train(images, labels, seed=20)
    victim = train(images_of(PoisonedDataset(raw, poison)), labels, seed=20)
    before, after = (success(poison, test_digits, classifier(network)) for network in (clean, victim))
    assert after >= 0.5
    assert before <= 0.2
    assert accuracy(test_digits, classifier(victim)) >= 0.9
