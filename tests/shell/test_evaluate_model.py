import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.shell.evaluate_data import StoredImages, is_class_path, opened, parts_of, pixels_of
from lightning_poison.shell.evaluate_keys import key_of_data, key_of_model
from lightning_poison.shell.evaluate_model import feature_layer_of, prediction_of, trained_model
from lightning_poison.shell.evaluate_settings import DataSettings, ModelSettings

MODULE = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

points = torch.arange(60.0).view(60, 1)


class Points(L.LightningDataModule):
    def __init__(self, count: int = 40):
        super().__init__()
        self.count = count

    def train_dataloader(self):
        return DataLoader(TensorDataset(points[: self.count], (points[: self.count, 0] % 2).long()))

    def val_dataloader(self):
        return DataLoader(TensorDataset(points[50:], (points[50:, 0] % 2).long()))


class Net(L.LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.body, self.head = torch.nn.Linear(1, width), torch.nn.Linear(width, 2)

    def forward(self, inputs):
        return self.head(self.body(inputs))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def points_and_labels():
    return TensorDataset(points, (points[:, 0] % 2).long())
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module of the user, whose name no other test imports, and return its name."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    opened.cache_clear()
    parts_of.cache_clear()
    return name


def values(part):
    return {float(part[index][0]) for index in range(len(part))}


def test_parts_have_no_sample_in_common_and_depend_on_the_seed(own_module):
    settings = DataSettings(f"{own_module}:points_and_labels")
    parts = parts_of(settings, 0)
    divided = [values(part) for part in (parts.train, parts.test, parts.holdout, parts.trusted)]
    assert [len(part) for part in divided] == [30, 12, 12, 6]
    assert len(set.union(*divided)) == 60
    assert values(parts_of(settings, 1).train) != divided[0]


def test_datamodule_keeps_its_validation_set_as_test_set(own_module):
    parts = parts_of(DataSettings(f"{own_module}.Points", init_args='{"count": 50}'), 0)
    assert values(parts.test) == set(range(50, 60))
    assert [len(part) for part in (parts.train, parts.holdout, parts.trusted)] == [35, 10, 5]


@pytest.mark.parametrize(
    ("path", "init_args", "message"),
    [
        ("Nothing", "{}", "cannot be imported"),
        ("Net", "{}", "a LightningDataModule"),
        ("Points", '{"cuont": 3}', "init_args"),
    ],
)
def test_class_that_does_not_fit_is_named(own_module, path, init_args, message):
    with pytest.raises(ValueError, match=rf"(?s){own_module}.{path}.*{message}"):
        parts_of(DataSettings(f"{own_module}.{path}", init_args=init_args), 0)


def test_key_follows_content_of_files_and_of_programs(tmp_path, own_module):
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "one.png").write_bytes(b"1")
    first = key_of_data(DataSettings(str(folder)))
    folder = folder.rename(tmp_path / "moved")
    assert key_of_data(DataSettings(str(folder))) == first
    (folder / "cat" / "one.png").write_bytes(b"2")
    assert key_of_data(DataSettings(str(folder))) != first
    assert key_of_data(DataSettings("digits", max_samples=5)) != key_of_data(DataSettings("digits"))
    whole = key_of_data(DataSettings(f"{own_module}:points_and_labels"))
    assert len(whole["fingerprint"]) == 32


def test_key_of_model_follows_its_code(own_module, tmp_path):
    settings = ModelSettings(f"{own_module}.Net", {"width": 4})
    first = key_of_model(settings)
    path = tmp_path / f"{own_module}.py"
    path.write_text(MODULE + "# changed\n")
    assert first["code"] != key_of_model(settings)["code"]


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2), nn.Dropout()), "2"),
    ],
)
def test_feature_layer_is_the_last_before_the_logits(network, layer):
    assert feature_layer_of(network, torch.zeros(2, 1, 2, 2)) == layer


def test_network_without_feature_layer_is_refused():
    with pytest.raises(ValueError, match="feature_layer"):
        feature_layer_of(nn.Linear(4, 2), torch.zeros(2, 4))


def test_predicts_samples_of_any_structure_and_items_of_evaluation_sets():
    rows = [{"x": torch.eye(2)[index % 2], "y": index % 2} for index in range(5)]
    predict = prediction_of(nn.Identity())
    assert predict(rows).tolist() == [0, 1, 0, 1, 0]
    assert predict([(torch.eye(2)[1], 0, 1)]).tolist() == [1]
    with pytest.raises(ValueError, match="logits"):
        prediction_of(nn.Flatten(0))(TensorDataset(torch.zeros(3, 2), torch.zeros(3).long()))


def test_features_are_the_output_of_the_feature_layer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    data = TensorDataset(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(5).long())
    expected = network[:3](data.tensors[0]).detach()
    assert torch.equal(trained_model(network, None).features(data), expected)
    assert torch.equal(trained_model(network, "1").features(data).relu(), expected)
    assert trained_model(network, None).predict(data).tolist() == network(data.tensors[0]).argmax(1).tolist()
    with pytest.raises(ValueError, match="feature_layer"):
        trained_model(nn.Linear(2, 2), None).features(data)


def test_stored_images_can_be_edited():
    from lightning_poison.data.raw_images import has_raw

    assert has_raw(StoredImages(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long()))


def test_normalization_and_class_paths():
    assert pixels_of(DataSettings("digits", mean=(0.5,), std=(0.25,))).mean == (0.5,)
    assert not is_class_path("photos")
    assert is_class_path("package.Photos")
