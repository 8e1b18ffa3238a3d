"""`StreamFilter`: a fitted scorer with a calibrated threshold per class, which judges samples one block at a time."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lightning_poison.checks import describe, every, expected, fraction, from_json, instance, printable
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import BLOCK_SIZE, index_blocks, read_blocks
from lightning_poison.data.labeled_data import LabeledData, read_labeled
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import read_opened, readable
from lightning_poison.errors import NotFittedError
from lightning_poison.randomness import derived_generator, isolated_rng
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.sanitization.pipeline import check_scorer_argument
from lightning_poison.sanitization.scorer_calls import call_deepcopy, call_fit, call_score_batch, call_score_labels
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.sanitization.with_trusted import HELD_OUT, check_learned, decide_by_trusted, warn_of_few
from lightning_poison.scorers.inspection import weights_of
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.scorers.saving import load_parts, parts_of_scorer
from lightning_poison.serialization import read_tensors, valid_parts, write_tensors
from lightning_poison.statistics.share_drift import ReferenceCounts
from lightning_poison.statistics.stratified import stratified_part

_KIND, _VERSION = "stream filter", 1
"""Kind and format of the file of a filter."""

_STATE = "scorer."
"""Prefix of the names of the scorer's tensors in the file."""

WAY_TO_FILTER = (
    "    stream_filter = StreamFilter.fit(LikelihoodScorer(), trusted)  # from lightning_poison.sanitization\n"
    "    Sanitizer(stream_filter=stream_filter)"
)
"""The two lines that filter a stream."""


class Judgment(NamedTuple):
    """What a filter finds in a block of B samples.

    Args:
        scores: float64 `(B,)`, larger is more suspicious; 0 for samples that are not judged.
        judged: Boolean `(B,)`: whether the label has a threshold.
        suspicious: Boolean `(B,)`: whether the score is above it.
    """

    scores: Tensor
    judged: Tensor
    suspicious: Tensor


@dataclass(frozen=True, eq=False)
class StreamFilter:
    """A fitted scorer and a decision threshold for each class, calibrated on other data than the stream.

    Build it with `fit` or `from_verdict`. Pass it to `Sanitizer(stream_filter=...)` or `SanitizedStream`.

    Args:
        scorer: Fitted scorer of single samples.
        thresholds: Threshold of each class, float64 `(C,)`; infinite for a class without one, which is not judged.
        false_positive_rate: Share of clean samples above the thresholds, in (0, 1).
        reference: Samples on which the removed share is known, with which that of a stream is compared.

    Raises:
        NotFittedError: If the scorer is not fitted.
        TypeError: If it is no scorer of single samples.
        ValueError: If a value is out of range, or no class has a threshold.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> stream_filter = StreamFilter.fit(PixelCountingScorer(), TinyImages(1200))
        >>> print(stream_filter)
        pixel-counting on 3 classes, calibrated on 360 samples, stated false-positive rate 1 %
    """

    scorer: Scorer
    thresholds: Tensor
    false_positive_rate: float
    reference: ReferenceCounts

    def __post_init__(self) -> None:
        _check_single(self.scorer)
        if not self.scorer.is_fitted:
            raise NotFittedError(
                f"Expected a fitted scorer, but got {printable(repr(self.scorer), limit=80)} before a fit.\n"
                "`StreamFilter.fit(scorer, trusted)` fits and calibrates it."
            )
        values = instance("thresholds", self.thresholds, Tensor)
        if values.ndim != 1 or values.dtype != torch.float64:
            raise ValueError(expected("thresholds", "float64, one for each class", describe(values)))
        every("thresholds", values, ~(values.isnan() | values.isneginf()), "finite or infinity")
        if not bool(values.isfinite().any()):
            raise ValueError(expected("thresholds", "finite for a class at least", "infinity for all of them"))
        fraction("false_positive_rate", self.false_positive_rate)
        instance("reference", self.reference, ReferenceCounts)

    def __str__(self) -> str:
        return (
            f"{printable(self.scorer.name, limit=40)} on {int(self.thresholds.isfinite().sum())} classes, calibrated "
            f"on {self.reference.judged:,} samples, stated false-positive rate {100 * self.false_positive_rate:g} %"
        )

    @classmethod
    def fit(
        cls,
        scorer: Scorer,
        trusted: Any,
        *,
        false_positive_rate: float = 0.01,
        sample: SampleSpec | None = None,
        seed: int = 0,
        runtime: Runtime | None = None,
    ) -> Self:
        """Fit a copy of a scorer on 70 % of known-clean samples, and calibrate its thresholds on the others.

        A scorer that is fitted already is calibrated on all samples and must not have been fitted on any.

        Args:
            scorer: Scorer of single samples. It is not changed.
            trusted: Known-clean samples, or earlier samples that were kept: `SanitizedDataset(earlier, verdict.keep)`.
                A map-style data set or a loader of one. Unlabeled samples are left out.
            false_positive_rate: Accepted share of clean samples removed, in (0, 1). Default: 0.01.
            sample: Paths of input and label in a sample. Default: detected.
            seed: The only source of randomness. Default: 0.
            runtime: Where to fit. Scores are calibrated on the CPU, as streams are judged. Default: `LocalRuntime()`.

        Raises:
            InconclusiveError: If the scorer predicts other labels for the held-out samples than they carry.
            UnreadableSampleError: If a sample cannot be read.
            TypeError: If it is no scorer of single samples.
            ValueError: If a class has too few samples, or an argument is out of range.
        """
        _check_single(scorer)
        settings = DecisionSettings(false_positive_rate=false_positive_rate, seed=seed)
        runtime = runtime or LocalRuntime()
        with isolated_rng(seed, runtime.device):
            data = _read(trusted, sample, seed, runtime)
            held_out = torch.arange(len(data))
            if not scorer.is_fitted:
                mask = stratified_part(
                    data.labels, HELD_OUT, derived_generator(seed, "trusted split"), among=data.labels
                )
                part, held_out = data.subset((~mask).nonzero().flatten()), mask.nonzero().flatten()
                generator = derived_generator(seed, "stream filter")
                scorer = call_fit(call_deepcopy(scorer), part, runtime=runtime, generator=generator)
            labels = data.labels[held_out]
            warn_of_few(labels, data.labels, parts=1)
            scores, predictions = _calibration_scores(scorer, data, held_out)
        check_learned(labels, predictions)
        decision = decide_by_trusted(scores, labels, scores, labels, settings)
        above = int((~decision.keep).sum())
        counts = torch.bincount(labels).double() + 1
        stated = float((false_positive_rate * counts[counts > 1]).sum())
        at_least = int((scores >= decision.thresholds[labels]).sum())
        most = min(float(len(labels)), max(at_least, stated))
        return cls(scorer, decision.thresholds, false_positive_rate, ReferenceCounts(len(labels), above, most))

    @classmethod
    def from_verdict(cls, verdict: Verdict, scorer: Scorer) -> Self:
        """Use the thresholds of a verdict on earlier data, made with a fitted scorer and trusted data.

        The removed share of a stream is then compared with that of the earlier data, without what was decided by hand.

        Args:
            verdict: What `sanitize(earlier, scorer, trusted=...)` returned.
            scorer: The same scorer, which was fitted before `sanitize`.

        Raises:
            NotFittedError: If the scorer is not fitted.
            TypeError: If it is no scorer of single samples.
            ValueError: If the verdict has no thresholds of scores, or was made with another scorer.
        """
        instance("verdict", verdict, Verdict)
        way = "Fit and calibrate a filter on the samples that were kept: "
        way += "`StreamFilter.fit(scorer, SanitizedDataset(earlier, verdict.keep))`."
        if verdict.calibration != "trusted" or not bool(verdict.thresholds.isfinite().any()):
            raise ValueError(expected("verdict", "calibrated on trusted data", repr(verdict.calibration), way))
        check_scorer_argument(scorer)
        judged = torch.ones_like(verdict.keep) if verdict.judged is None else verdict.judged
        above = float((verdict.scores > verdict.thresholds[verdict.labels.clamp_min(0)])[judged].sum())
        reference = ReferenceCounts(int(judged.sum()), above, above)
        made = cls(scorer, verdict.thresholds, verdict.false_positive_rate, reference)
        if verdict.scorer != scorer.name or verdict.settings.get("fitted") != weights_of(scorer):
            came = f"one with the scorer {printable(verdict.scorer)}, fitted otherwise or by `sanitize` itself"
            raise ValueError(expected("verdict", "made with the fitted scorer that is passed", came, way))
        return made

    def judge(self, inputs: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> Judgment:
        """Judge samples on the CPU. The result for a sample does not depend on the other ones.

        Args:
            inputs: float32 `(B, ...)`.
            labels: int64 `(B,)`. Samples with the label −1, or one without a threshold, are not judged.
            indices: Positions of the samples, int64 `(B,)`, for messages. Default: those in the block.

        Raises:
            ValueError: If a score is not finite.
            PluginError: If the scorer returns something that breaks the contract.
        """
        own = self.thresholds[labels.clamp(0, len(self.thresholds) - 1)]
        judged = (labels >= 0) & (labels < len(self.thresholds)) & own.isfinite()
        scores = torch.zeros(len(labels), dtype=torch.float64)
        if bool(judged.any()):
            places = indices if indices is not None else torch.arange(len(labels))
            scores[judged] = _scores(self.scorer, inputs[judged], labels[judged], places[judged])
        return Judgment(scores, judged, judged & (scores > own))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write scorer and thresholds to one safetensors file, atomically.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If the state of the scorer contains NaN.
        """
        meta, state = parts_of_scorer(self.scorer)
        meta |= {"false_positive_rate": self.false_positive_rate, "reference": vars(self.reference)}
        tensors = {_STATE + name: value for name, value in state.items()} | {"thresholds": self.thresholds}
        write_tensors(path, tensors, {"kind": _KIND, "version": _VERSION, **meta})

    @classmethod
    def load(cls, path: str | os.PathLike[str], scorer: Scorer) -> Self:
        """Read a file that `save` wrote. Nothing is unpickled.

        Args:
            path: File to read.
            scorer: Scorer with the same settings, into which the state is loaded.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If the scorer is no scorer of single samples.
            ValueError: If it is no file of a filter of this version, or one with another scorer or other settings, a
                value is invalid, or the file was damaged. The message names file, field and value.
        """
        _check_single(scorer)
        tensors, meta = read_tensors(path, _KIND, version=_VERSION)
        state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
        loaded = load_parts(scorer, state, meta, path)
        with valid_parts(path, _KIND):
            reference = from_json(ReferenceCounts, meta.get("reference"), "reference")
            rate = fraction("false_positive_rate", meta.get("false_positive_rate"))  # type: ignore[arg-type]  # checked
            return cls(loaded, instance("thresholds", tensors.get("thresholds"), Tensor), rate, reference)


def _check_single(scorer: Any) -> None:
    check_scorer_argument(scorer)
    if not isinstance(scorer, Scorer):
        what = "a `Scorer`, which scores single samples, such as `LikelihoodScorer()`"
        hint = "A stream has no whole set to compare a sample with, as scorers of a whole set and presets do."
        raise TypeError(expected("scorer", what, printable(type(scorer).__name__), hint))


def _read(trusted: Any, sample: SampleSpec | None, seed: int, runtime: Runtime) -> LabeledData:
    given = readable(trusted, "trusted")
    read = partial(read_labeled, positions=given.positions, runtime=runtime, name="trusted data")
    data = read_opened(
        read, given.dataset, sample=sample, positions=given.positions, settings=given.settings, seed=seed
    )
    labeled = (data.labels >= 0).nonzero().flatten()
    if not len(labeled):
        raise ValueError(expected("trusted", "samples with labels", f"{len(data)} without"))
    return data if len(labeled) == len(data) else data.select(labeled)


def _calibration_scores(scorer: Scorer, data: LabeledData, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores, float64 `(M,)`, and predicted labels, int64 `(M,)`, −1 where the scorer predicts none."""
    scores, predictions = [], []
    blocks = index_blocks(held_out, BLOCK_SIZE)
    for block in read_blocks(data.dataset, blocks, sample=SampleSpec(), seed=data.source.seed):
        scores.append(_scores(scorer, block.inputs, block.labels, block.indices))
        predicted = torch.full_like(block.labels, -1)
        if scorer.scores_labels:
            with torch.no_grad(), LocalRuntime(threads=1, quiet=True).autocast():
                predicted = call_score_labels(scorer, block.inputs, indices=block.indices).argmin(1)
        predictions.append(predicted)
    return torch.cat(scores), torch.cat(predictions)


def _scores(scorer: Scorer, inputs: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    """Score samples as `sanitize` does on the CPU, with one thread, so that workers compute what the main process does.

    Raises:
        ValueError: If a score is not finite.
    """
    runtime = LocalRuntime(threads=1, quiet=True)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with reproducible_kernels(runtime.device, runtime.threads), torch.no_grad(), runtime.autocast():
        scores = call_score_batch(scorer, inputs, labels, indices=indices).double()
    every("scores", scores, scores.isfinite(), "finite", hint="The scorer does not fit this stream.")
    return scores
