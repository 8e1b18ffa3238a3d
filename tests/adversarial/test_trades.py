import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.adversarial.pgd import perturb
from lightning_poison.adversarial.trades import TRADES, reading_divergence


def test_the_divergence_is_torch_s():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 4, generator=generator)
    expected = F.kl_div(other.log_softmax(1), one.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(reading_divergence(other, one), expected)
    assert reading_divergence(one, one).abs().max() < 1e-6


@pytest.mark.parametrize("as_mapping", [False, True])
def test_the_step_is_that_of_a_loop_by_hand(network, attacked, as_mapping):
    batch, other = attacked(), copy.deepcopy(network)

    def own(clean):
        loss = F.cross_entropy(network(clean[0]), clean[1])
        return {"loss": loss, "more": 1} if as_mapping else loss

    network.train()
    output = TRADES(beta=3).step(batch, own)
    loss = output["loss"] if as_mapping else output
    loss.backward()

    images, labels = batch.inputs, batch.labels
    other.eval()
    aim = other(images).detach()
    changed = perturb(images, lambda x: reading_divergence(other(x), aim), epsilon=0.1, steps=2, random_start=False)
    other.train()
    other.zero_grad()
    clean = other(images)
    expected = F.cross_entropy(clean, labels) + 3 * reading_divergence(other(changed), clean).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (name, found), (_, wanted) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, msg=name)
    for (name, found), (_, wanted) in zip(network.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    assert not as_mapping or output["more"] == 1


def test_a_step_without_a_loss_is_refused(attacked):
    with pytest.raises(TypeError, match="returns its loss"):
        TRADES().step(attacked(), lambda _: {"preds": 1})


def test_a_step_that_skips_its_batch_goes_on_doing_so(attacked):
    assert TRADES().step(attacked(), lambda _: None) is None


def test_a_module_that_optimizes_by_itself_is_refused_before_its_step(network, attacked):
    network.automatic_optimization = False
    with pytest.raises(ValueError, match=r"automatic optimization for `TRADES`.*\nUse `Madry\(\)`"):
        TRADES().step(attacked(), lambda _: pytest.fail("the step ran"))


def test_a_single_step_needs_a_random_start(attacked):
    with pytest.raises(ValueError, match="True for a single step of `TRADES`, but got False"):
        TRADES().step(attacked(FGSM(0.1, random_start=False)), lambda _: pytest.fail("the step ran"))


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="`beta`"):
        TRADES(beta=0)
