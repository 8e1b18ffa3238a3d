import json

import pytest
import torch

from lightning_poison_backdoors import AdaptiveBlend, BadNets, Blended
from lightning_poison_backdoors.settings import as_call, as_json


@pytest.mark.parametrize("attack", [BadNets("next"), Blended(key=[[1, 2]]), AdaptiveBlend()], ids=repr)
def test_an_attack_is_built_again_from_its_settings(attack):
    again = type(attack)(**json.loads(json.dumps(as_json(attack))))
    for name, value in vars(attack).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_patterns_are_shown_by_their_shape():
    assert as_call(Blended(key=[[1, 2]])).startswith("Blended(target_class=0, source_class=None, key=(1, 1, 2), ")
    assert "key=None" in as_call(Blended())
