"""Recipes other than Madry's in a Trainer: the same weights in all modes, and a restored module."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.poison_immunity import PoisonImmunity
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.adversarial.trades import TRADES, prediction_divergence
from lightning_poison.callbacks.adversarial_training import AdversarialTraining

IMMUNITIES = [PoisonImmunity(), PoisonImmunity("feature-collision", layers=["net.3"]), PoisonImmunity("patch")]
ONE_PROCESS = {"strategy": "ddp", "devices": 1, "use_distributed_sampler": False}


class Beside:
    """A custom adversary: a sign step from a point beside the inputs, where a divergence has a gradient."""

    epsilon, steps = 0.1, 1
    offset = 0.05 * torch.tensor([1.0, -1.0]).repeat(1, 1, 6, 3)

    def perturb(self, inputs, loss, **settings):
        leaf = (inputs + self.offset).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        return (leaf + 0.05 * gradient.sign()).clamp(0, 1).detach()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [TRADES(beta=2), Free(replays=3), *IMMUNITIES], ids=repr)
def test_recipes_train_and_restore_the_module(kit, recipe):
    model = kit.Plain()
    before = [value.clone() for value in model.parameters()]
    kit.trainer(AdversarialTraining(kit.PLAIN, recipe=recipe), epochs=2).fit(model, kit.loader())
    assert any(not torch.equal(was, value) for was, value in zip(before, model.parameters(), strict=True))
    kit.assert_restored(model)
    if isinstance(recipe, Free):
        changes = [float((one - model.seen[0]).abs().max()) for one in model.seen[:3]]
        assert changes[0] == 0
        assert all(0 < each <= 0.1 + 1e-6 for each in changes[1:])


MODES = ("compiled", "manual", "named logits", "DDP", "metrics in each step")
RUNS = [(mode, recipe) for mode in MODES for recipe in (TRADES(beta=2), Free(replays=3), *IMMUNITIES)]


@pytest.mark.parametrize(
    ("mode", "recipe"),
    [
        pytest.param(*run, marks=[pytest.mark.slow] * (run[0] == "compiled"))
        for run in RUNS
        if run[0] != "manual" or not isinstance(run[1], TRADES)
    ],
    ids=repr,
)
def test_weights_are_the_same_in_all_modes(kit, mode, recipe):
    adversary = Beside() if isinstance(recipe, TRADES) else kit.PLAIN  # its gradient at clean inputs is rounding noise
    plain, other = kit.Plain(), kit.Manual() if mode == "manual" else kit.Plain()
    kit.trainer(AdversarialTraining(adversary, recipe=recipe), log_every_n_steps=0).fit(plain, kit.loader())
    callback = AdversarialTraining(adversary, recipe=recipe, logits="net" if mode == "named logits" else "")
    options = {"log_every_n_steps": int(mode == "metrics in each step"), **(ONE_PROCESS if mode == "DDP" else {})}
    run = torch.compile(other, backend="aot_eager") if mode == "compiled" else other
    kit.trainer(callback, **options).fit(run, kit.loader())
    kit.assert_same(plain.net, other.net)
    if mode == "compiled":
        del other.training_step  # set by torch.compile
    kit.assert_restored(other)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Madry(), Madry(share=0.5), TRADES()], ids=repr)
def test_metrics_do_not_affect_random_draws(kit, recipe):
    nets = []
    for every in (0, 1):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(PGD(0.1, steps=2), recipe=recipe), log_every_n_steps=every).fit(
            model, kit.loader()
        )
        nets.append(model.net)
    kit.assert_same(*nets)


@pytest.mark.parametrize("recipe", IMMUNITIES, ids=repr)
def test_immunity_poisons_half_of_each_batch(kit, recipe):
    model = kit.Plain()
    kit.trainer(AdversarialTraining(kit.PLAIN, recipe=recipe)).fit(model, kit.loader())
    away = (torch.cat(model.seen) - kit.images_and_labels()[0]).abs().amax((1, 2, 3)).view(kit.STEPS, kit.BATCH)
    assert float(away[:, : kit.BATCH // 2].amin()) > 0.05
    assert float(away[:, kit.BATCH // 2 :].amax()) == 0 or recipe.attack == "patch"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trades_matches_manual_loop(kit, accumulate):
    model, net = kit.Plain(), kit.make_net()
    callback = AdversarialTraining(Beside(), recipe=TRADES(beta=3))
    kit.trainer(callback, accumulate_grad_batches=accumulate, log_every_n_steps=0).fit(model, kit.loader())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = zip(*(part.split(kit.BATCH) for part in kit.images_and_labels()), strict=True)
    for step, (images, labels) in enumerate(batches):
        net.eval()
        aim = net(images).detach()
        changed = Beside().perturb(images, lambda x, aim=aim: prediction_divergence(net(x), aim))
        net.train()
        clean = net(images)
        loss = F.cross_entropy(clean, labels) + 3 * prediction_divergence(net(changed), clean).mean()
        (loss / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    kit.assert_same(model.net, net)


def test_free_matches_manual_loop(kit):
    model, net = kit.Plain(), kit.make_net()
    kit.trainer(AdversarialTraining(kit.PLAIN, recipe=Free(replays=3)), log_every_n_steps=1).fit(model, kit.loader())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, labels = (part.split(kit.BATCH) for part in kit.images_and_labels())
    change = torch.zeros_like(images[0])
    for step in range(kit.STEPS):
        first = step // 3 * 3
        leaf = (images[first] + change).clamp(0, 1).requires_grad_()
        F.cross_entropy(net(leaf), labels[first]).backward()
        moved = (change + 0.1 * leaf.grad.sign()).clamp(-0.1, 0.1)
        change = (images[first] + moved).clamp(0, 1) - images[first]
        optimizer.step()
        optimizer.zero_grad()
    kit.assert_same(model.net, net)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_trades_keeps_skipped_steps(kit):
    class Skipping(kit.Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx else loss

    model = Skipping()
    running = kit.trainer(AdversarialTraining(kit.PLAIN, recipe=TRADES()))
    running.fit(model, kit.loader())
    assert len(model.seen) == kit.STEPS


def test_shorter_last_batch(kit):
    images, labels = kit.images_and_labels(20)
    for recipe in (None, TRADES(), Free(replays=2)):
        model = kit.Plain()
        callback = AdversarialTraining(PGD(0.1, steps=2), recipe=recipe)
        kit.trainer(callback, epochs=2).fit(model, kit.loader(TensorDataset(images, labels)))
        assert {len(seen) for seen in model.seen} == {4, 8}


def test_fallback_after_a_collapse_is_used_in_the_next_training(kit):
    callback = AdversarialTraining(FGSM(0.1))
    callback.load_state_dict({"collapsed": True})
    model, plain = kit.Plain(), kit.Plain()
    kit.trainer(callback).fit(model, kit.loader())
    kit.trainer(AdversarialTraining(PGD(0.1, steps=3))).fit(plain, kit.loader())
    kit.assert_same(model.net, plain.net)
