"""Two ranks train like one rank on the same global batches, and the attack does not interfere with DDP."""

import json

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPES = ("trades", "free", "matching", "collision", "patch")
SHARED_CASES = [{"name": name, "adversary": name} for name in ("pgd", "fgsm")] + [
    {"name": recipe, "adversary": "pgd", "recipe": recipe} for recipe in RECIPES
]


@pytest.fixture(scope="session")
def runs(run_program, tmp_path_factory):
    """One program: trainings on two forked ranks, on one rank, and on two that the `ddp` launcher starts."""
    unused = ["find_unused_parameters"]
    alone = [*SHARED_CASES, {"name": "accumulation", "adversary": "pgd", "accumulate_grad_batches": 2}]
    launched = [
        *SHARED_CASES,
        {"name": "collapse", "adversary": "fgsm", "collapse": True},
        {"name": "unused parameters", "adversary": "pgd", "ddp": unused, "accumulate_grad_batches": 2},
        {"name": "static graph", "adversary": "pgd", "ddp": ["static_graph"]},
        {"name": "manual", "adversary": "pgd", "manual": True},
    ]
    cases = [
        {"folder": "forked", "name": "strategy", "adversary": "pgd", "ranks": 2, "as_strategy": True},
        *({**case, "folder": "alone", "ranks": 1} for case in alone),
        *({**case, "folder": "launched", "ranks": 2} for case in launched),
    ]
    directory = tmp_path_factory.mktemp("adversarial-training")
    run_program("adversarial_training_run.py", str(directory), json.dumps(cases), OMP_NUM_THREADS="1")
    return directory


@pytest.fixture(scope="session")
def one_rank(runs):
    return runs / "alone"


@pytest.fixture(scope="session")
def two_ranks(runs):
    return runs / "launched"


@pytest.fixture(scope="session")
def forked_ranks(runs):
    return runs / "forked"


def weights(directory, ranks=2):
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def assert_close(found, expected, **tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


@pytest.mark.parametrize("name", [case["name"] for case in SHARED_CASES])
def test_weights_of_two_ranks_equal_those_of_one(one_rank, two_ranks, name):
    (alone,) = weights(one_rank / name, ranks=1)
    together = weights(two_ranks / name)
    assert_close(together[0], together[1], rtol=0, atol=0)
    assert_close(together[0], alone, rtol=0, atol=1e-5)


def test_ranks_agree_on_a_collapse(two_ranks):
    found = weights(two_ranks / "collapse")
    assert_close(found[0], found[1], rtol=0, atol=0)
    for rank in range(2):
        states = json.loads((two_ranks / "collapse" / f"state-{rank}.json").read_text())
        assert states == [{"collapsed": True}]


def test_strategy_has_the_weights_of_the_callback(one_rank, forked_ranks):
    (alone,) = weights(one_rank / "pgd", ranks=1)
    for found in weights(forked_ranks / "strategy"):
        assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"), [("unused parameters", "accumulation"), ("static graph", "pgd"), ("manual", "pgd")]
)
def test_ddp_options_accumulation_and_manual_optimization(one_rank, two_ranks, name, reference):
    (alone,) = weights(one_rank / reference, ranks=1)
    for found in weights(two_ranks / name):
        assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["callback", "strategy"])
def test_metrics_are_those_of_all_ranks(one_rank, two_ranks, forked_ranks, kind):
    """In training, and in validation of two loaders; means over ranks are means over samples, as parts are equal."""
    alone = json.loads((one_rank / "pgd" / "metrics-0.json").read_text())
    names = {"clean_loss", "clean_accuracy", "robust_loss", "robust_accuracy"}
    validated = {f"val/{name}/dataloader_idx_{index}" for name in names for index in range(2)}
    assert set(alone) == validated | {f"train/{name}" for name in names}
    folder = two_ranks / "pgd" if kind == "callback" else forked_ranks / "strategy"
    for rank in range(2):
        found = json.loads((folder / f"metrics-{rank}.json").read_text())
        assert found == {name: pytest.approx(value, abs=1e-3) for name, value in alone.items()}


def test_validation_of_the_same_weights_is_the_same(one_rank, two_ranks):
    """From the same weights, no sign of a small gradient differs."""
    alone = json.loads((one_rank / "pgd" / "untrained-0.json").read_text())
    assert len(alone) == 8
    for rank in range(2):
        found = json.loads((two_ranks / "pgd" / f"untrained-{rank}.json").read_text())
        assert found == {name: pytest.approx(value, abs=1e-6) for name, value in alone.items()}
