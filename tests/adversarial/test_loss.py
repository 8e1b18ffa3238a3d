import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.loss import AdversarialLoss
from lightning_poison.adversarial.pgd import perturb_against


def test_loss_of_perturbed_batch_with_warm_up(network, attacked):
    images, labels = attacked().inputs, attacked().labels
    loss = AdversarialLoss(PGD(0.1, 0.05, steps=2, random_start=False), warm_up=2)
    for strength in (0.5, 1.0, 1.0):
        other = copy.deepcopy(network)
        options = {"epsilon": strength * 0.1, "steps": 2, "step_size": strength * 0.05, "random_start": False}
        perturbed = perturb_against(other, images, labels, **options)
        network.train()
        torch.testing.assert_close(loss(network, images, labels), F.cross_entropy(other.train()(perturbed), labels))


def test_only_parameters_get_gradients(network, attacked):
    images, labels = attacked().inputs.requires_grad_(), attacked().labels
    AdversarialLoss(PGD(0.1))(network.train(), images, labels).backward()
    assert images.grad is None
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in network.parameters())
    assert int(network[1].num_batches_tracked) == 1


def test_refuses_negative_warm_up():
    with pytest.raises(ValueError, match="`warm_up`"):
        AdversarialLoss(PGD(0.1), warm_up=-1)
