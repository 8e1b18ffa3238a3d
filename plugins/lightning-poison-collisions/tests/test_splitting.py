import pytest
import torch

from lightning_poison_collisions.distance import FeatureDistance
from lightning_poison_collisions.splitting import collide, penalized_objective

BETA = 8e-3


class TestCollide:
    def test_linear_features_have_a_closed_form(self, generator):
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

    def test_the_proximal_step_is_exact_at_the_border_of_the_range(self):
        bases, targets = torch.tensor([[0.9, 0.5]]), torch.tensor([[1.5, 0.5]])
        found = collide(FeatureDistance([lambda images: images], bases, targets), bases, beta=0.1, steps=60)
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.5]]))

    @pytest.mark.parametrize("learning_rate", [0.5, 1e3])
    def test_no_step_raises_the_objective_of_any_image(self, nonlinear, learning_rate):
        bases, distance = nonlinear
        runs = [
            collide(distance, bases, beta=BETA, steps=n, learning_rate=learning_rate)
            for n in (0, 1, 2, 3, 4, 5, 8, 13, 21)
        ]
        values = torch.stack([penalized_objective(distance, run, bases, beta=BETA) for run in runs])
        assert (values.diff(dim=0) <= 1e-6).all()
        assert (values[-1] < 0.5).all()

    def test_the_step_length_is_each_images_own(self, nonlinear):
        bases, distance = nonlinear
        together = collide(distance, bases, beta=BETA, steps=12, learning_rate=50.0)
        for row in range(len(bases)):
            only = torch.tensor([row])
            alone = collide(distance.select(only), bases[only], beta=BETA, steps=12, learning_rate=50.0)
            torch.testing.assert_close(together[only], alone, atol=1e-4, rtol=0)

    def test_images_that_have_arrived_leave_the_batch(self, nonlinear):
        bases, distance = nonlinear
        seen = []

        class Counting:
            def __init__(self, inner):
                self.inner = inner

            def __call__(self, images):
                seen.append(len(images))
                return self.inner(images)

            def select(self, rows):
                return Counting(self.inner.select(rows))

        early = collide(Counting(distance), bases, beta=BETA, steps=300)
        assert sum(seen) < 150 * len(bases)
        assert sorted(seen, reverse=True) == seen
        whole = collide(distance, bases, beta=BETA, steps=300, tolerance=0)
        values = [penalized_objective(distance, images, bases, beta=BETA) for images in (early, whole)]
        assert values[0].mean() <= 1.25 * values[1].mean()

    def test_an_image_that_has_not_moved_yet_has_not_arrived(self, nonlinear):
        bases, distance = nonlinear
        images = collide(distance, bases, beta=BETA, steps=60, learning_rate=1e9)
        assert (penalized_objective(distance, images, bases, beta=BETA) < 0.5).all()

    def test_the_range_is_kept_and_the_bases_are_not_changed(self, nonlinear):
        bases, distance = nonlinear
        before = bases.clone()
        images = collide(distance, bases, beta=1e-6, steps=40)
        assert images.min() >= 0
        assert images.max() <= 1
        assert torch.equal(bases, before)
        assert not images.requires_grad

    def test_it_works_where_gradients_are_switched_off(self, nonlinear):
        bases, distance = nonlinear
        with torch.no_grad():
            assert not torch.equal(collide(distance, bases, beta=BETA, steps=3), bases)
