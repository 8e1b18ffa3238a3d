"""`AdversarialPoisoning`: training samples moved along the axes on which a linear head rotates into a wrong one."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.adversarial import perturb
from lightning_poison.attacks import AvailabilityObjective, RawFeatures, check_surrogates, known_class, read_features
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data import RawImages, index_blocks, labels_of

_MAX_ITERATIONS = 2000


@dataclass(frozen=True, kw_only=True)
class AdversarialPoisoning:
    """Adversarial poisoning (AP): training images move so that a linear head on their features rotates; labels stay.

    A head w_c is fitted on the clean features; w_t is the same head with the rows of its classes shifted by `shift`
    positions. Each image of a class moves by projected gradient descent along the row of that class of w_t − w_c, so
    that the head fitted on the moved samples tends toward w_t and accuracy drops. Chan-Hon-Tong, "Features which are
    robust to adversarial attacks are also robust to several poisoning attacks", 2021, section 2.2, the last display
    (unnumbered), max ‖(w_t − w_c)ᵀ feature(z)‖ over ‖z − x‖∞ ≤ ε; and "An algorithm for generating invisible data
    poisoning using adversarial noise that breaks image classification deep learning", MAKE 1(1), 2018.

    The paper does not specify w_t; the shift is a choice of this project, and with two classes it is −w_c. Other
    differences: the sign of the product follows from the class, where the paper has a norm; features are in units of
    their mean norm; and crafted images are rounded to the gray levels of the data.

    The attack needs nearly the whole training set: it has little effect on a head that also sees many clean samples.

    Args:
        base_class: Class whose samples are moved. Default: all classes.
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image. Default: that of the paper for
            CIFAR.
        steps: Number of gradient steps.
        head: `"svm"` for scikit-learn's `LinearSVC`, as in the paper; `"logistic"` for `LogisticRegression`.
        c: scikit-learn's `C`, for features in units of their mean norm.
        shift: Each class moves toward the class this many positions later, cyclically, among the classes of the
            training set.
        batch_size: Number of poisons crafted at once. Bounds memory; changes the poison by rounding errors only.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> AdversarialPoisoning().craft(
        ...     data, Threat(40), surrogates=[Surrogate(model, "2")], holdout=None, generator=torch.Generator()
        ... )
        Poison(adversarial-poisoning: 40 samples, sample inputs (1, 4, 4))
    """

    name = "adversarial-poisoning"
    clean_label = True

    base_class: int | None = None
    epsilon: float = 3 / 255
    steps: int = 10
    head: Literal["svm", "logistic"] = "svm"
    c: float = 100.0
    shift: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.base_class is not None:
            checks.positive_int("base_class", self.base_class, minimum=0)
        checks.epsilon(self.epsilon)
        checks.one_of("head", self.head, ("svm", "logistic"))
        checks.positive("c", self.c)
        for name in ("steps", "shift", "batch_size"):
            checks.positive_int(name, getattr(self, name))

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Move as many samples as the budget, drawn at random.

        Surrogates are used in evaluation mode on their device and in their precision, and their state is restored.
        Each has its own head, and they contribute equally to the objective. Only their features are used, so they may
        have been trained on other classes.

        Args:
            dataset: Training set, without random augmentation if possible.
            threat: Budget, pixel range, and the radius if it sets one.
            surrogates: Models with a feature layer, at least one.
            holdout: Not used.
            generator: Draws the samples.

        Returns:
            Poison of domain `"sample"` that replaces its bases, with their labels and an `AvailabilityObjective`.

        Raises:
            ValueError: If there is no surrogate, the training set has only one class or too few samples of
                `base_class` for the budget, `shift` is not below the number of classes, a surrogate has no such layer,
                or images are outside the pixel range.
        """
        check_surrogates(surrogates)
        labels = labels_of(dataset)
        bases = self._draw(labels, threat.budget, generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        training = RawImages(dataset, threat.pixels, seed=seed, batch_size=self.batch_size)
        models = [surrogate.model for surrogate in surrogates]
        maps = [RawFeatures(surrogate, threat.pixels) for surrogate in surrogates]
        with evaluating(*models), frozen(*models):
            features = read_features(training, torch.arange(len(labels)), maps)
            heads = [fit_head(rows.float().cpu(), labels, kind=self.head, c=self.c, seed=seed) for rows in features]
            crafted = [
                self._move(maps, heads, training(block), labels[block], threat)
                for block in index_blocks(bases, self.batch_size)
            ]
        return Poison(
            indices=bases,
            inputs=torch.cat(crafted),
            labels=labels[bases],
            objective=AvailabilityObjective(),
            attack=self.name,
            settings=asdict(self),
        )

    def _draw(self, labels: Tensor, budget: int, generator: torch.Generator) -> Tensor:
        """Return the positions of the samples to move in ascending order."""
        classes = sorted(set(labels.tolist()))
        if len(classes) < 2:
            raise ValueError(checks.expected("dataset", "a training set of at least two classes", len(classes)))
        if self.shift >= len(classes):
            what = f"below the number of classes of the training set ({len(classes)})"
            raise ValueError(checks.expected("shift", what, self.shift))
        allowed = torch.ones_like(labels, dtype=torch.bool)
        if self.base_class is not None:
            allowed = labels == known_class("base_class", self.base_class, labels)
        eligible = allowed.nonzero().flatten()
        if budget > len(eligible):
            which = "the training set" if self.base_class is None else f"class {self.base_class}"
            hint = "Lower the budget of the threat" + ("." if self.base_class is None else ", or omit `base_class`.")
            raise ValueError(checks.expected("budget", f"at most the {len(eligible)} samples of {which}", budget, hint))
        return eligible[torch.randperm(len(eligible), generator=generator)[:budget]].sort().values

    def _move(
        self,
        maps: Sequence[RawFeatures],
        heads: Sequence["LinearHead"],
        bases: Tensor,
        labels: Tensor,
        threat: Threat,
    ) -> Tensor:
        """Return crafted samples for raw bases."""
        bases = bases.to(maps[0].device)
        rows = torch.searchsorted(heads[0].classes, labels)
        axes = [rotation_axes(head.weights, self.shift)[rows] for head in heads]

        def progress(images: Tensor) -> Tensor:
            terms = []
            for extract, head, axis in zip(maps, heads, axes, strict=True):
                features = extract(images)
                terms.append(positions_along(features, axis.to(features), head.scale).to(images.device))
            return torch.stack(terms).mean(0)

        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        images = perturb(bases, progress, epsilon=epsilon, steps=self.steps, random_start=False)
        images = threat.pixels.round_raw(images, around=bases, epsilon=epsilon)
        return threat.pixels.from_raw(images).cpu()


@dataclass(frozen=True)
class LinearHead:
    """A linear head with one row of weights for each class.

    Args:
        classes: Classes in ascending order, int64 `(K,)`.
        weights: Weights for features in units of `scale`, float32 `(K, D)`.
        scale: Mean norm of the feature vectors on which the head was fitted.
    """

    classes: Tensor
    weights: Tensor
    scale: float


def fit_head(features: Tensor, labels: Tensor, *, kind: Literal["svm", "logistic"], c: float, seed: int) -> LinearHead:
    """Fit scikit-learn's `LinearSVC` or `LogisticRegression` on features in units of their mean norm.

    A head that has not converged after 2,000 iterations is used as it is: only the direction of its rows matters.

    Args:
        features: Features on the CPU, `(N, D)`.
        labels: Labels of at least two classes, int64 `(N,)`.
        kind: `"svm"` or `"logistic"`.
        c: scikit-learn's `C`, the weight of the data relative to the penalty, above 0.
        seed: Seed for the order in which the solver visits the samples.

    Returns:
        The head. For two classes, the rows are w / 2 and −w / 2.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.8, 0.0], [0.0, 1.8]])
        >>> head = fit_head(features, torch.tensor([3, 7, 3, 7]), kind="svm", c=10.0, seed=0)
        >>> head.classes, (head.weights > 0).tolist()
        (tensor([3, 7]), [[True, False], [False, True]])
    """
    scale = float(features.norm(dim=1).mean().clamp(min=torch.finfo(features.dtype).tiny))
    model = (
        LinearSVC(C=c, dual="auto", max_iter=_MAX_ITERATIONS, random_state=seed)
        if kind == "svm"
        else LogisticRegression(C=c, max_iter=_MAX_ITERATIONS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((features / scale).numpy(), labels.numpy())
    weights = torch.from_numpy(model.coef_).to(features.dtype)
    if len(weights) == 1:
        weights = torch.cat([-weights, weights]) / 2
    return LinearHead(torch.from_numpy(model.classes_), weights, scale)


def rotation_axes(weights: Tensor, shift: int) -> Tensor:
    """Return for each class c the unit axis of w_t − w_c, where t is the class `shift` positions later, cyclically.

    Args:
        weights: One row for each class, `(K, D)`.
        shift: Number of positions, in [1, K − 1].

    Returns:
        `(K, D)`; a zero row if both classes have the same weights.

    Example:
        >>> rotation_axes(torch.tensor([[1.0, 0.0], [0.0, 0.0], [4.0, 4.0]]), 1)
        tensor([[-1.0000,  0.0000],
                [ 0.7071,  0.7071],
                [-0.6000, -0.8000]])
    """
    return torch.nn.functional.normalize(weights.roll(-shift, 0) - weights, dim=1)


def positions_along(features: Tensor, axes: Tensor, scale: float) -> Tensor:
    """Return the positions of features `(P, D)` along their axes `(P, D)`, in units of a head's scale, `(P,)`.

    Example:
        >>> positions_along(torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0, 0.0]]), 2.0)
        tensor([2.])
    """
    return (features * axes).sum(1) / scale
