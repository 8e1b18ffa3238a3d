"""What is measured of a model trained on poison, and of a defense; the tasks of an evaluation are made of these."""

import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import describe, expected, printable
from lightning_poison.contexts import process_state_restored
from lightning_poison.data.labels import labels_of
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.entry_points import call_plugin
from lightning_poison.evaluation.score_summary import ScoreSummary
from lightning_poison.randomness import derived_generator

Predict = Callable[[Any], Tensor]
"""Maps a data set of N samples `(input, label, ...)` to predicted labels, int64 `(N,)`."""


@dataclass(frozen=True)
class TrainedModel:
    """What an evaluation needs of a trained model.

    Args:
        predict: Maps a data set of N samples `(input, label, ...)` to predicted labels, int64 `(N,)`.
        features: Maps it to features, floating point `(N, D)`. Optional: without it, there is no map of them.
    """

    predict: Predict
    features: Callable[[Any], Tensor] | None = None

    @classmethod
    def of(cls, given: "Predict | TrainedModel") -> "TrainedModel":
        """Return a model that may be given as its prediction function."""
        return given if isinstance(given, TrainedModel) else cls(given)


_MAX_LABELS = 20
"""Number of labels up to which predictions are counted."""


@dataclass
class Cost:
    """What a block of code took: `seconds`, and the largest memory of the process in MiB."""

    seconds: float = 0.0
    peak_memory_mib: float = field(default=0.0)


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure time and memory of a block.

    The memory is that of the block where the system can reset its record (Linux); otherwise it is the largest since the
    process began.

    Example:
        >>> with measured() as cost:
        ...     values = torch.ones(2**22)
        >>> cost.seconds > 0, cost.peak_memory_mib > 16
        (True, True)
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    cost, begin = Cost(), time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - begin
        cost.peak_memory_mib = _peak_memory()


def random_mask(length: int, removed: int, *, seed: int) -> Tensor:
    """Return a mask that removes a number of samples at random, as a control.

    Its random numbers are independent of those of an attack with the same seed, so that the two do not select the same
    samples.

    Example:
        >>> keep = random_mask(100, 30, seed=0)
        >>> int((~keep).sum()), keep.equal(random_mask(100, 30, seed=0)), keep.equal(random_mask(100, 30, seed=1))
        (30, True, False)
    """
    keep = torch.ones(length, dtype=torch.bool)
    keep[torch.randperm(length, generator=derived_generator(seed, "random filter"))[:removed]] = False
    return keep


@dataclass(frozen=True)
class Judgment:
    """What a defense decides about N samples, with scores.

    Args:
        keep: Mask of the samples to keep, bool `(N,)`.
        suspicion: What the samples are ranked by, floating point `(N,)`; larger is more suspicious. NaN for samples
            that were not judged.
        scores: Scores of which histograms are drawn, floating point `(N,)`. Default: `suspicion`.
    """

    keep: Tensor
    suspicion: Tensor
    scores: Tensor | None = None

    def summary(self, poisoned: PoisonedDataset) -> ScoreSummary | None:
        """Compare the scores with the ground truth; `None` if no poison or no clean sample was judged."""
        is_poison = poisoned.is_poison
        is_clean = ~is_poison & ~poisoned.poison.is_cover(len(poisoned.dataset))
        scores = self.suspicion if self.scores is None else self.scores
        return ScoreSummary.of(self.suspicion.tolist(), scores.tolist(), is_poison.tolist(), is_clean.tolist())


def judgment_of(name: str, defend: Callable[[Any], Any], poisoned: PoisonedDataset) -> Tensor | Judgment:
    """Run a defense, and return a copy of its mask or judgment, which it cannot change later.

    The process is left as it was.

    Raises:
        ValueError: If the result is neither a mask nor a judgment of the data set.
    """
    try:
        with process_state_restored():
            result = defend(poisoned)
    except Exception as error:
        error.add_note(f"Raised by the defense `{printable(name)}`.")
        raise
    length = len(poisoned)
    given = result.keep if isinstance(result, Judgment) else result
    if not isinstance(given, Tensor) or given.dtype != torch.bool or given.shape != (length,):
        came = printable(describe(given))
        raise ValueError(expected(f"the result of {printable(name)}", f"a boolean mask ({length},)", came))
    if not isinstance(result, Judgment):
        return given.detach().clone()
    for scores in (result.suspicion, result.scores):
        is_valid = isinstance(scores, Tensor) and scores.shape == (length,) and scores.is_floating_point()
        if not is_valid and not (scores is None and result.suspicion is not None):
            what = f"floating-point numbers ({length},)"
            raise ValueError(expected(f"the scores of {printable(name)}", what, printable(describe(scores))))
    copies = (None if each is None else each.detach().cpu().clone() for each in (result.suspicion, result.scores))
    return Judgment(given.detach().clone(), *copies)  # type: ignore[arg-type]  # the first is no None


def mask_of(name: str, defend: Callable[[Any], Any], poisoned: PoisonedDataset) -> Tensor:
    """Return the mask of `judgment_of`.

    Raises:
        ValueError: If the result is no mask of the data set.
    """
    result = judgment_of(name, defend, poisoned)
    return result.keep if isinstance(result, Judgment) else result


def evaluation_items(poison: Poison, test: Any) -> tuple[Any, Tensor, Tensor]:
    """Return the evaluation set of an attack, and the true and wanted labels of its items, int64 `(N,)`.

    Raises:
        PluginError: If the objective of the attack fails.
    """

    def build() -> tuple[Any, Tensor, Tensor]:
        items: Any = poison.objective.evaluation_set(test)
        labels = [items[index][1:] for index in range(len(items))]
        true, wanted = torch.tensor(labels, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return items, true, wanted

    return call_plugin(build, _objective_of(poison))


def success_rate(poison: Poison, predicted: Tensor, true: Tensor, wanted: Tensor, reference: Tensor) -> float:
    """Return the share of the evaluation set on which the attacker succeeds, and a model without poison does not fail.

    Raises:
        PluginError: If the objective of the attack fails.
    """
    success = call_plugin(
        lambda: poison.objective.success(predicted, true.clone(), wanted.clone(), reference=reference),
        _objective_of(poison),
    )
    return share(success)


def predictions_by_class(predicted: Tensor, true: Tensor) -> dict[str, dict[str, int]] | None:
    """Count predicted labels by true label, or return `None` if there are more than 20 true or predicted labels.

    Example:
        >>> predictions_by_class(torch.tensor([0, 3, 0, 1]), torch.tensor([0, 0, 0, 1]))
        {'0': {'0': 2, '3': 1}, '1': {'1': 1}}
    """
    pairs = Counter(zip(true.tolist(), predicted.tolist(), strict=True))
    if (
        not pairs
        or len({label for label, _ in pairs}) > _MAX_LABELS
        or len({label for _, label in pairs}) > _MAX_LABELS
    ):
        return None
    counts: dict[str, dict[str, int]] = {}
    for label, prediction in sorted(pairs):
        counts.setdefault(str(label), {})[str(prediction)] = pairs[label, prediction]
    return counts


def accuracy(predict: Predict, test: Any) -> float:
    """Return the accuracy on a test set, in [0, 1]."""
    return share(predict(test) == labels_of(test))


@dataclass(frozen=True)
class Removal:
    """What a mask removes.

    Args:
        removed: Number of samples.
        removed_by_class: The same by label.
        poison_caught: Share of the poison, in [0, 1].
        clean_lost: Share of the clean samples, without cover, in [0, 1].
    """

    removed: int
    removed_by_class: dict[str, int]
    poison_caught: float
    clean_lost: float

    @classmethod
    def of(cls, keep: Tensor, poisoned: PoisonedDataset) -> "Removal":
        """Compare a mask with the ground truth."""
        is_poison, poison = poisoned.is_poison, poisoned.poison
        is_clean = ~is_poison & ~poison.is_cover(len(poisoned.dataset))
        labels = labels_of(poisoned)[~keep]
        by_class = {str(label): int((labels == label).sum()) for label in sorted(set(labels.tolist()))}
        return cls(int((~keep).sum()), by_class, share(~keep[is_poison]), share(~keep[is_clean]))


def kept(poisoned: PoisonedDataset, keep: Tensor) -> Any:
    """Return the samples that a mask keeps, as a view."""
    return SanitizedDataset(poisoned, keep)


def share(mask: Tensor) -> float:
    """Return the share of true entries; 0 if there are none."""
    return float(mask.double().mean()) if len(mask) else 0.0


def _objective_of(poison: Poison) -> str:
    return f"the objective of the attack `{printable(poison.attack)}`"


def _peak_memory() -> float:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration, ValueError):
        try:
            import resource
        except ImportError:  # Windows has neither
            return math.nan
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024**2 if sys.platform == "darwin" else 1024)
