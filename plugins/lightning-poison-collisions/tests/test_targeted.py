from dataclasses import dataclass

import pytest
import torch

from lightning_poison import PixelRange, Threat
from lightning_poison.data import RawImages, labels_of
from lightning_poison_collisions import FrogAttack
from lightning_poison_collisions.targeted import TargetedAttack

from .conftest import images_of


@dataclass(frozen=True, kw_only=True)
class FixedAttack(TargetedAttack):
    """An attack with a given crafting function, group sizes and blocks."""

    name = "fixed"

    craft_block: object
    blocks: tuple = ((0, 1, 2, 3, 4),)
    radius: float | None = None

    def _sizes(self, budget):
        return [3, 2]

    def _blocks(self, sizes):
        return [torch.tensor(block) for block in self.blocks]

    def _radius(self, threat):
        return self.radius

    def _crafter(self, surrogates, threat, classes, generator):
        assert classes == 10
        return self.craft_block

    def _settings(self):
        return {"batch_size": self.batch_size}


class EvenLabels(FrogAttack):
    """An attack whose bases have even labels."""

    def _filter_pool(self, pool, training, labels, pixels):
        return pool[labels[pool] % 2 == 0]


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels):
    """Return a function that crafts with defaults that a test may replace."""

    def run(attack, *, budget=10, epsilon=None, seed=0, threat=None, **replaced):
        arguments = {"dataset": dataset, "surrogates": [surrogate], "holdout": holdout, **replaced}
        data = arguments.pop("dataset")
        threat = threat or Threat(budget, epsilon=epsilon, pixels=pixels)
        return attack.craft(data, threat, generator=torch.Generator().manual_seed(seed), **arguments)

    return run


def fixed(craft_block, **settings):
    defaults = {"base_choice": "random", "placement": "replace", "batch_size": 2}
    return FixedAttack(craft_block=craft_block, **{**defaults, **settings})


class TestCraft:
    def test_blocks_contain_bases_and_targets_of_poison(self, craft, dataset):
        blocks = []

        def keep(maps, block):
            blocks.append(block)
            return block.bases

        poison = craft(fixed(keep, blocks=((0, 1), (2, 3), (4,))), budget=5)
        assert torch.equal(poison.inputs, images_of(dataset, poison.indices))
        assert [block.target_of.tolist() for block in blocks] == [[0, 0], [0, 1], [0]]
        targets = torch.cat([block.targets[block.target_of] for block in blocks])
        assert torch.equal(targets, poison.objective.inputs[torch.tensor([0, 0, 0, 1, 1])])
        assert torch.equal(torch.cat([block.wanted[block.target_of] for block in blocks]), poison.labels)
        assert (poison.attack, poison.settings) == ("fixed", {"batch_size": 2})

    def test_rounds_within_radius(self, craft, dataset):
        poison = craft(fixed(lambda maps, block: block.bases + 0.2, radius=0.1), budget=5)
        torch.testing.assert_close(poison.inputs, (images_of(dataset, poison.indices) + 1 / 16).clamp(max=1))

    def test_rounds_without_radius(self, craft):
        poison = craft(fixed(lambda maps, block: torch.full_like(block.bases, 0.53)), budget=5)
        assert (poison.inputs == 0.5).all()

    def test_refuses_images_outside_pixel_range(self, craft):
        threat = Threat(5, pixels=PixelRange(mean=(0.5,), std=(2.0,)))
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            craft(fixed(lambda maps, block: block.bases), threat=threat)


class TestChoosePairs:
    @pytest.fixture
    def choose(self, dataset, holdout, pixels):
        training, others = (RawImages(data, pixels, seed=0, batch_size=64) for data in (dataset, holdout))

        def run(attack, sizes, *, maps=(), seed=0):
            generator = torch.Generator().manual_seed(seed)
            return attack.choose_pairs(training, others, sizes, maps=maps, pixels=pixels, generator=generator)

        return run

    def test_draws_random_bases_from_generator(self, choose):
        attack = FrogAttack(placement="replace", base_choice="random", candidates=100)
        pairs, repeated, other = (choose(attack, [3, 2], seed=seed) for seed in (0, 0, 1))
        assert torch.equal(pairs.bases, repeated.bases)
        assert not torch.equal(pairs.bases, other.bases)
        assert pairs.target_of.tolist() == [0, 0, 0, 1, 1]
        assert len(pairs.bases.unique()) == 5

    def test_filters_candidates(self, choose, dataset, features):
        pairs = choose(EvenLabels(candidates=300), [1] * 20, maps=[features])
        assert (labels_of(dataset)[pairs.bases] % 2 == 0).all()


def test_refuses_appending_if_threat_forbids_it(holdout):
    threat = Threat(3, may_append=False)
    with pytest.raises(ValueError, match='Set `placement="replace"`'):
        FrogAttack().check_holdout(threat, holdout)
    assert FrogAttack(placement="replace").check_holdout(threat, holdout) is holdout


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"candidates": 0}, "`candidates` to be an integer of at least 1"),
        ({"batch_size": 0}, "`batch_size` to be an integer of at least 1"),
        ({"base_class": -1}, "`base_class` to be an integer of at least 0"),
        ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
        ({"source_class": 1, "base_class": 1}, "another class than `source_class`"),
        ({"placement": "prepend"}, "`placement` to be one of 'append', 'replace'"),
        ({"base_choice": "far"}, "`base_choice` to be one of 'nearest', 'random'"),
    ],
)
def test_refuses_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        FrogAttack(**setting)
