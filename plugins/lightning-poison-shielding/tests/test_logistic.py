import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from lightning_poison_shielding.logistic import HeadProblem, logistic_gradient, logistic_head

PENALTY = 0.02


@pytest.fixture
def samples(generator):
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    return noise + torch.eye(4, dtype=torch.float64)[labels], labels


@pytest.fixture
def problem(samples):
    return HeadProblem(*samples, 3, PENALTY)


def test_the_head_is_scikit_learns(samples, problem):
    features, labels = samples
    model = LogisticRegression(C=1 / (60 * PENALTY), fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(features.numpy(), labels.numpy())
    found = logistic_head(problem, tolerance=1e-9)
    torch.testing.assert_close(found, torch.from_numpy(model.coef_).T, rtol=1e-4, atol=1e-5)
    assert problem.gradient(found).abs().max() <= 1e-9


def test_gradient_and_hessian_are_those_of_the_value(problem, generator):
    head, way = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    leaf = head.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.value(leaf), leaf, create_graph=True)
    (curve,) = torch.autograd.grad((slope * way).sum(), leaf)
    torch.testing.assert_close(problem.gradient(head), slope.detach())
    torch.testing.assert_close(problem.hessian(head)(way), curve)


def test_the_preconditioner_inverts_the_blocks_of_the_classes(problem, generator):
    head = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    alone = torch.zeros(4, 3, dtype=torch.float64)
    alone[:, 1] = torch.randn(4, generator=generator, dtype=torch.float64)
    curved = problem.hessian(head)(alone)
    only = torch.zeros_like(curved)
    only[:, 1] = curved[:, 1]
    torch.testing.assert_close(problem.near_inverse(head)(only), alone)


def test_a_weight_stands_for_repetitions(samples):
    features, labels = samples
    weights = torch.ones(60, dtype=torch.float64)
    weights[:20] = 3
    rows = torch.cat([torch.arange(20).repeat(3), torch.arange(20, 60)])
    weighted = logistic_head(HeadProblem(features, labels, 3, PENALTY, weights), tolerance=1e-9)
    repeated = logistic_head(HeadProblem(features[rows], labels[rows], 3, PENALTY), tolerance=1e-9)
    torch.testing.assert_close(weighted, repeated)


def test_it_starts_where_it_is_told(problem):
    solved = logistic_head(problem, tolerance=1e-9)
    assert logistic_head(problem, start=solved, steps=0) is solved
    begun = logistic_head(problem, start=solved + 0.01, steps=2, precondition=problem.near_inverse(solved))
    assert problem.value(begun) < problem.value(solved + 0.01)


def test_a_far_start_descends(problem):
    """A whole Newton step from a saturated softmax overshoots; halved ones do not."""
    far = 30 * torch.ones(4, 3, dtype=torch.float64)
    far[:, 0] = -60
    torch.testing.assert_close(
        logistic_head(problem, start=far, steps=200, tolerance=1e-9), logistic_head(problem, tolerance=1e-9)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_in_the_features(samples, generator, weighted):
    features, labels = samples
    weights = 1 + torch.rand(60, generator=generator, dtype=torch.float64) if weighted else None
    outer = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def solved(values):
        return logistic_head(HeadProblem(values, labels, 3, PENALTY, weights), tolerance=1e-12)

    problem, head = HeadProblem(features, labels, 3, PENALTY, weights), solved(features)
    found = logistic_gradient(problem, head, outer, slice(50, None), precondition=problem.near_inverse(head), steps=100)
    assert found.shape == (10, 4)
    for place in ((0, 0), (4, 3), (9, 1)):
        step = torch.zeros_like(features)
        step[50 + place[0], place[1]] = 1e-3
        slope = (outer * (solved(features + step) - solved(features - step))).sum() / 2e-3
        assert float(found[place]) == pytest.approx(float(slope), rel=1e-2, abs=1e-6)


def test_the_gradient_is_that_through_an_unrolled_solve(samples, generator):
    features, labels = samples
    outer = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    leaf = features.clone().requires_grad_()
    head = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(1500):
        errors = (leaf @ head).softmax(1) - F.one_hot(labels, 3)
        head = head - 1.0 * (leaf.T @ errors / 60 + PENALTY * head)
    (through,) = torch.autograd.grad((outer * head).sum(), leaf)
    problem = HeadProblem(features, labels, 3, PENALTY)
    found = logistic_gradient(problem, head.detach(), outer, slice(None), steps=200)
    torch.testing.assert_close(found, through, rtol=1e-3, atol=1e-6)
