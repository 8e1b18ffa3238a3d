import hashlib
import importlib.util

import pytest
import timm
import torch
from torch import nn

from lightning_poison.errors import MissingEncoderError
from lightning_poison.models import efficientnet_lite0
from lightning_poison.models.efficientnet_lite0 import (
    WEIGHTS_SHA256,
    fold_batch_norm,
    load_efficientnet_lite0,
    weights_file,
)


@pytest.fixture
def unfolded():
    """Return the network as timm builds it, and its published weights."""
    weights = torch.load(weights_file(), weights_only=True)
    return timm.create_model("tf_efficientnet_lite0", pretrained=False), weights


@pytest.mark.slow
def test_weights_have_the_names_of_the_published_file(unfolded):
    network, weights = unfolded
    assert hashlib.sha256(weights_file().read_bytes()).hexdigest() == WEIGHTS_SHA256
    in_order = dict(zip(network.state_dict(), weights, strict=True))  # both list their weights in the same order
    assert {efficientnet_lite0._timm_name(name) for name in weights} == set(in_order)
    assert all(efficientnet_lite0._timm_name(theirs) == ours for ours, theirs in in_order.items())


@pytest.mark.slow
def test_folded_batch_norm_changes_no_feature(unfolded):
    network, weights = unfolded
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network.classifier = nn.Identity()
    images = 2 * torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1
    folded = load_efficientnet_lite0(timm, weights_file())
    fold_batch_norm(folded)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network.eval()(images), rtol=1e-3, atol=1e-4)


def test_weights_that_were_changed_are_not_loaded(tmp_path):
    file = tmp_path / "weights.pth"
    for content in (None, b"other weights"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(MissingEncoderError, match="the file that was published"):
            load_efficientnet_lite0(timm, file)


def test_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert weights_file() is None
