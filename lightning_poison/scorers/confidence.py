"""`ConfidenceScorer`: how little a classifier believes the label that a sample carries.

The score of confident learning: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 2021, arXiv 1911.00068, sections 3 and 3.3.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected, one_of, positive_int
from lightning_poison.contexts import evaluating
from lightning_poison.data.fingerprints import architecture_of
from lightning_poison.data.inference import score_set
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.classifier import Classifier, classifier_state, fit_classifier, loaded_classifier
from lightning_poison.scorers.label_scores import margins_to_best_other, surprisals

ConfidenceKind = Literal["self-confidence", "margin", "normalized"]


class ConfidenceScorer:
    """Scores a sample by how little a classifier believes the label that it carries.

    A classifier is trained on samples that are believed, or across folds of samples that are not. It asks for the label
    alone: an image that belongs to no class, or to its own class in an odd way, does not stand out.

    It differs from the paper in what is done with the score: the paper counts, class by class, how many samples are
    confidently of another class, and removes so many; here a threshold is calibrated.

    Args:
        score: `"self-confidence"` for −log p(y | x); `"margin"` for the largest other logit minus that of the label,
            above 0 where the classifier reads another class; `"normalized"` for −log q(y | x) with q proportional to
            p(k | x) / t_k, where t_k is the mean of p(k | x) over the samples labeled k: a class about which the
            classifier is rarely sure is not held against its samples. The paper's t_k come from out-of-sample
            predictions, these from the samples that the classifier was trained on.
        backbone: a network that maps inputs to features `(B, feature_size)`, copied for each fit and trained from the
            weights that it has; chosen by the shape of a sample where it is `None`.
        feature_size: the length of the feature vector.
        fit_settings: how the classifier is trained.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 3
        >>> data = TensorDataset(torch.eye(3)[labels], labels)
        >>> scorer = ConfidenceScorer(feature_size=8, fit_settings=FitSettings(epochs=1, batch_size=20, min_steps=60))
        >>> scorer.fit(data).score_batch(torch.eye(3)[:2], torch.tensor([0, 2])) > 1
        tensor([False,  True])
    """

    name = "confidence"
    is_control = False

    def __init__(
        self,
        score: ConfidenceKind = "self-confidence",
        *,
        backbone: nn.Module | None = None,
        feature_size: int = 32,
        fit_settings: FitSettings = FitSettings(),  # noqa: B008 (frozen)
    ) -> None:
        self.score: ConfidenceKind = one_of("score", score, ("self-confidence", "margin", "normalized"))
        self.backbone = backbone
        self.feature_size = positive_int("feature_size", feature_size)
        self.fit_settings = fit_settings
        self._model: nn.Module | None = None
        self._borrowed = False
        self._log_thresholds: Tensor | None = None

    def __repr__(self) -> str:
        return f"ConfidenceScorer({self.score!r}, feature_size={self.feature_size})"

    @classmethod
    def from_module(cls, module: nn.Module, score: ConfidenceKind = "self-confidence") -> Self:
        """Build a scorer from a trained classifier; it needs no fit, and a fit leaves the classifier as it is.

        Args:
            module: maps inputs to logits `(B, C)`; run in evaluation mode and never changed, except by `load`.
            score: `"self-confidence"` or `"margin"`.

        Raises:
            ValueError: where `score` is none of these.
        """
        way = "`normalized` needs thresholds of the data that a classifier was fitted on."
        scorer = cls(one_of("score", score, ("self-confidence", "margin"), hint=way))
        scorer._model, scorer._borrowed = module, True
        return scorer

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return self._model is not None

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Train a classifier of its own on samples that are believed, and return itself; see `Scorer.fit`.

        One that was handed in stays as it is.

        Raises:
            ValueError: where there are fewer than two classes, or the backbone returns features of another size.
            UnreadableSampleError: where a sample cannot be read.
        """
        if self._borrowed:
            return self
        generator = generator or torch.Generator().manual_seed(0)
        self._model = self._trained(trusted, runtime, generator)
        if self.score == "normalized":
            self._log_thresholds = self._thresholds(trusted, runtime, generator).log()
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Train a throw-away copy for a few steps, so that a caller can time them; return the steps of a whole fit."""
        self._trained(trusted, runtime, torch.Generator().manual_seed(0), max_steps=steps)
        return self.fit_settings.total_steps(len(trusted))  # type: ignore[arg-type]

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Return the score of each sample under each label.

        Args:
            inputs: float `(B, ...)`, as the data set returns them.

        Returns:
            float32 `(B, C)`; differentiable in `inputs`.

        Raises:
            NotFittedError: before a fit.
            ValueError: where samples have another shape than those that it was fitted on, or a module returns no
                logits `(B, C)`.
        """
        logits = self._logits(inputs)
        if self.score == "margin":
            return margins_to_best_other(-logits)
        if self._log_thresholds is not None:
            logits = logits - self._log_thresholds.to(logits.device)
        return surprisals(logits)

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under the label that it carries, float32 `(B,)`; see `score_labels`."""
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        backbone = None if self.backbone is None else architecture_of(self.backbone)
        module = type(self._model).__qualname__ if self._borrowed else None
        chosen = {"score": self.score, "feature_size": self.feature_size, "backbone": backbone, "module": module}
        return {**chosen, "fit_settings": dict(vars(self.fit_settings))}

    def state(self) -> Mapping[str, Tensor]:
        """Return the weights of the classifier, the shape of a sample, and thresholds where the score needs them.

        Raises:
            NotFittedError: before a fit.
        """
        model = self._fitted()
        if isinstance(model, Classifier) and not self._borrowed:
            weights = classifier_state(model)
        else:
            weights = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
        return weights if self._log_thresholds is None else {**weights, "log_thresholds": self._log_thresholds.clone()}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the weights that `state` of a scorer of the same settings returned, and return itself.

        Raises:
            ValueError: where they do not fit this scorer.
        """
        if ("log_thresholds" in state) != (self.score == "normalized"):
            raise ValueError(f"Expected the state of a scorer like {self!r}, but got one of another score.")
        if self._borrowed and self._model is not None:
            weights = {name.removeprefix("model."): value for name, value in state.items() if name != "log_thresholds"}
            try:
                self._model.load_state_dict(weights)
            except RuntimeError as error:
                raise ValueError(f"Expected the state of {self!r} on the same module: {error}") from error
        else:
            self._model = loaded_classifier(
                dict(state), backbone=self.backbone, feature_size=self.feature_size, scorer=repr(self)
            )
        self._log_thresholds = state.get("log_thresholds")
        return self

    def _trained(
        self, trusted: Any, runtime: Runtime | None, generator: torch.Generator, max_steps: int | None = None
    ) -> nn.Module:
        return fit_classifier(
            trusted,
            backbone=copy.deepcopy(self.backbone),
            feature_size=self.feature_size,
            settings=self.fit_settings,
            runtime=runtime,
            generator=generator,
            description="fitting the confidence scorer",
            max_steps=max_steps,
        )

    def _thresholds(self, trusted: Any, runtime: Runtime | None, generator: torch.Generator) -> Tensor:
        """Return t_k, the mean of p(k | x) over the samples labeled k, float32 `(C,)`; 1 for a class without any."""
        sample = spec_of(trusted)
        labels = labels_of(trusted, sample)
        probabilities = score_set(
            trusted,
            torch.arange(len(labels)),
            lambda block: self._logits(block.inputs).softmax(1),
            sample=sample,
            runtime=runtime or LocalRuntime(),
            seed=int(torch.randint(2**31, (1,), generator=generator)),
            labels=labels,
            share=False,
        )
        own = probabilities.gather(1, labels[:, None])[:, 0]
        sums = torch.zeros(probabilities.shape[1], dtype=own.dtype).index_add(0, labels, own)
        counts = torch.bincount(labels, minlength=len(sums))
        means = torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)
        return means.clamp_min(torch.finfo(torch.float32).eps).float()

    def _fitted(self) -> nn.Module:
        if self._model is None:
            raise NotFittedError("Expected a fitted ConfidenceScorer, but it has no model yet.\nCall `fit(trusted)`.")
        return self._model

    def _logits(self, inputs: Tensor) -> Tensor:
        model = self._fitted()
        home = next((held.device for held in model.parameters()), inputs.device)
        if home != inputs.device and not self._borrowed:
            model.to(inputs.device)
            home = inputs.device
        with evaluating(model):
            logits = model(inputs.to(home))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs) or logits.shape[1] < 2:
            raise ValueError(expected("module", f"a map to logits ({len(inputs)}, C)", describe(logits)))
        return logits.float().to(inputs.device)
