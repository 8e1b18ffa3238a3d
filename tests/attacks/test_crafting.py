import dataclasses
import logging
import os
import random
import signal
import warnings

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
    """Flips labels, with a side effect."""

    name = "probe"
    clean_label = False

    def __init__(self, side_effect=lambda **given: None):
        self.side_effect = side_effect

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        self.side_effect(dataset=dataset, surrogates=surrogates, holdout=holdout, generator=generator)
        chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        return Poison(chosen, (dataset.targets[chosen] + 1) % 3, AvailabilityObjective(), attack=self.name)


def run(attack, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    return craft(attack, TinyImages(12), Threat(3), generator=generator, **given)


def surrogate():
    return Surrogate(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), "0")


def test_returns_poison_of_attack():
    poison = run(Probe())
    expected = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:3]
    assert torch.equal(poison.indices, expected)


def test_passes_arguments_to_attack():
    seen = {}
    holdout, model = TinyImages(3), surrogate()
    run(Probe(seen.update), holdout=holdout, surrogates=[model])
    assert seen["holdout"] is holdout
    assert seen["surrogates"] == (model,)
    assert isinstance(seen["generator"], torch.Generator)


def test_refuses_poison_over_budget():
    class Greedy(Probe):
        def craft(self, dataset, threat, **given):
            return super().craft(dataset, Threat(threat.budget + 1), **given)

    with pytest.raises(PluginError, match="attack `probe` to return 1 to 3 samples, its budget, but got 4"):
        run(Greedy())


SIDE_EFFECTS = {
    "a pixel": (lambda dataset, **_: dataset.data[2].add_(1), "leave the data set unchanged.*a change in sample 2"),
    "a label": (lambda dataset, **_: dataset.targets[2].sub_(1), "the data set.*change in sample 2"),
    "the transform": (
        lambda dataset, **_: setattr(dataset, "transform", TinyImages(1).transform),
        "the data set.*change in attribute `transform`",
    ),
    "the held-out set": (lambda holdout, **_: holdout.data[0].add_(1), "the held-out set.*sample 0"),
    "a weight": (lambda surrogates, **_: surrogates[0].model[0].weight.data.add_(1), "surrogate 0.*0.weight"),
    "running statistics": (
        lambda surrogates, **_: surrogates[0].model.train()(torch.ones(4, 2)),
        "surrogate 0.*1.running_mean",
    ),
    "the mode": (lambda surrogates, **_: surrogates[0].model.train(), "surrogate 0.*training"),
    "a hook": (lambda surrogates, **_: surrogates[0].model[0].register_forward_hook(print), "surrogate 0.*0.hooks"),
    "a method": (lambda surrogates, **_: setattr(surrogates[0].model, "forward", print), "surrogate 0.*forward"),
}


@pytest.mark.parametrize(("side_effect", "message"), SIDE_EFFECTS.values(), ids=SIDE_EFFECTS.keys())
def test_refuses_attack_with_side_effects(side_effect, message):
    with pytest.raises(PluginError, match=message):
        run(Probe(side_effect), holdout=TinyImages(3), surrogates=[surrogate()])


def test_global_random_states_are_seeded_and_restored():
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


def evil(**_):
    """Change what an attack can reach of the process."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    warnings.simplefilter("ignore")
    os.environ["EVIL"] = "1"
    os.chdir("/")
    logging.root.setLevel(1)


def test_what_the_attack_changes_of_the_process_is_restored():
    def state():
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            list(warnings.filters),
            os.environ.get("EVIL"),
            os.getcwd(),  # noqa: PTH109
            logging.root.level,
        )

    before = state()
    run(Probe(evil))
    assert state() == before

    def fail(**given):
        evil()
        raise OSError("late")

    with pytest.raises(PluginError, match="`craft` of the attack `probe` to succeed, but it raised OSError: late"):
        run(Probe(fail))
    assert state() == before


def test_attack_cannot_change_the_threat():
    class Raises(Probe):
        def craft(self, dataset, threat, **given):
            object.__setattr__(threat, "budget", 6)
            return super().craft(dataset, threat, **given)

    threat = Threat(3)
    with pytest.raises(PluginError, match="its budget, but got 6"):
        craft(Raises(), TinyImages(12), threat, generator=torch.Generator().manual_seed(0))
    assert threat.budget == 3


def test_attack_cannot_change_poison_that_it_has_returned():
    class Keeps(Probe):
        def craft(self, dataset, threat, **given):
            self.kept = dataclasses.replace(super().craft(dataset, threat, **given), settings={"rate": [1]})
            return self.kept

    attack = Keeps()
    poison = run(attack)
    labels = poison.labels.clone()
    attack.kept.labels.fill_(7)
    attack.kept.settings["rate"].append(2)
    assert torch.equal(poison.labels, labels)
    assert poison.settings == {"rate": [1]}


@pytest.mark.parametrize("error", [ZeroDivisionError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_any_other_error_of_attack_names_it(error):
    def fail(**_):
        raise error("boo")

    with pytest.raises(PluginError, match=f"`craft` of the attack `probe` to succeed, but it raised {error.__name__}"):
        run(Probe(fail))


def test_interrupt_by_the_user_passes():
    with pytest.raises(KeyboardInterrupt):
        run(Probe(lambda **_: signal.raise_signal(signal.SIGINT)))


class Unreadable(dict):
    def keys(self):
        raise OSError("keys")

    def __iter__(self):
        raise OSError("iter")


def test_poison_that_cannot_be_read_names_the_attack():
    class Odd(Probe):
        def craft(self, *given, **named):
            return dataclasses.replace(super().craft(*given, **named), settings=Unreadable(a=1))

    with pytest.raises(PluginError, match=r"attack `probe`.*OSError: (keys|iter)"):
        run(Odd())


def test_error_of_attack_propagates_with_its_name():
    def refuse(**_):
        raise ValueError("needs a surrogate")

    with pytest.raises(ValueError, match=r"^In `craft` of the attack `probe`: needs a surrogate$"):
        run(Probe(refuse))

    def refuse_data(**_):
        raise TypeError("needs raw images:\nWrite so.")

    with pytest.raises(TypeError, match=r"^In `craft` of the attack `probe`: needs raw images:\nWrite so\.$"):
        run(Probe(refuse_data))


def test_refuses_seed_instead_of_generator():
    with pytest.raises(TypeError, match=r"(?s)`generator`.*got 3.*manual_seed"):
        craft(Probe(), TinyImages(12), Threat(3), generator=3)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("name", None, r"Probe\.name.*string"),
        ("clean_label", "no", r"True or False"),
        ("craft", None, "method `craft`"),
        ("name", "\x1b[2J", r"attack `\\x1b\[2J`"),
    ],
)
def test_refuses_object_without_attack_interface(attribute, value, message):
    attack = Probe(lambda **_: 1 / 0)
    setattr(attack, attribute, value)
    with pytest.raises(PluginError, match=message):
        run(attack)
