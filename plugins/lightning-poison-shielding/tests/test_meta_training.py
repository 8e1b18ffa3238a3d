import pytest
import torch
from torch import nn

from lightning_poison import Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding.heads import RidgeHead
from lightning_poison_shielding.losses import Roles
from lightning_poison_shielding.meta_training import MetaTrainer, draw_super_batch
from lightning_poison_shielding.scene import look
from lightning_poison_shielding.unet import ResidualUNet

ROLES = Roles(protected_class=3, shield_class=9)


@pytest.fixture
def scene(dataset, pool, surrogate, pixels, generator):
    settings = {"protected_class": 3, "others": 300, "validate": False, "batch_size": 256}
    return look(dataset, Threat(60, pixels=pixels), [surrogate], pool, generator=generator, **settings)


@pytest.fixture
def trainer(scene, pixels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResidualUNet(33, (1, 8, 8))
    return MetaTrainer(network, scene, ROLES, torch.ones(300, dtype=torch.bool), budget=60, radius=0.4, pixels=pixels)


@pytest.fixture
def bases(dataset):
    return (labels_of(dataset) == 9).nonzero().flatten()


def test_a_super_batch_has_a_third_of_each_group(scene, bases, generator):
    labels = scene.outer.labels
    batch = draw_super_batch(bases, scene.protected, labels, ROLES, 90, generator=generator)
    assert len(batch.shields) == len(batch.protected) == 30
    assert set(batch.shields.tolist()) <= set(bases.tolist())
    assert set(batch.protected.tolist()) <= set(scene.protected.tolist())
    measured = labels[batch.measured]
    assert [int((measured == one).sum()) for one in (3, 9)] == [30, 30]
    assert len(measured) == 90


def test_a_group_that_is_empty_is_left_out(generator):
    labels = torch.tensor([3, 3, 9])
    batch = draw_super_batch(torch.tensor([0]), torch.tensor([1]), labels, ROLES, 6, generator=generator)
    assert sorted(labels[batch.measured].tolist()) == [3, 3, 9, 9]


@pytest.mark.parametrize("steps", [(40, 1), (1, 80)])
def test_training_lowers_the_loss_after_training_the_head(trainer, scene, bases, generator, steps):
    (known,) = scene.known(torch.ones(300, dtype=torch.bool))
    partners = scene.protected[torch.arange(len(bases)) % len(scene.protected)]
    head = RidgeHead(known, ROLES, weight=60 / len(bases))

    def loss():
        poison = scene.maps[0].known(trainer.poison(bases, partners))
        return head.loss(poison, known.outer, known.outer_labels)

    before = loss()
    trainer.train(bases, steps, size=90, learning_rate=5e-3, generator=generator)
    assert loss() < 0.6 * before


def test_poison_is_the_shield_image_and_a_bounded_perturbation(scene, bases, pixels):
    class Upwards(nn.Module):
        def forward(self, pairs):
            return torch.full_like(pairs.shields, 100.0)

    trainer = MetaTrainer(
        Upwards(), scene, ROLES, torch.ones(300, dtype=torch.bool), budget=9, radius=0.3, pixels=pixels
    )
    found = trainer.poison(bases[:9], scene.protected[:9])
    torch.testing.assert_close(found, (scene.images(bases[:9]) + 4 / 16).clamp(max=1))


def test_pairs_are_read_side_by_side(trainer, scene, bases):
    pairs = trainer.pairs(bases[:5], scene.protected[:5])
    assert torch.equal(pairs.shields, scene.images(bases[:5]))
    assert torch.equal(pairs.protected, scene.pool(scene.protected[:5]))
    torch.testing.assert_close(pairs.protected_features, scene.maps[0].known(pairs.protected))
    assert pairs.features.shape == (5, 66)
