import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal

from lightning_poison.models.lgm import (
    half_distances,
    lgm_loss_terms,
    likelihood_loss,
    log_likelihoods,
    margin_logits,
    own_log_likelihoods,
    posterior_logits,
)

HAND_FEATURES = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
HAND_MEANS = torch.tensor([[0.0, 0.0], [3.0, 2.0]])
HAND_LABELS = torch.tensor([1, 0])
HAND_DISTANCES = torch.tensor([[12.5, 2.0], [0.5, 5.0]])


def drawn(batch=7, classes=4, size=5, *, dtype=torch.float64, covariance="diagonal", seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    means = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    log_variances = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    return features.to(dtype), labels, means.to(dtype), log_variances.to(dtype) if covariance == "diagonal" else None


def reference_log_likelihoods(features, means, log_variances):
    variances = torch.ones_like(means) if log_variances is None else log_variances.exp()
    return MultivariateNormal(means, torch.diag_embed(variances)).log_prob(features.unsqueeze(1))


def test_half_distances_match_manual_computation():
    torch.testing.assert_close(half_distances(HAND_FEATURES, HAND_MEANS), HAND_DISTANCES)


def test_half_distances_with_variances_match_manual_computation():
    variances = torch.tensor([[4.0, 1.0], [1.0, 0.5]])
    expected = torch.tensor([[9 / 8 + 8, 4.0], [0.5, 4.5 + 1.0]])
    torch.testing.assert_close(half_distances(HAND_FEATURES, HAND_MEANS, variances.log()), expected)


def test_margin_logits_match_manual_computation():
    logits = margin_logits(HAND_FEATURES, HAND_LABELS, HAND_MEANS, margin=0.5)
    torch.testing.assert_close(logits, torch.tensor([[-12.5, -3.0], [-0.75, -5.0]]))


def test_loss_matches_manual_computation():
    loss = lgm_loss_terms(HAND_FEATURES, HAND_LABELS, HAND_MEANS, margin=0.5, likelihood_weight=0.1)
    classification = (math.log1p(math.exp(-12.5 + 3.0)) + math.log1p(math.exp(-5.0 + 0.75))) / 2
    assert loss.classification.item() == pytest.approx(classification, rel=1e-5)
    assert loss.likelihood.item() == pytest.approx((2.0 + 0.5) / 2)
    assert loss.total.item() == pytest.approx(classification + 0.1 * 1.25)


@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
def test_density_matches_torch(covariance):
    features, labels, means, log_variances = drawn(covariance=covariance)
    expected = reference_log_likelihoods(features, means, log_variances)
    torch.testing.assert_close(log_likelihoods(features, means, log_variances), expected)
    own = own_log_likelihoods(features, labels, means, log_variances)
    torch.testing.assert_close(own, expected.gather(1, labels.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
def test_posterior_follows_bayes_rule(covariance):
    features, _, means, log_variances = drawn(covariance=covariance)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    joint = reference_log_likelihoods(features, means, log_variances).exp() * prior
    posterior = posterior_logits(features, means, log_variances, log_prior=prior.log()).softmax(dim=1)
    torch.testing.assert_close(posterior, joint / joint.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_margin_changes_only_own_logit(covariance, margin):
    features, labels, means, log_variances = drawn(covariance=covariance)
    plain = posterior_logits(features, means, log_variances)
    change = plain - margin_logits(features, labels, means, log_variances, margin=margin)
    own = F.one_hot(labels, num_classes=4).bool()
    distances = half_distances(features, means, log_variances)
    torch.testing.assert_close(change[own], margin * distances[own])
    assert (change[~own] == 0).all()


def test_likelihood_loss_is_negative_log_likelihood_without_constant():
    features, labels, means, log_variances = drawn()
    own = own_log_likelihoods(features, labels, means, log_variances)
    expected = -own.mean() - 0.5 * means.shape[1] * math.log(2 * math.pi)
    torch.testing.assert_close(likelihood_loss(features, labels, means, log_variances), expected)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
@pytest.mark.parametrize("term", ["total", "classification", "likelihood"])
def test_gradients(covariance, term):
    features, labels, means, log_variances = drawn(batch=3, classes=3, size=2, covariance=covariance)
    parameters = [part.requires_grad_() for part in (features, means, log_variances) if part is not None]

    def value(features, means, log_variances=None):
        return getattr(lgm_loss_terms(features, labels, means, log_variances, likelihood_weight=0.7), term)

    assert torch.autograd.gradcheck(value, parameters)
    assert torch.autograd.gradgradcheck(value, parameters)


@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
def test_distances_far_from_origin_are_precise(covariance):
    features, _, means, log_variances = drawn(64, 10, 256, covariance=covariance)
    expected = half_distances(features, means, log_variances)
    moved = [(part + 1000).float() for part in (features, means)]
    single = half_distances(*moved, None if log_variances is None else log_variances.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=0)


def test_distance_to_own_mean_is_never_negative():
    means = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 30
    distances = half_distances(means, means)
    assert distances.min() >= 0
    assert own_log_likelihoods(means, torch.arange(50), means).max() == pytest.approx(-32 * math.log(2 * math.pi))


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
def test_does_not_allocate_all_differences(covariance):
    features, _, means, log_variances = drawn(64, 1000, 2048, dtype=torch.float32, covariance=covariance)
    sizes = []

    def record(saved):
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        half_distances(features.requires_grad_(), means.requires_grad_(), log_variances)
    assert max(sizes) <= 1000 * 2048


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_are_float32_under_autocast_and_half_precision(dtype):
    features, labels, means, log_variances = drawn(16, 10, 128, dtype=dtype)
    expected = log_likelihoods(features.double(), means.double(), log_variances.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_likelihoods(features, means, log_variances)
        loss = lgm_loss_terms(features, labels, means, log_variances)
    assert found.dtype == torch.float32
    assert {part.dtype for part in loss} == {torch.float32}
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


def test_supports_meta_tensors():
    assert half_distances(torch.zeros(2, 3, device="meta"), torch.zeros(4, 3, device="meta")).shape == (2, 4)
