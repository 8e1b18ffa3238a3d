"""Decisions from out-of-fold probabilities that the user has computed."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.fingerprints import digest_of
from lightning_poison.data.large_matrices import label_score_dtype, zeros_in_file
from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.sanitization.without_trusted import decide_by_wrong_label_null
from lightning_poison.statistics.lowest_scores import LowestScores
from lightning_poison.statistics.row_blocks import small_row_blocks

_TOLERANCE = 0.01
"""How far the sum of a row may be from 1, as that of probabilities in half precision is."""

_SURE = 1e-6
"""How far probabilities may be from 0 and 1 to count as hard predictions."""

_TOO_GOOD = 0.995
"""Share of labels predicted from which probabilities may be those of a model that was fitted on the same samples.

On 600 digits with 5 % wrong labels, forests, boosted trees and nearest neighbors predict 99.8 to 100 % of the labels
that they were fitted on, and at most 97 % out of fold without wrong labels.
"""

_OUT_OF_FOLD = "Use out-of-fold probabilities, such as `cross_val_predict(model, X, labels, method='predict_proba')`."


def judge_probabilities(labels: Any, pred_probs: Any, settings: DecisionSettings) -> Verdict:
    """Judge labels by out-of-fold probabilities, with the rule for cross-fitted scores.

    The suspicion of a sample under a label is the negative logarithm of its probability. A probability of 0 counts as
    half of the smallest positive one, since a forest of 100 trees knows no smaller ones than 1 %.

    A model predicts the labels that it was fitted on, wrong ones too. If nearly all labels are predicted, a note and a
    warning say so, and the power of the decision is unknown.

    Args:
        labels: Labels in [0, C), `(N,)`: a tensor, an array or a list of integers.
        pred_probs: Probability of each class, by a model that was not fitted on the sample, `(N, C)`, rows that sum
            to 1: a tensor, an array or a table.
        settings: Settings of the decision.

    Raises:
        TypeError: If an argument is no array of numbers.
        ValueError: If a label is out of range, or `pred_probs` are no probabilities of these samples, or 0 and 1 only.
        InconclusiveError: If the predictions are too inaccurate to judge labels.

    Example:
        >>> pred_probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).repeat(100, 1)
        >>> labels = torch.tensor([0, 1]).repeat(100)
        >>> labels[:10] = 1 - labels[:10]
        >>> judge_probabilities(labels, pred_probs, DecisionSettings()).removed.sort().values
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    probabilities = _probabilities(pred_probs)
    own = _labels(labels, probabilities)
    scores = _surprisals(probabilities)
    lowest = LowestScores.of(scores)
    try:
        decision = decide_by_wrong_label_null(scores, own, settings, lowest=lowest)
    except InconclusiveError as error:
        way = "Check that column k is that of class k, and use a more accurate model."
        ranking = scores.gather(1, own[:, None])[:, 0].double()
        raise InconclusiveError(f"{str(error).splitlines()[0]}\n{way}", ranking) from error
    notes = _notes(probabilities, own)
    described = {"scorer": {"name": "pred_probs"}, **settings.fingerprinted(), "trusted": None}
    text = torch.frombuffer(bytearray(repr(sorted(described.items())).encode()), dtype=torch.uint8)
    return Verdict(
        scores=scores.gather(1, own[:, None])[:, 0].double(),
        p_values=decision.p_values,
        keep=decision.keep,
        labels=own,
        suggested_labels=lowest.predicted,
        thresholds=decision.thresholds,
        evidence=replace(decision.evidence, power=None) if notes else decision.evidence,
        calibration="wrong-label null",
        false_positive_rate=settings.false_positive_rate,
        scorer="pred_probs",
        fingerprint=digest_of({"labels": own, "pred_probs": probabilities, "settings": text}),
        settings=described,
        posterior=decision.posterior,
        posterior_threshold=decision.posterior_threshold,
        notes=notes,
    )


def _notes(probabilities: Tensor, labels: Tensor) -> tuple[str, ...]:
    """Return a note if nearly all labels are predicted, and warn of it."""
    predicted = torch.from_numpy(probabilities.numpy().argmax(1))  # several times as fast as torch's
    agreement = float((predicted == labels).double().mean())
    if agreement < _TOO_GOOD:
        return ()
    note = (
        f"`pred_probs` predict {100 * agreement:.4g} % of the labels, as a model does on the samples that it was "
        f"fitted on: it repeats wrong labels, and they are not found. {_OUT_OF_FOLD}"
    )
    warnings.warn(note, stacklevel=4)
    return (note,)


def _surprisals(probabilities: Tensor) -> Tensor:
    """Return −log p, where a p of 0 counts as half of the smallest other one, in the data type of the probabilities."""
    blocks = list(small_row_blocks(*probabilities.shape))
    least = smallest = min(float(probabilities[rows].min()) for rows in blocks)
    if not least:
        positive = (torch.where(each > 0, each, 1.0) for each in (probabilities[rows] for rows in blocks))
        smallest = min(float(each.min()) for each in positive)
    scores = zeros_in_file(tuple(probabilities.shape), probabilities.dtype)
    buffer = torch.empty(blocks[0].stop, probabilities.shape[1], dtype=torch.float64)
    for rows in blocks:
        block = buffer[: rows.stop - rows.start].copy_(probabilities[rows])
        scores[rows] = (block if least else block.clamp_min_(smallest / 2)).log_().neg_()
    return scores


def _probabilities(values: Any) -> Tensor:
    """Return probabilities `(N, C)`, float64, or float32 if there are many and they are not float64."""
    array = _array("pred_probs", values)
    if array.ndim != 2 or not len(array) or array.shape[1] < 2:
        what = "of shape (N, C), one row for each sample and one column for each of at least two classes"
        raise ValueError(expected("pred_probs", what, f"shape {tuple(array.shape)}"))
    found = _converted(array)
    blocks = list(small_row_blocks(*found.shape))
    sums = _in_each(blocks, lambda rows: found[rows].sum(1, dtype=torch.float64))
    infinite = ~sums.isfinite()
    infinite[infinite.clone()] = ~found[infinite].isfinite().all(1)
    _refuse(infinite, found, "finite", "Repair or leave out these samples.")
    log_like = all(bool((found[rows] <= 0).all()) for rows in blocks)
    softmax = (
        "Convert log-probabilities with `.exp()`." if log_like else "Convert logits with `torch.softmax(logits, 1)`."
    )
    negative = _in_each(blocks, lambda rows: found[rows].amin(1) < 0)
    _refuse(negative, found, "probabilities, which are at least 0", softmax)
    _refuse((sums - 1).abs() > _TOLERANCE, found, "probabilities whose rows sum to 1", softmax)
    if all(bool((found[rows].amax(1) > 1 - _SURE).all()) for rows in blocks):
        raise ValueError(
            expected("pred_probs", "probabilities", "0 and 1 alone in every row, as of predicted classes")
            + "\nThey do not say which predictions are uncertain. A single tree, a nearest neighbor and a model that "
            f"has learned its training samples by heart know only 0 and 1. {_OUT_OF_FOLD}"
        )
    return found


def _converted(array: np.ndarray) -> Tensor:
    """Return an array as a tensor of its own, or, if it is large, without a copy where possible."""
    dtype = label_score_dtype(*array.shape)
    if dtype == torch.float64:
        return torch.from_numpy(array.astype(np.float64))
    kept = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    return torch.from_numpy(np.require(array.astype(kept, copy=False), requirements=("C", "W")))


def _in_each(blocks: list[slice], compute: Callable[[slice], Tensor]) -> Tensor:
    """Return what a function of a block of rows returns for all rows."""
    return torch.cat([compute(rows) for rows in blocks])


def _refuse(odd: Tensor, found: Tensor, what: str, hint: str) -> None:
    if odd.any():
        row = int(odd.nonzero()[0])
        shown = ", ".join(f"{value:.4g}" for value in found[row, :4].tolist()) + (", ..." if found.shape[1] > 4 else "")
        came = f"[{shown}] (sum {found[row].sum():.4g}) in row {row}"
        raise ValueError(expected("pred_probs", what, came, f"{hint} {_OUT_OF_FOLD}"))


def _labels(values: Any, probabilities: Tensor) -> Tensor:
    """Return labels as int64 `(N,)`."""
    array = _array("labels", values)
    count, classes = probabilities.shape
    if array.shape == (count, 1):
        array = array[:, 0]
    if array.shape != (count,):
        raise ValueError(expected("labels", f"one for each of {count:,} rows of `pred_probs`", f"shape {array.shape}"))
    whole = array.astype(np.int64) if np.isfinite(array).all() else None
    if whole is None or not (whole == array).all():
        odd = int(np.flatnonzero(~np.isfinite(array) | (np.floor(array) != array))[0])
        raise ValueError(expected("labels", "class indices", f"{array[odd]} at sample {odd}"))
    outside = np.flatnonzero((whole < 0) | (whole >= classes))
    if len(outside):
        what = f"in [0, {classes}), the columns of `pred_probs`"
        hint = "Number the classes as the columns: with scikit-learn, `np.searchsorted(model.classes_, labels)`."
        raise ValueError(expected("labels", what, f"{whole[outside[0]]} at sample {outside[0]}", hint))
    if len(np.unique(whole)) < 2:
        raise ValueError(expected("labels", "of at least two classes", f"class {whole[0]} alone"))
    return torch.from_numpy(whole)


def _array(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    try:
        array = np.asarray(values)
    except Exception as error:
        raise TypeError(expected(name, "an array of numbers", f"{describe(values)}: {printable(error)}")) from error
    if array.dtype.kind not in "biuf":
        hint = "Number the classes: `np.unique(labels, return_inverse=True)[1]`." if name == "labels" else _OUT_OF_FOLD
        raise TypeError(expected(name, "an array of numbers", describe(values), hint))
    return array
