"""`CombinedScorer`: several filters that vote, each on the scale of how rarely a clean sample looks as suspicious."""

from collections.abc import Mapping, Sequence
from itertools import chain, count
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected, one_of, printable
from lightning_poison.data.blocks import SelectedDataset
from lightning_poison.data.inference import score_set
from lightning_poison.errors import NotFittedError
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.protocol import FeatureScorer, Scorer
from lightning_poison.scorers.training_data import TrainingData
from lightning_poison.statistics.p_values import Combination, combine_log_p
from lightning_poison.statistics.stratified import stratified_part
from lightning_poison.statistics.thresholds import log_p_by_trusted

_COMPARED = 0.3
"""Share of the trusted samples that the members' scores are compared with, where a member must be fitted first."""


class CombinedScorer:
    """Judges by the most alarmed of several filters.

    Each member's score becomes a p-value, per class and with a fitted tail (`tail_p_values`), since scores of different
    filters have no common scale; then −log10 p is combined, and `sanitize` calibrates what comes out again. What one
    member alone sees is caught at a price: with k members the cut of each is about k times as strict.

    `sanitize`, `Sanitizer` and the wrappers keep each member's p-value in `Verdict.votes` and in the manifest.

    Args:
        scorers: two or more; members that must see the whole set among them, for `sanitize` alone. Controls make the
            combination one.
        combine: `"max"` of −log10 p, which asks for one member that is sure; or `"sum"`, which asks for agreement.

    Raises:
        ValueError: where there are fewer than two members, or `combine` is something else.
        TypeError: where a member is no scorer, or a combination itself.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> from lightning_poison.data.pixel_range import PixelRange
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(16).round().div(16)
        >>> counts = [PixelCountingScorer(PixelRange(levels=levels)) for levels in (17, 256)]
        >>> scorer = CombinedScorer(counts).fit(TensorDataset(images, torch.arange(200) % 2))
        >>> list(scorer.members), scorer.score_batch(images[:3], torch.tensor([0, 1, 0])).shape
        (['pixel-counting', 'pixel-counting-2'], torch.Size([3]))
    """

    name = "combined"

    def __init__(self, scorers: Sequence[Scorer | FeatureScorer], *, combine: Combination = "max") -> None:
        self.combine: Combination = one_of("combine", combine, ("max", "sum"))
        self.members = _named(scorers)
        self.is_control = any(member.is_control for member in self.members.values())
        self._reference: tuple[Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        return f"CombinedScorer([{', '.join(map(repr, self.members.values()))}], combine={self.combine!r})"

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return self._reference is not None

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Fit the members that are not fitted, and compare with the rest of the trusted samples; see `Scorer.fit`.

        Where all members are fitted already, they are compared with all trusted samples, which they must not have seen.

        Raises:
            ValueError: where a member must see the whole set, or a class has too few samples.
        """
        members = self._sample_wise()
        runtime = runtime or LocalRuntime()
        generator = generator or torch.Generator().manual_seed(0)
        data = TrainingData.of(trusted)
        compared = torch.ones(len(data.labels), dtype=torch.bool)
        if not all(member.is_fitted for member in members):
            compared = stratified_part(data.labels, _COMPARED, generator, among=data.labels)
            part = SelectedDataset(trusted, (~compared).nonzero().flatten(), data.sample, data.labels)
            for member in members:
                if not member.is_fitted:
                    member.fit(part, runtime=runtime, generator=generator)
        scores = score_set(
            trusted,
            compared.nonzero().flatten(),
            lambda block: torch.stack([each.score_batch(block.inputs, block.labels) for each in members], dim=1),
            sample=data.sample,
            runtime=runtime,
            seed=0,
            share=False,
        )
        self._reference = scores.T.contiguous(), data.labels[compared]
        return self

    def votes(self, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the natural logarithm of each member's p-value, float64 `(B,)`, by the member's name.

        Raises:
            NotFittedError: before a fit.
            ValueError: where a label is none of those of the trusted samples.
        """
        if self._reference is None:
            raise NotFittedError(
                "Expected a fitted CombinedScorer, but it has nothing to compare with.\nCall `fit(trusted)`."
            )
        scores, known = self._reference
        own = labels.cpu()
        return {
            name: log_p_by_trusted(member.score_batch(inputs, labels).double().cpu(), own, scores[number], known)
            for number, (name, member) in enumerate(zip(self.members, self._sample_wise(), strict=True))
        }

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the combined score of each sample, float32 `(B,)`, in decades; not differentiable.

        Raises:
            NotFittedError: before a fit.
            ValueError: where a label is none of those of the trusted samples.
        """
        votes = torch.stack(list(self.votes(inputs, labels).values()))
        return combine_log_p(votes, self.combine).float().to(inputs.device)

    def settings(self) -> Mapping[str, Any]:
        """Return what the combination was built with, as JSON can hold it."""
        members = {name: {"name": each.name, **_settings(each)} for name, each in self.members.items()}
        return {"combine": self.combine, "members": members}

    def state(self) -> Mapping[str, Tensor]:
        """Return what the members have fitted, and the scores that they are compared with.

        Raises:
            NotFittedError: before a fit.
        """
        if self._reference is None:
            raise NotFittedError(
                "Expected a fitted CombinedScorer, but it has nothing to compare with.\nCall `fit(trusted)`."
            )
        found = {"reference.scores": self._reference[0], "reference.labels": self._reference[1]}
        for number, member in enumerate(self._sample_wise()):
            found |= {f"{number}.{name}": value for name, value in member.state().items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state` of a combination of the same settings returned, and return itself.

        Raises:
            ValueError: where it is the state of something else.
        """
        members = self._sample_wise()
        if "reference.scores" not in state or len(state["reference.scores"]) != len(members):
            raise ValueError(f"Expected the state of {self!r}, but got that of another scorer.")
        for number, member in enumerate(members):
            own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{number}.")}
            member.load(own)
        self._reference = state["reference.scores"], state["reference.labels"]
        return self

    def _sample_wise(self) -> list[Scorer]:
        found = [member for member in self.members.values() if isinstance(member, Scorer)]
        if len(found) < len(self.members):
            other = next(name for name, member in self.members.items() if not isinstance(member, Scorer))
            raise ValueError(
                f"Expected members that judge sample by sample, but {printable(other)} must see the whole set.\n"
                "Hand the combination to `sanitize`, `Sanitizer` or `SanitizedDataModule`, which fit it themselves."
            )
        return found


def _named(scorers: Sequence[Scorer | FeatureScorer]) -> dict[str, Scorer | FeatureScorer]:
    if len(scorers) < 2:
        raise ValueError(
            expected("scorers", "two scorers or more", f"{len(scorers)}", "One alone needs no combination.")
        )
    named: dict[str, Scorer | FeatureScorer] = {}
    for scorer in scorers:
        if isinstance(scorer, type) or not isinstance(scorer, Scorer | FeatureScorer):
            came = f"the class {scorer.__name__}" if isinstance(scorer, type) else describe(scorer)
            raise TypeError(expected("scorers", "scorers such as `LikelihoodScorer()`", came))
        if isinstance(scorer, CombinedScorer):
            raise TypeError(expected("scorers", "single scorers", "a combination", "List its members instead."))
        numbered = (f"{scorer.name}-{number}" for number in count(2))
        named[next(name for name in chain([scorer.name], numbered) if name not in named)] = scorer
    return named


def _settings(scorer: Scorer | FeatureScorer) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(scorer, "settings", dict)()
    return found
