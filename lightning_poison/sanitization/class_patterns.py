"""A pattern that most of a class has in common and its other samples lack, as a trigger would be."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_poison.data.blocks import Block
from lightning_poison.data.inference import score_set
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import derived_generator
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.scorer_calls import call_logits
from lightning_poison.scorers.protocol import FeatureSource
from lightning_poison.statistics.group_effects import transfer_share
from lightning_poison.statistics.subgroups import Subgroup

PATTERN_STRENGTH = 2.0
"""How much stronger the pattern is that is added to images of other classes: an attacker can do that, too."""

MIN_PATTERN = 0.45
"""Share of the images of any other class that the pattern must turn into the class, so that the images with it count
as poison.

On MNIST and CIFAR-10 it is at most .19 for natural groups, and at least .6 for a class of which 80 % carry a sinusoid
(SIG).
"""

MIN_CLASSES = 4
"""Number of other classes from which a pattern is looked for."""

MIN_SEPARATION, MIN_PART = 5.0, 0.05
"""Ashman's D of both parts of a class, and the share of the smaller one, from which a pattern is looked for.

With a sinusoid on 70 to 90 % of a class, D was 5.3 to 9.6. Most natural groups have less, and those that have more are
mostly small.
"""

MIN_RECOGNIZED = 0.3
"""Share of these images that must look like their class to a network that has learned it from its other samples, unless
something simple identifies the class.

On MNIST it is .95 and more if a pattern was added to them, and .005 if the others are poison with wrong labels.
"""

_MOST_READ, _MOST_NUMBERS = 500, 2**25
"""Images of each part that the pattern is estimated from, at most, and numbers in them."""


def rest_of_class(job: Job, features: Tensor, group: Subgroup) -> Subgroup:
    """Return the samples of a class that are not in a group, as a group.

    Samples that were not searched for this group, since they are in one that was found earlier, belong to the part
    whose mean features are closer.

    Args:
        job: The data set.
        features: Features of all samples, `(N, D)`.
        group: The group.
    """
    positions = (job.labels == group.label).nonzero().flatten()
    log_odds = torch.zeros(len(job.labels), dtype=torch.float64)
    log_odds[group.positions] = -group.log_odds
    others = positions[~torch.isin(positions, group.positions)]
    if len(others):
        inside, outside = (features[part].double().mean(0) for part in (group.members, group.rest))
        rows = features[others].double()
        nearer = (rows - outside).norm(dim=1) < (rows - inside).norm(dim=1)
        certain = float(group.log_odds.abs().max())
        log_odds[others] = torch.where(nearer, certain, -certain).to(log_odds)
    return Subgroup(group.label, positions, log_odds[positions], group.separation)


def may_have_pattern(rest: Subgroup) -> bool:
    """Return whether the rest of a class is most of it, and is clearly separated from a part that is not too small.

    Example:
        >>> log_odds = torch.where(torch.arange(100) < 10, -4.0, 4.0).double()
        >>> may_have_pattern(Subgroup(0, torch.arange(100), log_odds, 6.0))
        True
        >>> may_have_pattern(Subgroup(0, torch.arange(100), log_odds, 4.4))
        False
    """
    share = len(rest.members) / len(rest.positions)
    return 0.5 < share <= 1 - MIN_PART and rest.separation >= MIN_SEPARATION


def pattern_share(job: Job, model: FeatureSource, group: Subgroup, shape: torch.Size, probed: Tensor) -> float:
    """Compute the share of images of any other class that the pattern of a group turns into its class.

    The pattern is the difference between the mean image of the group and that of the other samples of its class. Where
    most of a class is poisoned with clean labels, the group is the poison and the others are clean, so that their
    content cancels out and the trigger remains. The network has not seen the others, and recognizes the class by the
    trigger. The difference between natural parts of a class, such as 7s with a bar and without, does not turn images
    of every other class into it.

    Args:
        job: The data set.
        model: Network that was trained without the other samples of the class.
        group: Most of a class.
        shape: Shape of an input.
        probed: Positions of samples of other classes, int64 `(M,)`.

    Returns:
        See `transfer_share`, in [0, 1]; 0 for inputs that are not images.
    """
    if len(shape) < 3:
        return 0.0
    parts = [_drawn(job, places, shape.numel()) for places in (group.members, group.rest)]
    images = [_images(job, places) for places in parts]
    first, second = (part.mean(0, dtype=torch.float64) for part in images)
    pattern = PATTERN_STRENGTH * (first - second).float().view(shape)
    lowest = min(float(part.min()) for part in images)
    highest = max(float(part.max()) for part in images)

    def logits(block: Block, added: Tensor) -> Tensor:
        inputs = block.inputs + added.to(block.inputs)
        return call_logits(model, inputs.clamp(lowest, highest), indices=block.indices)

    def predictions(added: Tensor, name: str) -> Tensor:
        unit = f"effects-pattern-{group.label}-{name}"
        return compute_over(job, probed, lambda block: logits(block, added), unit=unit).argmax(1)

    before, after = predictions(torch.zeros_like(pattern), "before"), predictions(pattern, "after")
    return transfer_share(before, after, job.labels[probed], group.label)


def _drawn(job: Job, places: Tensor, numbers: int) -> Tensor:
    count = min(_MOST_READ, max(1, _MOST_NUMBERS // numbers))
    order = torch.randperm(len(places), generator=derived_generator(job.seed, "pattern"))
    return places[order[:count]].sort().values


def _images(job: Job, places: Tensor) -> Tensor:
    return compute_over(job, places, lambda block: block.inputs.flatten(1), dtype=torch.float32)


def compute_over(
    job: Job,
    places: Tensor,
    score: Callable[[Block], Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    unit: str | None = None,
) -> Tensor:
    """Return what a function of a block returns for samples of a job; see `score_set`."""
    return score_set(
        job.data.dataset,
        places,
        score,
        sample=SampleSpec(),
        runtime=job.runtime,
        seed=job.seed,
        labels=job.labels,
        description="Testing groups",
        dtype=dtype,
        unit=unit,
    )
