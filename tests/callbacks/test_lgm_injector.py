"""The injector turns any module into an LGM module and restores everything but the head."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.step_wrappers import StepWrappers
from lightning_poison.callbacks.lgm_injector import LGMInjector
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm_head import LGMHead

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]

LOGGED = {"train/lgm_classification", "train/lgm_likelihood"}


def make_net():
    layers = [("hidden", nn.Linear(64, 128)), ("relu", nn.ReLU()), ("features", nn.Linear(128, 32))]
    net = nn.Sequential()
    for name, layer in [*layers, ("fc", nn.Linear(32, 10))]:
        net.add_module(name, layer)
    return net


class Steps:
    """A user module for either namespace and any place where layers are built."""

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self(images).argmax(dim=1) == labels).float().mean())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Plain(Steps, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()


class OtherPlain(Steps, pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()


class BuiltInSetup(Steps, pl.LightningModule):
    def setup(self, stage):
        self.net = make_net()


class BuiltInConfigureModel(Steps, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = make_net()


class Dictionary(Plain):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "kept": 7}


@pytest.fixture
def loader(mislabeled_digits):
    return DataLoader(TensorDataset(mislabeled_digits[0][:128], mislabeled_digits[1][:128]), batch_size=32)


def make_trainer(*callbacks, namespace=pl, epochs=1, **settings):
    return namespace.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def assert_restored(model):
    assert not {"training_step", "setup", "configure_model"} & set(vars(model))
    assert not [name for name in vars(model) if "wrappers" in name]
    if isinstance(head := dict(model.named_modules()).get("net.fc"), LGMHead):
        assert not head._forward_pre_hooks


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"precision": "bf16-mixed"}, id="bf16"),
        pytest.param({"strategy": "ddp", "devices": 1}, id="ddp"),
    ],
)
def test_separates_flipped_digits(mislabeled_digits, settings):
    images, labels, truth, test_images, test_labels = mislabeled_digits
    model = Plain()
    trainer = make_trainer(LGMInjector("net.fc"), epochs=10, **settings)
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True))
    assert_restored(model)
    assert set(trainer.callback_metrics) == LOGGED
    model.eval()
    with torch.no_grad():
        features = model.net[:-1](images)
        suspicion = -model.net.fc.log_likelihood(features, labels)
        accuracy = (model(test_images).argmax(dim=1) == test_labels).float().mean()
    assert roc_auc_score(labels != truth, suspicion) > 0.97
    assert accuracy > 0.92


def make_body(kind):
    """Return a feature extractor for images of digits, and the number of its features."""
    norm = kind in ("batch norm", "flat")
    layers = [nn.Unflatten(1, (1, 8, 8))]
    for inputs, outputs in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
    layers.append(nn.Flatten())
    if kind == "flat":
        return nn.Sequential(*layers), 128
    layers += [nn.Linear(128, 10 if kind == "narrow" else 64), nn.ReLU(), nn.Dropout(0.3)]
    if kind == "narrow":
        return nn.Sequential(*layers[:-1]), 10
    return nn.Sequential(*layers), 64


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4),
}


def accuracy_with(mislabeled_digits, kind, optimizer, *callbacks):
    """Train on correct labels, and return the accuracy on test images."""
    images, _, truth, test_images, test_labels = mislabeled_digits
    mean, deviation = images.mean(), images.std()

    class Ordinary(Plain):
        def __init__(self):
            super().__init__()
            body, size = make_body(kind)
            self.net = nn.Sequential(body, nn.Linear(size, 10))

        def configure_optimizers(self):
            return OPTIMIZERS[optimizer](self.parameters())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Ordinary()
        data = TensorDataset((images - mean) / deviation, truth)
        make_trainer(*callbacks, epochs=6).fit(model, DataLoader(data, batch_size=64, shuffle=True))
    model.eval()
    with torch.no_grad():
        return (model((test_images - mean) / deviation).argmax(dim=1) == test_labels).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["batch norm", "plain", "narrow", "flat"])
def test_ordinary_networks_learn_as_with_a_linear_layer(mislabeled_digits, kind, optimizer):
    """Features behind a ReLU, dropout, batch norm, few features and weight decay on the means."""
    plain = accuracy_with(mislabeled_digits, kind, optimizer)
    assert plain > 0.9
    assert accuracy_with(mislabeled_digits, kind, optimizer, LGMInjector("net.1")) > plain - 0.025


@pytest.mark.parametrize(("namespace", "module_class"), [(pl, Plain), (pytorch_lightning, OtherPlain)])
def test_both_namespaces(loader, namespace, module_class):
    model = module_class()
    trainer = make_trainer(LGMInjector("net.fc"), namespace=namespace)
    trainer.fit(model, loader)
    assert isinstance(model.net.fc, LGMHead)
    assert set(trainer.callback_metrics) == LOGGED
    assert_restored(model)


@pytest.mark.parametrize("module_class", [Plain, Dictionary, BuiltInSetup, BuiltInConfigureModel])
def test_step_matches_manual_computation(mislabeled_digits, module_class):
    """One step of SGD from the same start with L_cls with margin + λ L_lkd, computed here."""
    images, labels = mislabeled_digits[0][:32], mislabeled_digits[1][:32]

    class WithSGD(module_class):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = WithSGD()
    torch.manual_seed(3)
    if module_class in (Plain, Dictionary):
        model.net = make_net()
    injector = LGMInjector("net.fc", margin=0.5, likelihood_weight=0.3, seed=1, normalize=False)
    make_trainer(injector).fit(model, DataLoader(TensorDataset(images, labels), batch_size=32))

    torch.manual_seed(3)
    net = make_net()
    means = nn.Parameter(torch.randn(10, 32, generator=torch.Generator().manual_seed(1)))
    optimizer = torch.optim.SGD([*net[:-1].parameters(), means], lr=0.01)
    distances = 0.5 * (net[:-1](images).unsqueeze(1) - means).square().sum(dim=2)
    own = F.one_hot(labels, 10)
    loss = F.cross_entropy(-distances * (1 + 0.5 * own), labels) + 0.3 * (distances * own).sum(dim=1).mean()
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(model.net.fc.means, means)
    torch.testing.assert_close(model.net.features.weight, net.features.weight)
    assert_restored(model)


def test_normalized_step_matches_manual_computation(mislabeled_digits):
    """Two steps of SGD of the injected head equal two steps on the head's own loss."""
    images, labels = mislabeled_digits[0][:64], mislabeled_digits[1][:64]

    class WithSGD(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(3)
    model = WithSGD()
    injector = LGMInjector("net.fc", margin=0.5, likelihood_weight=0.3, seed=1)
    make_trainer(injector).fit(model, DataLoader(TensorDataset(images, labels), batch_size=32))

    torch.manual_seed(3)
    net = make_net()
    head = LGMHead(32, 10, margin=0.5, likelihood_weight=0.3, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([*net[:-1].parameters(), head.means], lr=0.01)
    for batch, own in zip(images.split(32), labels.split(32), strict=True):
        optimizer.zero_grad()
        features = net[:-1](batch)
        classification = F.cross_entropy(head(features, own), own)
        (classification + 0.3 * head.normalization.ramp * head.likelihood_loss(features, own)).backward()
        optimizer.step()
    torch.testing.assert_close(model.net.fc.means, head.means)
    torch.testing.assert_close(model.net.features.weight, net.features.weight)
    assert torch.equal(model.net.fc.normalization.mean, head.normalization.mean)


def test_head_has_sizes_dtype_and_mode_of_the_layer():
    model = Plain().double().eval()
    injector = LGMInjector("net.fc", margin=0.5, likelihood_weight=0.1, covariance="diagonal", seed=1)
    assert injector.apply(model) is model
    head = model.net.fc
    assert (head.feature_size, head.num_classes, head.margin, head.likelihood_weight) == (32, 10, 0.5, 0.1)
    assert (head.means.dtype, head.log_variances.dtype, head.training) == (torch.float64, torch.float64, False)
    assert torch.equal(LGMInjector("net.fc", seed=1).apply(Plain()).net.fc.means.double(), head.means)


def test_existing_head_is_kept():
    model = LGMInjector("net.fc").apply(Plain())
    head = model.net.fc
    LGMInjector("net.fc", margin=0.2, likelihood_weight=0.1).apply(model)
    assert model.net.fc is head
    assert (head.margin, head.likelihood_weight) == (0.2, 0.1)
    with pytest.raises(ValueError, match="Write `covariance='identity'`"):
        LGMInjector("net.fc", covariance="diagonal").apply(model)
    with pytest.raises(ValueError, match="Write `normalize=True`"):
        LGMInjector("net.fc", normalize=False).apply(model)


def test_global_random_state_is_unchanged():
    model = Plain()
    before = torch.get_rng_state()
    LGMInjector("net.fc").apply(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_uses_plain_logits(mislabeled_digits, loader):
    model = Plain()
    trainer = make_trainer(LGMInjector("net.fc", margin=50.0))
    trainer.fit(model, loader)
    (result,) = trainer.test(model, DataLoader(TensorDataset(*mislabeled_digits[3:]), batch_size=397), verbose=False)
    with torch.no_grad():
        features = model.net.fc.normalized(model.net[:-1](mislabeled_digits[3]))
        distances = torch.cdist(features, model.net.fc.means)
    assert result["accuracy"] == pytest.approx((distances.argmin(dim=1) == mislabeled_digits[4]).float().mean().item())


def test_resumes_and_tests_from_a_checkpoint(mislabeled_digits, loader, tmp_path):
    trainer = make_trainer(LGMInjector("net.fc"), epochs=2)
    trainer.fit(straight := Plain(), loader)
    torch.manual_seed(0)
    first = make_trainer(LGMInjector("net.fc"), epochs=1)
    first.fit(Plain(), loader)
    first.save_checkpoint(tmp_path / "one.ckpt")
    second = make_trainer(LGMInjector("net.fc", seed=5), epochs=2)
    second.fit(resumed := Plain(), loader, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert second.global_step == trainer.global_step == 8

    tested = Plain()
    test_loader = DataLoader(TensorDataset(*mislabeled_digits[3:]), batch_size=397)
    make_trainer(LGMInjector("net.fc", seed=6)).test(
        tested, test_loader, ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=True
    )
    loaded = LGMInjector("net.fc").apply(Plain())
    loaded.load_state_dict(torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(loaded.net.fc.means, tested.net.fc.means)
    assert resumed.net.fc.means.shape == straight.net.fc.means.shape


def test_resumed_run_equals_an_uninterrupted_one(loader, tmp_path):
    states = []
    for legs in ((2,), (1, 2)):
        torch.manual_seed(0)
        path = None
        for epochs in legs:
            model = Plain()
            trainer = make_trainer(LGMInjector("net.fc"), epochs=epochs)
            trainer.fit(model, loader, ckpt_path=path, weights_only=True)
            trainer.save_checkpoint(path := tmp_path / f"{legs}.ckpt")
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_second_fit_keeps_the_head(loader):
    model, injector = Plain(), LGMInjector("net.fc")
    make_trainer(injector).fit(model, loader)
    head = model.net.fc
    make_trainer(injector).fit(model, loader)
    assert model.net.fc is head
    assert_restored(model)


def test_other_batch_structures(mislabeled_digits):
    class Nested(Plain):
        def training_step(self, batch):
            return F.cross_entropy(self(batch["views"][0]), batch["meta"]["digit"])

    images, labels = mislabeled_digits[0][:64], mislabeled_digits[1][:64]
    samples = [{"views": [x, -x], "meta": {"digit": y, "id": -1}} for x, y in zip(images, labels, strict=True)]
    loader = DataLoader(samples, batch_size=32)
    injector = LGMInjector("net.fc", sample=SampleSpec("views.0", "meta.digit"))
    trainer = make_trainer(injector)
    trainer.fit(Nested(), loader)
    assert set(trainer.callback_metrics) == LOGGED
    with pytest.raises(ValueError, match="Name the two by their paths"):
        make_trainer(LGMInjector("net.fc")).fit(Nested(), loader)


def test_margin_uses_the_labels_of_the_step(mislabeled_digits, loader):
    """Other wrappers may replace the batch; the labels are those of the new batch."""

    class Doubling(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            StepWrappers.add(pl_module, "doubling", self.wrap)

        def teardown(self, trainer, pl_module, stage):
            StepWrappers.remove(pl_module, "doubling")

        @staticmethod
        def wrap(call_next, batch, *args, **kwargs):
            return call_next([torch.cat([part, part]) for part in batch], *args, **kwargs)

    for callbacks in ([Doubling(), LGMInjector("net.fc")], [LGMInjector("net.fc"), Doubling()]):
        model = Plain()
        make_trainer(*callbacks).fit(model, loader)
        assert_restored(model)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_skipped_step_stays_skipped(loader):
    """Lightning warns of a skipped step only once in a process, so the warning itself is not tested."""

    class Skipping(Plain):
        def __init__(self):
            super().__init__()
            self.updates = []

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx else None

        def on_before_optimizer_step(self, optimizer):
            self.updates.append(self.net.hidden.weight.grad is not None)

    model = Skipping()
    make_trainer(LGMInjector("net.fc")).fit(model, loader)
    assert model.updates == [False, True, True, True]


@pytest.mark.parametrize("where", ["training_step", "configure_optimizers", "setup", "on_fit_start"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("base", [Plain, BuiltInConfigureModel])
def test_restores_everything_after_an_exception(loader, where, error, base):
    def failing(self, *args, **kwargs):
        raise error("stop")

    model = type("Failing", (base,), {where: failing})()
    with pytest.raises((error, SystemExit)):
        make_trainer(LGMInjector("net.fc")).fit(model, loader)
    assert_restored(model)


def test_refuses_an_unknown_layer(loader):
    message = (
        r"Expected `layer` to be the name of a linear layer, but got 'fc'\."
        r"\nThe linear layers of the module are: 'net.hidden', 'net.features', 'net.fc'\."
    )
    for model in (Plain(), BuiltInSetup(), BuiltInConfigureModel()):
        with pytest.raises(ValueError, match=message):
            make_trainer(LGMInjector("fc")).fit(model, loader)
        assert_restored(model)
    with pytest.raises(ValueError, match="The module has no linear layer"):
        LGMInjector("fc").apply(nn.Sequential(nn.ReLU()))


def test_refuses_a_layer_of_another_type(loader):
    with pytest.raises(TypeError, match=r"but got 'net.relu', a ReLU\.\nThe linear layers of the module are"):
        make_trainer(LGMInjector("net.relu")).fit(Plain(), loader)


def test_refuses_a_step_that_bypasses_the_head(loader):
    class Around(Plain):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net[:-1](batch[0]), batch[1])

    model = Around()
    with pytest.raises(RuntimeError, match=r"Expected `training_step` to call `net\.fc`, but"):
        make_trainer(LGMInjector("net.fc")).fit(model, loader)
    assert_restored(model)


def test_refuses_a_step_that_splits_the_batch(loader):
    class Splitting(Plain):
        def training_step(self, batch, batch_idx):
            return self(batch[0][:5]).sum()

    with pytest.raises(ValueError, match=r"features of all 32 samples of the batch, but got .* shape \(5, 32\)"):
        make_trainer(LGMInjector("net.fc")).fit(Splitting(), loader)


def test_refuses_a_step_without_loss(loader):
    class Lossless(Plain):
        def training_step(self, batch, batch_idx):
            return {"out": self(batch[0])}

    with pytest.raises(TypeError, match=r"a dict with `loss`, but got a dict with the keys \['out'\]"):
        make_trainer(LGMInjector("net.fc")).fit(Lossless(), loader)


@pytest.mark.parametrize("when", ["init", "setup"])
def test_refuses_manual_optimization(loader, when):
    class Manual(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = when != "init"

        def setup(self, stage):
            self.automatic_optimization = False

    model = Manual()
    with pytest.raises(TypeError, match=r"automatic_optimization = False`\.\n.*`LGMMixin`"):
        make_trainer(LGMInjector("net.fc")).fit(model, loader)
    assert_restored(model)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_refuses_a_step_with_dataloader_iter(loader):
    class Iterating(Plain):
        def training_step(self, dataloader_iter):
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(TypeError, match="takes `dataloader_iter`"):
        make_trainer(LGMInjector("net.fc")).fit(Iterating(), loader)


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_refuses_to_evaluate_an_untrained_head(mislabeled_digits, stage):
    loader = DataLoader(TensorDataset(*mislabeled_digits[3:]), batch_size=397)
    model = Plain()
    with pytest.raises(RuntimeError, match="Train the module first, pass a checkpoint with `ckpt_path=`"):
        getattr(make_trainer(LGMInjector("net.fc")), stage)(model, loader)


def test_refuses_settings_out_of_range():
    with pytest.raises(ValueError, match="`margin` to be a finite number of at least 0, but got -1"):
        LGMInjector("net.fc", margin=-1)
    with pytest.raises(ValueError, match="`covariance` to be one of"):
        LGMInjector("net.fc", covariance="full")
