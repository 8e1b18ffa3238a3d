"""The contract of scorers: `Scorer` for single samples and `SetScorer` for whole sets, two base classes with defaults.

Class attributes declare what a scorer can do. Defining a subclass raises a `TypeError` if its methods do not match its
declarations, or if the name of a method is misspelled.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.checks import expected
from lightning_poison.data.fingerprints import architecture_of
from lightning_poison.errors import NotFittedError
from lightning_poison.runtime import Runtime
from lightning_poison.statistics.subgroups import Subgroup


class FeatureSource(Protocol):
    """A network whose features are scored: trained beforehand, or trained on the data. See `FeatureModel`."""

    @property
    def is_fitted(self) -> bool:
        """Whether the network is trained."""

    def fit(self, dataset: Any, *, runtime: Runtime | None = None, generator: torch.Generator | None = None) -> Self:
        """Train the network on a map-style data set and return the source."""

    def rehearse(self, dataset: Any, *, steps: int, runtime: Runtime | None = None) -> int:
        """Run the first steps of a fit on a temporary copy and return the number of steps of a whole fit."""

    def features(self, inputs: Tensor) -> Tensor:
        """Return features, float32 `(B, D)`."""

    def logits(self, inputs: Tensor, *, shift: Tensor | None = None) -> Tensor:
        """Return logits, float32 `(B, C)`, with `shift` `(D,)` added to the features."""

    def shared_key(self) -> str:
        """Return a key that is equal for two sources of this process if and only if they have the same features."""

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as JSON values."""

    def state(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load weights that `state` returned, and return the source."""


class Scorer:
    """Base class of scorers of single samples. Define `name`, `fit`, and `score_batch` or `score_labels`.

    `sanitize` owns loops, loaders, ranks, folds and thresholds. Larger scores are more suspicious. A deep copy of an
    unfitted scorer is an unfitted scorer with the same settings. Keep constructor arguments in attributes of the same
    names.

    Raises:
        TypeError: When a subclass is defined whose methods and declarations do not match.

    Example:
        >>> class Distance(Scorer):
        ...     name, fitted_tensors = "distance", ("mean",)
        ...     def fit(self, trusted, *, runtime=None, generator=None):
        ...         self.mean = torch.stack([sample[0] for sample in trusted]).mean(0)
        ...         return self
        ...     def score_batch(self, inputs, labels):
        ...         return (inputs - self.mean).flatten(1).norm(dim=1)
        >>> Distance().is_fitted, Distance().fit([(torch.zeros(2), 0)]).state()
        (False, {'mean': tensor([0., 0.])})
    """

    name: str
    """Short name, in lower case with hyphens."""

    is_control: bool = False
    """Whether the scorer may use the ground truth or scores at random. A control is never a defense."""

    scores_labels: ClassVar[bool] = False
    """Whether `score_labels` is defined. Decisions without trusted data need it."""

    fitted_tensors: ClassVar[tuple[str, ...]]
    """Names of the attributes that `fit` sets, each a tensor. `is_fitted`, `state` and `load` follow from them."""

    feature_model: FeatureSource | None = None
    """The network whose features are scored, if any. Its weights are part of a decision's fingerprint."""

    borrowed_module: nn.Module | None = None
    """A module of the user that the scorer reads, if any. It may be in training, so no fingerprint has its weights."""

    training_margins: Tensor | None = None
    """How well the last `fit` learned the label of each of its samples, float64 `(N,)`, larger is better; not saved.

    Without trusted data, it is a second opinion about samples that the scorer is fitted on. Default: not recorded.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_declarations(cls, Scorer, {"scores_labels": ("score_labels",)}, required=("fit",))
        if not cls.scores_labels and not _defines(cls, Scorer, "score_batch"):
            raise TypeError(f"Expected `{cls.__name__}` to define `score_batch` or `score_labels`.")
        own_state = [name for name in ("is_fitted", "state", "load") if _defines(cls, Scorer, name)]
        if not hasattr(cls, "fitted_tensors") and len(own_state) < 3:
            raise TypeError(
                f"Expected `{cls.__name__}` to declare `fitted_tensors`, the names of the tensors that `fit` sets, or "
                "to define `is_fitted`, `state` and `load`."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_arguments(self)})"

    @property
    def is_fitted(self) -> bool:
        """Whether the scorer can score. Default: all `fitted_tensors` are set."""
        return all(isinstance(getattr(self, name, None), Tensor) for name in self.fitted_tensors)

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Fit on known-clean samples and return the scorer.

        Args:
            trusted: Map-style data set.
            runtime: Device, threads and progress bar, without collectives: a fit is complete on one rank. Default: this
                machine.
            generator: The only source of randomness. Default: a fixed seed.
        """
        raise NotImplementedError

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int | None:  # noqa: ARG002
        """Run the first steps of a fit on a temporary copy, so that a caller can time them.

        Args:
            trusted: Map-style data set, as for `fit`.
            steps: Number of steps to run.
            runtime: Where to compute. Default: `LocalRuntime()`, the CPU.

        Returns:
            Number of such steps in a whole fit on `trusted`, or `None` (the default) if it is unknown.
        """
        return None

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Score each sample under the label that it carries. Default: its column of `score_labels`.

        Args:
            inputs: Float `(B, ...)`, as the data set returns them.
            labels: int64 `(B,)`.

        Returns:
            float32 `(B,)`, larger is more suspicious; differentiable in `inputs` if possible.
        """
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Score each sample under each label. Declared by `scores_labels`.

        Args:
            inputs: Float `(B, ...)`, as the data set returns them.

        Returns:
            float32 `(B, C)`; differentiable in `inputs` if possible.
        """
        raise NotImplementedError

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as JSON values. They are part of a decision's fingerprint."""
        return _settings(self)

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the fitted tensors by name.

        Raises:
            NotFittedError: Before a fit.
        """
        self.check_fitted()
        return {name: getattr(self, name).detach().clone() for name in self.fitted_tensors}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load what `state` of a scorer with the same settings returned, and return the scorer.

        Raises:
            ValueError: If it is the state of another scorer.
        """
        if set(state) != set(self.fitted_tensors):
            came = f"one with {', '.join(sorted(state))[:80] or 'nothing'}"
            raise ValueError(expected("state", f"the state of {self!r}", came))
        for name, value in state.items():
            setattr(self, name, value)
        return self

    def check_fitted(self) -> None:
        """Raise before a fit.

        Raises:
            NotFittedError: Before a fit.
        """
        if not self.is_fitted:
            raise NotFittedError(
                f"Expected a fitted {type(self).__name__}, but got one before a fit.\nCall `fit(trusted)`."
            )


class SetScorer:
    """Base class of scorers that need the features of the whole set, such as clustering and neighbors.

    Define `name` and `score_features`. `sanitize` gathers the features once, from `feature_model`. Keep constructor
    arguments in attributes of the same names.

    Raises:
        TypeError: When a subclass is defined whose methods and declarations do not match.

    Example:
        >>> class Norm(SetScorer):
        ...     name = "norm"
        ...     def score_features(self, features, labels):
        ...         return features.norm(dim=1)
        >>> Norm().score_features(torch.eye(2), torch.zeros(2).long())
        tensor([1., 1.])
    """

    name: str
    """Short name, in lower case with hyphens."""

    is_control: bool = False
    """Whether the scorer may use the ground truth or scores at random. A control is never a defense."""

    scores_labels: ClassVar[bool] = False
    """Whether `score_feature_labels` is defined. Decisions without trusted data need it, or `finds_groups`."""

    finds_groups: ClassVar[bool] = False
    """Whether `find_groups`, `stands_apart` and `is_poison` are defined, and `exclusion_model` is set."""

    feature_model: FeatureSource | None = None
    """The network whose features are scored. Default: a classifier trained on the judged data."""

    exclusion_model: FeatureSource | None = None
    """The network that is trained without the groups and predicts their members."""

    sample_groups: Tensor | None = None
    """Group of each sample of the set that is scored, int64 `(N,)`, set by `sanitize` if some belong together.

    A scorer that fits a model on a part of the set must not score a sample by one that was fitted on its group.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        groups = ("find_groups", "stands_apart", "is_poison")
        declared = {"scores_labels": ("score_feature_labels",), "finds_groups": groups}
        _check_declarations(cls, SetScorer, declared, required=() if cls.scores_labels else ("score_features",))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_arguments(self)})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Score each sample of the set under the label that it carries. Default: its column of `score_feature_labels`.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Returns:
            float32 `(N,)`, larger is more suspicious.
        """
        return self.score_feature_labels(features, labels).gather(1, labels[:, None])[:, 0]

    def score_feature_labels(self, features: Tensor, labels: Tensor) -> Tensor:
        """Score each sample under each label. Declared by `scores_labels`.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Returns:
            float32 `(N, C)`, C the largest label plus 1. The column of a sample's own label agrees with
            `score_features`.
        """
        raise NotImplementedError

    def check_set(self, labels: Tensor) -> None:
        """Raise if a set with these labels, int64 `(N,)`, cannot be scored. Default: accept any.

        Runs before a network is trained and features are gathered.

        Raises:
            ValueError: Naming what is missing and the way out.
        """

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return the groups of each class. Declared by `finds_groups`.

        A group that is separated may be a natural part of its class, so it counts as poison only if it also has an
        effect: adding what its features have in common turns samples of every class into its own, or a network that
        was trained without it predicts other classes for its members.
        """
        raise NotImplementedError

    def stands_apart(self, group: Subgroup) -> bool:
        """Return whether there is a gap between a group and the rest of its class. Declared by `finds_groups`."""
        raise NotImplementedError

    def is_poison(self, *, transfer: float, resemblance: float) -> bool:
        """Return whether the effects of a group that is separated make it poison. Declared by `finds_groups`.

        Args:
            transfer: See `lightning_poison.statistics.group_effects.transfer_share`.
            resemblance: See `lightning_poison.statistics.group_effects.resemblance`.
        """
        raise NotImplementedError

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as JSON values. They are part of a decision's fingerprint."""
        return _settings(self)


def _defines(cls: type, base: type, name: str) -> bool:
    return getattr(cls, name) is not getattr(base, name)


def _check_declarations(cls: type, base: type, declared: Mapping[str, Sequence[str]], required: Sequence[str]) -> None:
    own = cls.__mro__[: cls.__mro__.index(base)]
    for name, value in (item for each in own for item in vars(each).items()):
        if (kind := _kind(value)) is None or name.startswith("_") or hasattr(base, name):
            continue
        contract = [known for known, default in vars(base).items() if _kind(default) == kind]
        if close := difflib.get_close_matches(name, contract, n=1, cutoff=0.82):
            raise TypeError(
                f"Expected a {kind} of `{base.__name__}`, but `{cls.__name__}` defines `{name}`.\n"
                f"Did you mean `{close[0]}`?"
            )
    for flag, methods in declared.items():
        missing = [name for name in methods if not _defines(cls, base, name)]
        if getattr(cls, flag) and missing:
            raise TypeError(f"Expected `{cls.__name__}` to define `{missing[0]}`, since it declares `{flag} = True`.")
        if not getattr(cls, flag) and len(missing) < len(methods):
            found = next(name for name in methods if name not in missing)
            raise TypeError(f"Expected `{cls.__name__}` to declare `{flag} = True`, since it defines `{found}`.")
    for name in required:
        if not _defines(cls, base, name):
            raise TypeError(f"Expected `{cls.__name__}` to define `{name}`.")


def _kind(value: object) -> str | None:
    if callable(value) or isinstance(value, property | classmethod | staticmethod):
        return "method"
    return "declaration" if isinstance(value, bool) else None


def _settings(scorer: Scorer | SetScorer) -> dict[str, Any]:
    names = [parameter.name for parameter in _parameters(scorer)]
    missing = [name for name in names if not hasattr(scorer, name)]
    if missing:
        raise TypeError(
            f"Expected `{type(scorer).__name__}` to keep its argument `{missing[0]}` in an attribute of that name, or "
            "to define `settings`."
        )
    return {name: _as_json(getattr(scorer, name)) for name in names}


def _as_json(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return architecture_of(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(vars(value))
    return dict(value.settings()) if hasattr(value, "settings") else value


def _arguments(scorer: Scorer | SetScorer) -> str:
    """Format the constructor's arguments that differ from their defaults."""
    chosen = [(each.name, getattr(scorer, each.name, each.default), each.default) for each in _parameters(scorer)]
    return ", ".join(f"{name}={value!r}" for name, value, default in chosen if repr(value) != repr(default))


def _parameters(scorer: Scorer | SetScorer) -> list[inspect.Parameter]:
    """Return the parameters of the constructor without `self`; none if the class does not define one."""
    if type(scorer).__init__ is object.__init__:
        return []
    return list(inspect.signature(type(scorer).__init__).parameters.values())[1:]
