import pytest
import torch
from torch import Tensor, nn

from lightning_poison.attacks.threat import Surrogate
from lightning_poison.models.feature_extractor import FeatureExtractor, find_layer, shifted_output


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 4), nn.Linear(4, 3))


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(5, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def layer_output(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    return FeatureExtractor(model, layer)(inputs)


def remaining_hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in model.modules())


class TestValues:
    def test_returns_flattened_layer_output(self, model, inputs):
        torch.testing.assert_close(layer_output(model, "3", inputs), model[:4](inputs))
        torch.testing.assert_close(layer_output(model, "1", inputs), model[:2](inputs).flatten(1))

    def test_later_in_place_layer_does_not_change_features(self, model, inputs):
        features = layer_output(model, "0", inputs)
        assert (features < 0).any()
        torch.testing.assert_close(features, model[0](inputs).flatten(1))

    def test_empty_name_is_the_model(self, model, inputs):
        torch.testing.assert_close(layer_output(model, "", inputs), model(inputs))

    def test_nested_layer(self, inputs):
        nested = nn.Sequential()
        nested.add_module("body", nn.Sequential(nn.Flatten(), nn.Linear(25, 6)))
        nested.add_module("head", nn.Linear(6, 2))
        assert layer_output(nested, "body.1", inputs).shape == (5, 6)

    def test_first_call_of_shared_layer_counts(self):
        shared = nn.Linear(3, 3)
        values = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(layer_output(nn.Sequential(shared, shared), "0", values), shared(values))

    def test_features_are_differentiable(self, model, inputs):
        inputs.requires_grad_()
        layer_output(model, "3", inputs).sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.abs().sum() > 0
        assert model[3].weight.grad is not None
        assert model[4].weight.grad is None


class TestModelState:
    @pytest.mark.parametrize("training", [True, False])
    def test_mode_does_not_change(self, model, inputs, training):
        model.train(training)
        layer_output(model, "3", inputs)
        assert all(part.training == training for part in model.modules())

    def test_later_layers_do_not_run(self, model, inputs):
        calls = []
        model[4].register_forward_hook(lambda *_: calls.append(1))
        extractor = FeatureExtractor(model, "3")
        assert extractor(inputs).shape == extractor(inputs).shape == (5, 4)
        assert calls == []

    def test_stops_model_that_catches_exceptions(self, inputs):
        class Careful(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Flatten()

            def forward(self, values: Tensor) -> Tensor:
                try:
                    return self.body(values)
                except Exception:  # noqa: BLE001 (the subject of the test)
                    return torch.zeros(1)

        assert layer_output(Careful(), "body", inputs).shape == (5, 25)

    def test_removes_hook_on_every_exit(self, model, inputs):
        layer_output(model, "3", inputs)
        with pytest.raises(RuntimeError, match="7 channels"):
            layer_output(model, "3", torch.zeros(2, 7, 5, 5))
        assert remaining_hooks(model) == 0
        assert model(inputs).shape == (5, 3)


class TestErrors:
    def test_unknown_layer_lists_available_names_and_closest_match(self):
        model = nn.Sequential()
        model.add_module("backbone", nn.Linear(3, 2))
        model.add_module("head", nn.Linear(2, 2))
        with pytest.raises(ValueError, match=r"\(backbone, head\), but got 'backbonne'.\nThe closest name is `backbon"):
            FeatureExtractor(model, "backbonne")

    @pytest.mark.parametrize(
        ("count", "message"), [(50, r"\(0, 1, .*18, 19, … 10 more …, 30, 31.*, 49\)"), (40, r"19, 20, 21")]
    )
    def test_long_list_is_shortened_in_the_middle(self, count, message):
        with pytest.raises(ValueError, match=message):
            find_layer(nn.Sequential(*[nn.Identity() for _ in range(count)]), "fc")

    def test_refuses_unknown_layer_of_surrogate(self):
        """Plug-ins build the extractor this way. The error is raised before any forward pass."""
        surrogate = Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "penultimate")
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1\), but got 'penultimate'"):
            FeatureExtractor(surrogate.model, surrogate.feature_layer)

    def test_refuses_layer_of_model_without_layers(self):
        with pytest.raises(ValueError, match=r'it has no layers.\nUse "" for the model itself'):
            find_layer(nn.Linear(2, 2), "fc")

    def test_refuses_layer_without_tensor_output(self):
        model = nn.Sequential(nn.LSTM(3, 4))
        with pytest.raises(TypeError, match=r"layer `0` to return a tensor, but got tuple.\nName a layer inside"):
            layer_output(model, "0", torch.zeros(2, 5, 3))
        assert remaining_hooks(model) == 0

    def test_refuses_layer_that_is_not_reached(self, inputs):
        class Idle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Flatten(), nn.Flatten()

            def forward(self, values: Tensor) -> Tensor:
                return self.used(values)

        model = Idle()
        with pytest.raises(ValueError, match="call its layer `unused`, but a forward pass did not"):
            layer_output(model, "unused", inputs)
        assert remaining_hooks(model) == 0

    @pytest.mark.parametrize("inner", [nn.Flatten(0), nn.Flatten(0, 1)])
    def test_refuses_layer_that_mixes_samples(self, inner):
        with pytest.raises(ValueError, match="a vector for each of the 5 samples"):
            layer_output(nn.Sequential(inner), "0", torch.zeros(5, 2, 3))


class TestShiftedOutput:
    def test_shifts_first_call_and_removes_hook(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.same = nn.Identity()

            def forward(self, inputs):
                return self.same(self.same(inputs) * 2)

        model = Twice()
        output = shifted_output(model, "same", torch.ones(2, 3), torch.tensor([1.0, 0.0, -1.0]))
        assert torch.equal(output, torch.tensor([[4.0, 2.0, 0.0]] * 2))
        assert not model.same._forward_hooks

    def test_refuses_layer_that_is_not_reached(self):
        model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
        model.forward = lambda inputs: model["used"](inputs)
        with pytest.raises(ValueError, match="to call its layer `unused`"):
            shifted_output(model, "unused", torch.zeros(1, 2), torch.zeros(2))
        assert not model["unused"]._forward_hooks
