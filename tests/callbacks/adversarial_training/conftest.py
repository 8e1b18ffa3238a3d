"""User modules, and the same training in a manual loop: plain torch with an explicit attack."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.data.sample_spec import SampleSpec

STEPS, BATCH = 6, 8
PLAIN = PGD(0.1, 0.06, steps=2, random_start=False)


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
    """A user module for either namespace."""

    path = SampleSpec("0", "1")

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.seen = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.seen.append(self.path.inputs_in(batch).detach().clone())
        return F.cross_entropy(self(self.path.inputs_in(batch)), self.path.labels_in(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plain(Steps, pl.LightningModule):
    pass


class OtherPlain(Steps, pytorch_lightning.LightningModule):
    pass


class NoStep(Plain):
    """Fails on the first step."""

    def training_step(self, batch, batch_idx):
        pytest.fail("ran a step")


class Evaluated(Plain):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


class Manual(Plain):
    """Manual optimization with two optimizers."""

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
    """Uses inputs that require gradients, as reentrant checkpoints need."""

    reentrant = True

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append(images.detach().clone())
        return F.cross_entropy(self(images.detach().clone().requires_grad_()), labels)


class Shaped(Dataset):
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
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    defaults = {"accelerator": "cpu", "max_epochs": epochs, "log_every_n_steps": 2}
    return namespace.Trainer(callbacks=list(callbacks), **{**quiet, **defaults, **options})


def attacked_by_hand(net, images, labels, adversary=PLAIN, loss=F.cross_entropy):
    """Ascend the sign of the gradient of each loss; raw images, no random start."""
    net.eval()
    changed = images
    for _ in range(adversary.steps):
        leaf = changed.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(net(leaf), labels, reduction="none").sum(), leaf)
        moved = changed + adversary.step_size * gradient.sign()
        changed = moved.clamp(images - adversary.epsilon, images + adversary.epsilon).clamp(0, 1)
    net.train()
    return changed.detach()


def by_hand(net=None, adversary=PLAIN, *, accumulate=1, epochs=1, loss=F.cross_entropy, after=lambda net: None):
    """Return a network trained in a manual loop and the images of its steps; `after` is called after each step."""
    net = make_net() if net is None else net
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
    images, labels = (part.split(BATCH) for part in images_and_labels())
    net.train()
    for step in range(epochs * STEPS):
        batch = images[step % STEPS], labels[step % STEPS]
        seen.append(attacked_by_hand(net, *batch, adversary, loss))
        (F.cross_entropy(net(seen[-1].clone().requires_grad_()), batch[1]) / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            after(net)
    return net, seen


def assert_same(net, other, **tolerance):
    for (name, found), (_, expected) in zip(net.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_restored(model):
    """Assert that the module is restored."""
    assert not any(name.startswith("_lightning_poison") for name in model.__dict__)
    assert "training_step" not in model.__dict__
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(part.training for part in model.modules())


@pytest.fixture(autouse=True)
def reset_compiler():
    """Reset dynamo, which counts the variants of one function over the whole process."""
    torch.compiler.reset()


@pytest.fixture
def kit():
    kinds = (Plain, OtherPlain, NoStep, Evaluated, Manual, Checkpointed, Reentrant, Shaped)
    functions = (images_and_labels, make_net, loader, trainer, attacked_by_hand, by_hand, assert_same, assert_restored)
    named = {each.__name__: each for each in kinds + functions}
    return SimpleNamespace(**named, STEPS=STEPS, BATCH=BATCH, PLAIN=PLAIN)
