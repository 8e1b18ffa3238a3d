import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.saving import load_scorer, save_scorer
from lightning_poison.serialization import write_tensors

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
