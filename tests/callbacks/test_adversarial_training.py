"""Adversarial training: the weights of a loop by hand, however Lightning runs the module; nothing is left behind."""

from collections import namedtuple
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_poison.adversarial.batch import sample_cross_entropy
from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.guard import CollapseGuard
from lightning_poison.adversarial.immunity import PoisonImmunity
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.adversaries import FGSM, PGD
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.functional.pgd_against import perturb_against
from lightning_poison.pixels import PixelRange
from lightning_poison.samples import SampleSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")

STEPS, BATCH = 6, 8
PLAIN = PGD(0.1, steps=2, random_start=False)
Pair = namedtuple("Pair", "image label")


def images_and_labels(count=STEPS * BATCH):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = 0.5 * torch.rand(count, 1, 6, 6, generator=generator) + 0.2 * labels[:, None, None, None]
    return images, labels


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 3)
    )


class Steps:
    """A user's module, for either namespace."""

    path = SampleSpec("0", "1")

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.seen = getattr(self, "seen", [])
        self.seen.append(self.path.inputs_in(batch).detach().clone())
        return F.cross_entropy(self(self.path.inputs_in(batch)), self.path.labels_in(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plain(Steps, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()


class PlainOfTheOther(Steps, pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()


class Evaluated(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


class Manual(Plain):
    """Optimizes by itself, with an optimizer for each part."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.SGD(self.net[1:].parameters(), lr=0.1)]


class Checkpointed(Plain):
    reentrant = False

    def forward(self, images):
        hidden = checkpoint(self.net[:3], images, use_reentrant=self.reentrant)
        return self.net[3:](hidden)


class Reentrant(Checkpointed):
    """Takes inputs that have a gradient, as reentrant checkpoints must."""

    reentrant = True

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen = getattr(self, "seen", [])
        self.seen.append(images.detach().clone())
        return F.cross_entropy(self(images.detach().clone().requires_grad_()), labels)


class Nested(Dataset):
    def __init__(self, shape):
        self.images, self.labels = images_and_labels()
        self.shape = shape

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.shape(self.images[index], self.labels[index])


def loader(data=None, **options):
    return DataLoader(TensorDataset(*images_and_labels()) if data is None else data, batch_size=BATCH, **options)


def trainer(*callbacks, namespace=pl, epochs=1, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"enable_checkpointing": False, "accelerator": "cpu", "max_epochs": epochs, "log_every_n_steps": 2}
    return namespace.Trainer(callbacks=list(callbacks), **{**quiet, **defaults, **options})


def by_hand(adversary=PLAIN, *, accumulate=1, epochs=1, net=None, images=None, pixels=None, **options):
    """Return a network that was trained by hand, and the batches that it saw."""
    net = net or make_net()
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
    clean, labels = images_and_labels() if images is None else (images, images_and_labels()[1])
    net.train()
    for step in range(epochs * STEPS):
        place = slice(step % STEPS * BATCH, (step % STEPS + 1) * BATCH)
        changed = perturb_against(
            net, clean[place], labels[place], epsilon=adversary.epsilon, steps=adversary.steps,
            step_size=adversary.step_size, random_start=adversary.random_start, pixels=pixels, **options,
        )  # fmt: skip
        seen.append(changed)
        (F.cross_entropy(net(changed.clone().requires_grad_()), labels[place]) / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return net, seen


def assert_same(net, other, **tolerance):
    for (name, found), (_, expected) in zip(net.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Forget what other tests have compiled: dynamo counts the variants of one function over a whole process."""
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("module", "namespace", "options", "accumulate"),
    [
        (Plain, pl, {}, 1),
        (PlainOfTheOther, pytorch_lightning, {}, 1),
        (Plain, pl, {"accumulate_grad_batches": 2}, 2),
        (Manual, pl, {}, 1),
    ],
    ids=["plain", "the other namespace", "accumulation", "manual, two optimizers"],
)
def test_the_weights_are_those_of_a_loop_by_hand(module, namespace, options, accumulate):
    model = module()
    trainer(AdversarialTraining(PLAIN), namespace=namespace, **options).fit(model, loader())
    expected, seen = by_hand(accumulate=accumulate)
    assert_same(model.net, expected)
    assert all(torch.equal(found, wanted) for found, wanted in zip(model.seen, seen, strict=True))
    assert not any(name.startswith("_lightning_poison") for name in model.__dict__)
    assert "training_step" not in model.__dict__
    assert model.training


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_gradient_checkpointing(kind):
    model = kind()
    trainer(AdversarialTraining(PLAIN)).fit(model, loader())
    expected, seen = by_hand(net=kind())
    assert_same(model, expected)
    assert all(torch.equal(found, wanted) for found, wanted in zip(model.seen, seen, strict=True))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        (lambda image, label: (image, label), None),
        (lambda image, label: [image, label], None),
        (Pair, None),
        (lambda image, label: {"image": image, "label": label}, None),
        (
            lambda image, label: {"views": [image, 2 * image], "meta": {"y": label, "id": 3}},
            SampleSpec("views.0", "meta.y"),
        ),
    ],
    ids=["tuple", "list", "named tuple", "dict", "nested"],
)
def test_batches_of_any_structure(shape, spec):
    model = Plain()
    model.path = spec or SampleSpec.detect(shape(torch.zeros(2, 1, 6, 6), torch.zeros(2).long()), batched=True)
    trainer(AdversarialTraining(PLAIN, sample=spec)).fit(model, loader(Nested(shape)))
    assert_same(model.net, by_hand()[0])


def test_batches_that_the_loader_keeps_are_not_changed():
    images, labels = images_and_labels()
    batches = [(images[start : start + BATCH], labels[start : start + BATCH]) for start in range(0, 48, BATCH)]
    before = [one.clone() for one, _ in batches]
    trainer(AdversarialTraining(PLAIN)).fit(Plain(), DataLoader(batches, batch_size=None))
    assert all(torch.equal(one, was) for (one, _), was in zip(batches, before, strict=True))


def test_the_radius_is_that_of_the_raw_image():
    images, labels = images_and_labels()
    pixels = PixelRange(mean=(0.4,), std=(0.2,))
    model = Plain()
    trainer(AdversarialTraining(PLAIN, pixels=pixels)).fit(
        model, loader(TensorDataset(pixels.from_raw(images), labels))
    )
    expected, seen = by_hand(images=pixels.from_raw(images), pixels=pixels)
    assert_same(model.net, expected)
    assert float((pixels.to_raw(seen[0]) - images[:BATCH]).abs().max()) == pytest.approx(0.1, abs=1e-5)


def test_a_random_start_is_another_one_for_each_batch_and_the_same_for_a_seed():
    runs = []
    for seed in (0, 0, 1):
        model = Plain()
        trainer(AdversarialTraining(PGD(0.1, steps=1), seed=seed), epochs=2).fit(model, loader())
        runs.append(model)
    assert_same(runs[0].net, runs[1].net, rtol=0, atol=0)
    assert not torch.equal(runs[0].seen[0], runs[2].seen[0])
    changes = [seen - images_and_labels()[0][:BATCH] for seen in (runs[0].seen[0], runs[0].seen[STEPS])]
    assert not torch.equal(*changes)


def test_channels_last_stays_so():
    model = Plain().to(memory_format=torch.channels_last)
    images, labels = images_and_labels()
    data = [(images[:BATCH].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), labels[:BATCH])]
    model.net[0] = nn.Conv2d(3, 4, 3)
    trainer(AdversarialTraining(PLAIN)).fit(model, DataLoader(data, batch_size=None))
    assert model.seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16(precision):
    model = Plain()
    trainer(AdversarialTraining(PLAIN), precision=precision).fit(model, loader())
    images = images_and_labels()[0].to(model.seen[0].dtype)
    away = (torch.cat(model.seen) - images).float().abs()
    assert model.seen[0].dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert 0.09 < float(away.max()) < 0.105
    assert float(away.mean()) > 0.05


def test_a_compiled_module():
    model = Plain()
    compiled = torch.compile(model, backend="eager")
    trainer(AdversarialTraining(PLAIN)).fit(compiled, loader())
    assert_same(model.net, by_hand()[0])


def test_weights_that_are_averaged():
    model, averaging = Plain(), pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    trainer(AdversarialTraining(PLAIN), averaging, epochs=3).fit(model, loader())
    assert len(model.seen) >= 3 * STEPS
    assert "training_step" not in model.__dict__


def test_named_logits_and_another_loss():
    model, asked = Plain(), []
    model.forward = lambda *_: pytest.fail("the module itself was asked")
    model.training_step = lambda batch, batch_idx: F.cross_entropy(model.net(batch[0]), batch[1])

    def margin(logits, labels):
        asked.append(logits.shape)
        own = logits.gather(1, labels[:, None])[:, 0]
        return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own

    trainer(AdversarialTraining(PLAIN, logits="net", loss=margin), log_every_n_steps=100).fit(model, loader())
    assert_same(model.net, by_hand(loss=lambda logits, labels: margin(logits, labels))[0])
    assert set(asked) == {(BATCH, 3)}


@pytest.mark.parametrize("kind", ["dict", "object", "function"])
def test_logits_inside_of_an_output(kind):
    class Wrapping(Plain):
        def forward(self, images):
            logits = self.net(images)
            return {"logits": logits} if kind == "dict" else SimpleNamespace(logits=logits, other=(logits, 3))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    model = Wrapping()
    logits = (lambda module, images: module(images).other[0]) if kind == "function" else ""
    trainer(AdversarialTraining(PLAIN, logits=logits)).fit(model, loader())
    assert_same(model.net, by_hand()[0])


def test_a_part_of_each_batch():
    model = Plain()
    trainer(AdversarialTraining(PLAIN, recipe=Madry(share=0.5))).fit(model, loader())
    away = (model.seen[0] - images_and_labels()[0][:BATCH]).abs().amax((1, 2, 3))
    assert (away > 0.05).tolist() == [True] * 4 + [False] * 4


def test_the_radius_grows_over_the_warm_up():
    model = Plain()
    trainer(AdversarialTraining(PLAIN, warm_up_epochs=1.5), epochs=2).fit(model, loader())
    images = images_and_labels()[0].split(BATCH) * 2
    away = [float((seen - image).abs().max()) for seen, image in zip(model.seen, images, strict=True)]
    assert away == pytest.approx([0.1 * min(1, (step + 1) / 9) for step in range(12)], abs=1e-5)


def test_clean_and_robust_figures_are_logged_and_leave_the_training_alone():
    logged, silent = Plain(), Plain()
    running = trainer(AdversarialTraining(PGD(0.1, steps=2)), log_every_n_steps=1)
    running.fit(logged, loader())
    figures = {name: float(value) for name, value in running.callback_metrics.items()}
    assert figures["train/robust_loss"] > figures["train/clean_loss"]
    assert figures["train/robust_accuracy"] <= figures["train/clean_accuracy"]
    trainer(AdversarialTraining(PGD(0.1, steps=2)), log_every_n_steps=100).fit(silent, loader())
    assert_same(logged.net, silent.net, rtol=0, atol=0)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_and_test_under_attack(inference_mode):
    model = Evaluated()
    callback = AdversarialTraining(PLAIN, validation=PGD(0.3, steps=3, random_start=False), validation_batches=2)
    running = trainer(callback, inference_mode=inference_mode)
    running.fit(model, loader(), loader())
    found = {name: float(value) for name, value in running.callback_metrics.items()}
    assert found["val/robust_loss"] > found["val/clean_loss"]
    images, labels = images_and_labels()
    model.eval()
    losses = []
    for start in (0, BATCH):
        place = slice(start, start + BATCH)
        changed = perturb_against(model, images[place], labels[place], epsilon=0.3, steps=3, random_start=False)
        losses.append(float(F.cross_entropy(model(changed), labels[place]).detach()))
    assert found["val/robust_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    (tested,) = running.test(model, loader(), verbose=False)
    assert tested["test/robust_loss"] == pytest.approx(found["val/robust_loss"], rel=1e-4)


def test_everything_is_put_back_after_an_error():
    class Failing(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ArithmeticError("stop")
            return super().training_step(batch, batch_idx)

    model = Failing()
    with pytest.raises(ArithmeticError, match="stop"):
        trainer(AdversarialTraining(PLAIN)).fit(model, loader())
    assert "training_step" not in model.__dict__
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ((torch.zeros(8, 1, 6, 6, dtype=torch.uint8), torch.zeros(8).long()), {}, ValueError, "floating-point batch"),
        ((torch.full((8, 1, 6, 6), 255.0), torch.zeros(8).long()), {}, ValueError, r"in \[0, 1\], the pixel range"),
        (
            (torch.zeros(8, 1, 6, 6), torch.zeros(8).long()),
            {"sample": SampleSpec("image", "1")},
            ValueError,
            "a part at `image`",
        ),
        ((torch.zeros(8, 1, 6, 6), torch.zeros(8).long()), {"logits": "net.2"}, ValueError, r"`logits` to be \(8, C\)"),
        ((torch.zeros(8, 1, 6, 6), torch.zeros(8).long()), {"logits": "detached"}, ValueError, "differentiable in"),
    ],
    ids=["integers", "grey levels", "no such part", "no logits", "no gradient"],
)
def test_batches_that_cannot_be_attacked_are_refused_before_the_first_step(data, options, error, message):
    class Detached(Plain):
        def detached(self, images):
            return self.net(images.detach())

        def training_step(self, batch, batch_idx):
            pytest.fail("the step ran")

    with pytest.raises(error, match=message):
        trainer(AdversarialTraining(PLAIN, **options)).fit(Detached(), DataLoader([data], batch_size=None))


def test_a_module_without_forward():
    class Headless(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(TypeError, match="`logits=` takes the name"):
        trainer(AdversarialTraining(PLAIN)).fit(Headless(), loader())
    model = Headless()
    trainer(AdversarialTraining(PLAIN, logits="net")).fit(model, loader())
    assert_same(model.net, by_hand()[0])


def test_labels_that_are_missing():
    with pytest.raises(ValueError, match="one integer label"):
        trainer(AdversarialTraining(PLAIN)).fit(Plain(), loader(TensorDataset(images_and_labels()[0])))


def test_fgsm_in_two_trainings_one_after_the_other():
    model, callback = Plain(), AdversarialTraining(FGSM(0.1, random_start=False))
    for _ in range(2):
        trainer(callback).fit(model, loader())
    adversary = FGSM(0.1, random_start=False).as_pgd()
    assert_same(model.net, by_hand(adversary, epochs=2)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up_epochs": -1}, "`warm_up_epochs`"),
        ({"validation_batches": 0}, "`validation_batches`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(PLAIN, **options)


def test_cross_entropy_of_mixed_labels():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mixed = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(sample_cross_entropy(logits, mixed), -logits.log_softmax(1).mean(1))


class TestCollapse:
    def collapsing(self, monkeypatch, right):
        """Let the probe count what is given, as if training had collapsed."""
        monkeypatch.setattr(CollapseGuard, "probe", lambda _, attacked: torch.tensor(right))

    def test_training_falls_back_to_pgd_and_says_so(self, monkeypatch):
        self.collapsing(monkeypatch, [100, 2])
        model, callback = Plain(), AdversarialTraining(FGSM(0.1, random_start=False))
        with pytest.warns(UserWarning, match=r"collapsed before epoch 1: .*100 withstand the single step and 2 with"):
            trainer(callback, epochs=2).fit(model, loader())
        assert callback.state_dict() == {"collapsed": True}
        assert torch.equal(model.seen[STEPS - 1], by_hand(FGSM(0.1, random_start=False).as_pgd())[1][-1])
        clean, labels = (part[:BATCH] for part in images_and_labels())
        net, changed = by_hand(FGSM(0.1, random_start=False).as_pgd())[0], model.seen[STEPS]
        single = perturb_against(net, clean, labels, epsilon=0.1, steps=1, step_size=0.1, random_start=False)
        assert not torch.equal(changed, single)
        assert float((changed - clean).abs().max()) <= 0.1 + 1e-6

    def test_a_sound_training_goes_on(self, monkeypatch):
        self.collapsing(monkeypatch, [100, 90])
        model = Plain()
        trainer(AdversarialTraining(FGSM(0.1, random_start=False)), epochs=2).fit(model, loader())
        assert_same(model.net, by_hand(FGSM(0.1, random_start=False).as_pgd(), epochs=2)[0])

    def test_several_steps_and_no_guard_are_not_watched(self, monkeypatch):
        monkeypatch.setattr(CollapseGuard, "probe", lambda *_: pytest.fail("it was probed"))
        trainer(AdversarialTraining(FGSM(0.1), guard=None), epochs=2).fit(Plain(), loader())
        trainer(AdversarialTraining(PLAIN), epochs=2).fit(Plain(), loader())

    def test_a_resumed_run_remembers_it(self, monkeypatch, tmp_path):
        self.collapsing(monkeypatch, [100, 2])
        first = trainer(AdversarialTraining(FGSM(0.1)), epochs=2)
        with pytest.warns(UserWarning, match="collapsed"):
            first.fit(Plain(), loader())
        first.save_checkpoint(tmp_path / "last.ckpt")
        monkeypatch.setattr(CollapseGuard, "probe", lambda *_: pytest.fail("it was probed"))
        callback = AdversarialTraining(FGSM(0.1))
        trainer(callback, epochs=3).fit(Plain(), loader(), ckpt_path=tmp_path / "last.ckpt")
        assert callback.state_dict() == {"collapsed": True}


IMMUNITIES = [PoisonImmunity(), PoisonImmunity("feature-collision", layers=["net.3"]), PoisonImmunity("patch")]


@pytest.mark.parametrize("recipe", [TRADES(beta=2), Free(replays=3), *IMMUNITIES], ids=repr)
def test_other_recipes_train_and_leave_nothing_behind(recipe):
    model = Plain()
    before = [value.clone() for value in model.parameters()]
    trainer(AdversarialTraining(PLAIN, recipe=recipe), epochs=2).fit(model, loader())
    assert any(not torch.equal(was, value) for was, value in zip(before, model.parameters(), strict=True))
    assert "training_step" not in model.__dict__
    if isinstance(recipe, Free):
        held = [float((one - model.seen[0]).abs().max()) for one in model.seen[:3]]
        assert held[0] == 0
        assert all(0 < each <= 0.1 + 1e-6 for each in held[1:])


@pytest.mark.parametrize("recipe", IMMUNITIES, ids=repr)
def test_immunity_is_the_same_however_the_module_is_run(recipe):
    """By itself, compiled, under manual optimization, and with logits of another name."""
    runs = []
    for model, options in ((Plain(), {}), (Plain(), {}), (Manual(), {}), (Plain(), {"logits": "net"})):
        asked = torch.compile(model, backend="aot_eager") if len(runs) == 1 else model
        trainer(AdversarialTraining(PLAIN, recipe=recipe, **options)).fit(asked, loader())
        runs.append(model)
    for other in runs[1:]:
        assert_same(runs[0].net, other.net)
    away = (torch.cat(runs[0].seen) - images_and_labels()[0]).abs().amax((1, 2, 3)).view(STEPS, BATCH)
    assert float(away[:, : BATCH // 2].amin()) > 0.05
    assert float(away[:, BATCH // 2 :].amax()) == 0 or recipe.attack == "patch"


def test_manual_optimization_has_no_loss_for_trades():
    model = Manual()
    with pytest.raises(ValueError, match="a Manual that optimizes by itself"):
        trainer(AdversarialTraining(PLAIN, recipe=TRADES())).fit(model, loader())
    assert_same(model.net, make_net())


def test_a_strategy_that_shards_the_module_is_refused():
    class FSDPStrategy(SingleDeviceStrategy):
        pass

    with pytest.raises(ValueError, match="keeps the parameters whole on each rank, but got FSDPStrategy"):
        trainer(AdversarialTraining(PLAIN), strategy=FSDPStrategy("cpu"), accelerator="auto").fit(Plain(), loader())


def test_two_in_one_trainer_work_one_behind_the_other():
    model = Plain()
    callbacks = [AdversarialTraining(PLAIN, name=name) for name in ("first", "second")]
    trainer(*callbacks).fit(model, loader())
    away = (model.seen[0] - images_and_labels()[0][:BATCH]).abs()
    assert 0.1 < float(away.max()) <= 0.2 + 1e-6
    assert "training_step" not in model.__dict__


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
class TestYAML:
    def built(self, **arguments):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--callback", type=pl.Callback)
        told = {"class_path": "lightning_poison.AdversarialTraining", "init_args": arguments}
        return parser.instantiate_classes(parser.parse_object({"callback": told})).callback

    def test_every_part_can_be_written(self):
        callback = self.built(
            adversary={"class_path": "lightning_poison.PGD", "init_args": {"epsilon": 0.03, "steps": 3}},
            recipe={"class_path": "lightning_poison.TRADES", "init_args": {"beta": 2}},
            validation={"class_path": "lightning_poison.FGSM", "init_args": {"epsilon": 0.1}},
            pixels={"mean": [0.5], "std": [0.2]},
            logits="net",
            guard={"samples": 64},
            warm_up_epochs=1.5,
        )
        assert callback.settings.adversary == PGD(0.03, steps=3)
        assert callback.settings.recipe.beta == 2
        assert callback.settings.pixels == PixelRange(mean=(0.5,), std=(0.2,))
        assert callback.settings.logits == "net"
        assert callback.settings.guard == CollapseGuard(samples=64)
        assert callback.validation == FGSM(0.1)

    def test_poison_of_its_own_making(self):
        adversary = {"class_path": "lightning_poison.PGD", "init_args": {"epsilon": 0.03}}
        settings = {"attack": "feature-collision", "share": 0.25, "layers": ["net.3"]}
        recipe = {"class_path": "lightning_poison.PoisonImmunity", "init_args": settings}
        built = self.built(adversary=adversary, recipe=recipe).settings.recipe
        assert repr(built) == repr(PoisonImmunity("feature-collision", share=0.25, layers=["net.3"]))
        with pytest.raises(ArgumentError, match="gradient-matching"):
            self.built(adversary=adversary, recipe={**recipe, "init_args": {"attack": "frogs"}})

    def test_a_misspelt_argument_is_named(self):
        with pytest.raises(ArgumentError, match="'stepz' is not accepted"):
            self.built(adversary={"class_path": "lightning_poison.PGD", "init_args": {"epsilon": 0.03, "stepz": 3}})


def test_the_user_s_step_stays_compiled_and_the_attack_is_not():
    graphs = []

    def counting(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    model = Plain()
    trainer(AdversarialTraining(PLAIN)).fit(torch.compile(model, backend=counting), loader())
    assert any("cross_entropy" in graph for graph in graphs)
    assert not any("sign" in graph for graph in graphs)
