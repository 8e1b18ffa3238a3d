"""Each attack in the setting for which it is designed, undefended: small networks, real digits."""

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import nn
from torch.utils.data import Subset

from lightning_poison import Surrogate, Threat
from lightning_poison.data import labels_of
from lightning_poison_collisions import AdversarialPoisoning, BullseyePolytope, FrogAttack, GradientMatching

from .conftest import FEATURE_LAYER, fit, images_of, train


def head_for(features, images, labels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(32, 10)
    with torch.no_grad():
        inputs = features(images)
    fit(head, inputs, labels, epochs=60, lr=1e-2)
    return lambda batch: head(features(batch)).argmax(1)


def attacked_heads(attack, threat, dataset, holdout, surrogate, features):
    """Return success and clean accuracy of heads trained on frozen features, over three draws."""
    images, labels = images_of(dataset), labels_of(dataset)
    test_images, test_labels = images_of(holdout), labels_of(holdout)
    clean = head_for(features, images, labels)
    assert (clean(test_images) == test_labels).float().mean() >= 0.93
    successes, accuracies = [], []
    for seed in range(3):
        poison = attack.craft(
            dataset,
            threat,
            surrogates=[surrogate],
            holdout=holdout,
            generator=torch.Generator().manual_seed(seed),
        )
        victim = head_for(features, torch.cat([images, poison.inputs]), torch.cat([labels, poison.labels]))
        goal = poison.objective
        succeeded = goal.success(victim(goal.inputs), goal.labels, goal.wanted, reference=clean(goal.inputs))
        successes.append(succeeded.float().mean())
        accuracies.append((victim(test_images) == test_labels).float().mean())
    return torch.stack(successes), torch.stack(accuracies)


@pytest.mark.slow
def test_frogs_fool_head_on_frozen_features(dataset, holdout, surrogate, features, pixels):
    """The fine-tuning case of Yaseen et al. 2020, arXiv 2003.00798."""
    attack, threat = FrogAttack(poisons_per_target=10), Threat(50, clean_label=True, pixels=pixels)
    successes, accuracies = attacked_heads(attack, threat, dataset, holdout, surrogate, features)
    assert successes.mean() >= 0.6
    assert accuracies.min() >= 0.85


@pytest.mark.slow
def test_bullseye_polytopes_fool_head_on_frozen_features(dataset, holdout, surrogate, features, pixels):
    """The transfer-learning case of Aghakhani et al. 2021, arXiv 2005.00191, surrogate and victim the same."""
    attack, threat = BullseyePolytope(), Threat(25, epsilon=4 / 16, clean_label=True, pixels=pixels)
    successes, accuracies = attacked_heads(attack, threat, dataset, holdout, surrogate, features)
    assert successes.mean() >= 0.6
    assert accuracies.min() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("share", "max_accuracy"), [(1.0, 0.4), (0.5, 0.9)])
def test_adversarial_poisoning_rotates_linear_head(dataset, holdout, surrogate, features, pixels, share, max_accuracy):
    """Table 1 of Chan-Hon-Tong 2021, and that half of the training set is not enough."""
    images, labels = images_of(dataset), labels_of(dataset)
    threat = Threat(round(share * len(labels)), epsilon=3 / 16, clean_label=True, may_append=False, pixels=pixels)
    poison = AdversarialPoisoning().craft(
        dataset, threat, surrogates=[surrogate], holdout=None, generator=torch.Generator().manual_seed(0)
    )
    poisoned = images.clone()
    poisoned[poison.indices] = poison.inputs

    def accuracy(training):
        with torch.no_grad():
            known, test = features(training), features(images_of(holdout))
        scale = known.norm(dim=1).mean()
        head = LinearSVC(C=1, dual=False).fit((known / scale).numpy(), labels.numpy())
        return head.score((test / scale).numpy(), labels_of(holdout).numpy())

    assert accuracy(images) >= 0.95
    assert (0 if share == 1 else 0.8) <= accuracy(poisoned) <= max_accuracy


@pytest.mark.slow
def test_gradient_matching_fools_networks_trained_from_scratch(digits, holdout, pixels):
    """The setting of Geiping et al. 2021, arXiv 2009.02276: one target a network, other networks as surrogates."""
    dataset = Subset(digits, range(1200))
    images, labels = images_of(dataset), labels_of(dataset)
    surrogates = [Surrogate(train(images, labels, seed=seed, epochs=5), FEATURE_LAYER) for seed in range(2)]
    clean = train(images, labels, seed=20, epochs=8)
    successes = []
    for seed in range(3):
        poison = GradientMatching(steps=50, base_choice="nearest").craft(
            dataset,
            Threat(60, epsilon=5 / 16, clean_label=True, may_append=False, pixels=pixels),
            surrogates=surrogates,
            holdout=holdout,
            generator=torch.Generator().manual_seed(seed),
        )
        poisoned = images.clone()
        poisoned[poison.indices] = poison.inputs
        victim, goal = train(poisoned, labels, seed=20, epochs=8), poison.objective
        predictions, reference = (model(goal.inputs).argmax(1) for model in (victim, clean))
        successes.append(goal.success(predictions, goal.labels, goal.wanted, reference=reference).float().mean())
        assert (victim(images_of(holdout)).argmax(1) == labels_of(holdout)).float().mean() >= 0.93
    assert torch.stack(successes).mean() >= 0.3
