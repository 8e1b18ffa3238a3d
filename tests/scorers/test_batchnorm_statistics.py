import pytest
import torch
from torch import nn

from lightning_poison.scorers.batchnorm_statistics import (
    ChannelStatistics,
    RunningCentroids,
    batchnorm_layers,
    centroid_distances,
    channel_statistics,
)


def images(count=6, seed=0):
    return torch.rand(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def class_centroids(statistics, labels, parts=1):
    running = RunningCentroids(int(labels.max()) + 1)
    for rows in torch.arange(len(labels)).chunk(parts):
        running.add(ChannelStatistics(*(tuple(layer[rows] for layer in layers) for layers in statistics)), labels[rows])
    return running.centroids()


def statistics(means, variances):
    return ChannelStatistics((torch.tensor(means),), (torch.tensor(variances),))


def test_statistics_are_those_over_positions():
    found = channel_statistics(nn.BatchNorm2d(2).eval(), images())
    torch.testing.assert_close(found.means[0], images().mean((2, 3)))
    torch.testing.assert_close(found.variances[0], images().var((2, 3), correction=0))


def test_what_counts_is_what_reaches_the_layer():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(27)).eval()
    found = channel_statistics(network, images())
    torch.testing.assert_close(found.means[0], network[0](images()).mean((2, 3)))
    torch.testing.assert_close(found.means[1], network[:4](images()))
    assert [tuple(layer.shape) for layer in found.variances] == [(6, 3), (6, 0)]


@pytest.mark.parametrize("parts", [1, 4])
def test_batch_norm_of_a_class_at_once_gives_its_centroid(parts):
    layer, labels = nn.BatchNorm2d(2, momentum=1.0), torch.tensor([0, 0, 0, 2, 2, 2])
    centroids = class_centroids(channel_statistics(nn.Sequential(layer).eval(), images()), labels, parts)
    for label in (0, 2):
        layer.train()(images()[labels == label])
        torch.testing.assert_close(centroids.means[0][label], layer.running_mean)
        unbiased = 75 / 74  # what batch norm keeps has Bessel's correction: three images of 25 positions
        torch.testing.assert_close(centroids.variances[0][label] * unbiased, layer.running_var)
    assert centroids.means[0][1].isnan().all()


def test_distances_are_cosine_distances_by_hand():
    samples = statistics([[3.0, 4.0]], [[1.0, 0.0]])
    classes = statistics([[6.0, 8.0], [4.0, -3.0], [-3.0, -4.0]], [[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = centroid_distances(samples, classes, mean_weight=0.25)
    expected = torch.tensor([[0.0, 1.0, 0.25 * 2 + 0.75 * (1 - 0.5**0.5)]])
    torch.testing.assert_close(found, expected)


def test_layers_count_alike_and_a_layer_without_positions_by_its_means():
    one = statistics([[1.0, 0.0]], [[1.0, 0.0]])
    two = ChannelStatistics((*one.means, torch.tensor([[1.0]])), (*one.variances, torch.zeros(1, 0)))
    classes = ChannelStatistics(
        (torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0]])), (one.variances[0], torch.zeros(1, 0))
    )
    torch.testing.assert_close(centroid_distances(two, classes), torch.tensor([[(0.5 * 1 + 2) / 2]]))


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.BatchNorm2d(2)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    channel_statistics(network, images())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0]._forward_pre_hooks


def test_the_gradient_reaches_the_inputs_also_under_autocast():
    inputs = images().requires_grad_()
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = channel_statistics(network, inputs)
        distances = centroid_distances(found, class_centroids(found, torch.arange(6) % 2))
    assert distances.dtype == torch.float32
    (gradient,) = torch.autograd.grad(distances.sum(), inputs)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


class Detour(nn.Module):
    """Has batch norm that its forward pass does not run through."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, inputs):
        return inputs


def test_networks_without_batch_norm_are_refused():
    with pytest.raises(ValueError, match="one with batch norm, but got Sequential without any"):
        batchnorm_layers(nn.Sequential(nn.InstanceNorm2d(2), nn.LayerNorm(3)))
    with pytest.raises(ValueError, match="Detour to take all 6 samples through its batch norm"):
        channel_statistics(Detour(), images())


def test_centroids_of_another_network_are_refused():
    with pytest.raises(ValueError, match="layers with \\(3,\\) channels, but got \\(2,\\)"):
        centroid_distances(statistics([[1.0, 2.0]], [[1.0, 1.0]]), statistics([[1.0, 2.0, 3.0]], [[1.0, 1.0, 1.0]]))
