"""Wrappers of a step: order, restoration, copies, and what Lightning inspects through them."""

import copy
import functools
import itertools
import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_poison._lightning.step_wrappers import StepWrappers


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.factor = 1

    def training_step(self, batch):
        return [*batch, f"step x{self.factor}"]

    def setup(self, stage):
        self.stage = stage


class WithIndex(Module):
    def training_step(self, batch, batch_idx):
        return [*batch, batch_idx]


def appending(name):
    def wrapper(call_next, batch, *args, **kwargs):
        return [*call_next([*batch, name], *args, **kwargs), name.upper()]

    return wrapper


def test_first_added_is_outermost():
    module = Module()
    StepWrappers.add(module, 1, appending("a"))
    StepWrappers.add(module, 2, appending("b"))
    assert module.training_step([]) == ["a", "b", "step x1", "B", "A"]


def test_innermost_gets_the_batch_of_the_step_in_any_order():
    module = Module()
    StepWrappers.add(module, 1, appending("in"), innermost=True)
    StepWrappers.add(module, 2, appending("a"))
    StepWrappers.add(module, 3, appending("b"))
    assert module.training_step([]) == ["a", "b", "in", "step x1", "IN", "B", "A"]


def test_arguments_reach_the_step():
    module = WithIndex()
    StepWrappers.add(module, 1, appending("a"))
    assert module.training_step([], 7) == ["a", 7, "A"]
    assert module.training_step(batch=[], batch_idx=7) == ["a", 7, "A"]


def test_same_key_replaces_the_wrapper():
    module = Module()
    StepWrappers.add(module, 1, appending("a"))
    StepWrappers.add(module, 1, appending("b"))
    assert module.training_step([]) == ["b", "step x1", "B"]
    StepWrappers.remove(module, 1)
    assert module.training_step([]) == ["step x1"]


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_wrappers_are_removed_in_any_order(order):
    module = Module()
    before = dict(vars(module))
    for name in "abc":
        StepWrappers.add(module, name, appending(name))
    left = ["a", "b", "c"]
    for name in order:
        StepWrappers.remove(module, name)
        left.remove(name)
        assert module.training_step([]) == [*left, "step x1", *(other.upper() for other in reversed(left))]
    assert vars(module) == before


def test_restores_an_instance_attribute():
    module = Module()
    mine = functools.partial(Module.training_step, module)
    module.training_step = mine
    StepWrappers.add(module, 1, appending("a"))
    assert module.training_step([]) == ["a", "step x1", "A"]
    StepWrappers.remove(module, 1)
    assert vars(module)["training_step"] is mine


def test_removing_an_unknown_key_has_no_effect():
    module = Module()
    StepWrappers.remove(module, 1)
    StepWrappers.add(module, 1, appending("a"))
    StepWrappers.remove(module, 2)
    assert module.training_step([]) == ["a", "step x1", "A"]


def test_exception_leaves_the_wrappers_unchanged():
    module = Module()

    def failing(call_next, batch):
        raise RuntimeError("stop")

    StepWrappers.add(module, 1, failing)
    with pytest.raises(RuntimeError, match="stop"):
        module.training_step([])
    StepWrappers.remove(module, 1)
    assert module.training_step([]) == ["step x1"]


def test_foreign_wrapper_is_kept():
    module = Module()
    StepWrappers.add(module, 1, appending("a"))
    ours = module.training_step
    module.training_step = lambda batch: ["theirs", *ours(batch)]
    StepWrappers.remove(module, 1)
    assert module.training_step([]) == ["theirs", "step x1"]


def test_wraps_another_method():
    module = Module()
    seen = []
    StepWrappers.add(module, 1, lambda call_next, **kwargs: seen.append(kwargs) or call_next(**kwargs), method="setup")
    module.setup(stage="fit")
    StepWrappers.remove(module, 1, method="setup")
    module.setup(stage="test")
    assert (seen, module.stage) == ([{"stage": "fit"}], "test")
    assert "setup" not in vars(module)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])  # noqa: S301
def test_copy_runs_its_own_plain_step(duplicate):
    module = Module()
    StepWrappers.add(module, 1, functools.partial(appending, "a"))
    twin = duplicate(module)
    twin.factor = 2
    assert twin.training_step([]) == ["step x2"]
    StepWrappers.add(twin, 1, appending("b"))
    assert twin.training_step([]) == ["b", "step x2", "B"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("module_class", "takes_index"), [(Module, False), (WithIndex, True)])
def test_lightning_finds_the_same_signature(module_class, takes_index, compiled):
    module = module_class()
    if compiled:
        module = torch.compile(module, backend="eager")
        module = pl.utilities.compile.from_compiled(module)
    found = vars(module).get("training_step")
    StepWrappers.add(module, 1, appending("a"))
    assert is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) is takes_index
    assert is_overridden("training_step", module)
    StepWrappers.remove(module, 1)
    assert vars(module).get("training_step") is found


def test_lightning_detects_hooks_that_are_not_overridden():
    module = pl.LightningModule()
    StepWrappers.add(module, 1, appending("a"))
    StepWrappers.add(module, 1, appending("a"), method="configure_model")
    assert not is_overridden("training_step", module)
    assert not is_overridden("configure_model", module)


def test_decorated_step_keeps_its_signature():
    def logged(step):
        @functools.wraps(step)
        def inner(self, *args):
            return step(self, *args)

        return inner

    class Decorated(Module):
        training_step = logged(Module.training_step)

    module = Decorated()
    before = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    StepWrappers.add(module, 1, appending("a"))
    assert is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) is before is False
