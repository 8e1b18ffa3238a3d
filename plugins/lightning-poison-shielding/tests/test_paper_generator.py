import pytest
import torch
from torch import nn

from lightning_poison_shielding.paper_generator import PaperGenerator
from lightning_poison_shielding.unet import ResidualUNet

from .conftest import pairs_of


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 40, 24), (3, 224, 224)])
@pytest.mark.parametrize("architecture", [PaperGenerator, ResidualUNet])
def test_perturbations_have_the_shape_of_the_images(architecture, shape):
    assert architecture(6, shape)(pairs_of(shape, count=1)).shape == (1, *shape)


def test_the_layers_are_the_papers():
    network = PaperGenerator(6, (3, 32, 32))
    dense = [(part.in_features, part.out_features) for part in network.modules() if isinstance(part, nn.Linear)]
    assert dense == [(12, 2048), (2048, 768)]
    assert sum(isinstance(part, nn.ConvTranspose2d) for part in network.modules()) == 2


@pytest.mark.parametrize("part", ["protected_features", "shield_features"])
@pytest.mark.parametrize("architecture", [PaperGenerator, ResidualUNet])
def test_the_perturbation_depends_on_both_features(architecture, part):
    network, pairs = architecture(6, (1, 8, 8)), pairs_of((1, 8, 8))
    before = network(pairs)
    getattr(pairs, part).mul_(3)
    assert not torch.allclose(network(pairs), before)
