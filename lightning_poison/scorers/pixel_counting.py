"""`PixelCountingScorer`: how unusual a few counts of pixels are. A trivial baseline, cheap and easily evaded.

An attack on images with a flat background often leaves gray where there was none, and two lines of counting find it. A
defense whose figures this scorer reaches has shown nothing about itself.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import NotFittedError
from lightning_poison.runtime import Runtime

_BLOCK = 512
_RIDGE = 1e-6


class PixelCountingScorer:
    """Squared Mahalanobis distance of pixel counts to the class that a sample is labeled as.

    The counts are the shares of pixels that are black, nearly black, nearly white and white, the mean, and the mean
    step between neighbors; their mean and covariance are those of the trusted samples of each class.

    Args:
        pixels: the pixel domain of the samples.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(16).round().div(16)
        >>> scorer = PixelCountingScorer(PixelRange(levels=17)).fit(TensorDataset(images, torch.arange(40) % 2))
        >>> scorer.score_batch(images[:3], torch.tensor([0, 1, 0])).shape
        torch.Size([3])
    """

    name = "pixel-counting"
    is_control = False

    def __init__(self, pixels: PixelRange = PixelRange()) -> None:  # noqa: B008 (frozen)
        self.pixels = pixels
        self._state: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        return f"PixelCountingScorer({self.pixels!r})"

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return bool(self._state)

    def fit(
        self,
        trusted: "Dataset[Any]",
        *,
        runtime: Runtime | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 (nothing is drawn)
    ) -> Self:
        """Count the pixels of samples that are believed, and return itself; see `Scorer.fit`."""
        sample = SampleSpec.detect(trusted[0])
        blocks = index_blocks(torch.arange(len(trusted)), _BLOCK)  # type: ignore[arg-type]
        workers = runtime.num_workers if runtime is not None else 0
        read = list(read_blocks(trusted, blocks, sample=sample, seed=0, num_workers=workers))
        counts = torch.cat([self._counts(block.inputs) for block in read])
        labels = torch.cat([block.labels for block in read])
        classes = int(labels.max()) + 1
        means = torch.zeros(classes, counts.shape[1], dtype=counts.dtype)
        precisions = torch.zeros(classes, counts.shape[1], counts.shape[1], dtype=counts.dtype)
        for number in torch.unique(labels).tolist():
            own = counts[labels == number]
            means[number] = own.mean(0)
            spread = (own - own.mean(0)).T @ (own - own.mean(0)) / max(1, len(own) - 1)
            precisions[number] = torch.linalg.inv(spread + _RIDGE * torch.eye(counts.shape[1], dtype=counts.dtype))
        self._state = {"means": means, "precisions": precisions}
        return self

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Return the score of each sample under each label, float32 `(B, C)`.

        A class that had no samples has the largest score of the others plus 1 at each sample.

        Raises:
            NotFittedError: before a fit.
        """
        if not self._state:
            raise NotFittedError("Expected a fitted PixelCountingScorer.\nCall `fit(trusted)`.")
        counts = self._counts(inputs.float())
        means, precisions = (self._state[name].to(counts.device) for name in ("means", "precisions"))
        away = counts[:, None] - means
        scores = torch.einsum("bci,cij,bcj->bc", away, precisions, away).float()
        absent = (precisions == 0).all((1, 2))
        worst = scores.masked_fill(absent, -torch.inf).amax(1, keepdim=True)
        return torch.where(absent, worst + 1, scores)

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under the label that it carries, float32 `(B,)`."""
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def settings(self) -> Mapping[str, Any]:
        """Return the pixel domain."""
        return {"pixels": vars(self.pixels)}

    def state(self) -> Mapping[str, Tensor]:
        """Return means and inverse covariances of the counts of each class."""
        return dict(self._state)

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state` returned, and return itself.

        Raises:
            ValueError: where it is the state of another scorer.
        """
        if set(state) != {"means", "precisions"}:
            raise ValueError(expected("state", "that of a PixelCountingScorer", ", ".join(sorted(state))[:80]))
        self._state = dict(state)
        return self

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
