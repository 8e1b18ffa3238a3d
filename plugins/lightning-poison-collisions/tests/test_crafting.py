import pytest
import torch

from lightning_poison import PixelRange, Threat
from lightning_poison_collisions import FrogAttack
from lightning_poison_collisions.crafting import craft_on_targets

ATTACK = FrogAttack(base_choice="random", placement="replace", batch_size=2)


@pytest.fixture
def craft(dataset, holdout, surrogate, pixels, generator):
    def run(move, *, blocks, sizes=(3, 2), epsilon=None, pixels=pixels):
        return craft_on_targets(
            ATTACK,
            dataset,
            Threat(5, pixels=pixels),
            surrogates=[surrogate],
            holdout=holdout,
            generator=generator,
            sizes=list(sizes),
            blocks=[torch.tensor(block) for block in blocks],
            epsilon=epsilon,
            move=move,
        )

    return run


def test_blocks_hold_the_bases_and_the_targets_of_the_poison(craft, dataset):
    seen = []

    def stay(maps, block):
        seen.append(block)
        return block.bases

    poison = craft(stay, blocks=[[0, 1], [2, 3], [4]])
    assert torch.equal(poison.inputs, torch.stack([dataset[index][0] for index in poison.indices.tolist()]))
    assert [block.target_of.tolist() for block in seen] == [[0, 0], [0, 1], [0]]
    targets = torch.cat([block.targets[block.target_of] for block in seen])
    assert torch.equal(targets, poison.objective.inputs[torch.tensor([0, 0, 0, 1, 1])])
    assert torch.equal(torch.cat([block.wanted[block.target_of] for block in seen]), poison.labels)
    assert (poison.attack, poison.settings["batch_size"]) == ("poison-frog", 2)


def test_what_is_moved_is_rounded_within_the_radius(craft, dataset):
    poison = craft(lambda maps, block: block.bases + 0.2, blocks=[range(5)], epsilon=0.1)
    bases = torch.stack([dataset[index][0] for index in poison.indices.tolist()])
    torch.testing.assert_close(poison.inputs, (bases + 1 / 16).clamp(max=1))


def test_without_a_radius_it_is_rounded_alone(craft):
    poison = craft(lambda maps, block: torch.full_like(block.bases, 0.53), blocks=[range(5)])
    assert (poison.inputs == 0.5).all()


def test_images_outside_the_pixel_range(craft):
    with pytest.raises(ValueError, match=r"lie in \[0, 1\] once"):
        craft(lambda maps, block: block.bases, blocks=[range(5)], pixels=PixelRange(mean=(0.5,), std=(2.0,)))
