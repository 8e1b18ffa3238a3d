"""Networks that scorers train for themselves: a backbone with a head, and how it is fitted, saved and run."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import Adversary
from lightning_poison.adversarial.loss import AdversarialLoss
from lightning_poison.checks import describe, every, expected, index_vector, printable
from lightning_poison.contexts import evaluating, full_precision
from lightning_poison.data.packed_inputs import PackedInputs
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.average_margins import AverageMargins
from lightning_poison.models.backbones import compute_features, default_backbone
from lightning_poison.models.fitting import FitSettings, Loss, fit_module, to_channels_last
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.training_data import TrainingData

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_MAX_SIDE = 2**24
"""Largest length of a dimension of a sample."""


class BackboneWithHead(nn.Module):
    """A backbone that computes features, and a head that maps them to logits.

    Args:
        backbone: Maps inputs `(B, *shape)` to features `(B, feature_size)`.
        head: Maps features to logits `(B, C)`.
        shape: Shape of one input.
        feature_size: Length of a feature vector.

    Example:
        >>> network = BackboneWithHead(nn.Flatten(), nn.Linear(4, 3), shape=(1, 2, 2), feature_size=4)
        >>> network(torch.zeros(5, 1, 2, 2)).shape, network.features(torch.zeros(5, 1, 2, 2)).shape
        (torch.Size([5, 3]), torch.Size([5, 4]))
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, *, shape: tuple[int, ...], feature_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.shape = shape
        self.feature_size = feature_size

    def features(self, inputs: Tensor) -> Tensor:
        """Return features `(B, feature_size)`.

        Raises:
            ValueError: If samples differ in shape from those that the network was built for, or the backbone does not
                return such features.
        """
        check_inputs(inputs, self.shape)
        return compute_features(self.backbone, inputs, self.feature_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, float32 `(B, C)`, also under autocast: many samples would have the same bfloat16 logits."""
        features = self.features(inputs)
        with full_precision(features.device):
            logits: Tensor = self.head(features.to(next(self.head.parameters()).dtype)).float()
        return logits


def check_inputs(inputs: Tensor, shape: tuple[int, ...]) -> None:
    """Raise if samples differ in shape from those that a network was built for.

    Example:
        >>> check_inputs(torch.zeros(2, 3), (3,))
        >>> check_inputs(torch.zeros(2, 5), (3,))
        Traceback (most recent call last):
        ValueError: Expected `inputs` to be samples of shape (3,), which the scorer was fitted on, but got (5,).
        Give all data the same transform.
    """
    if not inputs.is_floating_point():
        raise ValueError(expected("inputs", "floating-point samples", describe(inputs)))
    if tuple(inputs.shape[1:]) != shape:
        what = f"samples of shape {shape}, which the scorer was fitted on"
        raise ValueError(expected("inputs", what, tuple(inputs.shape[1:]), "Give all data the same transform."))


def build_network(
    shape: tuple[int, ...], head: nn.Module, *, backbone: nn.Module | None, feature_size: int, seed: int
) -> BackboneWithHead:
    """Build a network for samples of a shape.

    Args:
        shape: Shape of one input.
        head: Maps features to logits.
        backbone: Copied, with its weights. Default: chosen by the shape.
        feature_size: Length of a feature vector.
        seed: Seeds the weights of a default backbone.

    Example:
        >>> head = nn.Linear(16, 3)
        >>> build_network((1, 8, 8), head, backbone=None, feature_size=16, seed=0)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    body = copy.deepcopy(backbone) if backbone is not None else default_backbone(shape, feature_size, seed=seed)
    return to_channels_last(BackboneWithHead(body, head, shape=shape, feature_size=feature_size))


def build_classifier(
    shape: tuple[int, ...], num_classes: int, *, backbone: nn.Module | None, feature_size: int, seed: int
) -> BackboneWithHead:
    """Build a network with a linear layer as its head; see `build_network`. The seed also seeds the head.

    Example:
        >>> build_classifier((4,), 3, backbone=None, feature_size=16, seed=0).head
        Linear(in_features=16, out_features=3, bias=True)
    """
    with seeded_rng(seed):
        head = nn.Linear(feature_size, num_classes)
    return build_network(shape, head, backbone=backbone, feature_size=feature_size, seed=seed)


def fit_classifier(
    dataset: Any,
    *,
    backbone: nn.Module | None = None,
    feature_size: int = 64,
    settings: FitSettings = FitSettings(),  # noqa: B008 (frozen)
    runtime: Runtime | None = None,
    generator: torch.Generator | None = None,
    description: str = "Fitting a classifier",
    max_steps: int | None = None,
    adversary: Adversary | None = None,
    pixels: PixelRange | None = None,
    margins: AverageMargins | None = None,
) -> BackboneWithHead:
    """Train a classifier with a linear head on a data set, under cross-entropy.

    Args:
        dataset: Map-style data set.
        backbone: Maps inputs to features `(B, feature_size)`; copied, with its weights. Default: chosen by the shape of
            a sample.
        feature_size: Length of a feature vector. Default: 64.
        settings: Training settings. Default: those of `FitSettings()`.
        runtime: Device, precision and workers. Default: `LocalRuntime()`, the CPU.
        generator: The only source of randomness. Default: a fixed seed.
        description: Label of the progress bar. Default: `"Fitting a classifier"`.
        max_steps: Step after which training stops early. Default: no limit.
        adversary: Perturbs the inputs of a robust classifier; its radius grows over the first epoch. Default: none.
        pixels: Normalization of the inputs, for the adversary. Default: raw images in [0, 1].
        margins: Records the margins of the samples; not with an adversary. Optional.

    Raises:
        ValueError: If there are fewer than two classes, or the backbone returns features of another size.
        UnreadableSampleError: If a sample cannot be read.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 3
        >>> data = TensorDataset(F.one_hot(labels).float(), labels)
        >>> quick = FitSettings(epochs=1, batch_size=20, min_steps=60)
        >>> fit_classifier(data, feature_size=8, settings=quick)(torch.eye(3)).argmax(1)
        tensor([0, 1, 2])
    """
    generator = generator or torch.Generator().manual_seed(0)
    data = TrainingData.of(dataset)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    network = build_classifier(data.shape, data.num_classes, backbone=backbone, feature_size=feature_size, seed=seed)
    try_backbone(network, data, backbone, owner=description.removeprefix("Fitting "))
    loss: Loss = _plain_loss if margins is None else margins
    if adversary is not None:
        loss = _robust_loss(adversary, pixels, settings, len(data.labels), generator)
    fit_module(
        network,
        dataset,
        loss,
        settings=settings,
        sample=data.sample,
        runtime=runtime,
        generator=generator,
        description=description,
        max_steps=max_steps,
        before_step=None if margins is None else margins.at,
    )
    return network


def try_backbone(network: BackboneWithHead, data: TrainingData, backbone: nn.Module | None, *, owner: str) -> None:
    """Run a network once on the first sample, so that a backbone that does not fit the data is found before a fit.

    Args:
        network: Network with a copy of the backbone, on the CPU.
        data: Training data.
        backbone: Backbone of the user. Without one, the network is known to fit.
        owner: Name of the scorer, for messages.

    Raises:
        ValueError: If the backbone does not take such samples or returns other features, or there is none for samples
            with several inputs.
    """
    if backbone is None:
        if isinstance(data.first, PackedInputs):
            raise ValueError(
                f"Expected a `backbone` of {owner} for samples with several inputs, {data.first.structure}, but got "
                "none.\nPass a network that takes them and returns features (B, D), or name one input by its path: "
                "`sample=SampleSpec(inputs=...)`."
            )
        return
    with evaluating(network), torch.no_grad(), seeded_rng(0):
        try:
            network.features(data.first)
        except ValueError as error:
            raise ValueError(f"{error}\nThis network is the `backbone` of {owner}.") from error


def _plain_loss(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(inputs), labels)


def _robust_loss(
    adversary: Adversary, pixels: PixelRange | None, settings: FitSettings, length: int, generator: torch.Generator
) -> AdversarialLoss:
    draws = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    return AdversarialLoss(adversary, pixels=pixels, warm_up=settings.steps_per_epoch(length), generator=draws)


def network_state(network: nn.Module, shape: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """Return copies of the weights of a network.

    Args:
        network: Any module.
        shape: Shape of one input, for `restore_network`. Default: left out.

    Example:
        >>> list(network_state(nn.Linear(4, 3), (4,)))
        ['model.weight', 'model.bias', 'sample_shape']
    """
    weights = {f"model.{name}": value.detach().clone() for name, value in network.state_dict().items()}
    return weights if shape is None else {**weights, "sample_shape": torch.tensor(shape)}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], scorer: object) -> None:
    """Load the weights in a state that `network_state` returned.

    Args:
        network: Network of the same architecture.
        state: May contain other tensors.
        scorer: Scorer that the state should belong to, for the error message.

    Raises:
        ValueError: If the weights do not fit the network.
    """
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(_other_state(scorer, error)) from error


def restore_network(
    state: Mapping[str, Tensor], build: Callable[[tuple[int, ...], int], NetworkT], scorer: object
) -> NetworkT:
    """Build the network whose state `network_state` returned, in evaluation mode.

    Args:
        state: May contain other tensors. Without `num_classes`, the head determines the number of classes.
        build: Builds the network from the shape of an input and the number of classes.
        scorer: Scorer that the state should belong to, for the error message.

    Raises:
        ValueError: If it is the state of another scorer, or of one with other settings.

    Example:
        >>> def build(shape, num_classes):
        ...     return build_classifier(shape, num_classes, backbone=nn.Flatten(), feature_size=4, seed=0)
        >>> restore_network(network_state(build((1, 2, 2), 3), (1, 2, 2)), build, "a classifier").shape
        (1, 2, 2)
    """
    heads = [value for name, value in state.items() if name == "num_classes" or name.startswith("model.head.")]
    if "sample_shape" not in state or not heads:
        raise ValueError(_other_state(scorer))
    num_classes = state["num_classes"] if "num_classes" in state else torch.tensor(heads[0].shape[:1] or 0)
    shape = index_vector("sample_shape", state["sample_shape"])
    # A network has weights for each class and each channel, so a state that lacks them is not worth the memory.
    most = sum(value.numel() for value in state.values())
    every("num_classes", num_classes, (num_classes > 0) & (num_classes <= most), f"in [1, {most}]")
    every("sample_shape", shape, (shape > 0) & (shape <= _MAX_SIDE), f"in [1, {_MAX_SIDE}]")
    if not len(shape) or int(shape[0]) > most:
        raise ValueError(_other_state(scorer))
    network = build(tuple(shape.tolist()), int(num_classes))
    load_weights(network, state, scorer)
    return to_channels_last(network).eval()


@contextmanager
def evaluating_on(network: nn.Module, inputs: Tensor, *, movable: bool) -> Iterator[Tensor]:
    """Put a network into evaluation mode and yield inputs on its device. The mode is restored on exit.

    Args:
        network: Network without parameters, or with parameters on one device.
        inputs: `(B, ...)`.
        movable: Whether to move the network to the device of the inputs first.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> with evaluating_on(network, torch.zeros(1, 2), movable=False) as inputs:
        ...     network.training
        False
    """
    device = next((weight.device for weight in network.parameters()), inputs.device)
    if movable and device != inputs.device:
        network.to(inputs.device)
        device = inputs.device
    with evaluating(network):
        yield inputs.to(device)


def _other_state(scorer: object, error: RuntimeError | None = None) -> str:
    """Return the message for a state that does not fit, with the first fault that torch names."""
    came = "one of another scorer or of other settings"
    faults = str(error).splitlines()[1:2] if error is not None else []  # the line before only names the network's class
    came = ": ".join([came, *(printable(line.strip()).rstrip(". ") for line in faults)])
    way = "Build the scorer with the settings that it was saved with."
    return expected("state", f"the state of {scorer!r}", came, way)
