import json

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, PixelRange, Threat, craft
from lightning_poison.data import RawImages, labels_of
from lightning_poison.models import FitSettings
from lightning_poison.registry import adaptive_attacks, get_adaptive_attack
from lightning_poison.scorers import ConfidenceScorer, SpectralSignatureScorer
from lightning_poison.testing import check_attack
from lightning_poison_collisions import AdaptiveFrogs, FeatureDistance, FrogAttack, KnownScorer
from lightning_poison_collisions.adaptive_frogs import EvadingDistance, interpolate_back
from lightning_poison_collisions.descent import descend_within
from lightning_poison_collisions.distances import value_and_gradient
from lightning_poison_collisions.known_scorers import worst_excess

from .conftest import Brightness, BrightPixels


@pytest.fixture(scope="module")
def scorer(digits):
    """A likelihood scorer fitted on its own images."""
    images, labels = digits[:800]
    quick = FitSettings(epochs=4, batch_size=64, min_steps=200)
    return LikelihoodScorer(fit_settings=quick).fit(TensorDataset(images, labels))


@pytest.fixture(scope="module")
def known(scorer, dataset):
    return KnownScorer.of(scorer, dataset, false_positive_rate=0.05)


@pytest.fixture(scope="module")
def naive(dataset, holdout, surrogate, pixels):
    """Return poison of `FrogAttack` by epsilon."""
    return {
        epsilon: crafted(FrogAttack(steps=60), dataset, holdout, surrogate, pixels, epsilon) for epsilon in (None, 0.25)
    }


def crafted(attack, dataset, holdout, surrogate, pixels, epsilon=None, budget=20):
    threat = Threat(budget, epsilon=epsilon, clean_label=True, pixels=pixels)
    generator = torch.Generator().manual_seed(0)
    return craft(attack, dataset, threat, surrogates=[surrogate], holdout=holdout, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [None, 0.25])
@pytest.mark.parametrize("penalty", ["hinge", "soft"])
def test_poison_passes_known_filter(dataset, holdout, surrogate, pixels, known, naive, penalty, epsilon):
    def detected(poison):
        with torch.no_grad():
            return worst_excess([known], poison.inputs, poison.labels, pixels) > 0

    adaptive = AdaptiveFrogs(defenses=[known], penalty=penalty, weight=5.0 if penalty == "hinge" else 0.3, steps=60)
    evading = crafted(adaptive, dataset, holdout, surrogate, pixels, epsilon)
    assert float(detected(naive[epsilon]).float().mean()) > 0.4
    assert float(detected(evading).float().mean()) < 0.15


@pytest.mark.slow
def test_evades_several_scorers(dataset, holdout, surrogate, pixels, known):
    other = KnownScorer.of(Brightness(), dataset, false_positive_rate=0.05)
    attack = AdaptiveFrogs(defenses=[known, other], steps=60)
    poison = crafted(attack, dataset, holdout, surrogate, pixels)
    with torch.no_grad():
        assert float((worst_excess([known, other], poison.inputs, poison.labels, pixels) <= 0).float().mean()) > 0.85
    settings = json.loads(json.dumps(dict(poison.settings)))
    assert [each["scorer"] for each in settings["defenses"]] == ["likelihood", "brightness"]


@pytest.mark.slow
def test_evading_increases_feature_distance(dataset, holdout, surrogate, pixels, known, naive, features):
    """The same generator draws the same targets, so distances are comparable."""
    evading = crafted(AdaptiveFrogs(defenses=[known], steps=60), dataset, holdout, surrogate, pixels)
    assert torch.equal(naive[None].objective.inputs, evading.objective.inputs)
    with torch.no_grad():
        goals = features(naive[None].objective.inputs)
        near, far = ((features(poison.inputs) - goals).norm(dim=1) for poison in (naive[None], evading))
    assert float(far.median()) > float(near.median())


@pytest.mark.parametrize(("threshold", "is_filtered"), [(0.3, True), (-1.0, False)])
def test_chooses_bases_that_pass_if_there_are_any(dataset, pixels, threshold, is_filtered):
    known = KnownScorer(Brightness(), torch.full((10,), threshold), torch.full((10,), 0.1))
    attack, training = AdaptiveFrogs(defenses=[known], slack=0.0), RawImages(dataset, pixels, seed=0, batch_size=64)
    pool = torch.arange(50)
    passing = training(pool).flatten(1).mean(1) <= threshold
    expected = pool[passing] if is_filtered else pool
    assert torch.equal(attack._filter_pool(pool, training, labels_of(dataset), pixels), expected)


@pytest.mark.slow
def test_same_generator_gives_same_poison(dataset, holdout, surrogate, pixels, known):
    poison, repeated = (
        crafted(AdaptiveFrogs(defenses=[known], steps=20), dataset, holdout, surrogate, pixels, budget=4)
        for _ in range(2)
    )
    assert torch.equal(poison.inputs, repeated.inputs)


def test_satisfies_attack_contract():
    known = KnownScorer(Brightness(), torch.full((10,), 0.9), torch.full((10,), 0.1))
    check_attack(lambda: AdaptiveFrogs(defenses=[known], steps=10))


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        (
            {"defenses": []},
            ValueError,
            r"at least one known scorer, but got none\.\nFor an attacker who knows none, use `FrogAttack`",
        ),
        ({"defenses": [Brightness()]}, TypeError, r"known scorers, but got Brightness\.\n`KnownScorer.of"),
        ({"penalty": "log"}, ValueError, "`penalty` to be one of 'hinge', 'soft'"),
        ({"weight": 0}, ValueError, "`weight` to be a finite number above 0"),
        ({"slack": -1}, ValueError, "`slack` to be a finite number of at least 0"),
        ({"steps": 0}, ValueError, "`steps` to be an integer of at least 1"),
        ({"source_class": 3, "base_class": 3}, ValueError, "`base_class` to be another class"),
    ],
)
def test_refuses_settings_out_of_range(setting, error, message):
    known = KnownScorer(Brightness(), torch.ones(2), torch.ones(2))
    with pytest.raises(error, match=message):
        AdaptiveFrogs(**{"defenses": [known]} | setting)


def test_refuses_scorer_without_gradient(dataset, holdout, surrogate, pixels):
    known = KnownScorer(BrightPixels(), torch.full((10,), 0.9), torch.full((10,), 0.1))
    with pytest.raises(ValueError, match=r"those of bright-pixels are not\.\nAn attacker has no gradient"):
        AdaptiveFrogs(defenses=[known]).craft(
            dataset,
            Threat(2, pixels=pixels),
            surrogates=[surrogate],
            holdout=holdout,
            generator=torch.Generator().manual_seed(0),
        )


RAW = PixelRange()


class Coordinate(Brightness):
    """Scores one pixel."""

    def __init__(self, position):
        self.name, self.position = f"coordinate-{position}", position

    def score_batch(self, inputs, labels):
        return inputs.flatten(1)[:, self.position]


def known_coordinate(position, thresholds=(0.4,)):
    return KnownScorer(Coordinate(position), torch.tensor(thresholds), torch.full((len(thresholds),), 0.1))


def evading(defenses, *, bases, targets, labels=None, **settings):
    settings = {"weight": 50.0, "slack": 0.0} | settings
    labels = torch.zeros(len(bases)).long() if labels is None else labels
    distance = FeatureDistance([lambda images: images.flatten(1)], bases, targets)
    return EvadingDistance(distance, defenses, labels, RAW, **settings)


def minimize(distance, bases):
    return descend_within(
        lambda images: value_and_gradient(distance, images), bases, epsilon=1.0, steps=200, step_size=0.05
    )[0]


def test_hinge_is_zero_below_threshold():
    bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
    images = torch.tensor([[0.4, 1.0]])
    plain = FeatureDistance([lambda images: images.flatten(1)], bases, targets)(images)
    torch.testing.assert_close(evading([known_coordinate(0)], bases=bases, targets=targets)(images), plain)
    over = evading([known_coordinate(0)], bases=bases, targets=targets)(torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(over, torch.tensor([0.125 + 50.0]))


def test_soft_penalty_is_negative_below_threshold():
    bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
    value = evading([known_coordinate(0)], bases=bases, targets=targets, penalty="soft", weight=1.0)(bases)
    torch.testing.assert_close(value, torch.tensor([1.0 - 4.0]))


def test_optimum_is_at_thresholds_of_both_scorers():
    """Each coordinate moves toward its target up to the threshold of its scorer, the third all the way."""
    bases, targets = torch.zeros(1, 3), torch.ones(1, 3)
    distance = evading([known_coordinate(0), known_coordinate(1, (0.6,))], bases=bases, targets=targets)
    found = minimize(distance, bases)
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.6, 1.0]]), atol=0.02, rtol=0)


def test_uses_thresholds_of_labels():
    bases, targets = torch.zeros(2, 1), torch.ones(2, 1)
    distance = evading([known_coordinate(0, (0.2, 0.7))], bases=bases, targets=targets, labels=torch.tensor([1, 0]))
    found = minimize(distance, bases)
    torch.testing.assert_close(found, torch.tensor([[0.7], [0.2]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_detected_images_are_interpolated_until_they_pass(threshold):
    bases, images = torch.zeros(3, 1), torch.tensor([[0.2], [0.6], [1.0]])
    found = interpolate_back(bases, images, lambda moved: moved[:, 0] <= threshold)
    torch.testing.assert_close(found, images.clamp(max=threshold), atol=1e-3, rtol=0)
    assert bool((found <= threshold).all())


def test_images_that_never_pass_are_unchanged():
    images = torch.tensor([[0.6]])
    assert torch.equal(interpolate_back(torch.zeros(1, 1), images, lambda moved: moved[:, 0] < -1), images)


def test_against_fits_a_copy_of_the_scorer_on_samples_of_the_attacker(digits):
    scorer = ConfidenceScorer(fit_settings=FitSettings(epochs=2, batch_size=64, min_steps=60))
    attack = get_adaptive_attack(
        "adaptive-frog",
        scorer,
        TensorDataset(*digits[:400]),
        false_positive_rate=0.1,
        generator=torch.Generator().manual_seed(0),
        steps=5,
    )
    assert not scorer.is_fitted
    assert attack.defenses[0].scorer.is_fitted
    assert attack.steps == 5
    assert "adaptive-frog" in [entry.name for entry in adaptive_attacks("confidence")]


def test_against_keeps_a_fitted_scorer_and_refuses_scorers_of_sets(scorer, dataset):
    assert AdaptiveFrogs.against(scorer, dataset).defenses[0].scorer is scorer
    with pytest.raises(TypeError, match="Leave it out"):
        AdaptiveFrogs.against(SpectralSignatureScorer(), dataset)
