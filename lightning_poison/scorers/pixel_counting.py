"""`PixelCountingScorer`: how unusual a few counts of pixels are. A trivial baseline, cheap and easy to evade.

An attack on images with a flat background often leaves gray pixels there, which two lines of counting find. A defense
that is no better than this scorer has shown nothing about itself.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.protocol import Scorer

_BLOCK = 512
_RIDGE = 1e-6


class PixelCountingScorer(Scorer):
    """Scores a sample by the squared Mahalanobis distance of its pixel counts to the class that it is labeled as.

    The counts are the shares of pixels that are black, nearly black, nearly white and white, the mean, and the mean
    step between neighbors. Their mean and covariance are those of the trusted samples of each class.

    Args:
        pixels: Pixel domain of the samples. Default: raw images in [0, 1].

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(16).round().div(16)
        >>> scorer = PixelCountingScorer(PixelRange(levels=17)).fit(TensorDataset(images, torch.arange(40) % 2))
        >>> scorer.score_batch(images[:3], torch.tensor([0, 1, 0])).shape
        torch.Size([3])
    """

    name = "pixel-counting"
    scores_labels = True
    fitted_tensors = ("means", "precisions")

    def __init__(self, pixels: PixelRange = PixelRange()) -> None:  # noqa: B008 (frozen)
        self.pixels = pixels

    def fit(
        self,
        trusted: "Dataset[Any]",
        *,
        runtime: Runtime | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 (fitting draws no random numbers)
    ) -> Self:
        """Count the pixels of known-clean samples and return the scorer; see `Scorer.fit`."""
        sample = SampleSpec.detect(trusted[0])
        blocks = index_blocks(torch.arange(len(trusted)), _BLOCK)  # type: ignore[arg-type]
        workers = runtime.num_workers if runtime is not None else 0
        read = list(read_blocks(trusted, blocks, sample=sample, seed=0, num_workers=workers))
        counts = torch.cat([self._counts(block.inputs) for block in read])
        labels = torch.cat([block.labels for block in read])
        classes, size = int(labels.max()) + 1, counts.shape[1]
        means = torch.zeros(classes, size, dtype=counts.dtype)
        precisions = torch.zeros(classes, size, size, dtype=counts.dtype)
        for label in torch.unique(labels).tolist():
            own = counts[labels == label]
            means[label] = own.mean(0)
            covariance = (own - own.mean(0)).T @ (own - own.mean(0)) / max(1, len(own) - 1)
            precisions[label] = torch.linalg.inv(covariance + _RIDGE * torch.eye(size, dtype=counts.dtype))
        self.means, self.precisions = means, precisions
        return self

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Score each sample under each label, float32 `(B, C)`; see `Scorer.score_labels`.

        The score under a class without trusted samples is the largest score of the sample plus 1.

        Raises:
            NotFittedError: Before a fit.
            ValueError: If the samples are not images.
        """
        self.check_fitted()
        counts = self._counts(inputs.float())
        means, precisions = self.means.to(counts.device), self.precisions.to(counts.device)
        shifted = counts[:, None] - means
        scores = torch.einsum("bci,cij,bcj->bc", shifted, precisions, shifted).float()
        absent = (precisions == 0).all((1, 2))
        worst = scores.masked_fill(absent, -torch.inf).amax(1, keepdim=True)
        return torch.where(absent, worst + 1, scores)

    def _counts(self, inputs: Tensor) -> Tensor:
        if inputs.ndim != 4:
            raise ValueError(expected("inputs", "images (B, C, H, W)", describe(inputs)))
        raw = self.pixels.to_raw(inputs)
        step = 1.5 / ((self.pixels.levels or 256) - 1)
        flat = raw.flatten(1)
        shares = [flat <= step / 3, (flat > step / 3) & (flat <= step), (flat >= 1 - step) & (flat < 1 - step / 3)]
        shares.append(flat >= 1 - step / 3)
        steps = (raw.diff(dim=-1).abs().flatten(1).mean(1) + raw.diff(dim=-2).abs().flatten(1).mean(1)) / 2
        return torch.stack([*[share.float().mean(1) for share in shares], flat.mean(1), steps], dim=1).double()
