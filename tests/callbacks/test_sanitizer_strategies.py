"""Strategies that shard the user's module, as stubs of their names: the sanitizer scores with models of its own."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch

from lightning_poison._lightning import loader_sanitizer
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize


def sharding(namespace, name):
    """Return a strategy of a name, on one CPU, that restores checkpoints after its set-up as sharding ones do."""
    late = {"restore_checkpoint_after_setup": property(lambda self: True)}
    return type(name, (namespace.strategies.SingleDeviceStrategy,), late)("cpu")


@pytest.fixture
def used(monkeypatch):
    """Return the names of a module's attributes that are used while a decision is made."""
    names, makes_decision = [], []
    decide = loader_sanitizer.decide

    def watched(*arguments, **settings):
        makes_decision.append(True)
        made = decide(*arguments, **settings)
        makes_decision.clear()
        return made

    monkeypatch.setattr(loader_sanitizer, "decide", watched)

    class Watched:
        def __getattribute__(self, name):
            if makes_decision:
                names.append(name)
            return super().__getattribute__(name)

    return names, Watched


@pytest.mark.parametrize("namespace", [pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_decision_does_not_use_the_module(world, assert_clean, used, centroid_scorer, namespace, name):
    names, watched = used

    class Module(watched, world.module if namespace is pl else world.other_module):
        pass

    module, sanitizer, data = Module(), world.sanitizer(), world.numbered()
    trainer = world.trainer(
        sanitizer, namespace=namespace, strategy=sharding(namespace, name), accelerator="auto", precision="32-true"
    )
    trainer.fit(module, world.loader(data))
    assert not names
    assert_clean(module, sanitizer.verdict)
    alone = sanitize(data, centroid_scorer(), runtime=LocalRuntime(threads=1, quiet=True))
    assert torch.equal(sanitizer.verdict.keep, alone.keep)


def test_use_of_the_module_is_noticed(world, used, centroid_scorer):
    names, watched = used

    class Module(watched, world.module):
        pass

    class Curious(centroid_scorer):
        def fit(self, trusted, **parts):
            module.layer.weight.detach()
            return super().fit(trusted, **parts)

    module = Module()
    world.trainer(world.sanitizer(Curious())).fit(module, world.loader(world.numbered()))
    assert "layer" in names
