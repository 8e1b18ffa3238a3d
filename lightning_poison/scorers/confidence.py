"""`ConfidenceScorer`: how little probability a classifier assigns to the label that a sample carries.

The score of confident learning: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 2021, arXiv 1911.00068, sections 3 and 3.3.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected, one_of, positive_int
from lightning_poison.models.average_margins import AverageMargins
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.user_network import check_weights, run_network
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.label_scores import margins_to_best_other, surprisals
from lightning_poison.scorers.network_scorer import NetworkScorer
from lightning_poison.scorers.networks import BackboneWithHead, build_classifier, evaluating_on, fit_classifier
from lightning_poison.scorers.training_data import TrainingData

ConfidenceKind = Literal["self-confidence", "margin", "normalized"]


class ConfidenceScorer(NetworkScorer):
    """Scores a sample by how little probability a classifier assigns to its label.

    The classifier is trained on known-clean samples, or across folds of untrusted samples. The score depends on the
    label alone: an image that belongs to no class, or an atypical image of its class, gets no high score.

    It differs from the paper in the use of the score: the paper counts, class by class, how many samples confidently
    belong to another class, and removes as many; here a threshold is calibrated.

    Args:
        score: `"self-confidence"` for −log p(y | x); `"margin"` for the largest other logit minus that of the label,
            above 0 if the classifier predicts another class; `"normalized"` for −log q(y | x) with q proportional to
            p(k | x) / t_k, where t_k is the mean of p(k | x) over the samples labeled k, so that a class about which
            the classifier is rarely confident does not count against its samples. The paper computes t_k from
            out-of-sample predictions, this scorer from the samples that the classifier was trained on. Default:
            `"self-confidence"`.
        backbone: Maps inputs to features `(B, feature_size)`. Each fit trains a copy, starting from its weights.
            Default: chosen by the shape of a sample.
        feature_size: Length of a feature vector. Default: 32.
        fit_settings: Training settings of the classifier. Default: those of `FitSettings()`.

    Raises:
        TypeError: If `backbone` is not a module, or `fit_settings` are not `FitSettings`.
        ValueError: If an argument is out of range, or `backbone` has weights of another type than float32.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 3
        >>> data = TensorDataset(torch.eye(3)[labels], labels)
        >>> scorer = ConfidenceScorer(feature_size=8, fit_settings=FitSettings(epochs=1, batch_size=20, min_steps=60))
        >>> scorer.fit(data).score_batch(torch.eye(3)[:2], torch.tensor([0, 2])) > 1
        tensor([False,  True])
    """

    name = "confidence"

    def __init__(
        self,
        score: ConfidenceKind = "self-confidence",
        *,
        backbone: nn.Module | None = None,
        feature_size: int = 32,
        fit_settings: FitSettings = FitSettings(),  # noqa: B008 (frozen)
    ) -> None:
        self.score: ConfidenceKind = one_of("score", score, ("self-confidence", "margin", "normalized"))
        self.backbone = check_weights(backbone, name="backbone", owner=type(self).__name__)
        self.feature_size = positive_int("feature_size", feature_size)
        self.fit_settings = FitSettings.checked(fit_settings, owner=type(self).__name__)
        self._log_thresholds: Tensor | None = None

    @classmethod
    def from_module(cls, module: nn.Module, score: ConfidenceKind = "self-confidence") -> Self:
        """Build a scorer from a trained classifier. It needs no fit, and `fit` does not change the classifier.

        Args:
            module: Maps inputs to logits `(B, C)`. It runs in evaluation mode and never changes, except in `load`.
            score: `"self-confidence"` or `"margin"`. Default: `"self-confidence"`.

        Raises:
            ValueError: If `score` is not one of these.
        """
        way = "`normalized` needs thresholds of the data that a classifier was fitted on."
        scorer = cls(one_of("score", score, ("self-confidence", "margin"), hint=way))
        scorer._network = scorer.borrowed_module = module
        return scorer

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Train a classifier on known-clean samples and return the scorer; see `NetworkScorer.fit`."""
        if self.borrowed_module is not None:
            return self
        generator = generator or torch.Generator().manual_seed(0)
        super().fit(trusted, runtime=runtime, generator=generator)
        if self.score == "normalized":
            self._log_thresholds = self._thresholds(TrainingData.of(trusted), runtime, generator).log()
        return self

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the weights of the classifier, and of the thresholds if the score needs them."""
        state = super().state()
        return state if self._log_thresholds is None else {**state, "log_thresholds": self._log_thresholds.clone()}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load what `state` of a scorer with the same settings returned, and return the scorer.

        Raises:
            ValueError: If it is the state of another scorer, or of one with other settings.
        """
        if ("log_thresholds" in state) != (self.score == "normalized"):
            raise ValueError(expected("state", f"the state of {self!r}", "one of another score"))
        super().load(state)
        self._log_thresholds = state.get("log_thresholds")
        return self

    def _build(self, shape: tuple[int, ...], num_classes: int, *, seed: int = 0) -> BackboneWithHead:
        return build_classifier(shape, num_classes, backbone=self.backbone, feature_size=self.feature_size, seed=seed)

    def _train(
        self, trusted: Any, runtime: Runtime | None, generator: torch.Generator, max_steps: int | None = None
    ) -> tuple[nn.Module, int]:
        margins = AverageMargins(max(1, len(trusted)))  # empty data are refused by the fit
        network = fit_classifier(
            trusted,
            backbone=self.backbone,
            feature_size=self.feature_size,
            settings=self.fit_settings,
            runtime=runtime,
            generator=generator,
            description="Fitting the confidence scorer",
            max_steps=max_steps,
            margins=margins,
        )
        if max_steps is None:
            self.training_margins = margins.average()
        return network, self.fit_settings.total_steps(len(trusted))

    def _label_scores(self, inputs: Tensor) -> Tensor:
        logits = self._logits(inputs)
        if self.score == "margin":
            return margins_to_best_other(-logits)
        return surprisals(logits if self._log_thresholds is None else logits - self._log_thresholds.to(logits.device))

    def _logits(self, inputs: Tensor) -> Tensor:
        own = isinstance(self._network, BackboneWithHead)
        logits = self._network(inputs) if own else run_network(self._network, inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs) or logits.shape[1] < 2:
            raise ValueError(expected("module", f"a map to logits ({len(inputs)}, C)", describe(logits)))
        return logits.float()

    def _thresholds(self, data: TrainingData, runtime: Runtime | None, generator: torch.Generator) -> Tensor:
        """Return t_k, the mean of p(k | x) over the samples labeled k, float32 `(C,)`; 1 without samples."""

        def posteriors(inputs: Tensor) -> Tensor:
            with evaluating_on(self._network, inputs, movable=True) as moved:
                return self._logits(moved).softmax(1)

        probabilities = data.compute(
            lambda block: posteriors(block.inputs), runtime=runtime, generator=generator, description="Scoring"
        )
        labels = data.labels
        own = probabilities.gather(1, labels[:, None])[:, 0]
        sums = torch.zeros(probabilities.shape[1], dtype=own.dtype).index_add(0, labels, own)
        counts = torch.bincount(labels, minlength=len(sums))
        means = torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)
        return means.clamp_min(torch.finfo(torch.float32).eps).float()
