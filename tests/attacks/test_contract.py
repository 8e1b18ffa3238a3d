import copy
import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks.contract import check_poison
from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.threat import Threat
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import PluginError
from lightning_poison.testing.tiny_images import TinyImages

EPSILON = 8 / 255


class Named:
    name = "probe"

    def __init__(self, clean_label=False):
        self.clean_label = clean_label


@pytest.fixture
def dataset():
    return TinyImages(12)


def images(dataset, bases):
    return torch.stack([dataset[index][0] for index in bases])


@pytest.fixture
def poison(dataset):
    """One replaced sample and two appended ones, each one gray level off its base, labels kept."""
    bases = torch.tensor([3, 4, 5])
    perturbed = (images(dataset, bases) + 1 / 255).clamp(0, 1)
    return Poison(
        torch.tensor([3, 12, 13]),
        dataset.targets[bases],
        AvailabilityObjective(),
        attack="probe",
        inputs=perturbed,
        base_indices=bases,
    )


def check(dataset, poison, attack=None, **limits):
    check_poison(attack or Named(), poison, dataset, Threat(**{"budget": 3, "epsilon": EPSILON, **limits}))


def test_accepts_valid_poison(dataset, poison):
    check(dataset, poison)
    check(dataset, poison, clean_label=True)
    check(dataset, poison, Named(clean_label=True))


def test_accepts_valid_raw_poison(dataset, poison):
    raw = (dataset.data[poison.base_indices].int() + 8).clamp(0, 255).to(torch.uint8)
    check(dataset, dataclasses.replace(poison, inputs=raw, domain="raw"))


def test_accepts_poison_with_labels_only(dataset):
    flips = Poison(torch.tensor([2]), torch.tensor([0]), AvailabilityObjective(), attack="probe")
    check(dataset, flips)


class Unregistered(AvailabilityObjective):
    kind: ClassVar[str] = "not-registered"


def at(poison, part, position, value):
    changed = getattr(poison, part).clone()
    changed[position] = value
    return {part: changed}


BROKEN = {
    "NaN": (
        lambda p: at(p, "inputs", (1, 0, 0, 0), math.nan),
        r"valid Poison.*finite, but got nan at position \(1, 0",
    ),
    "infinite": (
        lambda p: at(p, "inputs", (2, 0, 0, 0), math.inf),
        r"valid Poison.*finite, but got inf at position \(2",
    ),
    "range": (lambda p: at(p, "inputs", (0, 0, 0, 0), 1.1), r"pixel range, but got .* to 1\.1 in units"),
    "grid": (lambda p: at(p, "inputs", (0, 0, 0, 0), 100.5 / 255), r"grid of 256 levels.*0\.00196.*off"),
    "epsilon": (
        lambda p: {"inputs": torch.where(p.inputs > 0.5, p.inputs - 10 / 255, p.inputs + 10 / 255)},
        r"more than epsilon = 0\.03137, but got 0\.0431\d* in units of the raw image",
    ),
    "shape": (lambda p: {"inputs": p.inputs[..., :7]}, r"like sample 3 of the data set.*\(1, 8, 8\).*\(1, 8, 7\)"),
    "dtype": (lambda p: {"inputs": p.inputs.double()}, r"float32.*but got samples like a float64"),
    "gradient": (lambda p: {"inputs": p.inputs.clone().requires_grad_()}, r"`inputs` on the CPU, detached"),
    "gap": (lambda p: at(p, "indices", 2, 14), r"fits the data set.*consecutive from 12 on.*got \[14\]"),
    "base beyond": (lambda p: at(p, "base_indices", 2, 12), r"positions in the data set of 12 samples, but got 12"),
    "base below": (
        lambda p: at(p, "base_indices", 2, -1),
        r"valid Poison.*`base_indices` to be at least 0, but got -1",
    ),
    "role": (
        lambda p: {"role": torch.tensor([0, 1, 2])},
        r"valid Poison.*`role` to be 0 .* or 1 .*, but got 2",
    ),
    "label beyond": (lambda p: at(p, "labels", 0, 3), r"the data set's 3 classes, but got 3"),
    "label below": (lambda p: at(p, "labels", 0, -1), r"a valid Poison.*`labels` to be at least 0, but got -1"),
    "settings": (lambda p: {"settings": {"model": object()}}, r"JSON-serializable `settings`.*object"),
    "settings NaN": (lambda p: {"settings": {"beta": math.nan}}, r"JSON-serializable `settings`"),
    "objective": (lambda p: {"objective": Unregistered()}, r"saved and loaded.*not-registered.*register"),
    "no objective": (
        lambda p: {"objective": "backdoor"},
        r"valid Poison.*`objective` to be a `Objective`",
    ),
    "base unnamed": (lambda p: {"base_indices": None}, r"`base_indices` of appended samples, since epsilon"),
    "no inputs": (lambda p: {"base_indices": None, "inputs": None}, r"for appended samples, but got neither"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_error_names_attack_rule_and_value(dataset, poison, change, message):
    with pytest.raises(PluginError, match=f"(?s)attack `probe`.*{message}"):
        check(dataset, changed(poison, change(poison)))


def changed(poison, parts):
    """Return a copy in which parts are changed after it was made, so that its own checks have not seen them."""
    twin = copy.copy(poison)
    vars(twin).update(parts)
    return twin


LIMITS = {
    "budget": ({"budget": 2}, r"1 to 2 samples, its budget, but got 3"),
    "append": ({"may_append": False}, r"append no samples.*index 13 of 12"),
    "levels": ({"pixels": PixelRange(levels=17)}, r"grid of 17 levels"),
    "normalization": (
        {"pixels": PixelRange(mean=(0.5,), std=(2.0,))},
        r"(?s)pixel range.*data set itself is outside the range: check that `Threat\(pixels=",
    ),
}


@pytest.mark.parametrize(("limits", "message"), LIMITS.values(), ids=LIMITS.keys())
def test_refuses_poison_beyond_threat(dataset, poison, limits, message):
    with pytest.raises(PluginError, match=message):
        check(dataset, poison, **limits)


@pytest.mark.parametrize("promise", ["attack", "threat"])
def test_clean_label_is_label_of_base(dataset, poison, promise):
    flipped = dataclasses.replace(poison, labels=(poison.labels + 1) % 3)
    check(dataset, flipped)
    with pytest.raises(PluginError, match=r"clean label.*but got label 1 for a base of class 0"):
        check(dataset, flipped, Named(clean_label=promise == "attack"), clean_label=promise == "threat")


def test_epsilon_limits_raw_images(dataset, poison):
    raw = dataset.data[poison.base_indices].int()
    raw = torch.where(raw > 100, raw - 9, raw + 9).to(torch.uint8)
    with pytest.raises(PluginError, match=r"epsilon = 0\.03137, but got 0\.03529"):
        check(dataset, dataclasses.replace(poison, inputs=raw, domain="raw"))


def test_epsilon_is_in_raw_units_for_any_normalization():
    pixels = PixelRange(mean=(0.5,), std=(0.25,))
    dataset = TinyImages(12, pixels=pixels)
    perturbed = pixels.round(images(dataset, [0]) + 8 / 255 / 0.25)
    valid = Poison(torch.tensor([0]), torch.tensor([0]), AvailabilityObjective(), attack="probe", inputs=perturbed)
    check(dataset, valid, pixels=pixels)
    with pytest.raises(PluginError, match="epsilon"):
        check(dataset, valid, pixels=pixels, epsilon=7 / 255)


def test_refuses_raw_poison_without_raw_images():
    vectors = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    raw = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    poison = Poison(
        torch.tensor([0]), torch.tensor([0]), AvailabilityObjective(), attack="probe", inputs=raw, domain="raw"
    )
    with pytest.raises(PluginError, match=r"(?s)raw images of this data set are not accessible.*domain=\"sample\""):
        check(vectors, poison)


def test_epsilon_limits_feature_vectors():
    vectors = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    poison = Poison(
        torch.tensor([0]), torch.tensor([0]), AvailabilityObjective(), attack="probe", inputs=torch.full((1, 2), 0.5)
    )
    check(vectors, poison, epsilon=0.5)
    with pytest.raises(PluginError, match=r"got 0\.5"):
        check(vectors, poison, epsilon=0.4)


def test_epsilon_refuses_augmented_samples(dataset, poison):
    normalize = dataset.transform
    dataset.transform = lambda image: normalize(image).roll(int(torch.randint(8, ())), -1)
    with pytest.raises(PluginError, match=r"(?s)deterministic.*without random transforms"):
        check(dataset, poison)


def test_global_random_state_is_unchanged(dataset, poison):
    normalize = dataset.transform
    dataset.transform = lambda image: normalize(image) if torch.rand(()) >= 0 else image
    before = torch.get_rng_state()
    check(dataset, poison)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("returned", [None, (1, 2), "poison"])
def test_refuses_other_types(dataset, returned):
    with pytest.raises(PluginError, match="return a Poison, but got"):
        check(dataset, returned)


def test_refuses_poison_changed_after_construction(dataset, poison):
    poison.indices[1] = 3
    with pytest.raises(PluginError, match=r"valid Poison.*twice"):
        check(dataset, poison)


def test_refuses_empty_poison(dataset):
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(PluginError, match="1 to 3 samples, its budget, but got 0"):
        check(dataset, Poison(none, none, AvailabilityObjective(), attack="probe"))
