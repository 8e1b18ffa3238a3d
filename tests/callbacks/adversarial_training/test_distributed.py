"""Two ranks train as one does, from the same seed on the same global batches; the attack does not disturb DDP."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return a function that trains on some ranks and returns what it left in a folder; it does nothing twice."""

    @functools.cache
    def train(
        ranks, adversary="pgd", *, recipe=None, as_strategy=False, ddp=None, accumulate=1, manual=False, collapse=False
    ):
        folder = tmp_path_factory.mktemp("run")
        told = {
            "ranks": ranks,
            "adversary": adversary,
            "recipe": recipe,
            "as_strategy": as_strategy,
            "accumulate_grad_batches": accumulate,
            "manual": manual,
            "collapse": collapse,
        }
        if ddp:
            told["ddp"] = {ddp: True}
        command = [sys.executable, str(PROGRAM), str(folder), json.dumps(told)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
        assert not ended.returncode, ended.stderr[-3000:]
        return folder

    return train


@pytest.fixture
def weights(ended):
    """Return a function that trains on some ranks and returns the weights of each."""

    def load(ranks, *arguments, **options):
        folder = ended(ranks, *arguments, **options)
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]

    return load


def assert_close(found, expected, **tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


@pytest.mark.parametrize("adversary", ["pgd", "fgsm"])
def test_two_ranks_have_the_weights_of_one(weights, adversary):
    alone = weights(1, adversary)[0]
    together = weights(2, adversary)
    assert_close(together[0], together[1], rtol=0, atol=0)
    assert_close(together[0], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", ["trades", "free", "matching", "collision", "patch"])
def test_two_ranks_train_by_a_recipe_as_one_does(weights, recipe):
    alone = weights(1, recipe=recipe)[0]
    together = weights(2, recipe=recipe)
    assert_close(together[0], together[1], rtol=0, atol=0)
    assert_close(together[0], alone, rtol=0, atol=1e-5)


def test_ranks_agree_on_a_collapse(ended, weights):
    found = weights(2, "fgsm", collapse=True)
    assert_close(found[0], found[1], rtol=0, atol=0)
    for rank in range(2):
        states = json.loads((ended(2, "fgsm", collapse=True) / f"state-{rank}.json").read_text())
        assert states == [{"collapsed": True}]


def test_the_strategy_has_those_of_the_callback(weights):
    alone = weights(1, "pgd")[0]
    for found in weights(2, as_strategy=True):
        assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ddp", "accumulate"), [("find_unused_parameters", 2), ("static_graph", 1)])
def test_options_of_ddp_and_accumulation(weights, ddp, accumulate):
    alone = weights(1, "pgd", accumulate=accumulate)[0] if accumulate > 1 else weights(1, "pgd")[0]
    for found in weights(2, ddp=ddp, accumulate=accumulate):
        assert_close(found, alone, rtol=0, atol=1e-5)


def test_manual_optimization(weights):
    alone = weights(1, "pgd")[0]
    for found in weights(2, "pgd", manual=True):
        assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options"), [(("pgd",), {}), ((), {"as_strategy": True})], ids=["callback", "strategy"]
)
def test_figures_are_those_of_all_ranks_together(ended, arguments, options):
    """In training, and in validation of two loaders; means over ranks are means over samples, as parts are equal."""
    alone = json.loads((ended(1, "pgd") / "0.json").read_text())
    names = {"clean_loss", "clean_accuracy", "robust_loss", "robust_accuracy"}
    validated = {f"val/{name}/dataloader_idx_{index}" for name in names for index in range(2)}
    assert set(alone) == validated | {f"train/{name}" for name in names}
    for rank in range(2):
        found = json.loads((ended(2, *arguments, **options) / f"{rank}.json").read_text())
        assert found == {name: pytest.approx(value, abs=1e-3) for name, value in alone.items()}


def test_a_validation_starts_where_one_rank_would_start(ended):
    """From the same weights, no sign of a small gradient goes another way."""
    alone = json.loads((ended(1, "pgd") / "before-0.json").read_text())
    assert len(alone) == 8
    for rank in range(2):
        found = json.loads((ended(2, "pgd") / f"before-{rank}.json").read_text())
        assert found == {name: pytest.approx(value, abs=1e-6) for name, value in alone.items()}
