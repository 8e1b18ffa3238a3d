import pytest
import torch
from torch import nn

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.batch import sample_cross_entropy
from lightning_poison.adversarial.collapse_guard import robust_figures


def test_cross_entropy_of_mixed_labels():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mixed = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(sample_cross_entropy(logits, mixed), -logits.log_softmax(1).mean(1))


@pytest.mark.parametrize(
    "labels", [torch.rand(4), torch.rand(4, 2), torch.zeros(4, 1).long(), torch.zeros(4, 3).long()]
)
def test_labels_that_are_neither_classes_nor_probabilities(labels):
    with pytest.raises(ValueError, match=r"class indices \(B,\), or probabilities \(4, 3\), but got a .* tensor"):
        sample_cross_entropy(torch.zeros(4, 3), labels)


def test_reading_has_no_gradient_anywhere_and_puts_everything_back(network, attacked):
    """Autocast may keep weights that it casts where they have a gradient to come; so they have none here."""
    network[0].bias.requires_grad = False
    network[1].eval()
    seen = []
    handle = network.register_forward_hook(
        lambda module, *_: seen.append((module.training, [each.requires_grad for each in module.parameters()]))
    )
    logits = attacked().read(attacked().inputs)
    handle.remove()
    assert not logits.requires_grad
    assert seen == [(False, [False] * 6)]
    assert [name for name, each in network.named_parameters() if not each.requires_grad] == ["0.bias"]
    assert [part.training for part in network] == [True, False, True, True, True]


def test_a_batch_is_looked_at_in_evaluation_mode_and_parameters_get_no_gradient(network, attacked):
    batch = attacked()
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    found = batch.misleading()
    assert 0.05 < float((found - batch.inputs).abs().max()) <= 0.1 + 1e-6
    assert all(each.grad is None and each.requires_grad for each in network.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    assert isinstance(network[1], nn.BatchNorm2d)
    assert network[1].training


def test_figures_and_training_need_one_search(network, attacked):
    asked = []
    handle = network.register_forward_hook(lambda *_: asked.append(1))
    batch = attacked(PGD(0.1, steps=2))
    robust_figures(batch)
    searched = len(asked)
    found = batch.misleading()
    assert searched == len(asked) == 2 + 2
    assert not torch.equal(batch.misleading(adversary=PGD(0.05)), found)
    assert torch.equal(batch.misleading(), found)
    handle.remove()
