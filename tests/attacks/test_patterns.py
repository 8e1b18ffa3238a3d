import pytest
import torch

from lightning_poison.attacks.patterns import as_pattern


def test_accepts_lists_and_copies_tensors():
    assert as_pattern("pattern", [[0, 255], [7, 8]]).tolist() == [[[0, 255], [7, 8]]]
    assert as_pattern("pattern", [[[0]], [[1]], [[2]]]).shape == (3, 1, 1)
    source = torch.tensor([[3]], dtype=torch.uint8)
    pattern = as_pattern("pattern", source)
    source[0, 0] = 9
    assert pattern.tolist() == [[[3]]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.rand(1, 2, 2), r"integer gray levels.*float32 tensor[\s\S]*255 \* image"),
        ([[0.5]], "float32 tensor"),
        ([[0, 1], [2]], "got list"),
        ("white", "got str"),
        ([1, 2], r"shape \(2,\)"),
        ([[]], r"shape \(1, 0\)"),
        ([[True]], "bool tensor"),
        ([[0, 256]], "levels from 0 to 256"),
        ([[-1]], "levels from -1 to -1"),
    ],
)
def test_refuses_invalid_patterns(value, message):
    with pytest.raises(ValueError, match=f"`key` to be an image of.*{message}"):
        as_pattern("key", value)
