import pytest
import torch
from torch import nn

from lightning_poison.models.backbones import SmallConvNet, Standardization, compute_features, default_backbone
from lightning_poison.models.residual_network import ResidualConvNet


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 4, 4), (1, 4, 30), (2, 95, 64), (3, 96, 96), (1, 40, 100), (7,)]
)
def test_features_for_every_sample_shape(shape):
    network = default_backbone(shape, 5)
    assert network(torch.zeros(2, *shape)).shape == (2, 5)
    assert all(part.training for part in network.modules())


def test_large_images_use_resnet():
    assert type(default_backbone((3, 96, 96), 4)).__name__ == "ResNet"
    assert isinstance(default_backbone((3, 95, 95), 4), ResidualConvNet)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 23, 40), (4, 32, 32)])
def test_images_that_are_no_small_photos_get_small_network(shape):
    assert isinstance(default_backbone(shape, 4), SmallConvNet)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_small_images_use_few_weights(shape):
    count = sum(parameter.numel() for parameter in default_backbone(shape, 32).parameters())
    assert 5e4 < count < 3e5


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 8), (5,), (3, 96, 96)])
def test_weights_depend_on_seed_only(shape):
    before = torch.get_rng_state()
    one, two, other = (default_backbone(shape, 4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("shape", [(), (28, 28), (1, 3, 28), (1, 2, 3, 4)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"at least 4 x 4, or vectors \(D,\), but got shape [\s\S]*`backbone=`"):
        default_backbone(shape, 4)


def test_refuses_feature_size_of_zero():
    with pytest.raises(ValueError, match="`feature_size` to be an integer of at least 1"):
        default_backbone((5,), 0)


def test_features_are_flattened():
    assert compute_features(nn.Identity(), torch.zeros(2, 3, 2, 2), 12).shape == (2, 12)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Linear(4, 3), r"features \(2, 5\), but got a float32 tensor of shape \(2, 3\)\.\nSet `feature_size=3`"),
        (lambda inputs: (inputs, inputs), "but got tuple"),
        (lambda inputs: inputs.sum(), r"but got a float32 tensor of shape \(\)"),
        (lambda inputs: inputs.flatten(), r"but got a float32 tensor of shape \(8,\)"),
        (lambda inputs: torch.zeros(1, 5), r"of shape \(1, 5\)"),
    ],
)
def test_refuses_backbone_with_wrong_output(backbone, message):
    with pytest.raises(ValueError, match=message):
        compute_features(backbone, torch.zeros(2, 4), 5)


def test_standardization_is_measured_over_blocks_and_limited():
    points = torch.randn(700, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e4, 1.0, 0.0]) + 7
    standardization = Standardization(3)
    assert torch.equal(standardization(points), points)
    standardization.measure(points.split(256))
    result = standardization(points)
    torch.testing.assert_close(result.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(result.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert standardization(torch.tensor([[1e9, 0.0, 1e9]])).abs().max() == 20


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((8, 8, 3), r"Put the channels first: .* `image.permute\(2, 0, 1\)`. Or pass a network"),
        ((1, 64), r"flatten signals, `signal.flatten\(\)`. Or pass a network"),
        ((1, 4, 8, 8), "Pass a network for samples of this shape to the scorer: `backbone=`"),
    ],
)
def test_other_shapes_get_a_way_out(shape, way):
    with pytest.raises(ValueError, match=way):
        default_backbone(shape, 8)
