from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks.objectives import ProtectedClassObjective
from lightning_poison.attacks.poison import COVER, Poison
from lightning_poison.data.labels import labels_of
from lightning_poison.errors import PluginError
from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.matrix import evaluate


def majority(dataset, seed):
    """Train a model that predicts the most frequent label of its training set."""
    label = labels_of(dataset).bincount().argmax()
    return lambda items: torch.full((len(items),), int(label))


@pytest.fixture
def clean():
    return TensorDataset(torch.zeros(20, 2), torch.tensor([0] * 11 + [1] * 9))


@pytest.fixture
def flips():
    """Six zeros become ones, one of them as cover, which changes the majority."""
    role = torch.tensor([0, 0, 0, 0, 0, COVER])
    return Poison(torch.arange(6), torch.ones(6).long(), ProtectedClassObjective(0), attack="flip", role=role)


def cell(defense, success, *, control=False, seed=0):
    return Cell("a", defense, control, seed, 0.9, success, 0.5, 0.1, 3)


class TestEvaluate:
    def test_known_answers(self, clean, flips):
        keep = torch.ones(20, dtype=torch.bool)
        keep[[0, 1, 2, 3, 19]] = False  # four of five poisons, and one clean sample
        test = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        cells = evaluate(clean, flips, test, defenses={"mine": lambda _: keep}, train=majority)
        found = {each.defense: each for each in cells}
        assert list(found) == ["no defense", "random filter", "mine", "perfect filter"]
        assert found["no defense"].attack_success_rate == 1  # every zero is predicted as one
        assert found["no defense"].clean_accuracy == 0.25
        assert found["mine"].poison_caught == pytest.approx(4 / 5)
        assert found["mine"].clean_lost == pytest.approx(1 / 14)  # cover is neither
        assert found["random filter"].removed == found["mine"].removed == 5
        assert found["perfect filter"].poison_caught == 1
        assert found["perfect filter"].clean_lost == 0
        assert [name for name, each in found.items() if each.is_control] == [
            "no defense",
            "random filter",
            "perfect filter",
        ]

    def test_failure_of_reference_model_is_no_success(self, clean, flips):
        test = TensorDataset(torch.zeros(2, 2), torch.tensor([0, 0]))
        always_one = lambda dataset, seed: lambda items: torch.ones(len(items)).long()  # noqa: E731
        cells = evaluate(clean, flips, test, defenses={}, train=always_one)
        assert {each.attack_success_rate for each in cells} == {0.0}

    def test_refuses_defense_without_mask(self, clean, flips):
        seen = []
        with pytest.raises(ValueError, match="boolean mask"):
            evaluate(clean, flips, clean, defenses={"odd": lambda data: seen.append(data)}, train=majority)
        assert len(seen[0]) == 20

    def test_error_of_defense_and_of_objective_name_them(self, clean, flips):
        def fail(data):
            raise ZeroDivisionError("boo")

        with pytest.raises(ZeroDivisionError) as caught:
            evaluate(clean, flips, clean, defenses={"odd": fail}, train=majority)
        assert caught.value.__notes__ == ["Raised by the defense `odd`."]

        class Odd(ProtectedClassObjective):
            def success(self, *given, **named):
                raise OSError("boo")

        with pytest.raises(PluginError, match="the objective of the attack `flip` to succeed, but it raised OSError"):
            evaluate(clean, replace(flips, objective=Odd(0)), clean, defenses={}, train=majority)

    def test_defense_can_change_neither_process_nor_mask(self, clean, flips):
        keep = torch.ones(20, dtype=torch.bool)

        def defend(data):
            torch.set_grad_enabled(False)
            return keep

        def train(data, seed):
            assert torch.is_grad_enabled()
            keep.fill_(False)
            return majority(data, seed)

        cells = evaluate(clean, flips, clean, defenses={"odd": defend}, train=train)
        assert {each.defense: each.removed for each in cells}["odd"] == 0


def test_refuses_defense_with_name_of_control(clean, flips):
    with pytest.raises(ValueError, match="no defense"):
        evaluate(clean, flips, clean, defenses={"no defense": lambda data: torch.ones(len(data))}, train=majority)
