import pytest
import torch

from lightning_poison.objectives import ProtectedClassObjective
from lightning_poison.pixels import PixelRange
from lightning_poison.threat import Threat
from lightning_poison_shielding.delivery import check_placement, check_roles, delivered

PIXELS = PixelRange(mean=(0.5,), std=(0.25,))


@pytest.mark.parametrize(("placement", "indices"), [("append", [10, 11]), ("replace", [4, 7])])
def test_where_the_poison_goes(placement, indices):
    poison = delivered(
        torch.tensor([0.0, 1.0]).view(2, 1, 1, 1),
        torch.tensor([4, 7]),
        3,
        threat=Threat(2, pixels=PIXELS),
        length=10,
        placement=placement,
        objective=ProtectedClassObjective(1),
        attack="shield",
        settings={"shield_class": None},
    )
    assert poison.indices.tolist() == indices
    assert poison.labels.tolist() == [3, 3]
    assert poison.inputs.flatten().tolist() == [-2.0, 2.0]
    assert poison.settings == {"shield_class": 3}
    assert (poison.base_indices is None) == (placement == "replace")


@pytest.mark.parametrize(("protected", "shield", "said"), [(-1, 2, "got -1"), (1, -2, "got -2"), (3, 3, "another")])
def test_classes_that_cannot_be(protected, shield, said):
    with pytest.raises(ValueError, match=said):
        check_roles(protected, shield)


@pytest.mark.parametrize(
    ("placement", "copies", "threat", "said"),
    [
        ("beside", 1, None, "'append', 'replace'"),
        ("append", 0, None, "`poisons_per_base`"),
        ("replace", 2, None, "Copies can only be appended"),
        ("append", 1, Threat(1, may_append=False), 'Set `placement="replace"`'),
    ],
)
def test_placements_that_cannot_be(placement, copies, threat, said):
    with pytest.raises(ValueError, match=said):
        check_placement(placement, copies, threat)
