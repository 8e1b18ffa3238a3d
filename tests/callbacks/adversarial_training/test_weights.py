"""The weights equal those of a manual loop in all modes of Lightning."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.data.pixel_range import PixelRange

ONE_PROCESS = {"strategy": "ddp", "devices": 1, "use_distributed_sampler": False}


@pytest.mark.parametrize(
    ("module", "namespace", "options", "accumulate"),
    [
        ("Plain", pl, {}, 1),
        ("OtherPlain", pytorch_lightning, {}, 1),
        ("Plain", pl, {"accumulate_grad_batches": 2}, 2),
        ("Manual", pl, {}, 1),
        ("Plain", pl, ONE_PROCESS, 1),
        ("OtherPlain", pytorch_lightning, ONE_PROCESS, 1),
        ("Plain", pl, {**ONE_PROCESS, "accumulate_grad_batches": 2}, 2),
        ("Manual", pl, ONE_PROCESS, 1),
        ("Plain", pl, {"overfit_batches": 6}, 1),
        ("Plain", pl, {"sync_batchnorm": True}, 1),
    ],
    ids=[
        "plain", "other namespace", "accumulation", "manual, two optimizers", "DDP", "DDP, other namespace",
        "DDP, accumulation", "DDP, manual, two optimizers", "overfit_batches", "synchronized batch norm",
    ],
)  # fmt: skip
def test_weights_match_manual_loop(kit, module, namespace, options, accumulate):
    model = getattr(kit, module)()
    kit.trainer(AdversarialTraining(kit.PLAIN), namespace=namespace, **options).fit(model, kit.loader())
    expected, seen = kit.by_hand(accumulate=accumulate)
    kit.assert_same(model.net, expected)
    torch.testing.assert_close(model.seen, seen)
    kit.assert_restored(model)


@pytest.mark.parametrize("attacked", [True, False])
def test_static_graph_with_accumulation_fails_in_torch(kit, attacked):
    """It fails without the attack too: the first backward pass must be reduced, and accumulation does not reduce it."""
    callbacks = [AdversarialTraining(kit.PLAIN)] if attacked else []
    options = {**ONE_PROCESS, "strategy": DDPStrategy(static_graph=True), "accumulate_grad_batches": 2}
    with pytest.raises(RuntimeError, match="expect_autograd_hooks_ INTERNAL ASSERT FAILED"):
        kit.trainer(*callbacks, **options).fit(kit.Plain(), kit.loader())


def test_static_graph(kit):
    model = kit.Plain()
    options = {**ONE_PROCESS, "strategy": DDPStrategy(static_graph=True)}
    kit.trainer(AdversarialTraining(kit.PLAIN), **options).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand()[0])


@pytest.mark.slow
def test_fgsm_in_two_consecutive_trainings(kit):
    model, callback = kit.Plain(), AdversarialTraining(FGSM(0.1, random_start=False))
    for _ in range(2):
        kit.trainer(callback).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand(adversary=FGSM(0.1, random_start=False).as_pgd(), epochs=2)[0])


def test_step_with_the_batch_alone(kit):
    class Short(kit.Plain):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    model = Short()
    kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand()[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("options", [{}, ONE_PROCESS], ids=["alone", "DDP"])
@pytest.mark.parametrize("kind", ["Checkpointed", "Reentrant"])
def test_gradient_checkpointing(kit, kind, options, accumulate):
    """With accumulation, a gradient that the attack left in the parameters would affect the step."""
    model = getattr(kit, kind)()
    kit.trainer(AdversarialTraining(kit.PLAIN), accumulate_grad_batches=accumulate, **options).fit(model, kit.loader())
    expected, seen = kit.by_hand(kit.Checkpointed(), accumulate=accumulate)  # a checkpoint runs batch norm twice
    kit.assert_same(model.net, expected.net)
    torch.testing.assert_close(model.seen, seen)


@pytest.mark.slow
@pytest.mark.parametrize("data_too", [True, False])
def test_channels_last(kit, data_too):
    model, net = kit.Plain(), kit.make_net()
    model.net[0], net[0] = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    model.net[0].load_state_dict(net[0].state_dict())
    model.to(memory_format=torch.channels_last)
    images, labels = kit.images_and_labels()
    images = images.expand(-1, 3, -1, -1).contiguous()
    layout = torch.channels_last if data_too else torch.contiguous_format
    batches = [
        (one.contiguous(memory_format=layout), few)
        for one, few in zip(images.split(kit.BATCH), labels.split(kit.BATCH), strict=True)
    ]
    kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, DataLoader(batches, batch_size=None))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for one, few in batches:
        changed = kit.attacked_by_hand(net, one.contiguous(), few)
        F.cross_entropy(net(changed), few).backward()
        optimizer.step()
        optimizer.zero_grad()
    kit.assert_same(model.net, net)
    assert all(each.is_contiguous(memory_format=layout) for each in model.seen)
    model.seen.clear()
    for recipe in (Madry(share=0.4), Free(replays=2)):
        callback = AdversarialTraining(PGD(0.1, steps=2), recipe=recipe)
        kit.trainer(callback).fit(model, DataLoader(batches, batch_size=None))
    assert all(each.is_contiguous(memory_format=layout) for each in model.seen)


def mixed_by_hand(kit, dtype, scaler):
    """Train and attack in a manual loop under autocast."""
    net = kit.make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for images, labels in zip(*(part.split(kit.BATCH) for part in kit.images_and_labels()), strict=True):
        with torch.autocast("cpu", dtype):
            changed = kit.attacked_by_hand(net, images, labels)
            loss = F.cross_entropy(net(changed), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return net


@pytest.mark.parametrize("every", [1, 100], ids=["metrics in each step", "no metrics"])
def test_bfloat16_autocast(kit, every):
    """Autocast caches cast weights; weights cast during the attack or the metrics must not be used in training."""
    model = kit.Plain()
    kit.trainer(AdversarialTraining(kit.PLAIN), precision="bf16-mixed", log_every_n_steps=every).fit(
        model, kit.loader()
    )
    kit.assert_same(model.net, mixed_by_hand(kit, torch.bfloat16, torch.amp.GradScaler("cpu", enabled=False)))


def test_float16_autocast_and_a_scaler(kit):
    """Small input gradients are 0 in float16 unless they are scaled; the remaining signs must be the same."""
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8) for _ in range(2)]
    model, plugin = kit.Plain(), MixedPrecision("16-mixed", "cpu", scaler=scalers[0])
    kit.trainer(AdversarialTraining(kit.PLAIN), plugins=[plugin], log_every_n_steps=1).fit(model, kit.loader())
    kit.assert_same(model.net, mixed_by_hand(kit, torch.float16, scalers[1]), atol=1e-4, rtol=1e-3)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**8


def test_bfloat16_true(kit):
    model = kit.Plain()
    kit.trainer(AdversarialTraining(kit.PLAIN), precision="bf16-true").fit(model, kit.loader())
    net = kit.make_net().bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pixels, labels = kit.images_and_labels()
    for one, few, seen in zip(pixels.split(kit.BATCH), labels.split(kit.BATCH), model.seen, strict=True):
        assert seen.dtype == torch.bfloat16
        away = (seen - one.bfloat16()).float().abs()
        assert 0.09 < float(away.max()) < 0.105
        F.cross_entropy(net.train()(seen), few).backward()
        optimizer.step()
        optimizer.zero_grad()
    kit.assert_same(model.net, net)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "options"), [("eager", {}), ("aot_eager", {}), ("eager", {"fullgraph": True}), ("eager", ONE_PROCESS)]
)
def test_compiled_module(kit, backend, options):
    class Compilable(kit.Plain):
        def training_step(self, batch, batch_idx):  # appending to a list would break the graph
            return F.cross_entropy(self(batch[0]), batch[1])

    model = Compilable()
    whole = {"fullgraph": True} if options.pop("fullgraph", False) else {}
    compiled = torch.compile(model, backend=backend, **whole)
    kit.trainer(AdversarialTraining(kit.PLAIN), **options).fit(compiled, kit.loader())
    kit.assert_same(model.net, kit.by_hand()[0])


@pytest.mark.slow
def test_compiled_submodule(kit):
    model = kit.Plain()
    model.net.compile(backend="eager", fullgraph=True)
    kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand()[0])


@pytest.mark.slow
def test_step_stays_compiled_without_the_attack(kit):
    graphs = []

    def counting(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    kit.trainer(AdversarialTraining(kit.PLAIN)).fit(torch.compile(kit.Plain(), backend=counting), kit.loader())
    assert any("cross_entropy" in graph for graph in graphs)
    assert not any("sign" in graph for graph in graphs)


class TestBatchNormAndDropout:
    """The module is in evaluation mode during the attack, and the mode of each submodule is restored."""

    def test_attack_runs_in_evaluation_mode_and_the_step_does_not(self, kit):
        modes = []

        class Watched(kit.Plain):
            def forward(self, images):
                modes.append([part.training for part in self.modules()])
                return super().forward(images)

            def training_step(self, batch, batch_idx):
                modes.append("step")
                return super().training_step(batch, batch_idx)

        model = Watched()
        kit.trainer(AdversarialTraining(kit.PLAIN), log_every_n_steps=0).fit(model, kit.loader())
        steps = [place for place, mode in enumerate(modes) if mode == "step"]
        assert len(steps) == kit.STEPS
        for place, mode in enumerate(modes):
            if mode != "step":
                assert set(mode) == {place - 1 in steps}

    def test_frozen_parts_stay_frozen(self, kit):
        class Frozen(kit.Plain):
            def on_train_epoch_start(self):
                self.net[1].eval()

            def training_step(self, batch, batch_idx):
                assert [part.training for part in self.net] == [True, False, True, True, True, True]
                return super().training_step(batch, batch_idx)

        model = Frozen()
        model.net[0].weight.requires_grad = False
        before = {name: value.clone() for name, value in model.net.state_dict().items()}
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader())
        same = {name for name, value in model.net.state_dict().items() if torch.equal(value, before[name])}
        assert same == {"0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert not model.net[0].weight.requires_grad

    def test_batch_norm_counts_batches_once(self, kit):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(PGD(0.1, steps=5)), log_every_n_steps=1).fit(model, kit.loader())
        assert int(model.net[1].num_batches_tracked) == kit.STEPS

    def test_random_state_of_the_step_is_unchanged(self, kit):
        """The attack has its own generator, so the step has the random state of a training without it."""
        states = []
        for callbacks in ([], [AdversarialTraining(PGD(0.1, steps=2))]):
            model = kit.Plain()
            model.net[4].p = 0.5
            own, states = model.training_step, [*states, []]

            def training_step(batch, batch_idx, own=own, found=states[-1]):
                found.append(torch.get_rng_state())
                return own(batch, batch_idx)

            model.training_step = training_step
            with torch.random.fork_rng():
                torch.manual_seed(7)
                kit.trainer(*callbacks, log_every_n_steps=1).fit(model, kit.loader())
        assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
        assert not torch.equal(states[0][0], states[0][1])

    def test_dropout_is_active_in_the_step(self, kit):
        class Seeded(kit.Plain):
            def training_step(self, batch, batch_idx):
                torch.manual_seed(batch_idx)
                return super().training_step(batch, batch_idx)

        model, net = Seeded(), kit.make_net()
        model.net[4].p = net[4].p = 0.5
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        images, labels = (part.split(kit.BATCH) for part in kit.images_and_labels())
        for step in range(kit.STEPS):
            changed = kit.attacked_by_hand(net, images[step], labels[step])
            torch.manual_seed(step)
            F.cross_entropy(net(changed), labels[step]).backward()
            optimizer.step()
            optimizer.zero_grad()
        kit.assert_same(model.net, net)


class TestAveragedWeights:
    @pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
    @pytest.mark.parametrize("decay", [None, 0.9], ids=["equal", "exponential"])
    def test_averages_match_manual_loop(self, kit, decay, first):
        averaging = WeightAveraging() if decay is None else EMAWeightAveraging(decay=decay)
        callbacks = [AdversarialTraining(kit.PLAIN), averaging][:: 1 if first else -1]
        model, net = kit.Plain(), kit.make_net()
        options = {} if decay is None else {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
        average = AveragedModel(net, use_buffers=True, **options)
        kit.by_hand(net, epochs=2, after=average.update_parameters)
        kit.trainer(*callbacks, epochs=2).fit(model, kit.loader())
        kit.assert_same(model.net, average.module)
        assert not torch.allclose(model.net[0].weight, net[0].weight)
        kit.assert_restored(model)

    def test_validation_metrics_are_those_of_the_average(self, kit):
        model = kit.Evaluated()
        running = kit.trainer(AdversarialTraining(kit.PLAIN, validation=kit.PLAIN), EMAWeightAveraging(decay=0.9))
        running.fit(model, kit.loader(), kit.loader())
        assert running.callback_metrics["val/clean_loss"] == pytest.approx(float(running.callback_metrics["val_loss"]))

    @pytest.mark.slow
    def test_stochastic_weight_averaging(self, kit):
        """Lightning averages the weights at the start of epochs; its extra epoch for batch norm is not tested."""

        def unnormalized():
            net = kit.make_net()
            net[1] = nn.Identity()
            return net

        model, averaging = kit.Plain(), StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2)
        model.net = unnormalized()
        kit.trainer(AdversarialTraining(kit.PLAIN), averaging, epochs=3).fit(model, kit.loader())
        ends = [dict(kit.by_hand(unnormalized(), epochs=epochs)[0].named_parameters()) for epochs in (1, 2)]
        for name, value in model.net.named_parameters():
            torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2)
        kit.assert_restored(model)


def test_radius_applies_to_the_raw_image(kit):
    images, labels = kit.images_and_labels()
    pixels, model = PixelRange(mean=(0.4,), std=(0.2,)), kit.Plain()

    class Normalizing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = kit.make_net()

        def forward(self, raw):
            return self.net(pixels.from_raw(raw))

    data = TensorDataset(pixels.from_raw(images), labels)
    kit.trainer(AdversarialTraining(kit.PLAIN, pixels=pixels)).fit(model, kit.loader(data))
    expected, seen = kit.by_hand(Normalizing())
    kit.assert_same(model.net, expected.net, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pixels.to_raw(model.seen[0]), seen[0])
    assert float((seen[0] - images[: kit.BATCH]).abs().max()) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.slow
def test_optimizer_with_several_evaluations_per_step(kit):
    """L-BFGS runs the step several times; the attack starts from the same point each time."""

    class Closed(kit.Plain):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)

    model = Closed()
    adversary = PGD(0.1, 1e-6, steps=1)  # the result is the start
    kit.trainer(AdversarialTraining(adversary)).fit(model, kit.loader())
    assert len(model.seen) > kit.STEPS
    starts = torch.stack([seen - kit.images_and_labels()[0][: kit.BATCH] for seen in model.seen[:3]])
    torch.testing.assert_close(starts[0], starts[1], atol=1e-5, rtol=0)
