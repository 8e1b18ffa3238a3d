"""Scores of a whole data set by a fitted scorer, without a decision."""

from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected
from lightning_poison.data.inference import score_set
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.sanitization.scorer_calls import call_score_batch
from lightning_poison.scorers.protocol import Scorer, SetScorer


def score_samples(
    scorer: Scorer | SetScorer, dataset: Any, *, sample: SampleSpec | None = None, runtime: Runtime | None = None
) -> Tensor:
    """Score each sample of a data set under its label, with a fitted scorer.

    For a decision use `sanitize`, which calibrates a threshold.

    Args:
        scorer: Fitted scorer of single samples.
        dataset: Map-style data set of N samples.
        sample: Paths of input and label in a sample. Default: detected.
        runtime: Where to compute. Default: `LocalRuntime()`, the CPU.

    Returns:
        Scores, float64 `(N,)`, larger is more suspicious.

    Raises:
        NotFittedError: If the scorer is not fitted.
        TypeError: If the scorer needs the whole set.
        ValueError: If a score is not finite.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> score_samples(PixelCountingScorer().fit(data), data).shape
        torch.Size([40])
    """
    if not isinstance(scorer, Scorer):
        came = (
            f"{type(scorer).__name__}, which needs the whole set" if isinstance(scorer, SetScorer) else describe(scorer)
        )
        raise TypeError(expected("scorer", "a scorer of single samples", came, "`sanitize` accepts any scorer."))
    scorer.check_fitted()
    sample = sample or spec_of(dataset)
    labels = labels_of(dataset, sample)
    return score_set(
        dataset,
        torch.arange(len(labels)),
        lambda block: call_score_batch(scorer, block.inputs, block.labels, indices=block.indices),
        sample=sample,
        runtime=runtime or LocalRuntime(),
        seed=0,
        labels=labels,
    )
