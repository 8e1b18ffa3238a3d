"""Training of fresh copies of surrogates on poisoned data."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison import Poison, PoisonedDataset, Surrogate, checks
from lightning_poison.models import FitSettings, fit_module
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime


def retrained(
    surrogate: Surrogate, dataset: "Dataset[Any]", poison: Poison, *, settings: FitSettings, generator: torch.Generator
) -> Surrogate:
    """Return a copy of a surrogate that is initialized anew and trained on poisoned data.

    Args:
        surrogate: Model on the device on which the copy is trained. It is not changed.
        dataset: Clean training set.
        poison: Poison for this data set.
        settings: Settings of the training.
        generator: The only source of randomness.

    Returns:
        Surrogate in evaluation mode, without gradients.
    """
    model = copy.deepcopy(surrogate.model).requires_grad_(True)
    state = next(iter(model.parameters()), None)
    runtime = LocalRuntime("cpu" if state is None else state.device, threads=torch.get_num_threads(), quiet=True)
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.enable_grad():
        reset(model, seed)
        fit_module(
            model,
            PoisonedDataset(dataset, poison),
            _cross_entropy,
            settings=settings,
            runtime=runtime,
            generator=torch.Generator().manual_seed(seed),
        )
    return Surrogate(model.eval().requires_grad_(False), surrogate.feature_layer)


def reset(model: nn.Module, seed: int) -> None:
    """Initialize the layers of a model anew, in place, by their `reset_parameters`.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> reset(model, 0)
        >>> before = model.weight.clone()
        >>> reset(model, 0)
        >>> bool(model.weight.eq(before).all())
        True
    """
    with seeded_rng(seed):
        for module in model.modules():
            if callable(method := getattr(module, "reset_parameters", None)):
                method()


def check_resettable(surrogates: Sequence[Surrogate]) -> None:
    """Check that every layer with parameters can be initialized anew.

    Raises:
        ValueError: If a layer has parameters and no `reset_parameters`.
    """
    for surrogate in surrogates:
        for name, module in surrogate.model.named_modules():
            owns = any(True for _ in module.parameters(recurse=False))
            if owns and not callable(getattr(module, "reset_parameters", None)):
                what = "models whose layers have `reset_parameters`, to train them anew"
                hint = "Set `retrain_factor=0` to use the given surrogates alone."
                received = f"{type(module).__name__} at {name!r} without it"
                raise ValueError(checks.expected("surrogates", what, received, hint))


def _cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).float(), labels)
