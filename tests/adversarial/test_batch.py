import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.batch import (
    check_probabilities,
    has_classes,
    is_correct,
    robustness_metrics,
    sample_cross_entropy,
    validation_metrics,
)


def test_cross_entropy_of_mixed_labels():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mixed = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(sample_cross_entropy(logits, mixed), -logits.log_softmax(1).mean(1))


@pytest.mark.parametrize(
    "labels", [torch.rand(4), torch.rand(4, 2), torch.zeros(4, 1).long(), torch.zeros(4, 3).long()]
)
def test_refuses_labels_that_are_neither_classes_nor_probabilities(labels):
    with pytest.raises(ValueError, match=r"class indices \(B,\), or probabilities \(4, 3\), but got a .* tensor"):
        sample_cross_entropy(torch.zeros(4, 3), labels)


@pytest.mark.parametrize(
    ("logits", "labels", "way"),
    [
        ((4,), torch.rand(4), "For regression pass"),
        ((4, 1), torch.rand(4), "For regression pass"),
        ((4, 2, 3), torch.rand(4, 2, 3), "For regression pass"),
        ((4,), torch.zeros(4).long(), "For binary and multi-label classification pass"),
        ((4, 1), torch.ones(4, 1), "For binary and multi-label classification pass"),
        ((4, 1), torch.ones(4), "For binary and multi-label classification pass"),
        ((4, 2, 8, 8), torch.zeros(4, 8, 8).long(), "For segmentation pass"),
        ((4, 3, 2), torch.zeros(4).long(), "Set `logits=`"),
    ],
)
def test_names_the_loss_of_other_tasks(logits, labels, way):
    with pytest.raises(ValueError, match=rf"^Expected `logits` to be \(4, C\).*\n{way}"):
        sample_cross_entropy(torch.zeros(logits), labels)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([[1.0, 0, 1], [0, 1, 0]], "several classes in a row, or none, as in multi-label.*\n.*binary_cross_entropy"),
        ([[0.0, 0, 0], [0, 1, 0]], "several classes in a row, or none, as in multi-label.*\n.*binary_cross_entropy"),
        ([[0.5, 0, 0.2]], "rows with another sum than 1.*\n.*mse_loss"),
        ([[1.0], [1.0]], "one column of numbers.*\n.*binary_cross_entropy"),
        ([[0.3], [0.6]], "one column of numbers.*\n.*mse_loss"),
    ],
)
def test_refuses_labels_that_are_no_distribution(labels, found):
    with pytest.raises(ValueError, match=rf"probabilities \(B, C\), but got {found}"):
        check_probabilities(torch.tensor(labels))


@pytest.mark.parametrize("labels", [torch.eye(3), torch.full((2, 4), 0.25), torch.eye(3).half(), torch.arange(3)])
def test_accepts_distributions_and_classes(labels):
    check_probabilities(labels)


def test_evaluation_has_no_gradients_and_restores_module(network, attacked):
    """Autocast caches casts of weights that require a gradient, so the parameters are frozen."""
    network[0].bias.requires_grad = False
    network[1].eval()
    seen = []
    handle = network.register_forward_hook(
        lambda module, *_: seen.append((module.training, [each.requires_grad for each in module.parameters()]))
    )
    logits = attacked().evaluate(attacked().inputs)
    handle.remove()
    assert not logits.requires_grad
    assert seen == [(False, [False] * 6)]
    assert [name for name, each in network.named_parameters() if not each.requires_grad] == ["0.bias"]
    assert [part.training for part in network] == [True, False, True, True, True]


def test_search_runs_in_evaluation_mode_without_parameter_gradients(network, attacked):
    batch = attacked()
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    perturbed = batch.adversarial_inputs()
    assert 0.05 < float((perturbed - batch.inputs).abs().max()) <= 0.1 + 1e-6
    assert all(each.grad is None and each.requires_grad for each in network.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    assert isinstance(network[1], nn.BatchNorm2d)
    assert network[1].training


def test_metrics_and_training_share_one_search(network, attacked):
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    batch = attacked(PGD(0.1, steps=2))
    robustness_metrics(batch)
    after_metrics = len(calls)
    perturbed = batch.adversarial_inputs()
    assert after_metrics == len(calls) == 2 + 2
    assert not torch.equal(batch.adversarial_inputs(adversary=PGD(0.05)), perturbed)
    assert torch.equal(batch.adversarial_inputs(), perturbed)
    handle.remove()


def test_metrics_match_manual_computation(network, attacked):
    batch = attacked()
    metrics = robustness_metrics(batch)
    network.eval()
    for kind, inputs in (("clean", batch.inputs), ("robust", batch.adversarial_inputs())):
        logits = network(inputs)
        torch.testing.assert_close(metrics[f"{kind}_loss"], F.cross_entropy(logits, batch.labels))
        torch.testing.assert_close(metrics[f"{kind}_accuracy"], (logits.argmax(1) == batch.labels).float().mean())
    assert metrics["robust_loss"] > metrics["clean_loss"]


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
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
def test_has_classes(attacked, logits, labels, expected):
    assert has_classes(attacked(batch=(torch.zeros(12, 1, 6, 6), labels)), logits) is expected


def test_probabilities_with_custom_loss_have_no_classes(attacked):
    batch = attacked(batch=(torch.zeros(12, 1, 6, 6), torch.ones(12, 3)), loss=lambda logits, labels: logits.sum(1))
    assert not has_classes(batch, torch.zeros(12, 3))


def test_validation_metrics_of_diverged_network_are_nan(network, attacked):
    network[4].weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="finite gradient"):
        robustness_metrics(attacked())
    metrics = validation_metrics(attacked())
    assert sorted(metrics) == ["clean_accuracy", "clean_loss", "robust_accuracy", "robust_loss"]
    assert {name for name, value in metrics.items() if value.isnan()} == set(metrics) - {"clean_accuracy"}
    assert metrics["clean_accuracy"] == 0


def test_nan_logits_are_not_correct():
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [-torch.inf, 0.0]])
    assert is_correct(logits, torch.tensor([0, 0, 1])).tolist() == [False, True, True]


def test_class_of_mixed_labels_is_the_largest():
    assert is_correct(torch.eye(3), torch.tensor([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0], [0.0, 0.1, 0.9]])).tolist() == [
        True,
        False,
        True,
    ]
