import numpy as np
import pytest
import torch

from lightning_poison.data.copies import first_places

GENERATOR = torch.Generator().manual_seed(0)
VALUES = {
    "numbers": torch.randint(-(2**62), 2**62, (50,), generator=GENERATOR)[torch.arange(200) % 50],
    "pairs": torch.randint(-3, 4, (200, 2), generator=GENERATOR),
    "triples": torch.randint(0, 3, (200, 3), generator=GENERATOR) * 2**61,
    "floats": torch.randint(0, 3, (200, 2), generator=GENERATOR) / 3,
    "one column": torch.randint(0, 9, (200, 1), generator=GENERATOR),
}


@pytest.mark.parametrize("kind", list(VALUES))
def test_first_places_are_those_of_unique_rows(kind):
    rows = VALUES[kind].numpy().reshape(200, -1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    assert np.array_equal(first_places(VALUES[kind]).numpy(), first[inverse.ravel()])


def test_nothing_has_no_first_places():
    assert first_places(torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)
