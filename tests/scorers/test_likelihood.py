import copy
import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import Subset, TensorDataset

from lightning_poison.errors import NotFittedError, UnreadableSampleError
from lightning_poison.models.backbones import default_backbone
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.lgm_head import LGMHead
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.networks import BackboneWithHead

QUICK = FitSettings(epochs=1, batch_size=32, min_steps=20)
RUNTIME = LocalRuntime(precision="32", threads=1)


def quick(score="likelihood", **settings):
    return LikelihoodScorer(score, **{"feature_size": 4, "fit_settings": QUICK, **settings})


@pytest.fixture(scope="module")
def on_digits(digits):
    """A scorer fitted on 1,000 digits; the other 797 are for tests."""
    scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=4, batch_size=64, min_steps=0))
    return scorer.fit(Subset(digits, range(1000)), runtime=RUNTIME)


def flipped(digits):
    images, labels = digits[1000:]
    wrong = torch.arange(len(labels)) % 5 == 0
    return images, torch.where(wrong, (labels + 1 + torch.arange(len(labels)) % 9) % 10, labels), wrong


@pytest.mark.slow
def test_detects_flipped_digits(on_digits, digits):
    images, labels, wrong = flipped(digits)
    with torch.no_grad():
        assert roc_auc_score(wrong, on_digits.score_batch(images, labels)) > 0.97


def test_posterior_is_the_softmax_of_likelihoods(on_digits, digits):
    images, labels, wrong = flipped(digits)
    other = copy.deepcopy(on_digits)
    other.score = "posterior"
    with torch.no_grad():
        likelihoods, posteriors = -on_digits.score_labels(images), -other.score_labels(images)
        torch.testing.assert_close(posteriors, likelihoods.log_softmax(1), atol=1e-3, rtol=1e-3)
        assert (posteriors <= 0).all()
        assert roc_auc_score(wrong, other.score_batch(images, labels)) > 0.97


@pytest.mark.parametrize("covariance", ["identity", "diagonal"])
def test_scores_match_negative_log_normal(blobs, covariance):
    backbone = nn.Linear(4, 3)
    data = blobs(64)
    scorer = quick(backbone=backbone, feature_size=3, covariance=covariance).fit(data, runtime=RUNTIME)
    state = scorer.state()
    points, labels = data[:]
    features = points @ state["model.backbone.weight"].T + state["model.backbone.bias"]
    means = state["model.head.means"]
    scales = (0.5 * state.get("model.head.log_variances", torch.zeros_like(means))).exp()
    expected = torch.stack([-Independent(Normal(means[k], scales[k]), 1).log_prob(features) for k in range(3)], 1)
    with torch.no_grad():
        torch.testing.assert_close(scorer.score_labels(points), expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(
            scorer.score_batch(points, labels), expected[torch.arange(64), labels], atol=1e-3, rtol=1e-4
        )


def test_declares_name_and_label_scores():
    scorer = quick()
    assert scorer.name == "likelihood"
    assert scorer.scores_labels
    assert not scorer.is_control
    assert not scorer.is_fitted


@pytest.mark.slow
def test_scores_depend_on_the_generator_and_data_do_not_change(blobs):
    data = blobs(64)
    points, found = data.tensors[0].clone(), torch.get_rng_state()
    scorers = [quick().fit(data, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    one, two, other = (scorer.score_labels(points).detach() for scorer in scorers)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(data.tensors[0], points)
    assert torch.equal(torch.get_rng_state(), found)


def test_copy_of_unfitted_scorer_is_unfitted(blobs):
    scorer = quick()
    twin = copy.deepcopy(scorer).fit(blobs(64), runtime=RUNTIME)
    assert twin.is_fitted
    assert not scorer.is_fitted
    assert scorer.settings() == twin.settings()


def test_scores_do_not_depend_on_the_batch(on_digits, digits):
    images, labels = digits[:4]
    with torch.no_grad():
        whole = on_digits.score_batch(images, labels)
        singly = torch.cat([on_digits.score_batch(images[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, singly, atol=1e-3, rtol=1e-4)


def test_gradient_step_lowers_the_score(on_digits, digits):
    images, labels = digits[:10]
    images = images.clone().requires_grad_()
    before = on_digits.score_batch(images, labels)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    with torch.no_grad():
        assert (on_digits.score_batch(images - 1e-4 * gradient, labels) < before).float().mean() > 0.8


@pytest.mark.parametrize("score", ["likelihood", "posterior"])
def test_loaded_scorer_gives_the_same_scores(blobs, score):
    points, labels = blobs(64)[:]
    fitted = quick(score).fit(blobs(64), runtime=RUNTIME)
    state = fitted.state()
    loaded = quick(score).load(state)
    assert loaded.is_fitted
    assert torch.equal(loaded.score_labels(points), fitted.score_labels(points))
    assert torch.equal(loaded.score_batch(points, labels), fitted.score_batch(points, labels))


def test_loaded_convolutions_give_the_same_scores(on_digits, digits):
    loaded = LikelihoodScorer(fit_settings=on_digits.fit_settings).load(on_digits.state())
    images = digits[:50][0]
    with torch.no_grad():
        assert torch.equal(loaded.score_labels(images), on_digits.score_labels(images))


def test_scores_volumes():
    volumes = torch.rand(64, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv3d(1, 4, 2), nn.Flatten(), nn.Linear(36, 4))
    fitted = quick(backbone=network).fit(TensorDataset(volumes, torch.arange(64) % 2), runtime=RUNTIME)
    loaded = quick(backbone=network).load(fitted.state())
    assert fitted.score_labels(volumes).isfinite().all()
    assert torch.equal(loaded.score_labels(volumes), fitted.score_labels(volumes))


def test_network_is_moved_only_to_another_device(blobs, monkeypatch):
    fitted, moved = quick().fit(blobs(64), runtime=RUNTIME), []
    points, labels = blobs(64)[:]
    before = fitted.score_batch(points, labels)
    monkeypatch.setattr(BackboneWithHead, "to", lambda self, *to: moved.append(to) or nn.Module.to(self, *to))
    assert torch.equal(fitted.score_batch(points, labels), before)
    assert not moved
    assert fitted.score_batch(points.to("meta"), labels.to("meta")).device.type == "meta"
    assert moved == [(torch.device("meta"),)]


def test_state_is_a_copy(blobs):
    fitted = quick().fit(blobs(64), runtime=RUNTIME)
    before = fitted.score_labels(blobs(64)[:][0])
    for value in fitted.state().values():
        value.zero_()
    assert torch.equal(fitted.score_labels(blobs(64)[:][0]), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "is_kept"),
    [
        ({"feature_size": 5}, lambda name: True),
        ({"covariance": "diagonal"}, lambda name: True),
        ({"backbone": nn.Linear(4, 4)}, lambda name: True),
        ({}, lambda name: name != "model.backbone.1.weight"),
        ({}, lambda name: name != "sample_shape"),
        ({}, lambda name: name != "model.head.means"),
        ({}, lambda name: False),
    ],
)
def test_refuses_state_of_another_scorer(blobs, settings, is_kept):
    state = quick().fit(blobs(64), runtime=RUNTIME).state()
    scorer = quick(**settings)
    with pytest.raises(ValueError, match=r"the state of LikelihoodScorer.*, but got one of another scorer"):
        scorer.load({name: value for name, value in state.items() if is_kept(name)})
    assert not scorer.is_fitted


@pytest.mark.parametrize("call", ["score_labels", "score_batch", "state"])
def test_refuses_unfitted_scorer(call):
    arguments = {"score_labels": (torch.zeros(1, 4),), "score_batch": (torch.zeros(1, 4), torch.zeros(1).long())}
    with pytest.raises(NotFittedError, match=r"Expected a fitted LikelihoodScorer[\s\S]*Call `fit\(trusted\)`"):
        getattr(quick(), call)(*arguments.get(call, ()))


def test_trains_a_copy_of_the_backbone_from_its_weights(blobs):
    backbone = nn.Linear(4, 4)
    before = backbone.weight.detach().clone()
    fitted = quick(backbone=backbone).fit(blobs(64), runtime=RUNTIME)
    assert torch.equal(backbone.weight, before)
    trained = fitted.state()["model.backbone.weight"]
    assert not torch.equal(trained, before)
    assert float((trained - before).abs().max()) < 1


def test_refuses_backbone_of_another_size(blobs):
    scorer = quick(backbone=nn.Linear(4, 7))
    with pytest.raises(ValueError, match=r"features \(1, 4\), but got .* \(1, 7\)\.\nSet `feature_size=7`"):
        scorer.fit(blobs(64), runtime=RUNTIME)
    assert not scorer.is_fitted


def test_refuses_samples_of_another_shape(on_digits):
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), which the scorer was fitted on, but got \(3, 8, 8\)"):
        on_digits.score_labels(torch.rand(2, 3, 8, 8))


def test_refuses_one_class():
    data = TensorDataset(torch.randn(10, 4), torch.full((10,), 3))
    with pytest.raises(ValueError, match="data of at least two classes, but got class 3 alone"):
        quick().fit(data)


def test_refuses_unreadable_samples(blobs):
    points, labels = blobs(64).tensors
    points[40] = torch.inf
    with pytest.raises(UnreadableSampleError, match="sample 40"):
        quick().fit(TensorDataset(points, labels), runtime=RUNTIME)
    images = [(value, 0) for value in ("a", "b")]
    with pytest.raises(ValueError, match="Name the two by their paths"):
        quick().fit(images)


def test_fits_arrays_of_bytes(digits):
    images, labels = digits[:64]
    arrays = [((255 * image).byte().numpy(), int(label)) for image, label in zip(images, labels, strict=True)]
    scorer = quick().fit(arrays, runtime=RUNTIME)
    assert scorer.score_labels(images).shape == (64, 10)


def test_rehearse_returns_steps_of_a_fit_and_leaves_scorer_unfitted(blobs):
    scorer, found = quick(), torch.get_rng_state()
    assert scorer.rehearse(blobs(64), steps=2, runtime=RUNTIME) == QUICK.total_steps(64) == 20
    assert not scorer.is_fitted
    assert torch.equal(torch.get_rng_state(), found)


def test_settings_are_json_and_distinguish_scorers():
    scorers = [quick(), quick("posterior"), quick(margin=2.0), quick(backbone=nn.Linear(4, 4)), LikelihoodScorer()]
    scorers += [quick(backbone=nn.Linear(4, 4, bias=False))]
    assert len({json.dumps(scorer.settings(), sort_keys=True) for scorer in scorers}) == 6
    settings = quick().settings()
    settings["fit_settings"]["epochs"] = 99
    assert QUICK.epochs == 1


class ModuleWithHead(nn.Module):
    """A network with a Gaussian mixture head, which returns a dictionary."""

    def __init__(self, heads=1, calls_head=True):
        super().__init__()
        self.body = default_backbone((4,), 3)
        self.head = LGMHead(3, 3, covariance="diagonal", margin=0.3)
        self.more = nn.ModuleList(LGMHead(3, 3) for _ in range(heads - 1))
        self.calls_head = calls_head

    def forward(self, inputs):
        features = self.body(inputs)
        return {"logits": self.head(features) if self.calls_head else features}


@pytest.mark.parametrize("score", ["likelihood", "posterior"])
def test_module_needs_no_fit(blobs, score):
    module = ModuleWithHead().train()
    points, labels = blobs(30)[:]
    scorer = LikelihoodScorer.from_module(module, score)
    assert scorer.is_fitted
    assert (scorer.feature_size, scorer.covariance, scorer.margin) == (3, "diagonal", 0.3)
    found = scorer.score_labels(points)
    assert module.training
    assert not module.head._forward_pre_hooks
    module.eval()
    features = module.body(points)
    joint = module.head.log_likelihoods(features)
    expected = -joint if score == "likelihood" else -module.head(features).log_softmax(1)
    assert torch.equal(found, expected)
    assert torch.equal(scorer.score_batch(points, labels), expected[torch.arange(30), labels])
    assert torch.equal(scorer.fit(blobs(60)).score_labels(points), expected)


def test_loads_state_into_the_module(blobs):
    points = blobs(30)[:][0]
    one, two = LikelihoodScorer.from_module(ModuleWithHead()), LikelihoodScorer.from_module(ModuleWithHead())
    with torch.no_grad():
        one._network.module.body[1].weight.add_(1)
        assert not torch.equal(one.score_labels(points), two.score_labels(points))
        assert torch.equal(one.score_labels(points), two.load(one.state()).score_labels(points))
    with pytest.raises(ValueError, match="but got one of another scorer or of other settings"):
        two.load(quick().fit(blobs(64), runtime=RUNTIME).state())


@pytest.mark.parametrize(("module", "count"), [(nn.Linear(2, 2), 0), (ModuleWithHead(heads=2), 2)])
def test_refuses_module_without_exactly_one_head(module, count):
    with pytest.raises(ValueError, match=rf"with one LGMHead, but got \w+ with {count}\.\nTrain it with"):
        LikelihoodScorer.from_module(module)


def test_refuses_module_that_does_not_call_its_head():
    scorer = LikelihoodScorer.from_module(ModuleWithHead(calls_head=False))
    with pytest.raises(ValueError, match="Expected ModuleWithHead to pass features through its LGMHead"):
        scorer.score_labels(torch.zeros(2, 4))


@pytest.mark.slow
def test_scores_are_float32_under_bfloat16(on_digits, digits):
    images, labels, wrong = flipped(digits)
    with torch.no_grad(), LocalRuntime(precision="bf16").autocast():
        scores = on_digits.score_batch(images, labels)
    assert scores.dtype == torch.float32
    assert roc_auc_score(wrong, scores) > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "loss"}, "`score` to be one of 'likelihood', 'posterior', but got loss"),
        ({"feature_size": 0}, "`feature_size`"),
        ({"margin": -1}, "`margin`"),
        ({"likelihood_weight": float("nan")}, "`likelihood_weight`"),
        ({"covariance": "full"}, "`covariance`"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        LikelihoodScorer(**arguments)


def test_repr_contains_arguments():
    assert repr(LikelihoodScorer()) == "LikelihoodScorer()"
    assert repr(LikelihoodScorer("posterior", margin=2.0)) == "LikelihoodScorer(score='posterior', margin=2.0)"
