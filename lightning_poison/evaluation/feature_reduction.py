"""Reduces the features of poison, clean samples and attacked items to two dimensions, with t-SNE."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import describe, expected
from lightning_poison.data.labels import labels_of
from lightning_poison.evaluation.feature_map import FeatureMap, scaled
from lightning_poison.randomness import derived_generator

_POISON, _ATTACKED, _SAME_LABEL, _OTHER = 100, 60, 160, 80
"""Largest number of points: poison, attacked items, clean samples with their labels, and other clean samples."""

_PERPLEXITY = 30.0

_LEAST = 10
"""Number of points below which there is no map."""


def feature_map_of(
    features: Callable[[Any], Tensor], poisoned: PoisonedDataset, items: Any, true: Tensor, wanted: Tensor, *, seed: int
) -> FeatureMap | None:
    """Return where poison, clean samples and attacked items are in the feature space of a model.

    Up to 400 samples are drawn: poison, items of the attack's evaluation set, clean samples with a label of these or
    with the wanted label, and other clean samples. Their standardized features are reduced by t-SNE (van der Maaten and
    Hinton, *Visualizing Data using t-SNE*, JMLR 2008), which preserves neighbors but not distances, as papers 001 and
    003 do.

    Args:
        features: Maps a data set of N samples to features `(N, D)`.
        poisoned: The training set of the model.
        items: Evaluation set of the attack.
        true: True labels of its items, int64 `(M,)`.
        wanted: Labels that the attacker wants, int64 `(M,)`; -1 for any other.
        seed: Seed of the selection and of t-SNE.

    Returns:
        The map, or `None` if fewer than ten samples can be drawn.

    Raises:
        ValueError: If the features have another shape, or one is not finite.
    """
    from sklearn.manifold import TSNE  # takes a second

    labels, is_poison = labels_of(poisoned), poisoned.is_poison
    is_clean = ~is_poison & ~poisoned.poison.is_cover(len(poisoned.dataset))
    generator = derived_generator(seed, "feature map")
    has_label = torch.isin(labels, torch.cat([true, wanted, labels[is_poison]]))
    drawn = {
        "poison": _drawn(is_poison, _POISON, generator),
        "clean": torch.cat(
            [_drawn(is_clean & has_label, _SAME_LABEL, generator), _drawn(is_clean & ~has_label, _OTHER, generator)]
        ),
    }
    attacked = _drawn(torch.ones(len(true), dtype=torch.bool), _ATTACKED, generator)
    kinds = [kind for kind, chosen in drawn.items() for _ in range(len(chosen))] + ["attacked"] * len(attacked)
    if len(kinds) < _LEAST:
        return None
    trained = torch.cat(list(drawn.values()))
    found = _features(features, Subset(poisoned, trained.tolist()), len(trained))
    if len(attacked):
        shown = [items[index] for index in attacked.tolist()]
        found = torch.cat([found, _features(features, shown, len(shown))])
    spread = found.std(0)
    values = ((found - found.mean(0)) / spread.where(spread > 0, torch.ones(()))).numpy()
    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed % 2**32, n_jobs=1).fit_transform(values)
    return FeatureMap(
        scaled(points[:, 0].tolist()),
        scaled(points[:, 1].tolist()),
        tuple(map(str, torch.cat([labels[trained], true[attacked]]).tolist())),
        tuple(kinds),
    )


def _drawn(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to `count` positions of true entries, in order."""
    positions = mask.nonzero()[:, 0]
    return positions[torch.randperm(len(positions), generator=generator)[:count].sort().values]


def _features(features: Callable[[Any], Tensor], dataset: Any, count: int) -> Tensor:
    found = features(dataset)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count or not found.shape[1]:
        raise ValueError(expected("the features of the model", f"({count}, D)", describe(found)))
    values = found.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(expected("the features of the model", "finite", "NaN or infinite values"))
    return values
