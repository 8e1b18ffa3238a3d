"""The callback in a YAML file, by the names that the package exports."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from jsonargparse import ArgumentError, ArgumentParser

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.collapse_guard import CollapseGuard
from lightning_poison.adversarial.poison_immunity import PoisonImmunity
from lightning_poison.data.pixel_range import PixelRange

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

ADVERSARY = {"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 0.03, "steps": 3}}


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
def built(request):
    """Return a function that builds the callback from what a YAML file says."""

    def build(**arguments):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--callback", type=request.param.Callback)
        told = {"class_path": "lightning_poison.AdversarialTraining", "init_args": arguments}
        return parser.instantiate_classes(parser.parse_object({"callback": told})).callback

    return build


def test_every_part_can_be_written(built):
    callback = built(
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


def test_poison_of_its_own_making(built):
    settings = {"attack": "feature-collision", "share": 0.25, "layers": ["net.3"]}
    recipe = {"class_path": "lightning_poison.adversarial.PoisonImmunity", "init_args": settings}
    found = built(adversary=ADVERSARY, recipe=recipe).settings.recipe
    assert repr(found) == repr(PoisonImmunity("feature-collision", share=0.25, layers=["net.3"]))
    with pytest.raises(ArgumentError, match="gradient-matching"):
        built(adversary=ADVERSARY, recipe={**recipe, "init_args": {"attack": "frogs"}})


def test_a_misspelled_argument_is_named(built):
    with pytest.raises(ArgumentError, match="'stepz' is not accepted"):
        built(adversary={"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 0.03, "stepz": 3}})


def test_a_radius_in_gray_levels_is_refused(built):
    with pytest.raises((ArgumentError, ValueError), match="For a budget of 8 gray levels write"):
        built(adversary={"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 8}})
