import pytest
import torch

from lightning_poison_collisions import FeatureDistance, collide, collide_within, penalized_objective
from lightning_poison_collisions.descent import descend_within

BETA = 8e-3


def quadratic(goal):
    return lambda images: ((images - goal).square().sum(), 2 * (images - goal))


class TestCollideWithin:
    def test_matches_closed_form_for_linear_features(self):
        weight = torch.tensor([1.0, -2.0, 0.5, 0.0])
        bases, targets = torch.full((1, 4), 0.5), torch.tensor([[1.0, 0.0, 1.0, 1.0]])
        distance = FeatureDistance([lambda images: images @ weight[:, None]], bases, targets)
        found = collide_within(distance, bases, epsilon=0.1, steps=20)
        torch.testing.assert_close(found, torch.tensor([[0.6, 0.4, 0.6, 0.5]]))

    def test_stays_in_ball_and_range(self, nonlinear):
        bases, distance = nonlinear
        images = collide_within(distance, bases, epsilon=0.1, steps=15)
        assert (images - bases).abs().max() <= 0.1 + 1e-6
        assert images.min() >= 0
        assert images.max() <= 1
        assert (distance(images) < 0.95).all()

    def test_keeps_best_point(self, nonlinear):
        bases, distance = nonlinear
        images = collide_within(distance, bases, epsilon=0.3, steps=5, step_size=0.6)
        assert (distance(images) <= 1 + 1e-6).all()

    def test_projects_start_onto_ball(self, nonlinear):
        bases, distance = nonlinear
        images = collide_within(distance, bases, epsilon=0.05, steps=1, start=torch.ones_like(bases))
        assert (images - bases).abs().max() <= 0.05 + 1e-6


class TestDescendWithin:
    def test_finds_nearest_point_of_ball_and_range(self):
        bases, goal = torch.tensor([[0.5, 0.5, 0.95, 0.5]]), torch.tensor([[0.9, 0.1, 2.0, 0.53]])
        images, value = descend_within(quadratic(goal), bases, epsilon=0.1, steps=80, step_size=0.04)
        expected = torch.tensor([[0.6, 0.4, 1.0, 0.53]])
        torch.testing.assert_close(images, expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(value, (images - goal).square().sum())

    def test_step_size_decays_until_convergence(self):
        goal = torch.tensor([[0.5137]])
        images, _ = descend_within(quadratic(goal), torch.tensor([[0.5]]), epsilon=0.1, steps=100, step_size=0.05)
        assert (images - goal).abs() < 1e-4

    def test_keeps_best_point(self):
        goal = torch.tensor([[0.501]])
        bases = torch.tensor([[0.5]])
        images, value = descend_within(quadratic(goal), bases, epsilon=0.4, steps=2, step_size=0.4)
        assert torch.equal(images, bases)
        assert value == pytest.approx(1e-6, rel=1e-3)

    def test_projects_start_onto_ball(self):
        bases = torch.full((2, 3), 0.5)
        constant = lambda images: (torch.tensor(1.0), torch.zeros_like(images))  # noqa: E731
        images, _ = descend_within(constant, bases, epsilon=0.05, steps=1, step_size=0.1, start=torch.ones(2, 3))
        torch.testing.assert_close(images, torch.full((2, 3), 0.55))

    def test_does_not_change_its_arguments(self):
        bases, start = torch.full((1, 2), 0.5), torch.full((1, 2), 0.45)
        descend_within(quadratic(torch.ones(1, 2)), bases, epsilon=0.1, steps=5, step_size=0.05, start=start)
        assert bases.tolist() == [[0.5, 0.5]]
        assert torch.equal(start, torch.full((1, 2), 0.45))

    def test_keeps_best_point_of_each_image(self):
        goals = torch.tensor([[0.2], [0.9]])

        def each(images):
            return (images - goals).square().sum(1), 2 * (images - goals)

        found, values = descend_within(each, torch.zeros(2, 1), epsilon=0.5, steps=60, step_size=0.1)
        torch.testing.assert_close(found, torch.tensor([[0.2], [0.5]]), atol=0.01, rtol=0)
        assert values.shape == (2,)

    def test_last_point_of_changing_objective(self):
        goals = iter(torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
        objective = lambda images: quadratic(next(goals))(images)  # noqa: E731
        bases = torch.full((1, 1), 0.1)
        images, value = descend_within(objective, bases, epsilon=0.1, steps=3, step_size=0.05, keep_best=False)
        assert float(images) != 0.1
        assert float(value) == pytest.approx(float((images - 1).square()))


class TestCollide:
    def test_matches_closed_form_for_linear_features(self, generator):
        weight = torch.randn(4, 12, generator=generator)
        bases = 0.5 + 0.1 * torch.rand(5, 12, generator=generator)
        targets = 0.5 - 0.1 * torch.rand(5, 12, generator=generator)
        distance = FeatureDistance([lambda images: images @ weight.T], bases, targets)
        found = collide(distance, bases, beta=2.0, steps=300, tolerance=0)
        for image, base, target in zip(found, bases, targets, strict=True):
            gram = weight.T @ weight / (weight @ (base - target)).square().sum()
            moved = torch.linalg.solve(gram + 2.0 * torch.eye(12), gram @ (target - base))
            torch.testing.assert_close(image, base + moved, atol=2e-4, rtol=0)
            assert moved.abs().max() > 0.02

    def test_proximal_step_is_exact_at_bound_of_range(self):
        bases, targets = torch.tensor([[0.9, 0.5]]), torch.tensor([[1.5, 0.5]])
        found = collide(FeatureDistance([lambda images: images], bases, targets), bases, beta=0.1, steps=60)
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.5]]))

    @pytest.mark.parametrize("learning_rate", [0.5, 1e3])
    def test_objective_never_increases(self, nonlinear, learning_rate):
        bases, distance = nonlinear
        runs = [
            collide(distance, bases, beta=BETA, steps=n, learning_rate=learning_rate)
            for n in (0, 1, 2, 3, 4, 5, 8, 13, 21)
        ]
        values = torch.stack([penalized_objective(distance, run, bases, beta=BETA) for run in runs])
        assert (values.diff(dim=0) <= 1e-6).all()
        assert (values[-1] < 0.5).all()

    def test_step_size_is_independent_per_image(self, nonlinear):
        bases, distance = nonlinear
        together = collide(distance, bases, beta=BETA, steps=12, learning_rate=50.0)
        for row in range(len(bases)):
            only = torch.tensor([row])
            alone = collide(distance.select(only), bases[only], beta=BETA, steps=12, learning_rate=50.0)
            torch.testing.assert_close(together[only], alone, atol=1e-4, rtol=0)

    @pytest.mark.slow
    def test_converged_images_leave_batch(self, nonlinear):
        bases, distance = nonlinear
        batch_sizes = []

        class Counting:
            def __init__(self, inner):
                self.inner = inner

            def __call__(self, images):
                batch_sizes.append(len(images))
                return self.inner(images)

            def select(self, rows):
                return Counting(self.inner.select(rows))

        early = collide(Counting(distance), bases, beta=BETA, steps=300)
        assert sum(batch_sizes) < 150 * len(bases)
        assert sorted(batch_sizes, reverse=True) == batch_sizes
        whole = collide(distance, bases, beta=BETA, steps=300, tolerance=0)
        values = [penalized_objective(distance, images, bases, beta=BETA) for images in (early, whole)]
        assert values[0].mean() <= 1.25 * values[1].mean()

    def test_image_without_accepted_step_has_not_converged(self, nonlinear):
        bases, distance = nonlinear
        images = collide(distance, bases, beta=BETA, steps=60, learning_rate=1e9)
        assert (penalized_objective(distance, images, bases, beta=BETA) < 0.5).all()

    def test_stays_in_range_and_does_not_change_bases(self, nonlinear):
        bases, distance = nonlinear
        before = bases.clone()
        images = collide(distance, bases, beta=1e-6, steps=40)
        assert images.min() >= 0
        assert images.max() <= 1
        assert torch.equal(bases, before)
        assert not images.requires_grad

    def test_works_under_no_grad(self, nonlinear):
        bases, distance = nonlinear
        with torch.no_grad():
            assert not torch.equal(collide(distance, bases, beta=BETA, steps=3), bases)
