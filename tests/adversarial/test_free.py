import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.free import Free
from lightning_poison.data.pixel_range import PixelRange

ADVERSARY = PGD(0.1)


def trained_on(recipe, network, batches):
    """Run steps with their backward passes, and return the inputs and labels of each."""
    seen = []

    def training_step(batch):
        seen.append(batch)
        return F.cross_entropy(network(batch[0]), batch[1])

    for batch in batches:
        recipe.step(batch, training_step).backward()
    return [batch[0].detach() for batch in seen], [batch[1] for batch in seen]


def test_replays_batch_with_perturbation_along_gradient(network, attacked):
    batches = [attacked(ADVERSARY, which=which, index=which) for which in range(6)]
    network.eval()
    seen, _ = trained_on(Free(replays=3), network, batches)
    assert torch.equal(seen[0], batches[0].inputs)
    change = torch.zeros_like(seen[0])
    for step in range(6):
        images = batches[step // 3 * 3].inputs
        torch.testing.assert_close(seen[step], images + change, atol=1e-6, rtol=0)
        leaf = seen[step].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(leaf), batches[0].labels), leaf)
        moved = (change + 0.1 * gradient.sign()).clamp(-0.1, 0.1)
        change = (images + moved).clamp(0, 1) - images
        if step == 2:
            following = batches[3].inputs
            change = (following + change).clamp(0, 1) - following


def test_next_epoch_replays_other_batches(network, attacked):
    batches = [attacked(ADVERSARY, which=index, index=index, epoch=epoch) for epoch in range(2) for index in range(4)]
    seen, _ = trained_on(Free(replays=2), network, batches)
    replayed = [
        next(index for index in range(4) if float((one - batches[index].inputs).abs().max()) <= 0.1001) for one in seen
    ]
    assert replayed == [0, 0, 2, 2, 2, 1, 1, 3]


def test_labels_match_replayed_batch_and_last_batch_may_be_shorter(network, attacked):
    short = (attacked().inputs[:5], attacked().labels[:5])
    batches = [attacked(ADVERSARY, index=0), attacked(ADVERSARY, index=1), attacked(ADVERSARY, index=2, batch=short)]
    batches.append(attacked(ADVERSARY, index=4, which=3))
    seen, labels = trained_on(Free(replays=2), network, batches)
    assert [len(each) for each in seen] == [12, 12, 5, 12]
    assert torch.equal(labels[2], short[1])


def test_radius_is_in_units_of_raw_image(network, attacked):
    pixels = PixelRange(mean=(0.5,), std=(0.25,))
    clean = attacked()
    raw = clean.inputs.clamp(0, 1)
    batches = [attacked(ADVERSARY, index=i, pixels=pixels, batch=(pixels.from_raw(raw), clean.labels)) for i in (0, 1)]
    seen, _ = trained_on(Free(replays=2), network, batches)
    away = pixels.to_raw(seen[1]) - raw
    assert float(away.abs().max()) == pytest.approx(0.1, abs=1e-5)
    assert bool(pixels.contains(seen[1]))


def test_refuses_settings_out_of_range(attacked):
    with pytest.raises(ValueError, match="`replays` to be an integer of at least 2"):
        Free(replays=1)
    with pytest.raises(ValueError, match="'linf' for `Free`"):
        Free().step(attacked(PGD(0.5, norm="l2")), lambda _: None)


def test_refuses_step_without_gradient_in_inputs(network, attacked):
    with pytest.raises(ValueError, match="whose loss has a gradient in the inputs, but got one that has none"):
        Free().step(attacked(ADVERSARY), lambda batch: F.cross_entropy(network(batch[0].detach()), batch[1]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_supports_checkpoints(network, attacked, reentrant):
    def training_step(batch):
        return F.cross_entropy(checkpoint(network, batch[0], use_reentrant=reentrant), batch[1])

    recipe = Free()
    for index in range(2):
        recipe.step(attacked(ADVERSARY, index=index), training_step).backward()


def test_supports_steps_that_return_none(attacked):
    recipe = Free()
    assert [recipe.step(attacked(ADVERSARY, index=index), lambda _: None) for index in range(3)] == [None] * 3
