import pytest
import torch
from torch import nn

from lightning_poison import PixelRange, Surrogate
from lightning_poison_collisions.matching import GradientMatch, TrainingGradient, misalignment_and_slope

LABELS = torch.tensor([2, 2, 1, 0, 2])


def gradient_of(model, *, layers=None, pixels=None, classes=3):
    return TrainingGradient(Surrogate(model, ""), pixels or PixelRange(), layers=layers, classes=classes)


@pytest.fixture
def network(generator):
    """A small smooth network in double precision, six inputs, three classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture
def images(generator):
    return torch.rand(5, 1, 2, 3, generator=generator).double()


class TestTrainingGradient:
    def test_a_linear_model_has_a_closed_form(self, images, generator):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
        flat = images.flatten(1)
        errors = model(images).softmax(1) - nn.functional.one_hot(LABELS, 3)
        expected = torch.cat([(errors.T @ flat).flatten(), errors.sum(0)]).detach()
        torch.testing.assert_close(gradient_of(model)(images, LABELS), expected)

    def test_images_are_normalized_as_the_model_expects(self, images):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
        pixels = PixelRange(mean=(0.4,), std=(0.2,))
        found = gradient_of(model, pixels=pixels)(images, LABELS)
        torch.testing.assert_close(found, gradient_of(model)(pixels.from_raw(images), LABELS))

    @pytest.mark.parametrize(("layers", "sizes"), [(None, 53), (["3"], 18), (["1", "3"], 53), (["1"], 35)])
    def test_the_layers_that_count(self, network, images, layers, sizes):
        assert gradient_of(network, layers=layers)(images, LABELS).shape == (sizes,)

    def test_it_leaves_the_model_alone(self, network, images):
        network.requires_grad_(False)
        gradient_of(network)(images, LABELS)
        assert all(value.grad is None and not value.requires_grad for value in network.parameters())

    def test_a_layer_that_does_not_exist(self, network):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, 2, 3\), but got 'head'"):
            gradient_of(network, layers=["head"])

    def test_a_layer_without_parameters(self, network):
        with pytest.raises(ValueError, match="`layers` to be layers with parameters, but got none in the layers '2'"):
            gradient_of(network, layers=["2"])

    def test_too_few_outputs(self, network, images):
        with pytest.raises(ValueError, match=r"logits \(5, C\) for the 4 classes .* but got a float64 tensor of shape"):
            gradient_of(network, classes=4)(images, LABELS)

    def test_no_logits(self, images):
        model = nn.Sequential(nn.Conv2d(1, 3, 1)).double()
        with pytest.raises(ValueError, match=r"model that returns logits \(5, C\)"):
            gradient_of(model)(images, LABELS)


class TestMisalignment:
    def test_known_angles(self):
        across = torch.tensor([0.0, 2.0])
        for gradient, value in (([0.0, 5.0], 0.0), ([3.0, 0.0], 1.0), ([0.0, -1.0], 2.0), ([0.0, 0.0], 1.0)):
            assert float(misalignment_and_slope(torch.tensor(gradient), across)[0]) == pytest.approx(value)

    def test_the_slope_is_that_of_finite_differences(self, generator):
        gradient, goal = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        slope = misalignment_and_slope(gradient, goal)[1]
        for direction in torch.eye(7, dtype=torch.float64):
            ahead, behind = (misalignment_and_slope(gradient + step * direction, goal)[0] for step in (1e-6, -1e-6))
            assert float((ahead - behind) / 2e-6) == pytest.approx(float(slope @ direction), abs=1e-8)

    def test_of_nothing_it_is_flat(self):
        assert misalignment_and_slope(torch.zeros(2), torch.ones(2))[1].tolist() == [0.0, 0.0]


class TestGradientMatch:
    @pytest.fixture
    def match(self, network, generator):
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        return lambda size=8: GradientMatch([gradient_of(network)], target, 2, LABELS, batch_size=size)

    def test_the_poison_that_is_the_target_is_aligned(self, network, generator):
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        match = GradientMatch([gradient_of(network)], target, 2, torch.tensor([2, 2]), batch_size=8)
        assert float(match(target.repeat(2, 1, 1, 1))[0]) == pytest.approx(0, abs=1e-6)

    def test_the_gradient_is_that_of_finite_differences(self, match, images):
        objective = match()
        slopes = objective(images)[1]
        for number in range(3):
            change = torch.zeros_like(images).flatten()
            change[7 * number] = 1e-5
            change = change.view_as(images)
            slope = (objective(images + change)[0] - objective(images - change)[0]) / 2e-5
            assert float(slope) == pytest.approx(float(slopes.flatten()[7 * number]), rel=1e-5, abs=1e-8)

    def test_the_batch_size_changes_nothing(self, match, images):
        (value, slopes), (same_value, same_slopes) = match(8)(images), match(2)(images)
        torch.testing.assert_close(value, same_value)
        torch.testing.assert_close(slopes, same_slopes, atol=1e-7, rtol=1e-4)

    def test_several_surrogates_count_evenly(self, network, images, generator):
        other = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
        target = torch.rand(1, 1, 2, 3, generator=generator).double()
        models = [gradient_of(network), gradient_of(other)]
        alone = [GradientMatch([model], target, 2, LABELS, batch_size=8)(images) for model in models]
        value, slopes = GradientMatch(models, target, 2, LABELS, batch_size=8)(images)
        torch.testing.assert_close(value, (alone[0][0] + alone[1][0]) / 2)
        torch.testing.assert_close(slopes, (alone[0][1] + alone[1][1]) / 2)

    def test_it_works_where_gradients_are_switched_off(self, match, images):
        with torch.no_grad():
            assert match()(images)[1].abs().max() > 0
