import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.adversarial.pgd import perturb
from lightning_poison.adversarial.trades import TRADES, prediction_divergence


def test_divergence_matches_torch():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 4, generator=generator)
    expected = F.kl_div(other.log_softmax(1), one.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(prediction_divergence(other, one), expected)
    assert prediction_divergence(one, one).abs().max() < 1e-6


@pytest.mark.parametrize("as_mapping", [False, True])
def test_step_matches_manual_loop(network, attacked, as_mapping):
    batch, other = attacked(), copy.deepcopy(network)

    def training_step(clean):
        loss = F.cross_entropy(network(clean[0]), clean[1])
        return {"loss": loss, "more": 1} if as_mapping else loss

    network.train()
    output = TRADES(beta=3).step(batch, training_step)
    loss = output["loss"] if as_mapping else output
    loss.backward()

    images, labels = batch.inputs, batch.labels
    other.eval()
    reference = other(images).detach()
    perturbed = perturb(
        images, lambda x: prediction_divergence(other(x), reference), epsilon=0.1, steps=2, random_start=False
    )
    other.train()
    other.zero_grad()
    clean = other(images)
    expected = F.cross_entropy(clean, labels) + 3 * prediction_divergence(other(perturbed), clean).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (name, found), (_, wanted) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, msg=name)
    for (name, found), (_, wanted) in zip(network.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    assert not as_mapping or output["more"] == 1


def test_refuses_step_without_loss(attacked):
    with pytest.raises(TypeError, match="returns its loss"):
        TRADES().step(attacked(), lambda _: {"preds": 1})


def test_supports_steps_that_return_none(attacked):
    assert TRADES().step(attacked(), lambda _: None) is None


def test_refuses_manual_optimization_before_step(network, attacked):
    network.automatic_optimization = False
    with pytest.raises(ValueError, match=r"automatic optimization for `TRADES`.*\nUse `Madry\(\)`"):
        TRADES().step(attacked(), lambda _: pytest.fail("the step ran"))


def test_refuses_single_step_without_random_start(attacked):
    with pytest.raises(ValueError, match="True for a single step of `TRADES`, but got False"):
        TRADES().step(attacked(FGSM(0.1, random_start=False)), lambda _: pytest.fail("the step ran"))


def test_refuses_beta_of_zero():
    with pytest.raises(ValueError, match="`beta`"):
        TRADES(beta=0)


@pytest.mark.parametrize(
    ("logits", "labels", "found"),
    [
        (lambda x: x.flatten(1).mean(1), torch.rand(12), r"logits.*but got a float32 tensor of shape \(12,\)"),
        (lambda x: x.flatten(1).mean(1, keepdim=True), torch.rand(12, 1), r"logits.*of shape \(12, 1\)"),
        (lambda x: x.flatten(1)[:, :3], torch.rand(12, 3), r"labels.*of shape \(12, 3\)"),
        (lambda x: x.flatten(1)[:, :3], torch.ones(12, 3), r"labels.*of shape \(12, 3\)"),
        (lambda x: x.flatten(1)[:, :3], torch.rand(12), r"labels.*of shape \(12,\)"),
        (lambda x: torch.cat([x, x], 1), torch.zeros(12, 6, 6).long(), r"logits.*of shape \(12, 2, 6, 6\)"),
    ],
    ids=["regression", "one output", "several outputs", "multi-label", "one target", "segmentation"],
)
def test_refuses_other_tasks_than_classification(attacked, logits, labels, found):
    batch = attacked()
    batch = attacked(batch=(batch.inputs, labels), logits=logits)
    with pytest.raises(ValueError, match=rf"{found}.*\n`TRADES` compares .* use `Madry\(\)`"):
        TRADES().step(batch, lambda _: pytest.fail("the step ran"))


def test_accepts_mixed_labels(network, attacked):
    batch = attacked()
    mixed = attacked(batch=(batch.inputs, torch.full((12, 3), 1 / 3)))
    TRADES().step(mixed, lambda changed: F.cross_entropy(network(changed[0]), changed[1]))
