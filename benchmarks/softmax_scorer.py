"""The cross-entropy twin of the likelihood scorer: −log p(y|x) of a network with a linear head."""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.backbones import default_backbone
from lightning_poison.fitting import FitSettings, fit_module
from lightning_poison.labels import labels_of, spec_of
from lightning_poison.reading import read_blocks
from lightning_poison.runtime import Runtime
from lightning_poison.scopes import evaluating, seeded_rng

FEATURES = 32


class SoftmaxScorer:
    """Scores by −log p(y|x): of a trained classifier, or of one that it trains as `LikelihoodScorer` trains its own.

    Args:
        module: maps inputs to logits `(B, C)`; `None` for the likelihood scorer's backbone under a linear head.
    """

    name, is_control = "softmax", False

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module = module
        self._built_with = None if module is None else type(module).__name__

    @property
    def is_fitted(self) -> bool:
        return self.module is not None

    def fit(self, trusted: Any, *, runtime: Runtime | None = None, generator: torch.Generator | None = None) -> Self:
        generator = generator or torch.Generator().manual_seed(0)
        sample = spec_of(trusted)
        labels = labels_of(trusted, sample)
        first = next(read_blocks(trusted, [torch.zeros(1, dtype=torch.int64)], sample=sample, seed=0))
        network = _network(
            first.inputs.shape[1:], int(labels.max()) + 1, int(torch.randint(2**31, (1,), generator=generator))
        )
        self.module = fit_module(
            network,
            trusted,
            lambda module, inputs, truth: F.cross_entropy(module(inputs).float(), truth),
            settings=FitSettings(),
            sample=sample,
            runtime=runtime,
            generator=generator,
        )
        return self

    def score_labels(self, inputs: Tensor) -> Tensor:
        assert self.module is not None
        with evaluating(self.module):
            return -torch.log_softmax(self.module(inputs).float(), dim=1)

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def settings(self) -> Mapping[str, Any]:
        return {"module": self._built_with}

    def state(self) -> Mapping[str, Tensor]:
        assert self.module is not None
        return self.module.state_dict()

    def load(self, state: Mapping[str, Tensor]) -> Self:
        assert self.module is not None
        self.module.load_state_dict(state)
        return self


def _network(shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    backbone = default_backbone(shape, FEATURES, seed=seed)
    with seeded_rng(seed):
        return nn.Sequential(backbone, nn.Linear(FEATURES, classes))
