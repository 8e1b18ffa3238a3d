"""Adversarial training as a strategy, which adds the callback to the Trainer."""

import importlib
import pickle
import sys

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import strategies
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.cli import LightningCLI as OtherCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.callbacks.batch_augmentation import BatchAugmentation
from lightning_poison.strategies import REGISTERED_PGD, adversarial

pytestmark = pytest.mark.usefixtures("single_thread")

PLAIN = PGD(0.1, steps=2, random_start=False)
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.steps = 0

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.seen = batch[0]
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Own(SingleDeviceStrategy):
    """A custom strategy."""

    def __init__(self, accelerator=None, *, note=""):
        super().__init__("cpu", accelerator)
        self.note = note


def loader():
    images = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(32) % 3), batch_size=8)


def trainer(**options):
    return pl.Trainer(**{**QUIET, "accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 2, **options})


def test_weights_equal_those_of_the_callback():
    model, running = Module(), trainer(strategy=adversarial(SingleDeviceStrategy, PLAIN, device="cpu"))
    other = Module()
    running.fit(model, loader())
    trainer(callbacks=[AdversarialTraining(PLAIN)]).fit(other, loader())
    assert torch.equal(model.net[1].weight, other.net[1].weight)
    assert not any(isinstance(callback, AdversarialTraining) for callback in running.callbacks)
    running.fit_loop.max_epochs = 2
    running.fit(model, loader())
    assert model.steps == 8
    assert "training_step" not in model.__dict__


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ddp_has_the_weights_of_the_callback(accumulate):
    options = {"use_distributed_sampler": False, "devices": 1, "accumulate_grad_batches": accumulate}
    model, other = Module(), Module()
    trainer(callbacks=[AdversarialTraining(PLAIN)], accumulate_grad_batches=accumulate).fit(other, loader())
    trainer(strategy=adversarial(DDPStrategy, PLAIN), **options).fit(model, loader())
    torch.testing.assert_close(model.net[1].weight, other.net[1].weight)


def test_custom_strategy():
    model, strategy = Module(), adversarial(Own, PLAIN, note="mine")
    trainer(strategy=strategy).fit(model, loader())
    assert isinstance(strategy, Own)
    assert strategy.note == "mine"
    assert 0.05 < float((model.seen - loader().dataset.tensors[0][24:]).abs().max()) <= 0.1 + 1e-6


def test_training_settings():
    training = AdversarialTraining(PLAIN, warm_up_epochs=1)
    strategy = adversarial(DDPStrategy, training=training, find_unused_parameters=True)
    assert strategy.adversarial_training is training
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}


@pytest.mark.parametrize("arguments", [{}, {"adversary": PLAIN, "training": AdversarialTraining(PLAIN)}])
def test_refuses_both_or_neither_of_adversary_and_training(arguments):
    with pytest.raises(TypeError, match=r"either `adversary` or `training`, but got (neither|both)"):
        adversarial(DDPStrategy, **arguments)


def test_refuses_other_adversaries_and_trainings():
    with pytest.raises(
        TypeError, match=r"`adversary` to be an object with the method `perturb`, but got the float 0\.03"
    ):
        adversarial(DDPStrategy, 0.03)
    with pytest.raises(TypeError, match=r"`training` to be an `AdversarialTraining`, but got 3"):
        adversarial(DDPStrategy, training=3)


def test_refuses_arguments_of_the_callback():
    message = r"arguments of DDPStrategy, but got `recipe`, .*\n.*write `training=.*, recipe=\.\.\.\)`"
    with pytest.raises(TypeError, match=message):
        adversarial(DDPStrategy, PLAIN, recipe=Madry())


@pytest.mark.parametrize("own", [SingleDeviceStrategy, DDPStrategy])
def test_refuses_strategy_and_callback_together(own):
    model, options = Module(), {"device": "cpu"} if own is SingleDeviceStrategy else {}
    running = trainer(strategy=adversarial(own, PLAIN, **options), callbacks=[AdversarialTraining(PLAIN)], devices=1)
    with pytest.raises(ValueError, match=r"but got both, Adversarial.*Strategy and AdversarialTraining\[adversarial\]"):
        running.fit(model, loader())
    assert model.steps == 0
    assert "training_step" not in model.__dict__
    assert len([each for each in running.callbacks if isinstance(each, AdversarialTraining)]) == 1


def test_same_callback_in_both_is_applied_once():
    model, training = Module(), AdversarialTraining(PLAIN)
    trainer(strategy=adversarial(SingleDeviceStrategy, training=training, device="cpu"), callbacks=[training]).fit(
        model, loader()
    )
    assert float((model.seen - loader().dataset.tensors[0][24:]).abs().max()) <= 0.1 + 1e-6


def test_attacks_augmented_batches():
    augmentation = BatchAugmentation(v2.RandomErasing(p=1.0, value=0.5))
    runs = []
    for strategy in ("auto", adversarial(SingleDeviceStrategy, PLAIN, device="cpu")):
        model = Module()
        trainer(strategy=strategy, callbacks=[augmentation]).fit(model, loader())
        runs.append(model.seen)
    away = (runs[1] - runs[0]).abs()
    erased = runs[0] == 0.5
    assert 0 < int(erased.sum()) < erased.numel()
    assert float((away[erased] > 0.05).double().mean()) > 0.9
    assert float(away.max()) <= 0.1 + 1e-6


def test_testing_without_training():
    training = AdversarialTraining(PLAIN, validation=PGD(0.2, steps=2, random_start=False))
    running = trainer(strategy=adversarial(SingleDeviceStrategy, training=training, device="cpu"))
    (found,) = running.test(Module(), loader(), verbose=False)
    assert found["test/robust_loss"] > found["test/clean_loss"]
    assert training not in running.callbacks


def test_resumed_run_restores_the_state(tmp_path):
    class Saving(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    own = [adversarial(SingleDeviceStrategy, PLAIN, device="cpu") for _ in range(2)]
    first, again = (trainer(strategy=strategy, callbacks=[Saving()]) for strategy in own)
    first.strategy.adversarial_training.load_state_dict({"collapsed": True})
    first.fit(Module(), loader())
    again.fit(Module(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert again.strategy.adversarial_training.state_dict() == {"collapsed": True}


SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")


@pytest.mark.parametrize("namespace", [pl, pytorch_lightning])
@pytest.mark.parametrize("name", SHARDING)
def test_refuses_unsupported_strategies(namespace, name):
    with pytest.raises(ValueError, match=rf"but got {name}\.\n.*(Use `ddp`|on a CPU or a GPU)"):
        adversarial(getattr(namespace.strategies, name), PLAIN)


def test_every_lightning_strategy_is_refused_or_tested():
    """Fails when Lightning adds a strategy."""
    bases = {"Strategy", "ParallelStrategy"}
    named = {name for name in strategies.__all__ if name.endswith("Strategy")}
    assert named - bases - set(SHARDING) == {"DDPStrategy", "SingleDeviceStrategy"}


def test_can_be_pickled():
    strategy = adversarial(DDPStrategy, PGD(0.2, steps=3), start_method="spawn")
    again = pickle.loads(pickle.dumps(strategy))  # noqa: S301 (our own)
    assert type(again) is type(strategy)
    assert isinstance(again, DDPStrategy)
    assert again.adversarial_training.settings.adversary == PGD(0.2, steps=3)
    assert again._start_method == "spawn"


@pytest.mark.parametrize("namespace", [pl, pytorch_lightning])
@pytest.mark.parametrize("name", ["pgd_ddp", "pgd_ddp_spawn"])
def test_registered_names_in_both_namespaces(namespace, name):
    running = namespace.Trainer(strategy=name, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert isinstance(running.strategy, namespace.strategies.DDPStrategy)
    assert running.strategy.adversarial_training.settings.adversary == REGISTERED_PGD


def test_restores_everything_after_an_error():
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError("stop")

    model, running = Failing(), trainer(strategy=adversarial(SingleDeviceStrategy, PLAIN, device="cpu"))
    with pytest.raises(ArithmeticError, match="stop"):
        running.fit(model, loader())
    assert "training_step" not in model.__dict__
    assert not any(isinstance(callback, AdversarialTraining) for callback in running.callbacks)


@pytest.mark.parametrize("what", [DDPStrategy(), dict, "ddp"])
def test_refuses_other_objects_as_strategy(what):
    with pytest.raises(TypeError, match="a class such as `DDPStrategy`"):
        adversarial(what, PLAIN)


def test_device_of_the_module():
    model = Module()
    trainer(strategy=adversarial(SingleDeviceStrategy, PLAIN, device="cpu")).fit(model, loader())
    assert model.device == torch.device("cpu")


USERS_CODE = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import lightning.pytorch as pl
import pytorch_lightning

{registered}


class Steps:
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.away = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.away.append(float((batch[0] - 0.5).abs().max()))
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.full((16, 1, 4, 4), 0.5), torch.arange(16) % 3), batch_size=8)


class Model(Steps, pl.LightningModule):
    pass


class ModelOfOther(Steps, pytorch_lightning.LightningModule):
    pass
"""


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run from within Python")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
class TestCLI:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        """Return a function that runs a YAML file and arguments on a user's module."""

        def start(strategy, *arguments, registered="", cli=LightningCLI, model="Model"):
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "users_module", raising=False)
            (tmp_path / "users_module.py").write_text(USERS_CODE.format(registered=registered))
            options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 2, **QUIET}
            config = {"trainer": {**options, **({"strategy": strategy} if strategy else {})}}
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
            return cli(
                getattr(importlib.import_module("users_module"), model),
                seed_everything_default=False,
                save_config_callback=None,
                args=["fit", "--config", str(tmp_path / "config.yaml"), *arguments],
            )

        return start

    @pytest.mark.slow
    @pytest.mark.parametrize(("cli", "model"), [(LightningCLI, "Model"), (OtherCLI, "ModelOfOther")])
    @pytest.mark.parametrize(
        ("strategy", "arguments"), [("pgd_ddp", ()), (None, ("--trainer.strategy=pgd_ddp",))], ids=["YAML", "line"]
    )
    def test_registered_name(self, run, cli, model, strategy, arguments):
        ended = run(strategy, *arguments, registered="import lightning_poison.strategies", cli=cli, model=model)
        assert max(ended.model.away) == pytest.approx(8 / 255, abs=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("cli", "model", "package"),
        [(LightningCLI, "Model", "lightning.pytorch"), (OtherCLI, "ModelOfOther", "pytorch_lightning")],
    )
    def test_function_by_its_path_without_import(self, run, cli, model, package):
        path = f"{package}.strategies.DDPStrategy"
        adversary = {"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 0.1, "steps": 2}}
        strategy = {
            "class_path": "lightning_poison.strategies.adversarial",
            "init_args": {"strategy": path, "adversary": adversary},
            "dict_kwargs": {"find_unused_parameters": False},
        }
        ended = run(strategy, cli=cli, model=model)
        assert max(ended.model.away) == pytest.approx(0.1, abs=1e-5)
        assert ended.trainer.strategy._ddp_kwargs == {"find_unused_parameters": False}

    @pytest.mark.slow
    def test_function_on_the_command_line(self, run):
        arguments = {
            "": "lightning_poison.strategies.adversarial",
            ".strategy": "lightning.pytorch.strategies.DDPStrategy",
            ".adversary": "lightning_poison.adversarial.PGD",
            ".adversary.epsilon": "0.2",
        }
        ended = run(None, *(f"--trainer.strategy{name}={value}" for name, value in arguments.items()))
        assert max(ended.model.away) == pytest.approx(0.2, abs=1e-5)

    @pytest.mark.slow
    def test_training_settings(self, run):
        adversary = {
            "class_path": "lightning_poison.adversarial.FGSM",
            "init_args": {"epsilon": 0.1, "random_start": False},
        }
        training = {
            "class_path": "lightning_poison.AdversarialTraining",
            "init_args": {"adversary": adversary, "warm_up_epochs": 2},
        }
        strategy = {
            "class_path": "lightning_poison.strategies.adversarial",
            "init_args": {"strategy": "lightning.pytorch.strategies.DDPStrategy", "training": training},
        }
        assert run(strategy).model.away == pytest.approx([0.025, 0.05], abs=1e-6)

    def test_error_names_a_misspelled_argument(self, run, capsys):
        adversary = {"class_path": "lightning_poison.adversarial.PGD", "init_args": {"epsilon": 0.1, "stepz": 2}}
        strategy = {
            "class_path": "lightning_poison.strategies.adversarial",
            "init_args": {"strategy": "lightning.pytorch.strategies.DDPStrategy", "adversary": adversary},
        }
        with pytest.raises(SystemExit):
            run(strategy)
        assert "stepz" in capsys.readouterr().err
