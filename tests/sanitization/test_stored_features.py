import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from lightning_poison.sanitization import stored_features
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.linear_probe import LinearProbeScorer

COUNT = 300


class Counting(nn.Module):
    """Returns its inputs and counts them."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.count = [0]

    def forward(self, inputs):
        self.count[0] += len(inputs)
        return self.scale * inputs.flatten(1)


def points(seed=0):
    truth = torch.arange(COUNT) % 3
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, 4, generator=generator) + 6 * torch.eye(4)[truth], truth


def judged(network, scorer, data=None, **settings):
    """Return how many samples the network read."""
    before = network.count[0]
    sanitize(points() if data is None else data, scorer, **settings)
    return network.count[0] - before


def test_scorers_of_one_decision_share_features():
    network = Counting()
    model = FeatureModel(network)
    both = CombinedScorer([LinearProbeScorer(model), DeepKNNScorer(model, k=5)])
    assert judged(network, both) == COUNT


@pytest.mark.slow
def test_decisions_share_features_in_a_cache_folder(tmp_path):
    network = Counting()
    model, (inputs, truth) = FeatureModel(network), points()
    assert judged(network, LinearProbeScorer(model), cache=tmp_path) == COUNT
    others = [LinearProbeScorer(model, folds=2), DeepKNNScorer(model, k=5)]
    assert [judged(network, scorer, cache=tmp_path) for scorer in others] == [0, 0]
    assert judged(network, others[0], (inputs, truth.roll(1)), cache=tmp_path, remove_without_evidence=True) == 0
    assert judged(network, others[0]) == COUNT


def test_shared_features_give_the_same_verdict(tmp_path):
    model = FeatureModel(Counting())
    sanitize(points(), DeepKNNScorer(model, k=5), cache=tmp_path)
    shared = sanitize(points(), LinearProbeScorer(model), cache=tmp_path)
    alone = sanitize(points(), LinearProbeScorer(FeatureModel(Counting())))
    assert torch.equal(shared.scores, alone.scores)
    assert torch.equal(shared.keep, alone.keep)


def test_other_weights_samples_or_runtimes_have_other_features(tmp_path):
    first = Counting()
    assert judged(first, LinearProbeScorer(FeatureModel(first)), cache=tmp_path) == COUNT
    other = Counting(2.0)
    assert judged(other, LinearProbeScorer(FeatureModel(other)), cache=tmp_path) == COUNT
    changed, truth = points()
    changed[7] += 1
    assert judged(first, LinearProbeScorer(FeatureModel(first)), (changed, truth), cache=tmp_path) == COUNT


def test_another_version_of_the_package_has_other_features(tmp_path, monkeypatch):
    network = Counting()
    assert judged(network, LinearProbeScorer(FeatureModel(network)), cache=tmp_path) == COUNT
    monkeypatch.setattr(stored_features, "package_code", lambda: "another version")
    assert judged(network, LinearProbeScorer(FeatureModel(network), folds=2), cache=tmp_path) == COUNT


@pytest.mark.slow
def test_a_damaged_file_is_computed_again(tmp_path):
    network = Counting()
    scorers = [LinearProbeScorer(FeatureModel(network), folds=folds) for folds in (5, 4, 3)]
    judged(network, scorers[0], cache=tmp_path)
    (file,) = tmp_path.rglob("features-*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.warns(UserWarning, match=r"done again and replaced.*\n?.*features-"):
        assert judged(network, scorers[1], cache=tmp_path) == COUNT
    assert judged(network, scorers[2], cache=tmp_path) == 0


@pytest.mark.slow
def test_few_data_sets_are_kept(tmp_path):
    network = Counting()
    for seed in range(6):
        judged(network, LinearProbeScorer(FeatureModel(network)), points(seed), cache=tmp_path)
    assert len(list(tmp_path.rglob("features-*.safetensors"))) == 4


@pytest.mark.slow
def test_features_of_a_network_that_is_trained_on_the_data_are_not_stored(tmp_path):
    from lightning_poison.models.fitting import FitSettings

    model = FeatureModel(feature_size=8, fit_settings=FitSettings(epochs=2, batch_size=32, min_steps=40))
    sanitize(points(), DeepKNNScorer(model, k=5), cache=tmp_path)
    assert not list(tmp_path.rglob("features-*.safetensors"))


class Unstable(Dataset):
    """Adds noise from a generator of its own."""

    def __init__(self):
        self.inputs, self.targets = points()
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return self.inputs[index] + 0.1 * torch.randn(4, generator=self.generator), int(self.targets[index])


@pytest.mark.filterwarnings("ignore")
def test_features_of_inputs_that_differ_between_reads_are_not_stored(tmp_path):
    network = Counting()
    model = FeatureModel(network)
    assert judged(network, LinearProbeScorer(model), Unstable(), cache=tmp_path) == COUNT
    assert not list(tmp_path.rglob("features-*.safetensors"))


@pytest.mark.slow
def test_ranks_share_the_work_and_the_files(tmp_path, several_ranks):
    networks = [Counting(), Counting()]
    alone = sanitize(points(), LinearProbeScorer(FeatureModel(Counting())))

    def run(runtime, folds):
        scorer = LinearProbeScorer(FeatureModel(networks[runtime.rank]), folds=folds)
        return sanitize(points(), scorer, runtime=runtime, cache=tmp_path)

    first = several_ranks(2, lambda runtime: run(runtime, 5))
    counts = [network.count[0] for network in networks]
    assert sum(counts) == COUNT
    assert all(torch.equal(verdict.scores, alone.scores) for verdict in first)
    assert len(list(tmp_path.rglob("features-*.safetensors"))) == 1
    several_ranks(2, lambda runtime: run(runtime, 4))
    assert [network.count[0] for network in networks] == counts


def test_features_of_all_samples_are_kept_once():
    values = torch.arange(6.0).view(3, 2)
    rows = {}
    stored_features._remember(rows, "network", 3, torch.arange(3), values)
    assert rows["network"].values is values
    assert rows["network"].known.all()


def test_features_of_some_samples_are_kept_in_their_places():
    rows = {}
    stored_features._remember(rows, "network", 4, torch.tensor([3, 1]), torch.tensor([[3.0], [1.0]]))
    stored_features._remember(rows, "network", 4, torch.tensor([0]), torch.tensor([[5.0]]))
    assert rows["network"].values.flatten().tolist() == [5, 1, 0, 3]
    assert rows["network"].known.tolist() == [True, True, False, True]
