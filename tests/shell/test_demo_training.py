import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.shell.demo_training import Classifier, LGMClassifier, fit_quietly, predict_with


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, 3)


def test_classifier_learns_blobs_and_keeps_random_state(blobs, capsys):
    data = blobs(300)
    before = torch.get_rng_state()
    module = fit_quietly(Classifier(network(), learning_rate=0.05), data, epochs=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert not module.training
    assert (predict_with(module)(data) == data.tensors[1]).float().mean() > 0.95
    assert capsys.readouterr().out == ""


def test_same_seed_gives_same_model(blobs):
    data = blobs(100)
    weights = [fit_quietly(Classifier(network()), data, epochs=1, seed=seed).network.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_frozen_parameters_are_unchanged(blobs):
    module = Classifier(nn.Sequential(network().requires_grad_(False), nn.Linear(3, 3)))
    before = module.network[0].weight.clone()
    fit_quietly(module, blobs(60), epochs=1)
    assert torch.equal(module.network[0].weight, before)


def test_lgm_classifier_has_higher_likelihood_for_correct_labels(blobs):
    data = blobs(300)
    module = fit_quietly(LGMClassifier(network(), 3, 3, learning_rate=0.05), data, epochs=10)
    inputs, labels = data.tensors
    right, wrong = (module.log_likelihood((inputs, each)) for each in (labels, (labels + 1) % 3))
    assert (right > wrong).float().mean() > 0.95


def test_predictions_keep_order(blobs):
    data = TensorDataset(torch.eye(3).repeat(5, 1), torch.zeros(15).long())
    assert predict_with(nn.Identity(), batch_size=4)(data).tolist() == [0, 1, 2] * 5
