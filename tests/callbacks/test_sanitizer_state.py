"""A decision is made once: it is stored in checkpoints, and other data are refused."""

from itertools import chain

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_poison.errors import DataChangedError
from lightning_poison.sanitization.stored_decision import StoredDecision
from lightning_poison.sanitization.verdict import Verdict


class Scheduled:
    """A module whose schedule depends on the number of steps that the Trainer estimates."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.estimated = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=int(self.estimated))]


class LateRestore(SingleDeviceStrategy):
    """Restores checkpoints as late as strategies for sharded models."""

    @property
    def restore_checkpoint_after_setup(self):
        return True


@pytest.fixture
def checkpoint(world):
    """Return the checkpoint path and the verdict of a run of one epoch."""
    sanitizer = world.sanitizer()
    trainer = world.trainer(sanitizer)
    trainer.fit(world.module(), world.loader(world.numbered()))
    path = str(world.path / "run.ckpt")
    trainer.save_checkpoint(path)
    return path, sanitizer.verdict


def test_resumed_run_does_not_score_again(world, assert_clean, centroid_scorer, checkpoint):
    path, verdict = checkpoint
    scorer, module = centroid_scorer(), world.module()
    sanitizer = world.sanitizer(scorer)
    world.trainer(sanitizer, max_epochs=2).fit(module, world.loader(world.numbered()), ckpt_path=path)
    assert not scorer.fits
    assert len(module.epochs) == 1
    assert_clean(module, verdict)
    assert torch.equal(sanitizer.verdict.scores, verdict.scores)
    assert str(sanitizer.verdict) == str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({"count": 239}, {}),
        ({"wrong": 25}, {}),
        ({"seed": 1}, {}),
        ({}, {"false_positive_rate": 0.02}),
        ({}, {"folds": 4}),
    ],
    ids=["length", "labels", "inputs", "rate", "folds"],
)
def test_refuses_changed_data_or_settings(world, centroid_scorer, checkpoint, changed, settings):
    scorer, module = centroid_scorer(), world.module()
    trainer = world.trainer(world.sanitizer(scorer, **settings), max_epochs=2)
    with pytest.raises(DataChangedError, match="Expected the data and settings of the stored decision about 240"):
        trainer.fit(module, world.loader(world.numbered(**changed)), ckpt_path=checkpoint[0])
    assert not scorer.fits
    assert not module.epochs


def test_second_fit_judges_other_data_anew(world, assert_clean, centroid_scorer):
    scorer = centroid_scorer()
    sanitizer = world.sanitizer(scorer)
    trainer = world.trainer(sanitizer)
    trainer.fit(world.module(), world.loader(world.numbered()))
    trainer.fit_loop.max_epochs = 2
    module, other = world.module(), world.numbered(count=210, wrong=21, seed=1)
    trainer.fit(module, world.loader(other))
    assert len(module.epochs) == 1
    assert len(scorer.fits) == 6
    assert torch.equal(~sanitizer.verdict.keep, other.is_wrong)
    assert_clean(module, sanitizer.verdict)


@pytest.mark.slow
def test_testing_a_checkpoint_keeps_the_verdict(world, checkpoint):
    path, verdict = checkpoint
    data, sanitizer = world.numbered(), world.sanitizer()
    trainer = world.trainer(sanitizer)
    trainer.test(world.validated_module(), world.loader(data, shuffle=False), ckpt_path=path, verbose=False)
    assert torch.equal(sanitizer.verdict.keep, verdict.keep)
    trainer.fit(world.validated_module(), world.loader(data), world.loader(data, shuffle=False))
    trainer.test(world.validated_module(), world.loader(data, shuffle=False), ckpt_path=path, verbose=False)
    assert torch.equal(sanitizer.verdict.keep, verdict.keep)


def test_checkpoint_loads_with_weights_only(world, checkpoint):
    path, verdict = checkpoint
    stored = torch.load(path, weights_only=True)["callbacks"]["Sanitizer[sanitizer]"]["decisions"][""]
    again = StoredDecision.from_state(stored)
    assert torch.equal(again.keep, verdict.keep)
    assert again.fingerprint == verdict.fingerprint
    assert torch.equal(Verdict.load(again.file).scores, verdict.scores)


def test_run_resumes_by_the_mask_if_the_verdict_is_lost(world, assert_clean, centroid_scorer, checkpoint):
    path, verdict = checkpoint
    for file in world.path.rglob("*.safetensors"):
        file.unlink()
    scorer, module = centroid_scorer(), world.module()
    sanitizer = world.sanitizer(scorer)
    world.trainer(sanitizer, max_epochs=2).fit(module, world.loader(world.numbered()), ckpt_path=path)
    assert not scorer.fits
    assert_clean(module, verdict)
    with pytest.raises(RuntimeError, match="which has the mask and the path of the file"):
        sanitizer.verdict  # noqa: B018


def test_weights_alone_contain_no_verdict(world, centroid_scorer):
    saving = ModelCheckpoint(world.path, filename="weights", save_weights_only=True)
    trainer = world.trainer(world.sanitizer(), saving, enable_checkpointing=True)
    trainer.fit(world.module(), world.loader(world.numbered()))
    assert "callbacks" not in torch.load(world.path / "weights.ckpt", weights_only=True)


def test_checkpoints_during_a_run_contain_the_verdict(world, checkpoint):
    saving = ModelCheckpoint(world.path / "own", filename="each", every_n_train_steps=3)
    world.trainer(world.sanitizer(), saving, enable_checkpointing=True).fit(
        world.module(), world.loader(world.numbered())
    )
    stored = torch.load(world.path / "own" / "each.ckpt", weights_only=True)["callbacks"]
    kept = StoredDecision.from_state(stored["Sanitizer[sanitizer]"]["decisions"][""]).keep
    assert torch.equal(kept, checkpoint[1].keep)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_stateful_loader_resumes_within_an_epoch(world, centroid_scorer, workers):
    """The second half of the epoch has exactly the batches of an uninterrupted run."""

    def loader():
        generator = torch.Generator().manual_seed(4)
        return StatefulDataLoader(
            world.numbered(), batch_size=16, shuffle=True, generator=generator, num_workers=workers
        )

    saving = ModelCheckpoint(world.path, filename="half", every_n_train_steps=5, save_top_k=1)
    whole, module = world.sanitizer(), world.module()
    trainer = world.trainer(whole, saving, enable_checkpointing=True, max_steps=9)
    trainer.fit(module, loader())
    path = str(world.path / "half.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 5

    torch.manual_seed(99)
    scorer, resumed = centroid_scorer(), world.module()
    resumed.epochs.append([])  # the hook at the start of an epoch is not called when resuming within one
    again = ModelCheckpoint(world.path, filename="half", every_n_train_steps=5, save_top_k=1)
    world.trainer(world.sanitizer(scorer), again, enable_checkpointing=True).fit(resumed, loader(), ckpt_path=path)
    assert not scorer.fits
    assert resumed.epochs[0][:4] == module.epochs[0][5:9]
    assert set(chain(*module.epochs[0][:5])) | resumed.seen == set(whole.verdict.keep.nonzero().flatten().tolist())


@pytest.mark.slow
@pytest.mark.parametrize("estimating", [False, True], ids=["plain", "with estimated steps"])
def test_strategy_that_restores_late(world, centroid_scorer, estimating):
    """The stored verdict replaces one that was made because the loader was requested before the restore."""

    class Module(*[Scheduled] * estimating, world.module):
        pass

    class OtherScores(centroid_scorer):
        """A scorer with the same name and settings but other scores for some samples."""

        def score_labels(self, inputs):
            scores = super().score_labels(inputs)
            return torch.where(inputs[:, 3:] > 1, scores.roll(1, dims=1), scores)

    first, path, data = world.sanitizer(), str(world.path / "run.ckpt"), world.numbered()
    trainer = world.trainer(first)
    trainer.fit(Module(), world.loader(data))
    trainer.save_checkpoint(path)

    scorer, module = OtherScores(), Module()
    sanitizer = world.sanitizer(scorer)
    strategy = LateRestore(device=torch.device("cpu"))
    world.trainer(sanitizer, strategy=strategy, max_epochs=2).fit(module, world.loader(data), ckpt_path=path)
    assert len(scorer.fits) == (3 if estimating else 0)
    assert len(module.epochs) == 1
    assert module.seen == set(first.verdict.keep.nonzero().flatten().tolist())
    if estimating:  # the files of the first run were replaced before the restore, so only its mask is left
        assert not sanitizer.verdicts
    else:
        assert torch.equal(sanitizer.verdict.keep, first.verdict.keep)

    alone = world.sanitizer(OtherScores())
    world.trainer(alone).fit(world.module(), world.loader(data))
    assert not torch.equal(alone.verdict.keep, first.verdict.keep)


@pytest.mark.parametrize("as_path", [False, True])
def test_known_verdict_is_used_instead_of_scoring(world, assert_clean, centroid_scorer, checkpoint, as_path, tmp_path):
    known = checkpoint[1]
    if as_path:
        known.save(tmp_path / "known.safetensors")
        known = str(tmp_path / "known.safetensors")
    scorer, module = centroid_scorer(), world.module()
    sanitizer = world.sanitizer(scorer, known=known)
    world.trainer(sanitizer).fit(module, world.loader(world.numbered()))
    assert not scorer.fits
    assert sanitizer.verdict.agrees_with(checkpoint[1])
    assert_clean(module, sanitizer.verdict)


def test_known_verdict_of_other_data_is_refused(world, centroid_scorer, checkpoint):
    scorer = centroid_scorer()
    trainer = world.trainer(world.sanitizer(scorer, known=checkpoint[1]))
    with pytest.raises(DataChangedError, match=r"other labels: .*\n.*leave out `known` \(in YAML: `known: null`\)"):
        trainer.fit(world.module(), world.loader(world.numbered(wrong=25)))
    assert not scorer.fits


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_another_name_judges_anew_in_spite_of_a_checkpoint(world, centroid_scorer, checkpoint):
    scorer = centroid_scorer()
    sanitizer = world.sanitizer(scorer, name="anew")
    trainer = world.trainer(sanitizer, max_epochs=2)
    trainer.fit(world.module(), world.loader(world.numbered(wrong=25)), ckpt_path=checkpoint[0])
    assert len(scorer.fits) == 3
    assert not torch.equal(sanitizer.verdict.keep, checkpoint[1].keep)


def test_refuses_known_that_is_no_verdict(world):
    with pytest.raises(TypeError, match=r"`known` to be a `Verdict`, .*\nPass a verdict, or the path"):
        world.sanitizer(known=3)
