"""The fine-tuning case of Yaseen et al. 2020: frozen features, and a new head trained on few samples with frogs."""

import pytest
import torch
from torch import nn

from lightning_poison.labels import labels_of
from lightning_poison.threat import Threat
from lightning_poison_collisions import FrogAttack

from .conftest import fit


def head_for(features, images, labels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(32, 10)
    with torch.no_grad():
        inputs = features(images)
    fit(head, inputs, labels, epochs=60, lr=1e-2)
    return lambda batch: head(features(batch)).argmax(1)


@pytest.mark.slow
def test_targets_are_misread_by_a_head_that_was_trained_on_frogs(dataset, holdout, surrogate, features, pixels):
    images, labels = torch.stack([image for image, _ in dataset]), labels_of(dataset)
    test_images, test_labels = torch.stack([image for image, _ in holdout]), labels_of(holdout)
    clean = head_for(features, images, labels)
    successes, accuracies = [], []
    for seed in range(3):
        poison = FrogAttack(poisons_per_target=10).craft(
            dataset,
            Threat(50, clean_label=True, pixels=pixels),
            surrogates=[surrogate],
            holdout=holdout,
            generator=torch.Generator().manual_seed(seed),
        )
        victim = head_for(features, torch.cat([images, poison.inputs]), torch.cat([labels, poison.labels]))
        goal = poison.objective
        read = goal.success(victim(goal.inputs), goal.labels, goal.wanted, reference=clean(goal.inputs))
        successes.append(read.float().mean())
        accuracies.append((victim(test_images) == test_labels).float().mean())
    assert torch.stack(successes).mean() >= 0.6
    assert torch.stack(accuracies).min() >= 0.85
    assert (clean(test_images) == test_labels).float().mean() >= 0.93
