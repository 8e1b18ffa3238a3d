import pytest
import torch

from lightning_poison_backdoors.patterns import as_pattern, checkerboard, white_square


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_checkerboard_starts_white(size):
    board = checkerboard(size)
    assert board.shape == (1, size, size)
    assert all(
        int(board[0, row, column]) == 255 * ((row + column) % 2 == 0) for row in range(size) for column in range(size)
    )


@pytest.mark.parametrize(("size", "side"), [((28, 28), 5), ((32, 32), 6), ((8, 8), 2), ((56, 300), 10), ((3, 4), 2)])
def test_a_white_square_in_proportion_to_the_shorter_side(size, side):
    square = white_square(*size)
    assert square.shape == (1, side, side)
    assert (square == 255).all()


def test_lists_and_tensors():
    assert as_pattern("pattern", [[0, 255], [7, 8]]).tolist() == [[[0, 255], [7, 8]]]
    assert as_pattern("pattern", [[[0]], [[1]], [[2]]]).shape == (3, 1, 1)
    given = torch.tensor([[3]], dtype=torch.uint8)
    taken = as_pattern("pattern", given)
    given[0, 0] = 9
    assert taken.tolist() == [[[3]]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.rand(1, 2, 2), r"whole gray levels.*float32 tensor[\s\S]*255 \* image"),
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
def test_refuses(value, said):
    with pytest.raises(ValueError, match=f"`key` to be an image of.*{said}"):
        as_pattern("key", value)
