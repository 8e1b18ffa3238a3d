import pytest
import torch
import torch.nn.functional as F

from lightning_poison.adversarial.collapse_guard import evaluation_figures, is_read, names_classes, robust_figures


def test_figures_by_hand(network, attacked):
    batch = attacked()
    figures = robust_figures(batch)
    network.eval()
    for kind, inputs in (("clean", batch.inputs), ("robust", batch.misleading())):
        logits = network(inputs)
        torch.testing.assert_close(figures[f"{kind}_loss"], F.cross_entropy(logits, batch.labels))
        torch.testing.assert_close(figures[f"{kind}_accuracy"], (logits.argmax(1) == batch.labels).float().mean())
    assert figures["robust_loss"] > figures["clean_loss"]


@pytest.mark.parametrize(
    ("logits", "labels", "named"),
    [
        (torch.zeros(12, 3), torch.zeros(12).long(), True),
        (torch.zeros(12, 3, 4, 4), torch.zeros(12, 4, 4).long(), True),
        (torch.zeros(12, 3), torch.full((12, 3), 1 / 3), True),
        (torch.zeros(12), torch.zeros(12).long(), False),
        (torch.zeros(12, 1), torch.zeros(12).long(), False),
        (torch.zeros(12, 3), torch.zeros(12), False),
        (torch.zeros(12, 3), torch.zeros(12, 3).long(), False),
    ],
)
def test_what_names_classes(attacked, logits, labels, named):
    assert names_classes(attacked(batch=(torch.zeros(12, 1, 6, 6), labels)), logits) is named


def test_probabilities_under_a_loss_of_the_user_s_may_be_anything(attacked):
    batch = attacked(batch=(torch.zeros(12, 1, 6, 6), torch.ones(12, 3)), loss=lambda logits, labels: logits.sum(1))
    assert not names_classes(batch, torch.zeros(12, 3))


def test_a_network_that_has_diverged(network, attacked):
    network[4].weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="finite gradient"):
        robust_figures(attacked())
    figures = evaluation_figures(attacked())
    assert sorted(figures) == ["clean_accuracy", "clean_loss", "robust_accuracy", "robust_loss"]
    assert {name for name, value in figures.items() if value.isnan()} == set(figures) - {"clean_accuracy"}
    assert figures["clean_accuracy"] == 0


def test_nan_is_read_as_nothing():
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [-torch.inf, 0.0]])
    assert is_read(logits, torch.tensor([0, 0, 1])).tolist() == [False, True, True]
