import base64
import io

import torch
from PIL import Image

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.evaluation.pictures import pictures_of
from lightning_poison.testing.tiny_images import TinyImages


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def poison_of(count, **more):
    labels = torch.zeros(count).long()
    return Poison(torch.arange(count), labels, AvailabilityObjective(), attack="a", **more)


def test_first_pairs_are_shown_as_they_are():
    data = TinyImages(9)
    channels, height, width = torch.as_tensor(data.data[0]).reshape(-1, 8, 8).shape
    inputs = torch.full((6, channels, height, width), 200, dtype=torch.uint8)
    pairs = pictures_of(data, poison_of(6, inputs=inputs, domain="raw"))
    assert len(pairs) == 4
    for base, poison in pairs:
        assert opened(base).size == opened(poison).size == (8, 8)
        assert set(opened(poison).convert("L").tobytes()) == {200}
        assert base != poison


def test_attack_on_labels_has_none():
    assert pictures_of(TinyImages(9), poison_of(3)) == ()


def test_images_of_other_channels_have_none():
    inputs = torch.zeros(2, 2, 8, 8, dtype=torch.uint8)
    assert pictures_of(TinyImages(9), poison_of(2, inputs=inputs, domain="raw")) == ()
