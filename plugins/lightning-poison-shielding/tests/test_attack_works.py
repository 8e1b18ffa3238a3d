"""The frozen-feature setting: a new head is trained on clean samples of all classes and the poison."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lightning_poison import Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding import ClassShielding, ClassShieldingGenerator

PROTECTED, SHIELD, BUDGET, EPSILON = 3, 9, 90, 0.5

SHORT = {"super_batch": 150, "ridge_steps": 100, "logistic_steps": 50}

ATTACKS = {
    "optimizer": ClassShielding(protected_class=PROTECTED, shield_class=SHIELD, poisons_per_base=4),
    "optimizer that chooses": ClassShielding(protected_class=PROTECTED, poisons_per_base=5),
    "unet": ClassShieldingGenerator(
        protected_class=PROTECTED, shield_class=SHIELD, poisons_per_base=4, architecture="unet", **SHORT
    ),
    "paper": ClassShieldingGenerator(
        protected_class=PROTECTED, shield_class=SHIELD, poisons_per_base=4, architecture="paper", **SHORT
    ),
}


@pytest.fixture(scope="module")
def accuracies(dataset, test_set, surrogate):
    """Return a function from added images and labels to the accuracies on the protected class and on the others."""

    def features_and_labels(data):
        with torch.no_grad():
            images = torch.stack([data[position][0] for position in range(len(data))])
            return surrogate.model[:7](images), labels_of(data)

    features, labels = features_and_labels(dataset)
    test, true = features_and_labels(test_set)

    def measure(images, added):
        with torch.no_grad():
            rows = torch.cat([features, surrogate.model[:7](images)])
        head = LogisticRegression(max_iter=20_000).fit(rows.numpy(), torch.cat([labels, added]).numpy())
        correct, is_protected = torch.from_numpy(head.predict(test.numpy())) == true, true == PROTECTED
        return float(correct[is_protected].float().mean()), float(correct[~is_protected].float().mean())

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_only_protected_class_is_misclassified(name, accuracies, dataset, pool, surrogate, pixels):
    poison = ATTACKS[name].craft(
        dataset,
        Threat(BUDGET, EPSILON, clean_label=True, pixels=pixels),
        surrogates=[surrogate],
        holdout=pool,
        generator=torch.Generator().manual_seed(0),
    )
    copies = torch.stack([dataset[position][0] for position in poison.base_indices.tolist()])
    signs = torch.randint(2, copies.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    clean = accuracies(copies[:0], poison.labels[:0])
    protected, others = accuracies(poison.inputs, poison.labels)
    assert protected <= 0.25
    assert others >= clean[1] - 0.04
    for control in (copies, (copies + EPSILON * signs).clamp(0, 1)):
        assert accuracies(control, poison.labels)[0] >= 0.65
