"""Classes that work in the Trainers of both namespaces."""

import pickle

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning import namespaces
from lightning_poison._lightning.namespaces import CallbackBase, DataModuleBase, lightning_types

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]

NAMESPACES = [lightning.pytorch, pytorch_lightning]


class Counting(CallbackBase):
    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1


class Data(DataModuleBase):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2)


def module_of(namespace):
    class Module(namespace.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch):
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_both_trainers_accept_callback_and_data_module(namespace):
    callback = Counting()
    trainer = namespace.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module_of(namespace), datamodule=Data())
    assert callback.batches == 2


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_inherited_hooks_do_not_count_as_overridden(namespace):
    overridden = namespace.utilities.model_helpers.is_overridden
    data = Data()
    data.trainer = namespace.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    hooks = {hook for hook in vars(namespace.core.hooks.DataHooks) if not hook.startswith("_")}
    assert {hook for hook in hooks if overridden(hook, data)} == {"train_dataloader"}
    hooks = {hook for hook in dir(namespace.Callback) if hook.startswith(("on_", "setup", "teardown"))}
    stateful = {"state_dict", "load_state_dict"}
    used = (hooks | stateful) - {"on_load_checkpoint", "on_save_checkpoint", "on_train_epoch_end"}
    assert {hook for hook in used if overridden(hook, Counting(), namespace.Callback)} == {"on_train_batch_end"}


@pytest.mark.parametrize("name", ["Callback", "LightningDataModule", "LightningModule", "Trainer"])
def test_types_of_both_namespaces(name):
    assert lightning_types(name) == (getattr(lightning.pytorch, name), getattr(pytorch_lightning, name))


def test_missing_namespace_is_skipped(monkeypatch):
    find_spec = namespaces.find_spec
    monkeypatch.setattr(namespaces, "find_spec", lambda name: None if name == "lightning" else find_spec(name))
    assert lightning_types("Callback") == (pytorch_lightning.Callback,)


def test_refuses_without_any_namespace(monkeypatch):
    monkeypatch.setattr(namespaces, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install lightning"):
        lightning_types("Callback")


def test_bases_can_be_pickled():
    assert pickle.loads(pickle.dumps(CallbackBase)) is CallbackBase  # noqa: S301
    assert pickle.loads(pickle.dumps(DataModuleBase)) is DataModuleBase  # noqa: S301
