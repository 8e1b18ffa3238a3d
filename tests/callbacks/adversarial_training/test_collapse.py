"""The guard in a Trainer probes at the end of each epoch, warns, and continues with several steps."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.adversarial.collapse_guard import CollapseGuard
from lightning_poison.adversarial.pgd import perturb_against
from lightning_poison.callbacks.adversarial_training import AdversarialTraining

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")

SINGLE = FGSM(0.1, random_start=False)


@pytest.fixture
def counted(monkeypatch):
    """Return a function that sets the counts of the probe."""
    return lambda *right: monkeypatch.setattr(CollapseGuard, "probe", lambda _, batches: torch.tensor(right))


@pytest.fixture
def unprobed(monkeypatch):
    return lambda: monkeypatch.setattr(CollapseGuard, "probe", lambda *_: pytest.fail("probed"))


def test_training_falls_back_to_pgd_with_a_warning(kit, counted):
    counted(100, 2)
    model, callback = kit.Plain(), AdversarialTraining(SINGLE)
    with pytest.warns(UserWarning, match=r"collapsed in epoch 0: .* 100 of .* under the single step and 2 under PGD"):
        kit.trainer(callback, epochs=2).fit(model, kit.loader())
    assert callback.state_dict() == {"collapsed": True}
    _, seen = kit.by_hand(adversary=SINGLE.as_pgd())
    torch.testing.assert_close(model.seen[: kit.STEPS - 1], seen[:-1])
    clean, changed = kit.images_and_labels()[0][-kit.BATCH :], model.seen[kit.STEPS - 1]
    assert not torch.allclose(changed, seen[-1])  # from the batch of the probe on
    assert float((changed - clean).abs().max()) <= 0.1 + 1e-6


def test_last_epoch_is_probed(kit, counted):
    counted(100, 2)
    with pytest.warns(UserWarning, match=r"collapsed in epoch 0: .* these weights are not robust\."):
        kit.trainer(AdversarialTraining(SINGLE), epochs=1).fit(kit.Plain(), kit.loader())


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "batches"), [(8, 1), (9, 2), (20, 3), (1000, 6)])
def test_small_batches_are_probed_together(kit, monkeypatch, samples, batches):
    seen = []
    monkeypatch.setattr(CollapseGuard, "probe", lambda _, probed: seen.append(probed) or torch.zeros(2))
    callback = AdversarialTraining(SINGLE, guard=CollapseGuard(samples=samples))
    kit.trainer(callback, epochs=2).fit(kit.Plain(), kit.loader())
    expected = kit.images_and_labels()[0][-batches * kit.BATCH :]
    assert [torch.cat([batch.inputs for batch in probed]).equal(expected) for probed in seen] == [True, True]


class Stream(IterableDataset):
    """Has no length."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __iter__(self):
        return zip(self.images, self.labels, strict=True)


@pytest.mark.parametrize(("stream", "limit", "last"), [(True, 1.0, 5), (False, 4, 3)])
def test_detects_the_last_batch_without_a_length_and_with_a_limit(kit, monkeypatch, stream, limit, last):
    seen = []
    monkeypatch.setattr(CollapseGuard, "probe", lambda _, probed: seen.append(probed[-1].index) or torch.zeros(2))
    data = Stream(*kit.images_and_labels()) if stream else None
    kit.trainer(AdversarialTraining(SINGLE), epochs=2, limit_train_batches=limit).fit(kit.Plain(), kit.loader(data))
    assert seen == [last, last]


class Digits(pl.LightningModule):
    """Learns to resist a step that always ends in a corner of the ball, and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@pytest.mark.slow
def test_detects_a_network_that_only_resists_the_single_step(kit):
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16).float().view(-1, 1, 8, 8)[:1024], torch.tensor(labels)[:1024]
    corner, right = FGSM(0.3, 0.6, random_start=False), {}
    for guard in (CollapseGuard(), None):
        model, callback = Digits(), AdversarialTraining(corner, guard=guard)
        shuffled = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(images, labels), 64, shuffle=True, generator=shuffled)
        if guard:
            with pytest.warns(UserWarning, match="Single-step training collapsed in epoch"):
                kit.trainer(callback, epochs=15).fit(model, loader)
        else:
            kit.trainer(callback, epochs=15).fit(model, loader)
        changed = perturb_against(model, images, labels, epsilon=0.3, steps=20)
        right[guard] = float((model(changed).argmax(1) == labels).double().mean())
    assert right[CollapseGuard()] > 1.5 * right[None]


def test_robust_training_continues(kit, counted):
    counted(100, 90)
    model = kit.Plain()
    kit.trainer(AdversarialTraining(SINGLE), epochs=2).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand(adversary=SINGLE.as_pgd(), epochs=2)[0])


def test_does_not_probe_several_steps_or_without_a_guard(kit, unprobed):
    unprobed()
    kit.trainer(AdversarialTraining(FGSM(0.1), guard=None), epochs=2).fit(kit.Plain(), kit.loader())
    kit.trainer(AdversarialTraining(kit.PLAIN), epochs=2).fit(kit.Plain(), kit.loader())


@pytest.mark.slow
@pytest.mark.parametrize(("warm_up", "first"), [(0.5, 1), (1, 1), (1.5, 2)])
def test_probes_after_an_epoch_at_full_radius(kit, counted, warm_up, first):
    counted(100, 2)
    callback = AdversarialTraining(SINGLE, warm_up_epochs=warm_up)
    with pytest.warns(UserWarning, match=f"collapsed in epoch {first}: "):
        kit.trainer(callback, epochs=4).fit(kit.Plain(), kit.loader())


def test_resumed_run_restores_the_collapse(kit, counted, unprobed, tmp_path):
    counted(100, 2)
    first = kit.trainer(AdversarialTraining(FGSM(0.1)), epochs=2)
    with pytest.warns(UserWarning, match="collapsed"):
        first.fit(kit.Plain(), kit.loader())
    first.save_checkpoint(tmp_path / "last.ckpt")
    unprobed()
    callback = AdversarialTraining(FGSM(0.1))
    kit.trainer(callback, epochs=3).fit(kit.Plain(), kit.loader(), ckpt_path=tmp_path / "last.ckpt")
    assert callback.state_dict() == {"collapsed": True}


def test_probing_does_not_affect_training(kit):
    runs = []
    for guard in (CollapseGuard(samples=4, steps=2), None):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(FGSM(0.1), guard=guard), epochs=3).fit(model, kit.loader())
        runs.append(model.net)
    kit.assert_same(*runs, rtol=0, atol=0)
