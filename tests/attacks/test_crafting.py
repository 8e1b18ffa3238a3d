import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_poison.attacks.crafting import craft
from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.errors import PluginError
from lightning_poison.testing.tiny_images import TinyImages


class Probe:
    """Flips labels, and does something else on the way."""

    name = "probe"
    clean_label = False

    def __init__(self, misdeed=lambda **given: None):
        self.misdeed = misdeed

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        self.misdeed(dataset=dataset, surrogates=surrogates, holdout=holdout, generator=generator)
        chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        return Poison(chosen, (dataset.targets[chosen] + 1) % 3, AvailabilityObjective(), attack=self.name)


def run(attack, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    return craft(attack, TinyImages(12), Threat(3), generator=generator, **given)


def surrogate():
    return Surrogate(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), "0")


def test_the_poison_comes_back_as_it_was_crafted():
    poison = run(Probe())
    expected = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:3]
    assert torch.equal(poison.indices, expected)


def test_everything_reaches_the_attack():
    seen = {}
    holdout, model = TinyImages(3), surrogate()
    run(Probe(seen.update), holdout=holdout, surrogates=[model])
    assert seen["holdout"] is holdout
    assert seen["surrogates"] == (model,)
    assert isinstance(seen["generator"], torch.Generator)


def test_a_broken_rule_is_refused():
    class Greedy(Probe):
        def craft(self, dataset, threat, **given):
            return super().craft(dataset, Threat(threat.budget + 1), **given)

    with pytest.raises(PluginError, match="attack `probe` to return 1 to 3 samples, its budget, but got 4"):
        run(Greedy())


MISDEEDS = {
    "a pixel": (lambda dataset, **_: dataset.data[2].add_(1), "leave the data set as it found it.*another sample 2"),
    "a label": (lambda dataset, **_: dataset.targets[2].sub_(1), "the data set.*another sample 2"),
    "the transform": (
        lambda dataset, **_: setattr(dataset, "transform", TinyImages(1).transform),
        "the data set.*another attribute `transform`",
    ),
    "the held-out set": (lambda holdout, **_: holdout.data[0].add_(1), "the held-out set.*sample 0"),
    "a weight": (lambda surrogates, **_: surrogates[0].model[0].weight.data.add_(1), "surrogate 0.*0.weight"),
    "running statistics": (
        lambda surrogates, **_: surrogates[0].model.train()(torch.ones(4, 2)),
        "surrogate 0.*1.running_mean",
    ),
    "the mode": (lambda surrogates, **_: surrogates[0].model.train(), "surrogate 0.*training"),
}


@pytest.mark.parametrize(("misdeed", "said"), MISDEEDS.values(), ids=MISDEEDS.keys())
def test_what_the_attack_was_lent_must_come_back_unchanged(misdeed, said):
    with pytest.raises(PluginError, match=said):
        run(Probe(misdeed), holdout=TinyImages(3), surrogates=[surrogate()])


def test_the_global_random_states_are_put_back_and_repeat():
    drawn = []

    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    def draw(**_):
        drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))  # noqa: NPY002, S311

    before = state()
    run(Probe(draw))
    assert state() == before
    torch.rand(1)
    run(Probe(draw))
    assert drawn[0] == drawn[1]
    run(Probe(draw), seed=1)
    assert drawn[2] != drawn[0]


def test_what_the_attack_raises_comes_through_with_its_name():
    def refuse(**_):
        raise ValueError("needs a surrogate")

    with pytest.raises(ValueError, match="needs a surrogate") as caught:
        run(Probe(refuse))
    assert caught.value.__notes__ == ["Raised by the attack `probe`."]


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match=r"(?s)`generator`.*got 3.*manual_seed"):
        craft(Probe(), TinyImages(12), Threat(3), generator=3)


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("name", None, r"Probe\.name.*string"),
        ("clean_label", "no", r"True or False"),
        ("craft", None, "method `craft`"),
    ],
)
def test_what_does_not_look_like_an_attack(attribute, value, said):
    attack = Probe()
    setattr(attack, attribute, value)
    with pytest.raises(PluginError, match=said):
        run(attack)
