import pytest
import torch

from lightning_poison.contexts import full_precision


def test_autocast_is_off_inside_and_on_again_behind():
    rows = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(rows.device):
            assert (rows @ rows).dtype == torch.float32
        assert (rows @ rows).dtype == torch.bfloat16


def test_a_device_without_autocast_is_left_alone():
    device = torch.device("meta")
    with pytest.raises(RuntimeError), torch.autocast(device.type, enabled=False):
        pass
    with full_precision(device) as nothing:
        assert nothing is None
