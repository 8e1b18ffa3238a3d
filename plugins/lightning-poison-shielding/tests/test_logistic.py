import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from lightning_poison_shielding.logistic import HeadProblem, conjugate_gradients, logistic_gradient, logistic_head

PENALTY = 0.02


def system(generator, size=12):
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.diag(torch.logspace(0, 3, size, dtype=torch.float64))
    return matrix, torch.randn(size, 2, generator=generator, dtype=torch.float64)


@pytest.fixture
def samples(generator):
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    return noise + torch.eye(4, dtype=torch.float64)[labels], labels


@pytest.fixture
def problem(samples):
    return HeadProblem(*samples, 3, PENALTY)


def test_head_matches_scikit_learn(samples, problem):
    features, labels = samples
    model = LogisticRegression(C=1 / (60 * PENALTY), fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(features.numpy(), labels.numpy())
    found = logistic_head(problem, tolerance=1e-9)
    torch.testing.assert_close(found, torch.from_numpy(model.coef_).T, rtol=1e-4, atol=1e-5)
    assert problem.gradient(found).abs().max() <= 1e-9


def test_gradient_and_hessian_match_autograd(problem, generator):
    head, way = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    leaf = head.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.value(leaf), leaf, create_graph=True)
    (curve,) = torch.autograd.grad((slope * way).sum(), leaf)
    torch.testing.assert_close(problem.gradient(head), slope.detach())
    torch.testing.assert_close(problem.hessian(head)(way), curve)


def test_preconditioner_inverts_diagonal_blocks(problem, generator):
    head = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    alone = torch.zeros(4, 3, dtype=torch.float64)
    alone[:, 1] = torch.randn(4, generator=generator, dtype=torch.float64)
    curved = problem.hessian(head)(alone)
    only = torch.zeros_like(curved)
    only[:, 1] = curved[:, 1]
    torch.testing.assert_close(problem.preconditioner(head)(only), alone)


def test_weights_are_equivalent_to_repetitions(samples):
    features, labels = samples
    weights = torch.ones(60, dtype=torch.float64)
    weights[:20] = 3
    rows = torch.cat([torch.arange(20).repeat(3), torch.arange(20, 60)])
    weighted = logistic_head(HeadProblem(features, labels, 3, PENALTY, weights), tolerance=1e-9)
    repeated = logistic_head(HeadProblem(features[rows], labels[rows], 3, PENALTY), tolerance=1e-9)
    torch.testing.assert_close(weighted, repeated)


def test_starts_at_given_head(problem):
    solved = logistic_head(problem, tolerance=1e-9)
    assert logistic_head(problem, start=solved, steps=0) is solved
    continued = logistic_head(problem, start=solved + 0.01, steps=2, precondition=problem.preconditioner(solved))
    assert problem.value(continued) < problem.value(solved + 0.01)


def test_converges_from_far_start(problem):
    """A full Newton step from a saturated softmax overshoots; halved steps do not."""
    far = 30 * torch.ones(4, 3, dtype=torch.float64)
    far[:, 0] = -60
    torch.testing.assert_close(
        logistic_head(problem, start=far, steps=200, tolerance=1e-9), logistic_head(problem, tolerance=1e-9)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_matches_finite_differences(samples, generator, weighted):
    features, labels = samples
    weights = 1 + torch.rand(60, generator=generator, dtype=torch.float64) if weighted else None
    outer = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def solved(values):
        return logistic_head(HeadProblem(values, labels, 3, PENALTY, weights), tolerance=1e-12)

    problem, head = HeadProblem(features, labels, 3, PENALTY, weights), solved(features)
    found = logistic_gradient(
        problem, head, outer, slice(50, None), precondition=problem.preconditioner(head), steps=100
    )
    assert found.shape == (10, 4)
    for index in ((0, 0), (4, 3), (9, 1)):
        step = torch.zeros_like(features)
        step[50 + index[0], index[1]] = 1e-3
        slope = (outer * (solved(features + step) - solved(features - step))).sum() / 2e-3
        assert float(found[index]) == pytest.approx(float(slope), rel=1e-2, abs=1e-6)


def test_gradient_matches_unrolled_optimization(samples, generator):
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


class TestConjugateGradients:
    def test_solves_system(self, generator):
        matrix, right = system(generator)
        found = conjugate_gradients(lambda x: matrix @ x, right, steps=100, tolerance=1e-10)
        torch.testing.assert_close(found, torch.linalg.solve(matrix, right))

    def test_preconditioner_saves_products(self, generator):
        matrix, right = system(generator)
        products = []

        def product(values):
            products.append(1)
            return matrix @ values

        plain = conjugate_gradients(product, right, steps=100)
        count = len(products)
        helped = conjugate_gradients(product, right, steps=100, precondition=lambda x: x / matrix.diag()[:, None])
        assert len(products) - count < count
        torch.testing.assert_close(helped, plain, rtol=1e-2, atol=1e-4)

    def test_stops_after_given_steps(self, generator):
        matrix, right = system(generator)
        first = conjugate_gradients(lambda x: matrix @ x, right, steps=1)
        length = right.square().sum() / (right * (matrix @ right)).sum()
        torch.testing.assert_close(first, length * right)

    def test_solves_zero_system(self):
        assert conjugate_gradients(lambda x: 2 * x, torch.zeros(3), steps=5).tolist() == [0, 0, 0]
