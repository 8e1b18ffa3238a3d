"""Tests of the attack suite: an attack that violates each rule."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks.objectives import AvailabilityObjective, InstancesObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.threat import Threat
from lightning_poison.errors import PluginError
from lightning_poison.testing.attacks import _imported_names, check_attack
from lightning_poison.testing.tiny_images import TinyImages


class Noise:
    """A valid clean-label attack: some gray levels of noise, on the grid, for any normalization."""

    name = "noise"
    clean_label = True
    objective = AvailabilityObjective()

    def draw(self, shape, generator):
        return torch.randint(-8, 9, shape, generator=generator) / 255

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        images = torch.stack([dataset[int(index)][0] for index in chosen])
        raw = threat.pixels.to_raw(images)
        perturbed = threat.pixels.round(threat.pixels.from_raw(raw + self.draw(raw.shape, generator)))
        labels = torch.tensor([dataset[int(index)][1] for index in chosen])
        return Poison(chosen, labels, self.objective, attack=self.name, inputs=perturbed, settings={"levels": 8})


@pytest.mark.slow
def test_accepts_class_factory_and_object():
    check_attack(Noise)
    check_attack(lambda: Noise())
    check_attack(Noise())


def test_accepts_data_and_threat():
    check_attack(Noise, TinyImages(30, channels=2), Threat(4, epsilon=8 / 255))
    with pytest.raises(PluginError, match="epsilon"):
        check_attack(Noise, TinyImages(30), Threat(4, epsilon=4 / 255))


def test_accepts_data_without_raw_images():
    images = torch.randint(256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 255
    check_attack(Noise, TensorDataset(images, torch.arange(30) % 2))


@pytest.mark.slow
def test_accepts_tensors_with_shared_memory():
    class Shares(Noise):
        def craft(self, dataset, threat, **given):
            poison = super().craft(dataset, threat, **given)
            return dataclasses.replace(poison, base_indices=poison.indices)

    check_attack(Shares)


def test_refuses_attack_that_ignores_normalization():
    class Careless(Noise):
        def craft(self, dataset, threat, **given):
            return super().craft(dataset, Threat(threat.budget), **given)

    with pytest.raises(PluginError, match=r"pixel range|grid of 256"):
        check_attack(Careless)


def test_refuses_use_of_global_random_state():
    class Careless(Noise):
        def draw(self, shape, generator):
            return torch.randint(-8, 9, shape) / 255

    with pytest.raises(PluginError, match=r"(?s)draw from the generator only, but got inputs that.*`generator=`"):
        check_attack(Careless)


def test_refuses_state_between_calls():
    class Stateful(Noise):
        calls = 0

        def draw(self, shape, generator):
            self.calls += 1
            return super().draw(shape, generator) + self.calls / 255

    with pytest.raises(PluginError, match="same poison for the same generator, but got different inputs"):
        check_attack(Stateful)


@pytest.mark.slow
def test_refuses_fixed_seed_unless_declared():
    class Fixed(Noise):
        def craft(self, dataset, threat, *, generator, **given):
            return super().craft(dataset, threat, generator=torch.Generator().manual_seed(7), **given)

    with pytest.raises(PluginError, match="different poison for another seed, but got the same"):
        check_attack(Fixed)
    check_attack(Fixed, draws=False)


def test_refuses_settings_that_change_when_saved(monkeypatch):
    load = Poison.load
    monkeypatch.setattr(Poison, "load", lambda path: (poison := load(path)).settings.update(levels=9) or poison)
    with pytest.raises(PluginError, match="saved and loaded without change, but got different settings"):
        check_attack(Noise)


def test_refuses_objective_without_items():
    class Nothing(Noise):
        objective = InstancesObjective(torch.zeros(0, 1, 8, 8), *(torch.zeros(0, dtype=torch.int64),) * 2)

    with pytest.raises(PluginError, match="items to evaluate"):
        check_attack(Nothing)


def test_refuses_objective_that_never_succeeds(monkeypatch):
    monkeypatch.setattr(
        AvailabilityObjective, "success", lambda self, predictions, true, wanted, *, reference=None: true < 0
    )
    with pytest.raises(PluginError, match="wanted labels as success"):
        check_attack(Noise)


@pytest.mark.parametrize(
    "line", ["import lightning.pytorch as L", "from pytorch_lightning import Trainer", "from .sub import thing"]
)
def test_refuses_import_of_lightning_in_package(tmp_path, monkeypatch, line):
    package = tmp_path / "fake_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sub.py").write_text("def thing():\n    import lightning\n")
    (package / "attack.py").write_text(f"def unused():\n    {line}\n" if "sub" not in line else line)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    __import__("fake_package.attack")
    try:
        attack = type("Far", (Noise,), {"__module__": "fake_package.attack"})
        with pytest.raises(PluginError, match=r"not import Lightning, but got `(pytorch_)?lightning"):
            check_attack(attack)
    finally:
        for name in [name for name in set(sys.modules) - before if name.startswith("fake_package")]:
            del sys.modules[name]


def test_resolves_relative_imports():
    source = "from ..a import b\nimport c.d as e\nfrom . import f"
    assert _imported_names(source, "x.y") == ["x.a", "x.a.b", "c.d", "x.y", "x.y.f"]


def raise_(error):
    raise error


@pytest.mark.parametrize("error", [AttributeError("boo"), ValueError("boo"), SystemExit("boo"), KeyError("boo")])
def test_error_of_attack_names_method(error):
    class Broken(Noise):
        def craft(self, dataset, threat, **given):
            raise error

    with pytest.raises(
        PluginError, match=f"`craft` of the attack `noise` to succeed, but .*{type(error).__name__}.*boo"
    ):
        check_attack(Broken)


def test_error_of_constructor_and_name_are_attributed():
    class Broken(Noise):
        def __init__(self):
            self.missing.more = 3

    with pytest.raises(PluginError, match="the factory `Broken` to succeed, but it raised AttributeError"):
        check_attack(Broken)
    with pytest.raises(PluginError, match="`Nameless` to succeed, but it raised ZeroDivisionError"):
        check_attack(type("Nameless", (Noise,), {"name": property(lambda self: 1 / 0)}))


def test_refuses_craft_with_other_arguments():
    class Short(Noise):
        def craft(self, dataset, threat, generator):
            raise NotImplementedError

    with pytest.raises(
        PluginError,
        match=r"`noise` to define `craft\(self, dataset, threat, \*, surrogates, holdout, gen.*got craft\(dataset",
    ):
        check_attack(Short)


def test_error_of_objective_names_attack(monkeypatch):
    monkeypatch.setattr(AvailabilityObjective, "success", lambda *given, **named: raise_(AttributeError("boo")))
    with pytest.raises(PluginError, match=r"the objective of the attack `noise` to succeed.*AttributeError: boo"):
        check_attack(Noise)


def test_refuses_other_result_at_the_second_run():
    class Forgets(Noise):
        calls = 0

        def craft(self, dataset, threat, **given):
            self.calls += 1
            return super().craft(dataset, threat, **given) if self.calls < 3 else None

    with pytest.raises(PluginError, match=r"`craft` of the attack `noise`.*AttributeError"):
        check_attack(Forgets())


def test_refuses_object_that_is_not_an_attack():
    with pytest.raises(PluginError, match=r"SimpleNamespace\.name"):
        check_attack(lambda: SimpleNamespace())


def test_tiny_images_are_reproducible_and_differ_by_seed():
    assert torch.equal(TinyImages(6).data, TinyImages(6).data)
    assert not torch.equal(TinyImages(6).data, TinyImages(6, seed=1).data)
    assert torch.equal(TinyImages(6).targets, torch.tensor([0, 1, 2, 0, 1, 2]))
