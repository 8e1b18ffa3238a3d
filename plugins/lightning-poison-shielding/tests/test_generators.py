import pytest
import torch
from torch import nn

from lightning_poison import Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding.generators import GeneratorTrainer, PaperGenerator, ResidualUNet, draw_super_batch
from lightning_poison_shielding.heads import RidgeHead
from lightning_poison_shielding.losses import ShieldingGoal
from lightning_poison_shielding.shielding_data import read_data

from .conftest import pairs_of

GOAL = ShieldingGoal(protected_class=3, shield_class=9)


@pytest.fixture
def data(dataset, pool, surrogate, pixels, generator):
    settings = {"protected_class": 3, "others": 300, "validate": False, "batch_size": 256}
    return read_data(dataset, Threat(60, pixels=pixels), [surrogate], pool, generator=generator, **settings)


@pytest.fixture
def trainer(data, pixels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResidualUNet(33, (1, 8, 8))
    return GeneratorTrainer(
        network, data, GOAL, torch.ones(300, dtype=torch.bool), budget=60, radius=0.4, pixels=pixels
    )


@pytest.fixture
def bases(dataset):
    return (labels_of(dataset) == 9).nonzero().flatten()


def test_super_batch_has_third_of_each_group(data, bases, generator):
    labels = data.outer.labels
    batch = draw_super_batch(bases, data.protected, labels, GOAL, 90, generator=generator)
    assert len(batch.shields) == len(batch.protected) == 30
    assert set(batch.shields.tolist()) <= set(bases.tolist())
    assert set(batch.protected.tolist()) <= set(data.protected.tolist())
    outer_labels = labels[batch.outer_rows]
    assert [int((outer_labels == one).sum()) for one in (3, 9)] == [30, 30]
    assert len(outer_labels) == 90


def test_super_batch_skips_empty_group(generator):
    labels = torch.tensor([3, 3, 9])
    batch = draw_super_batch(torch.tensor([0]), torch.tensor([1]), labels, GOAL, 6, generator=generator)
    assert sorted(labels[batch.outer_rows].tolist()) == [3, 3, 9, 9]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(40, 1), (1, 80)])
def test_training_lowers_loss_of_retrained_head(trainer, data, bases, generator, steps):
    (head_data,) = data.head_data(torch.ones(300, dtype=torch.bool))
    partners = data.protected[torch.arange(len(bases)) % len(data.protected)]
    head = RidgeHead(head_data, GOAL, weight=60 / len(bases))

    def loss():
        poison = data.maps[0].detached(trainer.poison(bases, partners))
        return head.loss(poison, head_data.outer, head_data.outer_labels)

    before = loss()
    trainer.train(bases, steps, size=90, learning_rate=5e-3, generator=generator)
    assert loss() < 0.6 * before


def test_poison_is_shield_image_plus_bounded_perturbation(data, bases, pixels):
    class ConstantNetwork(nn.Module):
        def forward(self, pairs):
            return torch.full_like(pairs.shields, 100.0)

    trainer = GeneratorTrainer(
        ConstantNetwork(), data, GOAL, torch.ones(300, dtype=torch.bool), budget=9, radius=0.3, pixels=pixels
    )
    found = trainer.poison(bases[:9], data.protected[:9])
    torch.testing.assert_close(found, (data.images(bases[:9]) + 4 / 16).clamp(max=1))


def test_reads_pairs_with_features(trainer, data, bases):
    pairs = trainer.pairs(bases[:5], data.protected[:5])
    assert torch.equal(pairs.shields, data.images(bases[:5]))
    assert torch.equal(pairs.protected, data.pool(data.protected[:5]))
    torch.testing.assert_close(pairs.protected_features, data.maps[0].detached(pairs.protected))
    assert pairs.features.shape == (5, 66)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 40, 24), (3, 224, 224)])
@pytest.mark.parametrize("architecture", [PaperGenerator, ResidualUNet])
def test_perturbations_have_shape_of_images(architecture, shape):
    assert architecture(6, shape)(pairs_of(shape, count=1)).shape == (1, *shape)


def test_layers_match_paper():
    network = PaperGenerator(6, (3, 32, 32))
    dense = [(part.in_features, part.out_features) for part in network.modules() if isinstance(part, nn.Linear)]
    assert dense == [(12, 2048), (2048, 768)]
    assert sum(isinstance(part, nn.ConvTranspose2d) for part in network.modules()) == 2


@pytest.mark.parametrize("part", ["protected_features", "shield_features"])
@pytest.mark.parametrize("architecture", [PaperGenerator, ResidualUNet])
def test_perturbation_depends_on_both_features(architecture, part):
    network, pairs = architecture(6, (1, 8, 8)), pairs_of((1, 8, 8))
    before = network(pairs)
    getattr(pairs, part).mul_(3)
    assert not torch.allclose(network(pairs), before)


@pytest.mark.parametrize("part", ["protected", "shields"])
def test_unet_uses_images_and_paper_generator_only_features(part):
    pairs, other = pairs_of((1, 8, 8)), pairs_of((1, 8, 8))
    getattr(other, part).mul_(0.5)
    for architecture, same in ((PaperGenerator, True), (ResidualUNet, False)):
        network = architecture(6, (1, 8, 8))
        assert torch.allclose(network(pairs), network(other)) == same
