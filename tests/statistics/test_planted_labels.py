import pytest
import torch

from lightning_poison.statistics.planted_labels import plant_labels, planted_result


def test_replaces_labels_by_others_evenly():
    labels = torch.arange(20_000) % 4
    replaced, planted = plant_labels(labels, 0.3, num_classes=4, seed=1)
    assert len(planted) == 6_000
    assert torch.equal((replaced != labels).nonzero().flatten(), planted.sort().values)
    steps = torch.bincount((replaced[planted] - labels[planted]) % 4, minlength=4)
    assert steps[0] == 0
    assert steps[1:].min() > 1_850
    again, _ = plant_labels(labels, 0.3, num_classes=4, seed=1)
    assert torch.equal(again, replaced)


def test_power_and_response_of_a_decision_that_misses_half():
    truth = torch.arange(5_000) % 2

    def decide(labels):
        wrong = (labels != truth) & (torch.arange(5_000) < 2_500)
        return 2 * float(wrong.double().mean()), ~wrong

    found = planted_result(truth, decide, rate=0.0, num_classes=2, share=0.2, repeats=4)
    assert found.power == pytest.approx(0.5, abs=0.04)
    assert found.response == pytest.approx(1.0, abs=0.08)


def test_decision_that_finds_nothing_has_no_power():
    labels = torch.arange(100) % 5
    found = planted_result(labels, lambda each: (0.1, torch.ones_like(each, dtype=torch.bool)), rate=0.1, num_classes=5)
    assert (found.power, found.response) == (0.0, 0.0)


def test_small_sets_have_enough_planted_labels():
    counts = []

    def decide(labels):
        counts.append(int((labels != torch.arange(len(labels)) % 3).sum()))
        return 0.0, labels == 0

    for count in (40, 150, 4_000):
        planted_result(torch.arange(count) % 3, decide, rate=0.0, num_classes=3, repeats=1)
    assert counts == [8, 20, 200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"num_classes": 1}, "num_classes"),
        ({"labels": torch.tensor([3])}, "labels"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "two classes"),
        ({"labels": torch.tensor([0.5])}, "labels"),
    ],
)
def test_refuses_invalid_arguments(arguments, message):
    given = {"labels": torch.tensor([0, 1]), "share": 0.5, "num_classes": 2, "seed": 0, **arguments}
    labels, share = given.pop("labels"), given.pop("share")
    with pytest.raises(ValueError, match=message):
        plant_labels(labels, share, **given)


def test_labels_are_replaced_by_classes_that_occur():
    labels = torch.tensor([2, 50, 400])[torch.arange(300) % 3]
    replaced, planted = plant_labels(labels, 0.3, num_classes=401, seed=0)
    assert set(replaced.tolist()) == {2, 50, 400}
    compact, _ = plant_labels(torch.arange(300) % 3, 0.3, num_classes=3, seed=0)
    assert torch.equal(torch.tensor([2, 50, 400])[compact], replaced)
    assert len(planted) == 90
