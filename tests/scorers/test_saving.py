import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.saving import load_scorer, save_scorer
from lightning_poison.serialization import read_tensors, write_tensors

QUICK = FitSettings(epochs=1, batch_size=16, min_steps=0)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(32, 1, 8, 8, generator=generator), torch.arange(32) % 2)


def test_loaded_scorer_gives_the_same_scores(images, tmp_path):
    fitted = LikelihoodScorer(fit_settings=QUICK).fit(images)
    save_scorer(fitted, tmp_path / "scorer.safetensors")
    loaded = load_scorer(LikelihoodScorer(fit_settings=QUICK), tmp_path / "scorer.safetensors")
    inputs, labels = images.tensors
    assert torch.equal(loaded.score_batch(inputs, labels), fitted.score_batch(inputs, labels))
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.safetensors"]


def test_refuses_to_save_an_unfitted_scorer(tmp_path):
    with pytest.raises(NotFittedError):
        save_scorer(LikelihoodScorer(), tmp_path / "scorer.safetensors")
    assert not list(tmp_path.iterdir())


def test_refuses_file_of_another_scorer(images, tmp_path):
    save_scorer(PixelCountingScorer().fit(images), tmp_path / "scorer.safetensors")
    scorer = LikelihoodScorer()
    with pytest.raises(ValueError, match="contains the pixel-counting scorer"):
        load_scorer(scorer, tmp_path / "scorer.safetensors")
    assert not scorer.is_fitted


def test_refuses_file_with_other_settings(images, tmp_path):
    save_scorer(LikelihoodScorer(fit_settings=QUICK).fit(images), tmp_path / "scorer.safetensors")
    with pytest.raises(ValueError, match=r"feature_size=32 in the file"):
        load_scorer(LikelihoodScorer(feature_size=16, fit_settings=QUICK), tmp_path / "scorer.safetensors")


def test_refuses_file_of_another_kind(tmp_path):
    write_tensors(tmp_path / "poison.safetensors", {"indices": torch.arange(2)}, {"kind": "poison"})
    with pytest.raises(ValueError, match="kind 'scorer'"):
        load_scorer(LikelihoodScorer(), tmp_path / "poison.safetensors")
    with pytest.raises(FileNotFoundError):
        load_scorer(LikelihoodScorer(), tmp_path / "nothing.safetensors")


def test_escapes_control_characters_in_names(images, tmp_path):
    save_scorer(PixelCountingScorer().fit(images), tmp_path / "scorer.safetensors")
    odd = PixelCountingScorer()
    odd.name = "odd\x1b[2J"
    with pytest.raises(ValueError, match=r"a file of the odd\\x1b\[2J scorer"):
        load_scorer(odd, tmp_path / "scorer.safetensors")


@pytest.mark.parametrize("scorer", [DeepKNNScorer(), CombinedScorer([PixelCountingScorer(), DeepKNNScorer()])])
def test_refuses_set_scorers_and_combinations(scorer, tmp_path):
    for call in (save_scorer, load_scorer):
        with pytest.raises(
            TypeError, match=r"to be a `Scorer`, but got .*\n.*Save the members of a combination one by one"
        ):
            call(scorer, tmp_path / "scorer.safetensors")


def rewrite(path, change):
    tensors, meta = read_tensors(path, "scorer")
    change(tensors, meta)
    write_tensors(path, tensors, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, meta: meta.update(version=2), "`version` 1 of the scorer format"),
        (lambda tensors, meta: meta.update(settings=[1]), r"an invalid part\. Expected `settings` to be a `Mapping`"),
        (lambda tensors, meta: meta.pop("settings"), r"an invalid part\. Expected `settings` to be a `Mapping`"),
        (lambda tensors, meta: meta.update(scorer=["odd\x1b"]), r"contains the \['odd\\+x1b'\] scorer"),
        (
            lambda tensors, meta: tensors["model.head.means"].fill_(torch.nan),
            "`model.head.means` to be free of NaN",
        ),
        (lambda tensors, meta: tensors.update(odd=torch.zeros(1)), "`odd` to be a tensor of this scorer"),
        (lambda tensors, meta: tensors.pop("sample_shape"), "to be the state of"),
        (
            lambda tensors, meta: tensors.update({"model.head.means": tensors["model.head.means"].double()}),
            "`model.head.means` to be a float32 tensor .*, but got a float64 tensor",
        ),
        (lambda tensors, meta: tensors.update(sample_shape=torch.tensor([1, 0, 8])), "`sample_shape` to be in"),
        (
            lambda tensors, meta: tensors.update(sample_shape=torch.zeros(3)),
            "`sample_shape` to be a one-dim",
        ),
    ],
)
def test_invalid_parts_are_refused_and_change_nothing(images, tmp_path, change, message):
    path, scorer = tmp_path / "scorer.safetensors", LikelihoodScorer(fit_settings=QUICK)
    save_scorer(LikelihoodScorer(fit_settings=QUICK).fit(images), path)
    rewrite(path, change)
    before = dict(vars(scorer))
    with pytest.raises(ValueError, match=message) as caught:
        load_scorer(scorer, path)
    assert str(path) in str(caught.value)
    assert vars(scorer) == before
    assert not scorer.is_fitted


def test_a_network_of_the_user_is_restored(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
    scorer, path = ConfidenceScorer.from_module(network), tmp_path / "scorer.safetensors"
    save_scorer(scorer, path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rewrite(path, lambda tensors, meta: tensors["model.1.weight"].zero_())
    rewrite(path, lambda tensors, meta: tensors.update({"model.2.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=r"an invalid part\. .*size mismatch for 2\.weight"):
        load_scorer(scorer, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_interrupted_loading_changes_nothing(images, tmp_path, monkeypatch):
    path, scorer = tmp_path / "scorer.safetensors", LikelihoodScorer(fit_settings=QUICK)
    save_scorer(LikelihoodScorer(fit_settings=QUICK).fit(images), path)
    load, before = LikelihoodScorer.load, dict(vars(scorer))

    def interrupted(self, state):
        load(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(LikelihoodScorer, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_scorer(scorer, path)
    assert vars(scorer) == before


def test_refuses_to_save_weights_that_are_not_numbers(images, tmp_path):
    fitted = PixelCountingScorer().fit(images)
    fitted.means[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"`means` to be free of NaN, but got nan at position \(0, 0\)"):
        save_scorer(fitted, tmp_path / "scorer.safetensors")
