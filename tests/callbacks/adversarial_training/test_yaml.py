"""The callback in a YAML file, by its public names."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from jsonargparse import ArgumentError, ArgumentParser

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.collapse_guard import CollapseGuard
from lightning_poison.adversarial.poison_immunity import PoisonImmunity
from lightning_poison.data.pixel_range import PixelRange

ADVERSARY = {"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 0.03, "steps": 3}}


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
def build(request):
    """Return a function that builds the callback from the arguments of a YAML file."""

    def build_callback(**arguments):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--callback", type=request.param.Callback)
        config = {"class_path": "lightning_poison.AdversarialTraining", "init_args": arguments}
        return parser.instantiate(parser.parse_object({"callback": config})).callback

    return build_callback


def test_all_arguments(build):
    callback = build(
        adversary=ADVERSARY,
        recipe={"class_path": "lightning_poison.adversarial.TRADES", "init_args": {"beta": 2}},
        validation={"class_path": "lightning_poison.adversarial.FGSM", "init_args": {"epsilon": 0.1}},
        pixels={"mean": [0.5], "std": [0.2]},
        sample={"inputs": "views.0", "labels": "meta.y"},
        logits="net",
        guard={"samples": 64},
        warm_up_epochs=1.5,
    )
    assert callback.settings.adversary == PGD(0.03, steps=3)
    assert callback.settings.recipe.beta == 2
    assert callback.settings.pixels == PixelRange(mean=(0.5,), std=(0.2,))
    assert callback.settings.sample.labels == "meta.y"
    assert callback.settings.logits == "net"
    assert callback.settings.guard == CollapseGuard(samples=64)
    assert callback.validation == FGSM(0.1)


def test_poison_immunity(build):
    settings = {"attack": "feature-collision", "share": 0.25, "layers": ["net.3"]}
    recipe = {"class_path": "lightning_poison.adversarial.PoisonImmunity", "init_args": settings}
    found = build(adversary=ADVERSARY, recipe=recipe).settings.recipe
    assert repr(found) == repr(PoisonImmunity("feature-collision", share=0.25, layers=["net.3"]))
    with pytest.raises(ArgumentError, match="gradient-matching"):
        build(adversary=ADVERSARY, recipe={**recipe, "init_args": {"attack": "frogs"}})


def test_error_names_a_misspelled_argument(build):
    with pytest.raises(ArgumentError, match="'stepz' is not accepted"):
        build(adversary={"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 0.03, "stepz": 3}})


def test_refuses_a_radius_in_gray_levels(build):
    with pytest.raises((ArgumentError, ValueError), match="For a budget of 8 gray levels write"):
        build(adversary={"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 8}})
