"""score_dataset."""

from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.inference import score_set
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.protocol import Scorer


def score_dataset(
    scorer: Scorer, dataset: Any, *, sample: SampleSpec | None = None, runtime: Runtime | None = None
) -> Tensor:
    """Score a data set with a fitted scorer, each sample under the label that it carries.

    For a decision use `sanitize`, which calibrates a threshold.

    Args:
        scorer: fitted; it judges sample by sample.
        dataset: a map-style data set.
        sample: where input and label stand in a sample; found by itself where that is plain.
        runtime: where to compute; this machine where it is `None`.

    Returns:
        float64 `(N,)`, larger is more suspicious.

    Raises:
        NotFittedError: before a fit.
        TypeError: where the scorer must see the whole set.
        ValueError: where a score is not finite.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> score_dataset(PixelCountingScorer().fit(data), data).shape
        torch.Size([40])
    """
    if not hasattr(scorer, "score_batch"):
        came = f"{type(scorer).__name__}, which must see the whole set"
        raise TypeError(expected("scorer", "one that judges sample by sample", came, "Hand it to `sanitize`."))
    sample = sample or spec_of(dataset)
    labels = labels_of(dataset, sample)
    return score_set(
        dataset,
        torch.arange(len(labels)),
        lambda block: scorer.score_batch(block.inputs, block.labels),
        sample=sample,
        runtime=runtime or LocalRuntime(),
        seed=0,
        labels=labels,
    )
