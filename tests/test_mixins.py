"""The mixin in both namespaces and all precisions, saved and loaded."""

import copy

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.mixins import LGMMixin

pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]

NAMESPACES = [lightning.pytorch, pytorch_lightning]


def make_net(feature_size=32):
    return nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, feature_size))


def make_class(namespace):
    class Digits(LGMMixin, namespace.LightningModule):
        def __init__(self, feature_size=32, learning_rate=3e-3, covariance="identity"):
            super().__init__()
            self.save_hyperparameters()
            self.net = make_net(feature_size)
            self.add_lgm_head("net", feature_size, num_classes=10, covariance=covariance)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)

    return Digits


LitDigits = make_class(lightning.pytorch)


def fit(namespace, model, images, labels, *, epochs=1, **settings):
    trainer = namespace.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True))
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_separates_flipped_digits(mislabeled_digits, precision):
    images, labels, truth, test_images, test_labels = mislabeled_digits
    model = LitDigits()
    fit(lightning.pytorch, model, images, labels, epochs=8, precision=precision)
    suspicion = -model.log_likelihood((images, labels)).detach()
    assert suspicion.dtype == torch.float32
    assert roc_auc_score(labels != truth, suspicion) > 0.97
    with torch.no_grad():
        logits = model.eval()(test_images.to(model.lgm_head.means.dtype))
    assert (logits.argmax(dim=1) == test_labels).float().mean() > 0.92


@pytest.mark.slow
def test_learns_behind_a_relu_and_dropout_with_sgd(mislabeled_digits):
    """The paper's loss alone pulls all features of such a network to one point."""

    class Ordinary(LGMMixin, lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            convolutions = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
            self.net = nn.Sequential(*convolutions, nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.3))
            self.add_lgm_head("net", 64, num_classes=10)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    images, _, truth, test_images, test_labels = mislabeled_digits
    mean, deviation = images.mean(), images.std()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Ordinary()
        fit(lightning.pytorch, model, ((images - mean) / deviation).view(-1, 1, 8, 8), truth, epochs=6)
    with torch.no_grad():
        logits = model.eval()(((test_images - mean) / deviation).view(-1, 1, 8, 8))
    assert (logits.argmax(dim=1) == test_labels).float().mean() > 0.94


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_both_namespaces_log_both_terms(mislabeled_digits, namespace):
    model = make_class(namespace)()
    trainer = fit(namespace, model, *mislabeled_digits[:2])
    logged = trainer.callback_metrics
    assert set(logged) == {"train/lgm_classification", "train/lgm_likelihood"}
    assert all(value > 0 for value in logged.values())


def test_logged_terms_are_the_means_over_the_epoch(mislabeled_digits):
    images, labels, *_ = mislabeled_digits
    model = LitDigits(learning_rate=0.0)
    untrained = copy.deepcopy(model)  # a step updates the statistics of the head
    trainer = fit(lightning.pytorch, model, images[:64], labels[:64])
    expected = untrained.lgm_loss(images[:64], labels[:64])
    assert trainer.callback_metrics["train/lgm_likelihood"].item() == pytest.approx(
        expected.likelihood.item(), rel=1e-5
    )
    classification = trainer.callback_metrics["train/lgm_classification"].item()
    assert classification == pytest.approx(expected.classification.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_loads_from_its_checkpoint(mislabeled_digits, namespace, tmp_path):
    images, labels, *_ = mislabeled_digits
    model = make_class(namespace)(feature_size=8, covariance="diagonal")
    fit(namespace, model, images, labels).save_checkpoint(tmp_path / "last.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert loaded.lgm_head.feature_size == 8
    assert torch.equal(loaded.log_likelihood((images, labels)), model.log_likelihood((images, labels)))


def test_ddp_with_one_process(mislabeled_digits):
    images, labels, *_ = mislabeled_digits
    trainer = fit(lightning.pytorch, LitDigits(), images[:128], labels[:128], strategy="ddp", devices=1)
    assert "train/lgm_likelihood" in trainer.callback_metrics


def test_log_likelihood_leaves_the_module_unchanged(mislabeled_digits):
    images, labels, *_ = mislabeled_digits
    model = LitDigits().train()
    model.lgm_head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = model.log_likelihood((images[:32], labels[:32]))
    assert torch.equal(model.log_likelihood((images[:64], labels[:64]))[:32], first)
    assert model.net.training
    assert not model.lgm_head.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_log_likelihood_is_differentiable_in_the_inputs(mislabeled_digits):
    images = mislabeled_digits[0][:4].clone().requires_grad_()
    LitDigits().log_likelihood((images, mislabeled_digits[1][:4])).sum().backward()
    assert (images.grad.abs().sum(dim=1) > 0).all()


def test_custom_step_and_method_as_extractor(mislabeled_digits):
    class Own(LGMMixin, lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.features = make_net()
            self.add_lgm_head("encode", 32, num_classes=10, margin=0.0, sample=SampleSpec("views.0", "y"))

        def encode(self, images):
            return self.features(images.flatten(1))

        def training_step(self, batch, batch_idx):
            return 2 * self.lgm_step(batch)

    model = Own()
    images, labels = mislabeled_digits[0][:8], mislabeled_digits[1][:8]
    batch = {"views": [images.view(8, 1, 8, 8), images], "y": labels}
    assert model(batch["views"][0]).shape == (8, 10)
    expected = model.eval().lgm_head.log_likelihood(model.features(images), labels)
    torch.testing.assert_close(model.log_likelihood(batch), expected)


def test_dotted_extractor(mislabeled_digits):
    model = LitDigits()
    model.add_lgm_head("net.0", feature_size=128, num_classes=10)
    assert model.extract_features(mislabeled_digits[0][:2]).shape == (2, 128)


def test_refuses_the_wrong_order_of_bases():
    class Late(lightning.pytorch.LightningModule, LGMMixin):
        def __init__(self):
            super().__init__()
            self.add_lgm_head("net", 32, num_classes=10)

    with pytest.raises(TypeError, match=r"before `LightningModule`.*\nWrite `class Late\(LGMMixin, LightningModule\)`"):
        Late()


def test_refuses_an_unknown_extractor():
    model = LitDigits()
    model.add_lgm_head("backbone", 32, num_classes=10)
    with pytest.raises(
        AttributeError, match=r"but got 'backbone'\.\nThe submodules of the module are: 'net', 'lgm_head'"
    ):
        model(torch.zeros(1, 64))


def test_refuses_a_module_without_head():
    class Bare(LGMMixin, lightning.pytorch.LightningModule):
        pass

    with pytest.raises(AttributeError, match=r"Call `self.add_lgm_head\(\.\.\.\)` in `__init__`"):
        Bare()(torch.zeros(1, 64))


def test_refuses_features_of_another_size(mislabeled_digits):
    model = LitDigits()
    model.add_lgm_head("net", 64, num_classes=10)
    with pytest.raises(ValueError, match=r"of shape \(B, 64\), but got a float32 tensor of shape \(2, 32\)"):
        model(mislabeled_digits[0][:2])
