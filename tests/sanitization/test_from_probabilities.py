import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch.utils.data import TensorDataset

from lightning_poison.data import large_matrices
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.errors import InconclusiveError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.sample_scores import out_of_fold_label_scores
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.statistics import row_blocks

RUNTIME = LocalRuntime(precision="32", threads=1, quiet=True)


def sure(count=300, classes=3, wrong=15, low=0.02):
    truth = torch.arange(count) % classes
    pred_probs = torch.full((count, classes), low)
    pred_probs[torch.arange(count), truth] = 1 - low * (classes - 1)
    return torch.where(torch.arange(count) < wrong, (truth + 1) % classes, truth), pred_probs


@pytest.mark.slow
def test_finds_wrong_labels_of_digits():
    pixels, truth = load_digits(return_X_y=True)
    wrong = np.arange(len(truth)) % 15 == 0
    labels = np.where(wrong, (truth + 1) % 10, truth)
    forest, folds = ExtraTreesClassifier(50, random_state=0), StratifiedKFold(3, shuffle=True, random_state=0)
    pred_probs = cross_val_predict(forest, pixels, labels, method="predict_proba", cv=folds)
    verdict = sanitize(labels=labels, pred_probs=pred_probs)
    removed = ~verdict.keep.numpy()
    assert (removed & wrong).sum() >= 0.95 * wrong.sum()
    assert (removed & ~wrong).sum() <= 0.01 * (~wrong).sum()
    with pytest.warns(UserWarning, match="`pred_probs` predict 100 % of the labels"):
        assert sanitize(labels=truth, pred_probs=np.eye(10)[truth] * 0.9 + 0.01).keep.all()


@pytest.mark.slow
def test_same_mask_as_of_a_scorer(tmp_path):
    truth = torch.arange(240) % 3
    points = torch.randn(240, 4, generator=torch.Generator().manual_seed(0)) + 6 * torch.eye(4)[truth]
    data = TensorDataset(points, torch.where(torch.arange(240) < 12, (truth + 1) % 3, truth))
    scorer = ConfidenceScorer(fit_settings=FitSettings(epochs=5, batch_size=32, min_steps=60))
    scored = sanitize(data, scorer, runtime=RUNTIME)
    labeled = read_labeled(open_source(data, sample=None), runtime=RUNTIME, name="data")
    surprisals = out_of_fold_label_scores(Job(labeled, scorer, RUNTIME), scorer, number=0).scores
    verdict = sanitize(labels=data.tensors[1], pred_probs=(-surprisals).exp())
    assert torch.equal(verdict.keep, scored.keep)
    assert len(verdict.removed) >= 11
    torch.testing.assert_close(verdict.posterior, scored.posterior)
    verdict.save(tmp_path / "verdict.safetensors")
    assert torch.equal(Verdict.load(tmp_path / "verdict.safetensors").keep, verdict.keep)


def test_probability_of_zero_counts_as_half_of_the_smallest():
    labels, pred_probs = sure(low=0.0)
    pred_probs[100, :] = torch.tensor([0.01, 0.99, 0.0])
    verdict = sanitize(labels=labels, pred_probs=pred_probs)
    assert verdict.scores[0] == pytest.approx(-np.log(0.005))
    assert set(range(15)) <= set(verdict.removed.tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "convert", [np.asarray, lambda values: values.tolist(), lambda values: values.half(), torch.Tensor.bfloat16]
)
def test_kinds_of_arrays(convert):
    labels, pred_probs = sure()
    expected = sanitize(labels=labels, pred_probs=pred_probs)
    for given in (labels, labels.numpy(), labels.tolist(), labels.float(), labels[:, None]):
        assert torch.equal(sanitize(labels=given, pred_probs=convert(pred_probs)).keep, expected.keep)


def test_data_are_in_the_fingerprint():
    labels, pred_probs = sure()
    given = (pred_probs, pred_probs.clone(), sure(low=0.03)[1])
    one, same, other = (sanitize(labels=labels, pred_probs=each).fingerprint for each in given)
    assert one == same != other


def test_names_the_way_out_for_columns_in_another_order():
    labels, pred_probs = sure()
    with pytest.raises(
        InconclusiveError, match=r"but got -?0\.\d\d[\s\S]*Check that column k is that of class k"
    ) as found:
        sanitize(labels=labels, pred_probs=pred_probs[:, [1, 2, 0]])
    expected = -pred_probs[:, [1, 2, 0]].gather(1, labels[:, None])[:, 0].double().log()
    torch.testing.assert_close(found.value.scores, expected)


LABELS, PROBS = sure(30, wrong=0)
BAD = PROBS.clone()
BAD[7] = torch.tensor([-0.5, 0.5, 1.0])


@pytest.mark.parametrize(
    ("labels", "pred_probs", "error", "message"),
    [
        (LABELS, PROBS[:, 0], ValueError, r"`pred_probs` to be of shape \(N, C\).*, but got shape \(30,\)"),
        (LABELS, PROBS[:, :1], ValueError, r"but got shape \(30, 1\)"),
        (LABELS[:9], PROBS, ValueError, r"one for each of 30 rows of `pred_probs`, but got shape \(9,\)"),
        (LABELS, BAD, ValueError, r"at least 0, but got \[-0.5, 0.5, 1\] \(sum 1\) in row 7\.\nConvert logits"),
        (LABELS, PROBS.log(), ValueError, r"in row 0\.\nConvert log-probabilities with `\.exp\(\)`"),
        (LABELS, 3 * PROBS, ValueError, r"rows sum to 1, but got .* \(sum 3\) in row 0"),
        (LABELS, PROBS * torch.nan, ValueError, r"finite, but got \[nan, nan, nan\]"),
        (LABELS, [["a"]], TypeError, "`pred_probs` to be an array of numbers"),
        (LABELS + 1, PROBS, ValueError, r"in \[0, 3\), the columns of `pred_probs`, but got 3 at sample 2\."),
        (LABELS - 1, PROBS, ValueError, "but got -1 at sample 0"),
        (LABELS + 0.5, PROBS, ValueError, "class indices, but got 0.5 at sample 0"),
        (["cat"] * 30, PROBS, TypeError, r"`labels` to be an array of numbers, .*\nNumber the classes"),
        (LABELS * 0, PROBS, ValueError, "at least two classes, but got class 0 alone"),
        (LABELS, None, TypeError, "`pred_probs` to be passed together"),
        (None, PROBS, TypeError, "`labels` to be passed together"),
    ],
)
def test_refuses(labels, pred_probs, error, message):
    with pytest.raises(error, match=message):
        sanitize(labels=labels, pred_probs=pred_probs)


def test_refuses_a_data_set_besides():
    with pytest.raises(TypeError, match="`dataset` to be left out with `labels` and `pred_probs`"):
        sanitize([], labels=LABELS, pred_probs=PROBS)
    with pytest.raises(TypeError, match="`dataset` to be a data set, or `labels` with `pred_probs`, but got neither"):
        sanitize()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scorer", ConfidenceScorer()),
        ("scorer", "fast"),
        ("sample", SampleSpec()),
        ("folds", 5),
        ("cache", "folder"),
        ("runtime", RUNTIME),
        ("groups", [0] * 30),
    ],
)
def test_refuses_arguments_that_have_no_meaning(name, value):
    with pytest.raises(TypeError, match=f"`{name}` to be left out with `labels` and `pred_probs`, but got .*\nProbab"):
        sanitize(labels=LABELS, pred_probs=PROBS, **{name: value})


def test_names_all_arguments_that_have_no_meaning():
    with pytest.raises(TypeError, match=r"Expected `folds`, `cache` to be left out .*, but got 5, 'folder'"):
        sanitize(labels=LABELS, pred_probs=PROBS, folds=5, cache="folder")
    labels, pred_probs = sure()
    settings = {"false_positive_rate": 0.02, "natural_error_rate": 0.01, "max_removed": 0.4, "seed": 1}
    assert not sanitize(labels=labels, pred_probs=pred_probs, scorer="balanced", folds=3, **settings).keep.all()


@pytest.mark.slow
def test_warns_of_predictions_on_the_samples_that_a_model_was_fitted_on():
    model = RandomForestClassifier(20, random_state=0)
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    points = generator.normal(size=(150, 6)) + 3 * np.eye(3, 6)[labels]
    labels[:10] = (labels[:10] + 1) % 3
    with pytest.warns(UserWarning, match=r"`pred_probs` predict (100|99\..) % of the labels, .*\bfitted on"):
        verdict = sanitize(labels=labels, pred_probs=model.fit(points, labels).predict_proba(points))
    assert "fitted on" in verdict.summary()
    assert verdict.evidence.power is None
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    pred_probs = cross_val_predict(model, points, labels, method="predict_proba", cv=folds)
    assert sanitize(labels=labels, pred_probs=pred_probs).notes == ()


@pytest.mark.parametrize("shift", [0.0, 1e-9])
def test_refuses_predicted_classes(shift):
    labels, pred_probs = sure()
    hard = torch.eye(3).double()[pred_probs.argmax(1)] * (1 - 3 * shift) + shift
    with pytest.raises(ValueError, match="to be probabilities, but got 0 and 1 alone in every row"):
        sanitize(labels=labels, pred_probs=hard)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_many_probabilities_are_judged_in_blocks(monkeypatch, dtype):
    """What is large is not copied to float64, and is read block by block."""
    labels, pred_probs = sure(classes=5)
    noise = torch.rand(300, 5, generator=torch.Generator().manual_seed(0)) / 50
    pred_probs = ((pred_probs + noise) / (pred_probs + noise).sum(1, keepdim=True)).numpy().astype(dtype)
    whole = sanitize(labels=labels, pred_probs=pred_probs)
    monkeypatch.setattr(large_matrices, "_EXACT", 0)
    monkeypatch.setattr(row_blocks, "AT_ONCE", 64)
    before = pred_probs.copy()
    parts = sanitize(labels=labels, pred_probs=pred_probs)
    assert int((~whole.keep).sum()) == 15
    assert torch.equal(parts.keep, whole.keep)
    torch.testing.assert_close(parts.posterior, whole.posterior, rtol=0, atol=1e-5)
    assert parts.scores.dtype == torch.float64
    assert (before == pred_probs).all()
    pred_probs[200, 2] = np.nan
    with pytest.raises(ValueError, match=r"finite, but got .* in row 200"):
        sanitize(labels=labels, pred_probs=pred_probs)
