"""One wrapper for all: order, restoring, copies, and what Lightning reads through it."""

import copy
import functools
import itertools
import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_poison._lightning.step_wrappers import StepChain


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


def entering(name):
    def around(call_next, batch, *args, **kwargs):
        return [*call_next([*batch, name], *args, **kwargs), name.upper()]

    return around


def test_first_added_is_outermost():
    module = Module()
    StepChain.add(module, 1, entering("a"))
    StepChain.add(module, 2, entering("b"))
    assert module.training_step([]) == ["a", "b", "step x1", "B", "A"]


def test_innermost_sees_what_the_step_sees_whenever_it_was_added():
    module = Module()
    StepChain.add(module, 1, entering("in"), innermost=True)
    StepChain.add(module, 2, entering("a"))
    StepChain.add(module, 3, entering("b"))
    assert module.training_step([]) == ["a", "b", "in", "step x1", "IN", "B", "A"]


def test_arguments_reach_the_step():
    module = WithIndex()
    StepChain.add(module, 1, entering("a"))
    assert module.training_step([], 7) == ["a", 7, "A"]
    assert module.training_step(batch=[], batch_idx=7) == ["a", 7, "A"]


def test_the_same_key_replaces():
    module = Module()
    StepChain.add(module, 1, entering("a"))
    StepChain.add(module, 1, entering("b"))
    assert module.training_step([]) == ["b", "step x1", "B"]
    StepChain.remove(module, 1)
    assert module.training_step([]) == ["step x1"]


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_removed_in_any_order(order):
    module = Module()
    before = dict(vars(module))
    for name in "abc":
        StepChain.add(module, name, entering(name))
    left = ["a", "b", "c"]
    for name in order:
        StepChain.remove(module, name)
        left.remove(name)
        assert module.training_step([]) == [*left, "step x1", *(other.upper() for other in reversed(left))]
    assert vars(module) == before


def test_an_attribute_of_the_instance_is_put_back():
    module = Module()
    mine = functools.partial(Module.training_step, module)
    module.training_step = mine
    StepChain.add(module, 1, entering("a"))
    assert module.training_step([]) == ["a", "step x1", "A"]
    StepChain.remove(module, 1)
    assert vars(module)["training_step"] is mine


def test_removing_what_is_not_there_does_nothing():
    module = Module()
    StepChain.remove(module, 1)
    StepChain.add(module, 1, entering("a"))
    StepChain.remove(module, 2)
    assert module.training_step([]) == ["a", "step x1", "A"]


def test_an_exception_leaves_the_chain_as_it_is():
    module = Module()

    def failing(call_next, batch):
        raise RuntimeError("stop")

    StepChain.add(module, 1, failing)
    with pytest.raises(RuntimeError, match="stop"):
        module.training_step([])
    StepChain.remove(module, 1)
    assert module.training_step([]) == ["step x1"]


def test_somebody_elses_wrapper_stays():
    module = Module()
    StepChain.add(module, 1, entering("a"))
    ours = module.training_step
    module.training_step = lambda batch: ["theirs", *ours(batch)]
    StepChain.remove(module, 1)
    assert module.training_step([]) == ["theirs", "step x1"]


def test_another_method():
    module = Module()
    seen = []
    StepChain.add(module, 1, lambda call_next, **kwargs: seen.append(kwargs) or call_next(**kwargs), method="setup")
    module.setup(stage="fit")
    StepChain.remove(module, 1, method="setup")
    module.setup(stage="test")
    assert (seen, module.stage) == ([{"stage": "fit"}], "test")
    assert "setup" not in vars(module)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])  # noqa: S301
def test_a_copy_runs_its_own_plain_step(duplicate):
    module = Module()
    StepChain.add(module, 1, functools.partial(entering, "a"))
    twin = duplicate(module)
    twin.factor = 2
    assert twin.training_step([]) == ["step x2"]
    StepChain.add(twin, 1, entering("b"))
    assert twin.training_step([]) == ["b", "step x2", "B"]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("module_class", "takes_index"), [(Module, False), (WithIndex, True)])
def test_lightning_reads_the_same_signature(module_class, takes_index, compiled):
    module = module_class()
    if compiled:
        module = torch.compile(module, backend="eager")
        module = pl.utilities.compile.from_compiled(module)
    found = vars(module).get("training_step")
    StepChain.add(module, 1, entering("a"))
    assert is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) is takes_index
    assert is_overridden("training_step", module)
    StepChain.remove(module, 1)
    assert vars(module).get("training_step") is found


def test_lightning_still_sees_what_is_not_overridden():
    module = pl.LightningModule()
    StepChain.add(module, 1, entering("a"))
    StepChain.add(module, 1, entering("a"), method="configure_model")
    assert not is_overridden("training_step", module)
    assert not is_overridden("configure_model", module)


def test_a_decorated_step_keeps_its_signature():
    def logged(step):
        @functools.wraps(step)
        def wrapper(self, *args):
            return step(self, *args)

        return wrapper

    class Decorated(Module):
        training_step = logged(Module.training_step)

    module = Decorated()
    before = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    StepChain.add(module, 1, entering("a"))
    assert is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) is before is False
