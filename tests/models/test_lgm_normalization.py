import math

import pytest
import torch

from lightning_poison.models.lgm_normalization import FeatureNormalization


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count=64, *, offset=0.0, generator=None):
    return offset + torch.randn(count, 4, generator=generator or seeded())


def test_features_are_unchanged_before_the_first_batch():
    features = drawn()
    torch.testing.assert_close(FeatureNormalization(4, 3)(features), features)


@pytest.mark.parametrize(("skill", "factor"), [(0.0, 14.0), (1.0, 0.6)])
def test_total_variance_is_the_stated_one(skill, factor):
    normalization = FeatureNormalization(4, 5)
    normalization.skill.fill_(skill)
    seen = normalization.of_batch(drawn(offset=50.0))
    assert seen.square().sum(dim=1).mean().item() == pytest.approx(factor * math.log(5), rel=1e-3)


def test_evaluation_sees_the_features_as_training_did():
    normalization, generator = FeatureNormalization(4, 3), seeded()
    for _ in range(100):
        normalization.of_batch(drawn(offset=9.0, generator=generator))
    features = drawn(4000, offset=9.0, generator=generator)
    in_training = normalization.of_batch(features, update=False)
    torch.testing.assert_close(normalization.eval().of_batch(features), in_training, atol=0.5, rtol=0)


def test_a_tenth_of_a_shift_remains():
    normalization = FeatureNormalization(4, 3)
    for offset in [0.0] * 8 + [5.0] * 40:
        seen = normalization.of_batch(drawn(offset=offset))
    deviation = seen.std(dim=0).mean()
    assert (seen.mean() / deviation).item() == pytest.approx(0.1 * 5.0, rel=0.2)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_gradient_does_not_scale_the_features(size):
    """The loss cannot be reduced by shrinking the deviations from the mean, at any batch size."""
    normalization = FeatureNormalization(4, 3)
    features = drawn(size) - drawn(size).mean(dim=0)
    features.requires_grad_()
    normalization.of_batch(features).square().sum().backward()
    assert (features.grad * features).sum().abs() < 1e-3 * normalization.of_batch(features).square().sum()


def test_skill_compares_with_the_entropy_of_the_labels():
    """Predicting the most frequent label explains nothing."""
    normalization, shares = FeatureNormalization(4, 3), torch.tensor([0.9, 0.05, 0.05])
    generator = seeded()
    for _ in range(300):
        labels = torch.multinomial(shares, 64, replacement=True, generator=generator)
        normalization.learn(shares.log().expand(64, 3), labels)
    assert normalization.skill < 0.2  # that of a batch is noisy, and at least 0
    torch.testing.assert_close(normalization.label_shares, shares, atol=0.05, rtol=0)
    for _ in range(100):
        normalization.learn(20 * torch.eye(3)[labels], labels)
    assert normalization.skill > 0.95


def test_statistics_do_not_depend_on_values_that_are_not_finite():
    normalization = FeatureNormalization(4, 3)
    normalization.of_batch(drawn())
    before = normalization.mean.clone(), normalization.variance.clone()
    normalization.of_batch(torch.full((64, 4), math.inf))
    assert torch.equal(normalization.mean, before[0])
    assert torch.equal(normalization.variance, before[1])


def test_evaluation_updates_nothing():
    normalization = FeatureNormalization(4, 3).eval()
    before = {name: value.clone() for name, value in normalization.state_dict().items()}
    normalization.of_batch(drawn())
    normalization.learn(torch.zeros(64, 3), torch.zeros(64, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in normalization.state_dict().items())
