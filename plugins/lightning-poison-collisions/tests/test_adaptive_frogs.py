import json

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, Threat, craft
from lightning_poison.models import FitSettings
from lightning_poison.testing import check_attack
from lightning_poison_collisions import AdaptiveFrogs, FrogAttack, KnownScorer
from lightning_poison_collisions.known_scorers import worst_excess


class Brightness:
    name, is_control, is_fitted = "brightness", False, True

    def score_batch(self, inputs, labels):
        return inputs.flatten(1).mean(1)


@pytest.fixture(scope="module")
def scorer(digits):
    """A likelihood filter that was fitted on images of its own."""
    images, labels = digits[:800]
    quick = FitSettings(epochs=4, batch_size=64, min_steps=200)
    return LikelihoodScorer(fit_settings=quick).fit(TensorDataset(images, labels))


@pytest.fixture(scope="module")
def known(scorer, dataset):
    images = torch.stack([dataset[place][0] for place in range(len(dataset))])
    labels = torch.tensor([int(dataset[place][1]) for place in range(len(dataset))])
    return KnownScorer.of(scorer, TensorDataset(images, labels), false_positive_rate=0.05)


def crafted(attack, dataset, holdout, surrogate, pixels, epsilon=None, budget=20):
    threat = Threat(budget, epsilon=epsilon, clean_label=True, pixels=pixels)
    generator = torch.Generator().manual_seed(0)
    return craft(attack, dataset, threat, surrogates=[surrogate], holdout=holdout, generator=generator)


@pytest.mark.parametrize("epsilon", [None, 4 / 16])
@pytest.mark.parametrize("penalty", ["hinge", "soft"])
def test_what_a_filter_catches_passes_when_it_is_known(dataset, holdout, surrogate, pixels, known, penalty, epsilon):
    def noticed(poison):
        with torch.no_grad():
            return worst_excess([known], poison.inputs, poison.labels, pixels) > 0

    naive = crafted(FrogAttack(steps=60), dataset, holdout, surrogate, pixels, epsilon)
    adaptive = AdaptiveFrogs(defenses=[known], penalty=penalty, weight=5.0 if penalty == "hinge" else 0.3, steps=60)
    evading = crafted(adaptive, dataset, holdout, surrogate, pixels, epsilon)
    assert float(noticed(naive).float().mean()) > 0.4
    assert float(noticed(evading).float().mean()) < 0.15


def test_several_scorers_at_once(dataset, holdout, surrogate, pixels, known):
    images = torch.stack([dataset[place][0] for place in range(len(dataset))])
    labels = torch.tensor([int(dataset[place][1]) for place in range(len(dataset))])
    other = KnownScorer.of(Brightness(), TensorDataset(images, labels), false_positive_rate=0.05)
    attack = AdaptiveFrogs(defenses=[known, other], steps=60)
    poison = crafted(attack, dataset, holdout, surrogate, pixels)
    with torch.no_grad():
        assert float((worst_excess([known, other], poison.inputs, poison.labels, pixels) <= 0).float().mean()) > 0.85
    told = json.loads(json.dumps(dict(poison.settings)))
    assert [each["scorer"] for each in told["defenses"]] == ["likelihood", "brightness"]


def test_evading_costs_the_collision(dataset, holdout, surrogate, pixels, known, features):
    """The same generator draws the same pairs, so distances can be compared pair by pair."""
    naive = crafted(FrogAttack(steps=60), dataset, holdout, surrogate, pixels)
    evading = crafted(AdaptiveFrogs(defenses=[known], steps=60), dataset, holdout, surrogate, pixels)
    assert torch.equal(naive.objective.inputs, evading.objective.inputs)
    with torch.no_grad():
        goals = features(naive.objective.inputs)
        near, far = ((features(poison.inputs) - goals).norm(dim=1) for poison in (naive, evading))
    assert float(far.median()) > float(near.median())


def test_same_generator_same_poison(dataset, holdout, surrogate, pixels, known):
    one, again = (
        crafted(AdaptiveFrogs(defenses=[known], steps=20), dataset, holdout, surrogate, pixels, budget=4)
        for _ in range(2)
    )
    assert torch.equal(one.inputs, again.inputs)


def test_it_keeps_the_contract_of_attacks():
    known = KnownScorer(Brightness(), torch.full((10,), 0.9), torch.full((10,), 0.1))
    check_attack(lambda: AdaptiveFrogs(defenses=[known], steps=10))


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"defenses": []}, ValueError, r"the attacker knows, but got none\.\nWithout one this is `FrogAttack`"),
        ({"defenses": [Brightness()]}, TypeError, r"known scorers, but got Brightness\.\n`KnownScorer.of"),
        ({"penalty": "log"}, ValueError, "`penalty` to be one of 'hinge', 'soft'"),
        ({"weight": 0}, ValueError, "`weight` to be a finite number above 0"),
        ({"slack": -1}, ValueError, "`slack` to be a finite number of at least 0"),
        ({"steps": 0}, ValueError, "`steps` to be an integer of at least 1"),
        ({"source_class": 3, "base_class": 3}, ValueError, "`base_class` to be another class"),
    ],
)
def test_settings_out_of_range(setting, error, message):
    known = KnownScorer(Brightness(), torch.ones(2), torch.ones(2))
    with pytest.raises(error, match=message):
        AdaptiveFrogs(**{"defenses": [known]} | setting)


def test_a_scorer_whose_gradient_nobody_can_follow(dataset, holdout, surrogate, pixels):
    class Counting(Brightness):
        name = "counting"

        def score_batch(self, inputs, labels):
            return (inputs > 0.5).flatten(1).float().mean(1)

    known = KnownScorer(Counting(), torch.full((10,), 0.9), torch.full((10,), 0.1))
    with pytest.raises(ValueError, match=r"those of counting are not\.\nAn attacker cannot follow"):
        AdaptiveFrogs(defenses=[known]).craft(
            dataset,
            Threat(2, pixels=pixels),
            surrogates=[surrogate],
            holdout=holdout,
            generator=torch.Generator().manual_seed(0),
        )
