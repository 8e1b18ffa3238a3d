"""`FrozenFeatureClassifier`: a linear head on the features of a frozen network.

This is the transfer-learning setting in which poison frogs (Shafahi et al. 2018, arXiv 1804.00792) and adversarial
poisoning were demonstrated, and in which adversarially trained features resist both (Chan-Hon-Tong, "Features which are
robust to adversarial attacks are also robust to several poisoning attacks", 2021, sections 3 and 4).
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from lightning_poison.checks import expected
from lightning_poison.contexts import evaluating
from lightning_poison.data.inference import score_set
from lightning_poison.data.labels import spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import NotFittedError
from lightning_poison.models.feature_extractor import FeatureExtractor
from lightning_poison.randomness import derived_seed
from lightning_poison.runtime import LocalRuntime, Runtime


class LinearHead(Protocol):
    """A linear classifier with the interface of scikit-learn."""

    classes_: Any
    coef_: Any
    intercept_: Any

    def fit(self, features: Any, labels: Any) -> Any:
        """Fit on features `(N, D)` and labels `(N,)`."""

    def predict(self, features: Any) -> Any:
        """Return labels `(N,)`."""


HEADS: Mapping[str, Callable[[int], LinearHead]] = {
    "svm": lambda seed: LinearSVC(C=10, max_iter=5000, random_state=seed),
    "logistic": lambda seed: LogisticRegression(C=10, max_iter=2000, random_state=seed),
    "ridge": lambda seed: RidgeClassifier(alpha=1.0, random_state=seed),
    "fc": lambda seed: SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed),
}
"""Heads by name: each maps a seed to an unfitted head. `"fc"` is a linear layer with a one-versus-rest cross-entropy
loss, trained by stochastic gradient descent."""


class FrozenFeatureClassifier:
    """A linear head on frozen features.

    Features are divided by the mean norm of those it was fitted on, so that the same `C` suits networks of any scale.

    Args:
        extractor: Any network. Run in evaluation mode and not modified; its mode is restored afterwards.
        layer: Name of the layer whose output is the feature vector. Default: `""`, the output of the network.
        head: `"svm"`, `"logistic"`, `"ridge"`, `"fc"`, or any linear classifier of scikit-learn, which is cloned. The
            effect of an attack depends on its `C`, which should be reported. Default: `"svm"`.
        seed: Seed of the head's solver. Default: 0.

    Raises:
        ValueError: If the network has no such layer, or there is no head of that name.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 3
        >>> noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(noise + 4 * torch.eye(4)[labels], labels)
        >>> classifier = FrozenFeatureClassifier(nn.Linear(4, 8)).fit(data)
        >>> classifier.accuracy(data) > 0.9, tuple(classifier.weights.shape)
        (True, (3, 8))
    """

    def __init__(self, extractor: nn.Module, layer: str = "", *, head: str | LinearHead = "svm", seed: int = 0) -> None:
        if isinstance(head, str) and head not in HEADS:
            listed = ", ".join(repr(name) for name in HEADS)
            raise ValueError(
                expected("head", f"one of {listed}", repr(head), "Or pass a linear classifier of scikit-learn.")
            )
        self.extractor = extractor
        self.layer = layer
        self._extract = FeatureExtractor(extractor, layer)
        number = derived_seed(seed, "frozen-feature head") % 2**32
        self.head: LinearHead = HEADS[head](number) if isinstance(head, str) else clone(head)
        self._scale: float | None = None

    def __repr__(self) -> str:
        return f"FrozenFeatureClassifier({type(self.extractor).__name__}, {self.layer!r}, head={self.head!r})"

    def fit(self, dataset: Any, *, sample: SampleSpec | None = None, runtime: Runtime | None = None) -> Self:
        """Fit the head on the features of a data set.

        Args:
            dataset: Map-style data set of at least two classes.
            sample: Location of input and label in a sample. Default: detected.
            runtime: Device and precision of the network. Default: the local CPU.

        Raises:
            UnreadableSampleError: If a sample cannot be read, is not finite, or has a different shape.
            ValueError: If there is only one class, or features are not finite.
        """
        features, labels = self.features(dataset, sample=sample, runtime=runtime)
        classes = torch.unique(labels)
        if len(classes) < 2:
            raise ValueError(expected("dataset", "data of at least two classes", f"class {int(classes[0])} only"))
        self._scale = max(float(features.norm(dim=1).mean()), torch.finfo(torch.float32).tiny)
        self.head.fit((features / self._scale).numpy(), labels.numpy())
        return self

    def features(
        self, dataset: Any, *, sample: SampleSpec | None = None, runtime: Runtime | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the unscaled features, float64 `(N, D)`, and the labels, int64 `(N,)`, of a data set."""
        runtime = runtime or LocalRuntime(precision="32")
        device = next((parameter.device for parameter in self.extractor.parameters()), runtime.device)
        try:
            self.extractor.to(runtime.device)
            with evaluating(self.extractor):
                rows = score_set(
                    dataset,
                    torch.arange(len(dataset)),
                    lambda block: torch.cat([self._extract(block.inputs), block.labels[:, None]], dim=1).double(),
                    sample=sample or spec_of(dataset),
                    runtime=runtime,
                    seed=0,
                    description="Extracting features",
                )
        finally:
            self.extractor.to(device)
        return rows[:, :-1], rows[:, -1].long()

    def predict(self, dataset: Any, *, sample: SampleSpec | None = None, runtime: Runtime | None = None) -> Tensor:
        """Return the predicted labels of a data set, int64 `(N,)`.

        Raises:
            NotFittedError: If the head is not fitted.
        """
        features, _ = self.features(dataset, sample=sample, runtime=runtime)
        return self.predict_features(features)

    def predict_features(self, features: Tensor) -> Tensor:
        """Return the predicted labels of unscaled features `(N, D)`, int64 `(N,)`.

        Raises:
            NotFittedError: If the head is not fitted.
        """
        predictions = self.head.predict((features.double() / self._fitted_scale()).numpy())
        return torch.from_numpy(np.asarray(predictions, dtype=np.int64))

    def accuracy(self, dataset: Any, *, sample: SampleSpec | None = None, runtime: Runtime | None = None) -> float:
        """Return the accuracy on a data set, in [0, 1]."""
        features, labels = self.features(dataset, sample=sample, runtime=runtime)
        return float((self.predict_features(features) == labels).double().mean())

    @property
    def weights(self) -> Tensor:
        """Weights of the head on unscaled features, float64 `(C, D)`; `(1, D)` for two classes."""
        return torch.from_numpy(np.atleast_2d(self.head.coef_)).double() / self._fitted_scale()

    def _fitted_scale(self) -> float:
        if self._scale is None:
            raise NotFittedError("Expected a fitted classifier, but got an unfitted one.\nCall `fit` first.")
        return self._scale
