import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_poison.models.lgm_head import LGMHead, lgm_parameter_groups


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=6, features=5, classes=3):
    generator = seeded()
    return torch.randn(size, features, generator=generator), torch.randint(classes, (size,), generator=generator)


def head(**settings):
    """Return a head on features as they are, with the formulas of the paper."""
    return LGMHead(5, 3, generator=seeded(1), **{"normalize": False, **settings})


def trained_statistics(model, generator, *, batches=200, size=32):
    """Show a normalizing head batches with mean 7 and deviation 3 whose labels it cannot predict."""
    for _ in range(batches):
        features = 7 + 3 * torch.randn(size, model.feature_size, generator=generator)
        model.loss(features, torch.randint(model.num_classes, (size,), generator=generator))
    return model


def test_softmax_of_logits_is_posterior():
    features, _ = batch()
    model = head(prior=torch.tensor([0.2, 0.3, 0.5]))
    joint = model.log_likelihoods(features) + torch.tensor([0.2, 0.3, 0.5]).log()
    torch.testing.assert_close(model(features).softmax(dim=1), joint.softmax(dim=1))


@pytest.mark.parametrize("training", [True, False])
def test_labels_apply_margin_in_both_modes(training):
    features, labels = batch()
    model = head(margin=0.5).train(training)
    change = model(features) - model(features, labels)
    own = F.one_hot(labels, num_classes=3).bool()
    torch.testing.assert_close(change[own], 0.25 * (features - model.means[labels]).square().sum(dim=1))
    assert (change[~own] == 0).all()


def test_loss_is_cross_entropy_plus_weighted_likelihood():
    features, labels = batch()
    model = head(likelihood_weight=0.3, covariance="diagonal")
    loss = model.loss(features, labels)
    torch.testing.assert_close(loss.classification, F.cross_entropy(model(features, labels), labels))
    torch.testing.assert_close(loss.likelihood, model.likelihood_loss(features, labels))
    torch.testing.assert_close(loss.total, loss.classification + 0.3 * loss.likelihood)


def test_marginal_likelihood_sums_over_classes():
    features, labels = batch()
    model = head(prior=torch.tensor([0.2, 0.3, 0.5]))
    likelihoods = model.log_likelihoods(features)
    expected = (likelihoods.exp() * torch.tensor([0.2, 0.3, 0.5])).sum(dim=1).log()
    torch.testing.assert_close(model.log_likelihood(features), expected)
    own = model.log_likelihood(features, labels)
    torch.testing.assert_close(own, likelihoods.gather(1, labels.unsqueeze(1)).squeeze(1))


def test_log_variances_are_clamped():
    features, labels = batch()
    model, bounded = head(covariance="diagonal"), head(covariance="diagonal")
    with torch.no_grad():
        model.log_variances.fill_(-50.0)
        bounded.log_variances.fill_(-10.0)
    torch.testing.assert_close(model.log_likelihood(features, labels), bounded.log_likelihood(features, labels))
    assert model(features, labels).isfinite().all()


def test_means_depend_on_generator_only():
    before = torch.get_rng_state()
    first, again, other = (LGMHead(5, 3, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(LGMHead(5, 3).means, LGMHead(5, 3).means)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)


@pytest.mark.parametrize(("feature_size", "deviation"), [(2, 1.0), (32, 1.0), (512, 0.25)])
def test_initial_means_have_stated_deviation(feature_size, deviation):
    means = LGMHead(feature_size, 1000, normalize=False, generator=seeded()).means
    assert means.std().item() == pytest.approx(deviation, rel=0.05)


def test_state_dict_round_trip(tmp_path):
    model = head(covariance="diagonal", prior=torch.tensor([0.2, 0.3, 0.5]))
    torch.save(model.state_dict(), tmp_path / "head.pt")
    loaded = LGMHead(5, 3, covariance="diagonal", normalize=False)
    loaded.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    features, labels = batch()
    assert torch.equal(loaded(features, labels), model(features, labels))


def test_half_precision_head_returns_float32():
    features, labels = batch()
    model = head(covariance="diagonal").to(torch.bfloat16)
    assert model(features.bfloat16(), labels).dtype == torch.float32
    loss = model.loss(features.bfloat16(), labels).total
    loss.backward()
    assert model.means.grad.dtype == torch.bfloat16
    exact = head(covariance="diagonal").loss(features, labels).total
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_ignores_autocast():
    features, labels = batch()
    model = head()
    expected = model.log_likelihood(features, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.log_likelihood(features, labels)
        assert torch.equal(model.log_likelihoods(features), head().log_likelihoods(features))
    assert torch.equal(found, expected)


def test_meta_device_and_reset():
    with torch.device("meta"):
        model = LGMHead(5, 3, normalize=False)
    model = model.to_empty(device="cpu")
    model.reset_parameters(seeded(1))
    assert torch.equal(model.means, head().means)


def test_normalizing_head_on_meta_device_and_reset():
    with torch.device("meta"):
        model = LGMHead(5, 3)
    model = model.to_empty(device="cpu")
    model.reset_parameters(seeded(1))
    fresh = LGMHead(5, 3, generator=seeded(1)).state_dict()
    restored = {name: value for name, value in model.state_dict().items() if name != "log_prior"}
    assert all(torch.equal(value, fresh[name]) for name, value in restored.items())


def test_head_without_normalization_stores_no_statistics():
    assert set(head().state_dict()) == {"means", "log_prior"}
    assert {name.partition(".")[0] for name in LGMHead(5, 3).state_dict()} == {"means", "log_prior", "normalization"}


def test_normalizing_head_is_plain_before_its_first_step():
    features, labels = batch()
    model, plain = LGMHead(5, 3).eval(), head()
    with torch.no_grad():
        plain.means.copy_(model.means)
    torch.testing.assert_close(model.normalized(features), features)
    torch.testing.assert_close(model.log_likelihood(features, labels), plain.log_likelihood(features, labels))


def test_training_normalizes_to_the_stated_total_variance():
    features = 50 + 4 * torch.randn(64, 5, generator=seeded())
    model = LGMHead(5, 3).train()
    seen = model._features(features, update=True)
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(5), atol=1e-3, rtol=0)
    assert seen.square().sum(dim=1).mean().item() == pytest.approx(14 * math.log(3), rel=1e-4)
    model.normalization.skill.fill_(1.0)
    assert model._features(features).square().sum(dim=1).mean().item() == pytest.approx(0.6 * math.log(3), rel=1e-4)


def test_logits_do_not_depend_on_offset_and_scale_of_the_features():
    features, labels = batch(32)
    reference = LGMHead(5, 3).loss(features, labels)
    moved = LGMHead(5, 3).loss(100 + 1e-3 * features, labels)
    torch.testing.assert_close(moved.total, reference.total, rtol=1e-3, atol=0)


def test_shrinking_features_does_not_reduce_the_loss():
    features, labels = batch(32)
    features = features - features.mean(dim=0)
    scale = torch.ones((), requires_grad=True)
    model = LGMHead(5, 3)
    model.normalization.skill.fill_(0.8)
    model.loss(scale * features, labels).total.backward()
    assert abs(scale.grad.item()) < 1e-3
    plain = torch.ones((), requires_grad=True)
    head().loss(plain * features, labels).total.backward()
    assert plain.grad.item() > 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 32])
def test_running_statistics_approach_those_of_the_data(size):
    model = trained_statistics(LGMHead(5, 3), seeded(), batches=600, size=size)
    torch.testing.assert_close(model.normalization.mean, torch.full((5,), 7.0), atol=2.0, rtol=0)
    assert model.normalization.variance.item() == pytest.approx(45, rel=0.4)


def test_normalizing_head_keeps_determinants_at_one():
    features, labels = batch()
    model = LGMHead(5, 3, covariance="diagonal").eval()
    before = model.log_likelihood(features, labels)
    with torch.no_grad():
        model.log_variances += torch.tensor([[3.0], [-1.0], [0.5]])
    torch.testing.assert_close(model.log_likelihood(features, labels), before)


def test_margin_and_weight_grow_with_skill():
    features, labels = batch()
    model = LGMHead(5, 3, margin=0.5, likelihood_weight=0.3).eval()
    own = F.one_hot(labels, num_classes=3).bool()
    for skill in (0.0, 0.6):
        model.normalization.skill.fill_(skill)
        distances = 0.5 * (model.normalized(features) - model.means[labels]).square().sum(dim=1)
        change = (model(features) - model(features, labels))[own]
        torch.testing.assert_close(change, skill**3 * 0.5 * distances)
        loss = model.loss(features, labels)
        torch.testing.assert_close(loss.total, loss.classification + skill**3 * 0.3 * loss.likelihood)


@pytest.mark.slow
def test_skill_is_low_for_random_labels_and_high_for_separable_classes():
    assert trained_statistics(LGMHead(5, 3), seeded()).normalization.skill < 0.05
    model, labels = LGMHead(3, 3), torch.arange(60) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(F.one_hot(labels).float(), labels).total.backward()
        optimizer.step()
    assert model.normalization.skill > 0.7


def test_evaluation_changes_no_statistics():
    features, labels = batch(32)
    model = trained_statistics(LGMHead(5, 3), seeded()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    single = torch.cat([model(row[None]) for row in features])
    torch.testing.assert_close(model(features), single)
    model.loss(features, labels)
    model.train().log_likelihood(features, labels)
    model.likelihood_loss(features, labels)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("features", [torch.zeros(16, 5), torch.full((1, 5), 3.0), torch.zeros(0, 5)])
def test_constant_features_give_finite_gradients(features):
    model, features = LGMHead(5, 3), features.clone().requires_grad_()
    model(features, torch.zeros(len(features), dtype=torch.int64)).sum().backward()
    assert features.grad.isfinite().all()
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_features_that_are_not_finite_leave_the_statistics():
    model = trained_statistics(LGMHead(5, 3), seeded())
    before = model.normalization.mean.clone()
    model.loss(torch.full((32, 5), torch.nan), torch.zeros(32, dtype=torch.int64))
    assert torch.equal(model.normalization.mean, before)
    assert model.normalization.skill.isfinite()


def test_parameter_groups_exempt_heads():
    net = nn.Sequential(nn.Linear(4, 5), head(covariance="diagonal"))
    decayed, exempt = lgm_parameter_groups(net, weight_decay=0.1)
    assert [parameter.shape for parameter in decayed["params"]] == [(5, 4), (5,)]
    assert {id(parameter) for parameter in exempt["params"]} == {id(parameter) for parameter in net[1].parameters()}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert len(lgm_parameter_groups(head(), weight_decay=0.1)) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_size": 0}, "`feature_size` to be an integer of at least 1, but got 0"),
        ({"num_classes": 1}, "`num_classes` to be an integer of at least 2, but got 1"),
        ({"margin": -0.1}, "`margin` to be a finite number of at least 0, but got -0.1"),
        ({"likelihood_weight": math.nan}, "`likelihood_weight` to be a finite number of at least 0, but got nan"),
        ({"covariance": "full"}, "`covariance` to be one of 'identity', 'diagonal', but got full"),
        ({"prior": torch.ones(3)}, r"`prior` to be 3 positive numbers that sum to 1, but got \[1.0, 1.0, 1.0\]"),
        ({"prior": torch.ones(2) / 2}, "`prior` to be 3 positive numbers"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        LGMHead(**{"feature_size": 5, "num_classes": 3, **settings})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(6, 4), r"of shape \(B, 5\), but got a float32 tensor of shape \(6, 4\)"),
        (torch.zeros(5), r"of shape \(B, 5\), but got a float32 tensor of shape \(5,\)"),
        (torch.zeros(6, 2, 5), r"of shape \(B, 5\), but got a float32 tensor of shape \(6, 2, 5\)"),
    ],
)
def test_refuses_wrong_shape_of_features(features, message):
    with pytest.raises(ValueError, match=message):
        head()(features)
    with pytest.raises(ValueError, match="feature_size"):
        head().log_likelihoods(features)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(6, 3), r"int64 tensor of shape \(6,\), but got a float32 tensor of shape \(6, 3\)"),
        (torch.zeros(5, dtype=torch.int64), r"int64 tensor of shape \(6,\), but got a int64 tensor of shape \(5,\)"),
        (torch.tensor([0, 1, 2, 3, 0, 1]), r"`labels` to be in \[0, 3\), but got 0 to 3"),
        (torch.tensor([0, 1, 2, -1, 0, 1]), r"`labels` to be in \[0, 3\), but got -1 to 2"),
    ],
)
def test_refuses_invalid_labels(labels, message):
    features, _ = batch()
    for method in (head().forward, head().loss, head().log_likelihood, head().likelihood_loss):
        with pytest.raises(ValueError, match=message):
            method(features, labels)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
def test_learns_digits_with_flipped_labels(covariance, normalize):
    digits, generator = load_digits(), seeded()
    images, truth = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:1400], order[1400:]
    labels = truth.clone()
    labels[train[:140]] = (labels[train[:140]] + torch.randint(1, 10, (140,), generator=generator)) % 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    model = LGMHead(32, 10, covariance=covariance, normalize=normalize, generator=generator)
    optimizer = torch.optim.Adam([*net.parameters(), *model.parameters()], lr=3e-3)
    for _ in range(12):
        for part in train[torch.randperm(len(train), generator=generator)].split(64):
            optimizer.zero_grad()
            model.loss(net(images[part]), labels[part]).total.backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(net(images[test])).argmax(dim=1) == truth[test]).float().mean()
        suspicion = -model.log_likelihood(net(images[train]), labels[train])
    assert accuracy > 0.93
    assert roc_auc_score((labels != truth)[train], suspicion) > 0.985
