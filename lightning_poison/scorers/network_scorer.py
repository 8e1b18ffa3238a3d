"""`NetworkScorer`: the part that scorers with a network have in common."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.runtime import Runtime
from lightning_poison.scorers.networks import evaluating_on, load_weights, network_state, restore_network
from lightning_poison.scorers.protocol import Scorer


class NetworkScorer(Scorer):
    """A scorer with a network that it trains, or with a trained module of the user.

    A module of the user stays on its device and never changes, except in `load`.
    """

    scores_labels = True
    _network: Any

    def _build(self, shape: tuple[int, ...], num_classes: int, *, seed: int = 0) -> nn.Module:
        """Return an untrained network."""
        raise NotImplementedError

    def _train(
        self, trusted: Any, runtime: Runtime | None, generator: torch.Generator, max_steps: int | None = None
    ) -> tuple[nn.Module, int]:
        """Return a network after at most `max_steps` steps, and the number of steps of a whole fit."""
        raise NotImplementedError

    def _label_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores of inputs on the network's device, `(B, C)`."""
        raise NotImplementedError

    @property
    def is_fitted(self) -> bool:
        """Whether there is a network."""
        return hasattr(self, "_network")

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Train a network on known-clean samples, unless it is a module of the user, and return the scorer.

        See `Scorer.fit`.

        Raises:
            FloatingPointError: If the loss is not finite.
            UnreadableSampleError: If a sample cannot be read.
            ValueError: If there are fewer than two classes, or the samples do not fit the settings.
        """
        if self.borrowed_module is None:
            self._network, _ = self._train(trusted, runtime, generator or torch.Generator().manual_seed(0))
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Train a temporary network for a few steps and return the number of steps of a whole fit."""
        return self._train(trusted, runtime, torch.Generator().manual_seed(0), steps)[1]

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Score each sample under each label; see `Scorer.score_labels`. Scores are differentiable in `inputs`.

        Raises:
            NotFittedError: Before a fit.
            ValueError: If samples differ in shape from those that the scorer was fitted on.
        """
        self.check_fitted()
        with evaluating_on(self._network, inputs, movable=self.borrowed_module is None) as moved:
            return self._label_scores(moved).to(inputs.device)

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments and the class of a module of the user, as JSON values."""
        module = None if self.borrowed_module is None else type(self.borrowed_module).__qualname__
        return {**super().settings(), "module": module}

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the weights of the network, and what is needed to build it again.

        Raises:
            NotFittedError: Before a fit.
        """
        self.check_fitted()
        return network_state(self._network, None if self.borrowed_module is not None else self._network.shape)

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load what `state` of a scorer with the same settings returned, and return the scorer.

        Raises:
            ValueError: If it is the state of another scorer, or of one with other settings.
        """
        if self.borrowed_module is not None:
            load_weights(self._network, state, self)
        else:
            self._network = restore_network(state, self._build, self)
        return self
