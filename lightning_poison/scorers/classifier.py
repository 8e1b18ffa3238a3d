"""A plain classifier that scorers train for themselves: a backbone, and a linear layer under cross-entropy."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import Adversary
from lightning_poison.adversarial.loss import AdversarialLoss
from lightning_poison.checks import expected
from lightning_poison.contexts import full_precision
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.backbones import checked_features, default_backbone
from lightning_poison.models.fitting import FitSettings, fit_module, in_channels_last
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.training_data import TrainingData


class Classifier(nn.Module):
    """A backbone and a linear layer.

    Args:
        backbone: maps inputs `(B, *shape)` to features `(B, feature_size)`.
        feature_size: the length of a feature vector.
        num_classes: how many classes.
        shape: the shape of one input.

    Example:
        >>> model = Classifier(nn.Flatten(), 4, 3, shape=(1, 2, 2))
        >>> model(torch.zeros(5, 1, 2, 2)).shape, model.features(torch.zeros(5, 1, 2, 2)).shape
        (torch.Size([5, 3]), torch.Size([5, 4]))
    """

    def __init__(self, backbone: nn.Module, feature_size: int, num_classes: int, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(feature_size, num_classes)
        self.shape = shape

    def features(self, inputs: Tensor) -> Tensor:
        """Return features `(B, feature_size)`.

        Raises:
            ValueError: where samples have another shape than those that the model was built for, or the backbone
                returns something else.
        """
        if inputs.shape[1:] != self.shape:
            what = f"samples of shape {self.shape}, which the scorer was fitted on"
            raise ValueError(expected("inputs", what, tuple(inputs.shape[1:]), "Give all data the same transform."))
        return checked_features(self.backbone, inputs, self.linear.in_features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, float32 `(B, C)`, also under autocast: bfloat16 ones would be the same for many samples."""
        features = self.features(inputs)
        with full_precision(features.device):
            logits: Tensor = self.linear(features.to(self.linear.weight.dtype)).float()
        return logits


def build_classifier(
    shape: tuple[int, ...], num_classes: int, *, backbone: nn.Module | None, feature_size: int, seed: int
) -> Classifier:
    """Build an untrained classifier.

    Args:
        shape: the shape of one input.
        num_classes: how many classes.
        backbone: copied, with the weights that it has; chosen by the shape where it is `None`.
        feature_size: the length of a feature vector.
        seed: seeds the weights.

    Example:
        >>> build_classifier((1, 8, 8), 3, backbone=None, feature_size=16, seed=0)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    body = copy.deepcopy(backbone) if backbone is not None else default_backbone(shape, feature_size, seed=seed)
    with seeded_rng(seed):
        return in_channels_last(Classifier(body, feature_size, num_classes, shape=shape))


def fit_classifier(
    dataset: Any,
    *,
    backbone: nn.Module | None,
    feature_size: int,
    settings: FitSettings,
    runtime: Runtime | None = None,
    generator: torch.Generator | None = None,
    description: str = "fitting a classifier",
    max_steps: int | None = None,
    adversary: Adversary | None = None,
    pixels: PixelRange | None = None,
) -> Classifier:
    """Train a classifier on a data set, under cross-entropy.

    Args:
        dataset: a map-style data set.
        backbone: see `build_classifier`.
        feature_size: the length of a feature vector.
        settings: how it is trained.
        runtime: where to compute; this machine where it is `None`.
        generator: the only source of randomness; a fixed seed where it is `None`.
        description: what the progress bar says.
        max_steps: stop after so many steps.
        adversary: how inputs are changed, for a robust classifier; the radius grows over the first epoch.
        pixels: how inputs are normalized; needed by the adversary alone.

    Raises:
        ValueError: where there are fewer than two classes, or the backbone returns features of another size.
        UnreadableSampleError: where a sample cannot be read.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 3
        >>> data = TensorDataset(F.one_hot(labels).float(), labels)
        >>> quick = FitSettings(epochs=1, batch_size=20, min_steps=60)
        >>> fit_classifier(data, backbone=None, feature_size=8, settings=quick)(torch.eye(3)).argmax(1)
        tensor([0, 1, 2])
    """
    generator = generator or torch.Generator().manual_seed(0)
    data = TrainingData.of(dataset)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    model = build_classifier(data.shape, data.num_classes, backbone=backbone, feature_size=feature_size, seed=seed)
    fit_module(
        model,
        dataset,
        _plain_loss if adversary is None else _robust_loss(adversary, pixels, settings, len(data.labels), generator),
        settings=settings,
        sample=data.sample,
        runtime=runtime,
        generator=generator,
        description=description,
        max_steps=max_steps,
    )
    return model


def _plain_loss(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), labels)


def _robust_loss(
    adversary: Adversary, pixels: PixelRange | None, settings: FitSettings, length: int, generator: torch.Generator
) -> AdversarialLoss:
    draws = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    return AdversarialLoss(adversary, pixels=pixels, warm_up=settings.steps_per_epoch(length), generator=draws)


def classifier_state(model: Classifier) -> dict[str, Tensor]:
    """Return the weights of a classifier and the shape of an input; what `loaded_classifier` takes.

    Example:
        >>> state = classifier_state(Classifier(nn.Flatten(), 4, 3, shape=(1, 2, 2)))
        >>> sorted(state)
        ['model.linear.bias', 'model.linear.weight', 'sample_shape']
    """
    weights = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    return {**weights, "sample_shape": torch.tensor(model.shape)}


def loaded_classifier(
    state: "dict[str, Tensor]", *, backbone: nn.Module | None, feature_size: int, scorer: str
) -> Classifier:
    """Build the classifier that `classifier_state` was asked about.

    Args:
        state: what it returned; other tensors may stand beside it.
        backbone: as the classifier was built with.
        feature_size: as the classifier was built with.
        scorer: whose state this should be, for errors.

    Raises:
        ValueError: where the tensors are those of something else.

    Example:
        >>> state = classifier_state(Classifier(nn.Flatten(), 4, 3, shape=(1, 2, 2)))
        >>> loaded_classifier(state, backbone=nn.Flatten(), feature_size=4, scorer="a classifier").shape
        (1, 2, 2)
    """
    if "sample_shape" not in state or "model.linear.bias" not in state:
        raise ValueError(f"Expected the state of {scorer}, but got that of another scorer.")
    shape, classes = tuple(state["sample_shape"].tolist()), len(state["model.linear.bias"])
    model = build_classifier(shape, classes, backbone=backbone, feature_size=feature_size, seed=0)
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"Expected the state of {scorer}, but it was fitted with other settings: {error}") from error
    return model.eval()
