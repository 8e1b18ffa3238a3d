import pytest
import torch
from torch import nn

from lightning_poison.models.batchnorm import amplified, called_order, layer_abnormality, log_odds_of


def network():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5)
    )
    made[1].running_mean.normal_()
    made[1].running_var.uniform_(0.5, 2)
    return made.eval()


def test_abnormality_is_the_smallest_log_density_of_the_input():
    made, inputs = network(), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found, output = layer_abnormality([made[1], made[5]], inputs, forward=made)
    before = made[0](inputs)
    normals = [
        torch.distributions.Normal(mean, (variance + 1e-5).sqrt())
        for mean, variance in zip(made[1].running_mean, made[1].running_var, strict=True)
    ]
    expected = torch.stack([normal.log_prob(before[:, c]) for c, normal in enumerate(normals)], 1).flatten(1).amin(1)
    assert torch.allclose(found[:, 0], expected, atol=1e-5)
    last = torch.distributions.Normal(0.0, (1 + 1e-5) ** 0.5).log_prob(made[:5](inputs)).amin(1)
    assert torch.allclose(found[:, 1], last, atol=1e-5)
    assert torch.equal(output, made(inputs))


def test_columns_are_in_the_order_of_the_calls():
    made, inputs = network(), torch.randn(4, 1, 8, 8)
    layers = [made[5], made[1]]
    straight, _ = layer_abnormality(layers[::-1], inputs, forward=made)
    assert torch.equal(layer_abnormality(layers, inputs, forward=made)[0], straight)
    assert called_order(layers, inputs, forward=made) == layers[::-1]


def test_a_layer_that_is_called_twice_has_the_minimum():
    layer = nn.BatchNorm1d(1).eval()
    inputs = torch.tensor([[1.0], [-3.0]])
    found, _ = layer_abnormality([layer], inputs, forward=lambda given: layer(2 - layer(given)))
    twice = torch.maximum(inputs.abs(), (2 - layer(inputs)).abs())
    expected = torch.distributions.Normal(0.0, (1 + 1e-5) ** 0.5).log_prob(twice)
    assert torch.allclose(found, expected, atol=1e-5)


def test_amplifying_multiplies_weight_and_bias_and_leaves_them_unchanged():
    made, inputs = network(), torch.randn(4, 1, 8, 8)
    scaled = network()
    scaled[1].weight.data *= 1.5
    scaled[1].bias.data += 0.3
    made[1].bias.data += 0.2
    before, plain = {key: value.clone() for key, value in made.state_dict().items()}, made(inputs)
    with amplified([made[1]], 1.5):
        assert torch.allclose(made(inputs), scaled(inputs), atol=1e-5)
    assert torch.equal(made(inputs), plain)
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_hooks_are_removed_after_an_error():
    made = network()
    with pytest.raises(RuntimeError), amplified([made[1]], 2.0):
        made(torch.zeros(1, 9))
    with pytest.raises(RuntimeError):
        layer_abnormality([made[1]], torch.zeros(1, 9), forward=made)
    assert not made[1]._forward_hooks
    assert not made[1]._forward_pre_hooks


def test_log_odds_are_those_of_the_softmax():
    logits, classes = torch.randn(6, 4), torch.arange(6) % 4
    own = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    assert torch.allclose(log_odds_of(logits, classes), own.logit(), atol=1e-4)
    assert log_odds_of(torch.tensor([[0.0, 150.0]]), torch.tensor([0])).tolist() == [-150.0]


def test_refuses_layers_without_statistics_and_layers_that_are_not_called():
    layer = nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(ValueError, match=r"running statistics.*\n.*track_running_stats"):
        layer_abnormality([layer], torch.zeros(3, 2), forward=layer)
    with pytest.raises(ValueError, match="pass all 3 samples through BatchNorm1d"):
        layer_abnormality([nn.BatchNorm1d(2)], torch.zeros(3, 2), forward=nn.Identity())
