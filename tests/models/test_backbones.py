import pytest
import torch
from torch import nn

from lightning_poison.models.backbones import SmallConvNet, checked_features, default_backbone


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 4, 4), (1, 4, 30), (2, 95, 64), (3, 96, 96), (1, 40, 100), (7,)]
)
def test_every_shape_of_sample_gets_features(shape):
    network = default_backbone(shape, 5)
    assert network(torch.zeros(2, *shape)).shape == (2, 5)
    assert all(part.training for part in network.modules())


def test_large_images_get_a_resnet():
    assert type(default_backbone((3, 96, 96), 4)).__name__ == "ResNet"
    assert isinstance(default_backbone((3, 95, 95), 4), SmallConvNet)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_small_images_get_few_weights(shape):
    count = sum(parameter.numel() for parameter in default_backbone(shape, 32).parameters())
    assert 5e4 < count < 3e5


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,), (3, 96, 96)])
def test_the_seed_decides_the_weights_and_the_global_state_stays(shape):
    found = torch.get_rng_state()
    one, two, other = (default_backbone(shape, 4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), found)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("shape", [(), (28, 28), (1, 3, 28), (1, 2, 3, 4)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"at least 4 x 4, or vectors \(D,\), but got shape [\s\S]*`backbone=`"):
        default_backbone(shape, 4)


def test_refuses_no_features():
    with pytest.raises(ValueError, match="`feature_size` to be an integer of at least 1"):
        default_backbone((5,), 0)


def test_features_are_flattened():
    assert checked_features(nn.Identity(), torch.zeros(2, 3, 2, 2), 12).shape == (2, 12)


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
def test_a_backbone_that_returns_something_else(backbone, message):
    with pytest.raises(ValueError, match=message):
        checked_features(backbone, torch.zeros(2, 4), 5)
