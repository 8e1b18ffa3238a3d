import torch

from lightning_poison.attacks import objectives
from lightning_poison.attacks.objectives import ANY_OTHER, attacker_succeeds


def test_success_by_hand():
    predictions, true = torch.tensor([1, 2, 3, 0]), torch.tensor([0, 2, 0, 0])
    wanted = torch.tensor([1, 1, -1, -1])
    assert attacker_succeeds(predictions, true, wanted).tolist() == [True, False, True, False]


def test_what_the_clean_model_gets_wrong_too_is_no_success():
    predictions, true = torch.tensor([1, 1, 3, 3]), torch.tensor([0, 0, 0, 0])
    wanted, reference = torch.tensor([1, 1, -1, -1]), torch.tensor([1, 2, 0, 2])
    found = attacker_succeeds(predictions, true, wanted, reference=reference)
    assert found.tolist() == [False, True, True, False]


def test_plugins_find_it_beside_the_objectives():
    assert (objectives.ANY_OTHER, objectives.attacker_succeeds) == (ANY_OTHER, attacker_succeeds)
