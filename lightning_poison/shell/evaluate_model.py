"""The model of an evaluation: a class of the user, or a small network, trained in the same way each time."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_poison.attacks.threat import Surrogate
from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.labels import spec_of
from lightning_poison.evaluation.measurement import Predict, TrainedModel
from lightning_poison.models.backbones import LARGE_IMAGE, SmallConvNet, Standardization, default_backbone
from lightning_poison.models.detail_network import DetailConvNet
from lightning_poison.models.feature_extractor import FeatureExtractor
from lightning_poison.models.user_network import run_network
from lightning_poison.randomness import derived_seed, seeded_rng
from lightning_poison.shell.class_paths import instance_of
from lightning_poison.shell.demo_training import Classifier, fit_quietly
from lightning_poison.shell.evaluate_data import opened
from lightning_poison.shell.evaluate_settings import DataSettings, ModelSettings

FEATURES = 64

_BATCH = 512

_WIDTH = 8
"""Channels of the first convolution of the small network, half of the default."""


def fitted_model(
    data: DataSettings, model: ModelSettings, dataset: Any, seed: int, device: str = "cpu"
) -> LightningModule:
    """Train a model anew, with one CPU thread.

    Args:
        data: The data, by which the built-in network is chosen.
        model: The model and its training.
        dataset: Training set.
        seed: Seed of weights and order.
        device: `"cpu"` or `"cuda"`.
    """
    with seeded_rng(derived_seed(seed, "evaluation model")):
        module = _new_model(data, model)
    for part in module.modules():
        if isinstance(part, Standardization):
            blocks = read_blocks(
                dataset, index_blocks(torch.arange(len(dataset)), _BATCH), sample=spec_of(dataset), seed=seed
            )
            part.measure(block.inputs for block in blocks)
    return fit_quietly(
        module, dataset, epochs=model.epochs, batch_size=model.batch_size, seed=seed, device=device, threads=1
    )


def surrogate_of(data: DataSettings, model: ModelSettings, holdout: Any, seed: int, device: str = "cpu") -> Surrogate:
    """Train the attacker's model on the samples that the attacker has, and name its feature layer.

    Raises:
        ValueError: If the feature layer is not found.
    """
    module = fitted_model(data, model, holdout, derived_seed(seed, "evaluation surrogate") % 2**31, device)
    if isinstance(module, Classifier):
        return Surrogate(module.network, "backbone")
    sample = spec_of(holdout)
    inputs = torch.stack([torch.as_tensor(sample.inputs_in(holdout[index])).float() for index in range(2)])
    return Surrogate(module, model.feature_layer or feature_layer_of(module, inputs))


def feature_layer_of(module: nn.Module, inputs: Tensor) -> str:
    """Return the name of the layer whose output is the feature vector: the last one before the logits.

    Args:
        module: Maps inputs to logits `(B, C)`.
        inputs: A batch.

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> feature_layer_of(network, torch.zeros(2, 1, 2, 2))
        '2'
    """
    seen: list[tuple[str, Any]] = []
    leaves = [(name, part) for name, part in module.named_modules() if name and not list(part.children())]

    def record(name: str) -> Any:
        return lambda _module, _inputs, output: seen.append((name, output))

    hooks = [part.register_forward_hook(record(name)) for name, part in leaves]
    try:
        with torch.no_grad():
            logits = run_network(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    before = -1
    for number, (_, output) in enumerate(seen):
        if isinstance(output, Tensor) and isinstance(logits, Tensor) and output.shape == logits.shape:
            before = number - 1
    if before < 0 or not isinstance(seen[before][1], Tensor) or len(seen[before][1]) != len(inputs):
        names = printable(", ".join(name for name, _ in leaves), limit=500)
        hint = f"Name it: `feature_layer` of `model`, one of {names}."
        raise ValueError(expected(type(module).__name__, "a layer before its logits", "none that is found", hint))
    return seen[before][0]


def trained_model(module: nn.Module, feature_layer: str | None) -> TrainedModel:
    """Return what an evaluation needs of a model: its predictions, and the output of its feature layer.

    Args:
        module: Maps inputs to logits `(B, C)`.
        feature_layer: Layer whose output is the feature vector. Default: the last one before the logits. If there is
            none, `features` raises a ValueError.
    """

    def features(dataset: Any) -> Tensor:
        extract: FeatureExtractor | None = None
        found = []
        for block in _inputs(dataset):
            layer = feature_layer or feature_layer_of(module, block[:2])
            extract = extract or FeatureExtractor(module, layer, forward=lambda inputs: run_network(module, inputs))
            with torch.no_grad():
                found.append(extract(block))
        return torch.cat(found)

    return TrainedModel(prediction_of(module), features)


def prediction_of(module: nn.Module) -> Predict:
    """Return a function that predicts labels for a data set of any structure, as the argmax of the logits."""

    def predict(dataset: Any) -> Tensor:
        predicted = [_predicted(module, block) for block in _inputs(dataset)]
        return torch.cat(predicted) if predicted else torch.zeros(0, dtype=torch.int64)

    return predict


def _predicted(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        logits = run_network(module, inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
        what = f"logits ({len(inputs)}, C) from a batch of {len(inputs)}"
        raise ValueError(expected(type(module).__name__, f"a module that returns {what}", describe(logits)))
    return logits.argmax(1)


def _inputs(dataset: Any) -> Any:
    """Yield batches of the inputs of a data set, or of the items `(input, true, wanted)` of an evaluation set."""
    count = len(dataset)
    first = dataset[0] if count else None
    if isinstance(first, tuple) and len(first) == 3 and isinstance(first[0], Tensor) and isinstance(first[2], int):
        for begin in range(0, count, _BATCH):
            rows: Sequence[Any] = [dataset[index][0] for index in range(begin, min(begin + _BATCH, count))]
            yield torch.stack(list(rows))
        return
    blocks = index_blocks(torch.arange(count), _BATCH)
    for block in read_blocks(dataset, blocks, sample=spec_of(dataset), seed=0):
        yield block.inputs


def _backbone(shape: Sequence[int]) -> nn.Module:
    """Return a network that is trained in seconds: an evaluation trains it hundreds of times."""
    if len(shape) != 3 or min(shape[1:]) < 4:
        return default_backbone(shape, FEATURES)
    small = max(shape[1:]) < LARGE_IMAGE
    return SmallConvNet(shape, FEATURES, width=_WIDTH) if small else DetailConvNet(shape, FEATURES)


def _new_model(data: DataSettings, model: ModelSettings) -> LightningModule:
    if model.class_path is not None:
        made: LightningModule = instance_of(model.class_path, dict(model.init_args), "LightningModule")
        return made
    known = opened(data)
    head = nn.Linear(FEATURES, known.classes)
    backbone = _backbone(known.shape)
    return Classifier(nn.Sequential(OrderedDict(backbone=backbone, relu=nn.ReLU(), head=head)))
