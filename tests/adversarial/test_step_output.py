from collections import OrderedDict

import pytest
import torch

from lightning_poison.adversarial.step_output import loss_in, with_loss


def test_loss_of_a_tensor_and_of_mappings():
    loss = torch.tensor(2.0)
    assert loss_in(loss) is loss
    assert loss_in({"loss": loss, "preds": None}) is loss
    assert loss_in(OrderedDict(loss=loss)) is loss


@pytest.mark.parametrize(
    ("output", "found"),
    [({"preds": 1}, r"a dict with the keys \['preds'\]"), (None, "None"), (2.0, "2.0"), ({"loss": 2.0}, "loss")],
)
def test_refuses_an_output_without_a_loss(output, found):
    with pytest.raises(TypeError, match=f"Expected `training_step` to be .* or a dict with `loss`, but got .*{found}"):
        loss_in(output)


def test_loss_is_replaced_in_a_copy():
    output, loss = {"loss": torch.tensor(2.0), "preds": 1}, torch.tensor(3.0)
    assert with_loss(output, loss) == {"loss": loss, "preds": 1}
    assert output["loss"] == 2
    assert with_loss(torch.tensor(2.0), loss) is loss
