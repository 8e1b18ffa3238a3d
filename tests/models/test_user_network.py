import pytest
import torch
from torch import nn

from lightning_poison.data.inputs import stack_inputs
from lightning_poison.models.user_network import check_weights, run_network

WAY = "\nUse a network for samples like these, or convert them"


class Recorder(nn.Module):
    """Records what it gets, and refuses some of it."""

    def __init__(self, refuse=lambda inputs: False):
        super().__init__()
        self.refuse, self.seen = refuse, []

    def forward(self, inputs):
        self.seen.append(inputs)
        if self.refuse(inputs):
            raise TypeError("not these")
        return inputs


def test_floats_come_first():
    network = Recorder()
    run_network(network, torch.ones(2, 3))
    assert [each.dtype for each in network.seen] == [torch.float32]


def test_integers_if_the_network_takes_no_floats():
    inputs = torch.tensor([[0.0, 4.0]])
    words = nn.Embedding(5, 2)
    assert torch.equal(run_network(words, inputs), words(inputs.long()))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor([[0.5]]), f"Expected inputs that Embedding takes, but it raised .* float32 tensor.*{WAY}"),
        (torch.tensor([[9.0]]), f"IndexError: index out of range in self for a int64 tensor of shape .*{WAY}"),
        (
            torch.tensor([[2.0**24]]),
            "integers below 16,777,216, but got 16777216.\nNumber tokens from 0",
        ),
    ],
)
def test_refuses_numbers_that_are_no_tokens(inputs, message):
    with pytest.raises(ValueError, match=message):
        run_network(nn.Embedding(5, 2), inputs)


def test_names_the_network_and_the_inputs():
    with pytest.raises(ValueError, match=rf"Conv2d takes, but it raised RuntimeError: .*\(1, 1, 8, 8\)\.{WAY}"):
        run_network(nn.Conv2d(3, 4, 3), torch.zeros(1, 1, 8, 8))


def test_errors_of_the_memory_are_left_alone():
    network = Recorder()
    network.refuse = lambda inputs: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        run_network(network, torch.ones(1))


@pytest.mark.parametrize("kind", [dict, tuple])
def test_several_inputs(kind):
    parts = {"ids": torch.tensor([1, 2]), "mask": torch.tensor([1.0, 0.0])}
    value = parts if kind is dict else tuple(parts.values())
    network = Recorder()
    found = run_network(network, stack_inputs([value, value], [0, 1]))
    assert isinstance(found, kind)
    ids = found["ids"] if kind is dict else found[0]
    assert ids.tolist() == [[1, 2], [1, 2]]
    network.refuse = lambda inputs: True
    with pytest.raises(ValueError, match=f"TypeError: not these for a {kind.__name__} of .*int64 tensor of shape"):
        run_network(network, stack_inputs([value], [0]))


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        ("resnet18", TypeError, "`net` of Mine to be a `torch.nn.Module`, but got 'resnet18'.\nPass a network"),
        (nn.Linear, TypeError, r"but got the class Linear\.\nCreate the network: `Linear\(...\)`"),
        (lambda x: x, TypeError, "but got function"),
        (nn.Linear(2, 2).double(), ValueError, "`weight` is of type float64.\nConvert it: `backbone.float"),
        (nn.Linear(2, 2).half(), ValueError, "`weight` is of type float16"),
        (lazy(), ValueError, "`1.weight` is that of a lazy module, without a shape.\nRun it once on a batch"),
        (nn.Linear(2, 2, device="meta"), ValueError, "`weight` is on the device meta, without values"),
    ],
)
def test_refuses_networks_that_cannot_be_trained(module, kind, message):
    with pytest.raises(kind, match=message):
        check_weights(module, name="net", owner="Mine")


def test_accepts_float32_networks():
    network = nn.BatchNorm1d(3)  # one of its buffers is an integer
    assert check_weights(network, name="net", owner="Mine") is network
    assert check_weights(None, name="net", owner="Mine") is None
