import pytest
import torch

from lightning_poison_shielding.paper_generator import PaperGenerator
from lightning_poison_shielding.unet import ResidualUNet

from .conftest import pairs_of


@pytest.mark.parametrize("part", ["protected", "shields"])
def test_the_unet_sees_both_images_where_the_paper_sees_features_alone(part):
    pairs, other = pairs_of((1, 8, 8)), pairs_of((1, 8, 8))
    getattr(other, part).mul_(0.5)
    for architecture, same in ((PaperGenerator, True), (ResidualUNet, False)):
        network = architecture(6, (1, 8, 8))
        assert torch.allclose(network(pairs), network(other)) == same
