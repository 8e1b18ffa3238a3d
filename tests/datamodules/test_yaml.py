"""LightningCLI builds the callback and the wrappers from YAML, by their public names."""

import sys

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_poison._lightning.yaml_types import instantiate
from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.datamodules import PoisonedDataModule, SanitizedDataModule
from lightning_poison.errors import DataChangedError
from lightning_poison.scorers.recommended import RecommendedScorer

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run from within Python")

USERS_CODE = """
import lightning.pytorch as pl
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.scorers import Scorer


def blobs(count, wrong, seed=0):
    truth = torch.arange(count) % 3
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + 8 * torch.eye(4)[truth]
    return TensorDataset(points, torch.where(torch.arange(count) < wrong, (truth + 1) % 3, truth))


def patient_of(index: int) -> int:
    return index // 4


class Trusted(TensorDataset):
    def __init__(self, count: int = 120):
        super().__init__(*blobs(count, 0, seed=1).tensors)


class Blobs:
    def __init__(self, wrong: int = 12, batch_size: int = 16):
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = self.hparams.batch_size

    def train_dataloader(self):
        return DataLoader(blobs(120, self.hparams.wrong), batch_size=self.batch_size)


class Data(Blobs, pl.LightningDataModule):
    pass


class TwoLoaders(pl.LightningDataModule):
    def train_dataloader(self):
        unlabeled = TensorDataset(blobs(60, 0, seed=2).tensors[0])
        return {"labeled": DataLoader(blobs(120, 12), 16), "unlabeled": DataLoader(unlabeled, 16)}


class DataOfOther(Blobs, pytorch_lightning.LightningDataModule):
    pass


class Flip:
    name, clean_label = "flip", False

    def __init__(self, step: int = 1):
        self.step = step

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        from lightning_poison import Poison
        from lightning_poison.attacks.objectives import AvailabilityObjective

        chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        labels = (dataset.tensors[1][chosen] + self.step) % 3
        return Poison(chosen, labels, AvailabilityObjective(), attack=self.name)


class Norm(Scorer):
    name, scores_labels, fitted_tensors = "norm", True, ()

    def __init__(self, power: int = 2):
        self.power = power

    def fit(self, trusted, *, runtime=None, generator=None):
        return self

    def score_labels(self, inputs):
        return (inputs[:, None] - 8 * torch.eye(4)[:3]).pow(self.power).sum(2)


class Training:
    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Model(Training, pl.LightningModule):
    pass


class OfLabeled(Model):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["labeled"], batch_idx)


class ModelOfOther(Training, pytorch_lightning.LightningModule):
    pass
"""

QUIET = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
FAST = {"epochs": 3, "batch_size": 32, "min_steps": 40}


def likelihood(**settings):
    return {"class_path": "lightning_poison.LikelihoodScorer", "init_args": {"fit_settings": FAST, **settings}}


def of(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


def removes_first(verdict, wrong):
    """Return whether mostly the first samples, the mislabeled ones, are removed; the fit is short."""
    out = (~verdict.keep).nonzero().flatten()
    return len(out) > 0 and (out < wrong).double().mean() > 0.7 and abs(len(out) - wrong) <= 3


@pytest.fixture
def users_code(tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(USERS_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls deprecated functions
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_code", raising=False)
    import users_code

    return users_code


@pytest.fixture
def run(users_code, tmp_path):
    """Return a function that runs a YAML file like a user's program."""

    def start(data, *arguments, callbacks=(), cli=LightningCLI, model="Model", base=pl.LightningDataModule, fits=True):
        config = {"trainer": {**QUIET, "callbacks": list(callbacks), "default_root_dir": str(tmp_path)}, "data": data}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        torch.manual_seed(0)
        return cli(
            getattr(users_code, model),
            base,
            subclass_mode_data=True,
            seed_everything_default=False,
            save_config_callback=None,
            args=[*["fit"] * fits, "--config", str(tmp_path / "config.yaml"), *arguments],
            run=fits,
        )

    return start


@pytest.mark.slow
def test_callback(run):
    sanitizer = of("lightning_poison.Sanitizer", scorer=likelihood(), false_positive_rate=0.02)
    cli = run(of("users_code.Data"), callbacks=[sanitizer])
    sanitizer = next(each for each in cli.trainer.callbacks if isinstance(each, Sanitizer))
    assert removes_first(sanitizer.verdict, 12)
    assert sanitizer.verdict.false_positive_rate == 0.02


@pytest.mark.slow
def test_preset_by_name(run):
    cli = run(of("users_code.Data"), callbacks=[of("lightning_poison.Sanitizer", scorer="fast")])
    (sanitizer,) = (each for each in cli.trainer.callbacks if isinstance(each, Sanitizer))
    assert sanitizer.verdict.scorer == "recommended"
    assert removes_first(sanitizer.verdict, 12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, RecommendedScorer()),
        ({"scorer": "fast"}, RecommendedScorer("fast")),
        ({"scorer": of("lightning_poison.RecommendedScorer")}, RecommendedScorer()),
        ({"scorer": of("lightning_poison.RecommendedScorer", preset="thorough")}, RecommendedScorer("thorough")),
    ],
)
def test_default_and_presets_are_built(run, arguments, expected):
    cli = run(of("users_code.Data"), callbacks=[of("lightning_poison.Sanitizer", **arguments)], fits=False)
    (sanitizer,) = (each for each in cli.trainer.callbacks if isinstance(each, Sanitizer))
    scorer = sanitizer.loader_sanitizer.settings.scorer
    assert repr(scorer) == repr(expected)
    assert scorer.settings() == expected.settings()


@pytest.mark.slow
def test_wrapper(run):
    cli = run(of("lightning_poison.SanitizedDataModule", data=of("users_code.Data", wrong=9), scorer=likelihood()))
    assert type(cli.datamodule) is SanitizedDataModule
    assert removes_first(cli.datamodule.verdict, 9)


@pytest.mark.slow
def test_custom_scorer(run):
    scorer, data = of("users_code.Norm", power=2), of("users_code.Data")
    cli = run(of("lightning_poison.SanitizedDataModule", data=data, scorer=scorer))
    assert removes_first(cli.datamodule.verdict, 12)
    cli = run(data, callbacks=[of("lightning_poison.Sanitizer", scorer=scorer)])
    assert removes_first(cli.trainer.callbacks[0].verdict, 12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on:UserWarning")
def test_combined_scorer(run):
    features = of("lightning_poison.scorers.FeatureModel", feature_size=8, fit_settings=FAST)
    members = [
        likelihood(),
        of("lightning_poison.scorers.DeepKNNScorer", feature_model=features, k=5),
        of("lightning_poison.scorers.SpectralSignatureScorer", feature_model=features),
    ]
    scorer = of("lightning_poison.CombinedScorer", scorers=members, combine="sum")
    trusted = of("users_code.Trusted", count=300)
    cli = run(of("lightning_poison.SanitizedDataModule", data=of("users_code.Data"), scorer=scorer, trusted=trusted))
    assert list(cli.datamodule.verdict.votes) == ["likelihood", "deep-knn", "spectral-signatures"]
    cli = run(of("users_code.Data"), callbacks=[of("lightning_poison.Sanitizer", scorer=members[1])])
    assert removes_first(cli.trainer.callbacks[0].verdict, 12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on 24 held-out trusted:UserWarning")
def test_trusted_data(run):
    arguments = {"data": of("users_code.Data"), "scorer": likelihood(), "trusted": of("users_code.Trusted", count=240)}
    cli = run(of("lightning_poison.SanitizedDataModule", **arguments))
    assert cli.datamodule.verdict.calibration == "trusted"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["callback", "wrapper"])
def test_chosen_loaders(run, how):
    arguments = {"scorer": likelihood(), "loaders": ["labeled"]}
    data, sanitizer = of("users_code.TwoLoaders"), of("lightning_poison.Sanitizer", **arguments)
    if how == "callback":
        cli = run(data, callbacks=[sanitizer], model="OfLabeled")
        judged = next(each for each in cli.trainer.callbacks if isinstance(each, Sanitizer))
    else:
        wrapped = of("lightning_poison.SanitizedDataModule", data=data, **arguments)
        judged = run(wrapped, model="OfLabeled").datamodule
    assert list(judged.verdicts) == ["['labeled']"]
    assert removes_first(judged.verdict, 12)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["callback", "wrapper"])
def test_groups_and_known_verdict(run, how, tmp_path):
    scorer, path = of("users_code.Norm", power=2), tmp_path / "known.safetensors"

    def judge(**arguments):
        if how == "callback":
            sanitizer = of("lightning_poison.Sanitizer", scorer=scorer, dirpath=str(tmp_path / "out"), **arguments)
            return run(of("users_code.Data"), callbacks=[sanitizer]).trainer.callbacks[0].verdict
        data = of("users_code.Data")
        return run(of("lightning_poison.SanitizedDataModule", data=data, scorer=scorer, **arguments)).datamodule.verdict

    by_function = judge(groups="users_code.patient_of")
    by_list = judge(groups=[index // 4 for index in range(120)])
    by_name = judge(groups=[f"patient {index // 4}" for index in range(120)])
    assert by_function.fingerprint == by_list.fingerprint == by_name.fingerprint
    assert "90 of the samples are in the fold of" in str(by_function)
    by_list.save(path)
    assert judge(groups="users_code.patient_of", known=str(path)).agrees_with(by_list)
    with pytest.raises(DataChangedError, match="in YAML: `known: null`"):
        judge(known=str(path))


@pytest.mark.slow
def test_nested_data_module_saves_its_own_hyperparameters(run):
    attack = {"poison": of("users_code.Flip", step=2), "threat": {"budget": 11}}
    poisoned = of("lightning_poison.PoisonedDataModule", data=of("users_code.Data", wrong=0, batch_size=20), **attack)
    cli = run(of("lightning_poison.SanitizedDataModule", data=poisoned, scorer=likelihood()))
    assert type(cli.datamodule.inner) is PoisonedDataModule
    assert cli.datamodule.hparams == {"wrong": 0, "batch_size": 20}
    assert cli.datamodule.batch_size == 20
    assert len(cli.datamodule.poison) == 11
    caught = (~cli.datamodule.verdict.keep)[cli.datamodule.poison.indices]
    assert caught.double().mean() > 0.7


def test_poison_from_a_file(run, tmp_path):
    from lightning_poison.attacks.objectives import AvailabilityObjective
    from lightning_poison.attacks.poison import Poison

    drawn = Poison(torch.tensor([0]), torch.tensor([2]), AvailabilityObjective(), attack="mine")
    drawn.save(tmp_path / "poison.safetensors")
    data = of("users_code.Data", wrong=0)
    cli = run(of("lightning_poison.PoisonedDataModule", data=data, poison=str(tmp_path / "poison.safetensors")))
    assert cli.datamodule.train_dataloader().dataset.targets[:2].tolist() == [2, 1]


@pytest.mark.slow
def test_arguments_on_the_command_line(run):
    data = of("lightning_poison.SanitizedDataModule", data=of("users_code.Data"), scorer=likelihood())
    deep = "--data.init_args.data.init_args.wrong=7"
    cli = run(data, deep, "--data.init_args.false_positive_rate=0.03")
    assert removes_first(cli.datamodule.verdict, 7)
    assert cli.datamodule.verdict.false_positive_rate == 0.03


@pytest.mark.slow
def test_other_namespace(run):
    from pytorch_lightning.cli import LightningCLI as OtherCLI

    data = of("users_code.DataOfOther", wrong=9)
    other = {"cli": OtherCLI, "model": "ModelOfOther", "base": pytorch_lightning.LightningDataModule}
    cli = run(of("lightning_poison.SanitizedDataModule", data=data, scorer=likelihood()), **other)
    assert removes_first(cli.datamodule.verdict, 9)
    assert cli.datamodule.hparams == {"wrong": 9, "batch_size": 16}
    cli = run(data, callbacks=[of("lightning_poison.Sanitizer", scorer=likelihood())], **other)
    assert removes_first(cli.trainer.callbacks[0].verdict, 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("misspelled", "data"),
    [
        ("false_positive", of("lightning_poison.SanitizedDataModule", scorer=likelihood(), false_positive=0.1)),
        ("margins", of("lightning_poison.SanitizedDataModule", scorer=likelihood(margins=1))),
        (
            "wrongs",
            of("lightning_poison.SanitizedDataModule", data=of("users_code.Data", wrongs=1), scorer=likelihood()),
        ),
        ("counts", of("lightning_poison.SanitizedDataModule", trusted=of("users_code.Trusted", counts=1))),
        ("steps", of("lightning_poison.PoisonedDataModule", poison=of("users_code.Flip", steps=1))),
        ("budgets", of("lightning_poison.PoisonedDataModule", poison=of("users_code.Flip"), threat={"budgets": 1})),
    ],
)
def test_refuses_misspelled_arguments(run, capsys, misspelled, data):
    data["init_args"].setdefault("data", of("users_code.Data"))
    with pytest.raises(SystemExit):
        run(data)
    assert misspelled in capsys.readouterr().err


@pytest.mark.parametrize("misspelled", [{"flase_positive_rate": 0.1}, {"scorer": likelihood(margins=1)}])
def test_refuses_misspelled_arguments_of_the_callback(run, capsys, misspelled):
    arguments = {"scorer": likelihood(), **misspelled}
    with pytest.raises(SystemExit):
        run(of("users_code.Data"), callbacks=[of("lightning_poison.Sanitizer", **arguments)])
    error = capsys.readouterr().err
    assert "flase_positive_rate" in error or "margins" in error


@pytest.mark.slow
def test_printed_config_is_complete_and_runs_again(run, capsys):
    data = of("lightning_poison.SanitizedDataModule", data=of("users_code.Data", wrong=9), scorer=likelihood())
    with pytest.raises(SystemExit) as left:
        run(data, "--print_config", callbacks=[of("lightning_poison.Sanitizer", scorer=likelihood(), name="beside")])
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["init_args"]["data"] == of("users_code.Data", wrong=9, batch_size=16)
    assert printed["data"]["init_args"]["max_removed"] == 0.5
    assert printed["trainer"]["callbacks"][0]["init_args"]["scorer"]["init_args"]["feature_size"] == 32
    cli = run(printed["data"])
    assert removes_first(cli.datamodule.verdict, 9)


def test_does_not_call_other_functions():
    def factory():
        raise AssertionError("must not be called")

    assert instantiate(factory) is factory
    assert instantiate(3) == 3
