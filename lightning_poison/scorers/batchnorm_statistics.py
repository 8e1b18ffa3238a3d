"""What reaches the batch-norm layers of a network: a mean and a variance for each channel, sample by sample.

De Gaspari, Hitaj, Mancini, "Have You Poisoned My Data? Defending Neural Networks against Data Poisoning", ESORICS 2024,
arXiv 2403.13523, section 4.1.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_poison.checks import expected
from lightning_poison.contexts import full_precision


class ChannelStatistics(NamedTuple):
    """Statistics at each batch-norm layer, in the order in which a forward pass reaches them.

    Attributes:
        means: one for each layer, float32 `(B, channels)`.
        variances: the same of the variances over positions; `(B, 0)` where a layer sees one position a sample.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1))
        >>> channel_statistics(network, torch.tensor([[[[1.0, 3.0]]]]))
        ChannelStatistics(means=(tensor([[2.]]),), variances=(tensor([[1.]]),))
    """

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def channel_statistics(network: nn.Module, inputs: Tensor) -> ChannelStatistics:
    """Run a network and compute the mean and the variance over positions of each channel that reaches batch norm.

    Args:
        network: any module with batch norm; the caller puts it into evaluation mode.
        inputs: a batch `(B, ...)`.

    Returns:
        Statistics of each sample at each layer, the paper's characteristic vectors; differentiable in `inputs`. A layer
        that is called twice counts twice.

    Raises:
        ValueError: where the network has no batch norm, or a forward pass does not reach it.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(144))
        >>> [tuple(layer.shape) for layer in channel_statistics(network.eval(), torch.rand(2, 1, 8, 8)).means]
        [(2, 4), (2, 144)]
    """
    layers = batchnorm_layers(network)
    caught: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0])) for layer in layers]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not caught or any(len(each) != len(inputs) for each in caught):
        raise ValueError(
            f"Expected a forward pass of {type(network).__name__} to take all {len(inputs)} samples through its batch "
            "norm, but it did not.\nHand in a network that does."
        )
    with full_precision(inputs.device):
        positions = [each.float().flatten(2) if each.ndim > 2 else each.float()[:, :, None] for each in caught]
        means = tuple(each.mean(2) for each in positions)
        variances = (each.var(2, correction=0) if each.shape[2] > 1 else each[:, :0, 0] for each in positions)
        return ChannelStatistics(means, tuple(variances))


def batchnorm_layers(network: nn.Module) -> list[nn.Module]:
    """Return the batch-norm layers of a network.

    Raises:
        ValueError: where it has none.

    Example:
        >>> len(batchnorm_layers(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3)))))
        2
        >>> batchnorm_layers(nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: Expected `network` to be one with batch norm, but got Linear without any.
        Take a network with `BatchNorm` layers, or a scorer that looks at features, such as `MahalanobisScorer`.
    """
    layers: list[nn.Module] = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    if not layers:
        hint = (
            "Take a network with `BatchNorm` layers, or a scorer that looks at features, such as `MahalanobisScorer`."
        )
        raise ValueError(expected("network", "one with batch norm", f"{type(network).__name__} without any", hint))
    return layers


class RunningCentroids:
    """Statistics of all samples of a class together, as batch norm would compute them of a batch, block by block.

    The variance of a class is that over samples and positions: the mean of the samples' variances plus the variance of
    their means. So samples must have equally many positions.

    Args:
        num_classes: how many classes.

    Example:
        >>> running = RunningCentroids(1)
        >>> statistics = ChannelStatistics((torch.tensor([[1.0], [3.0]]),), (torch.tensor([[0.5], [1.5]]),))
        >>> running.add(statistics, torch.tensor([0, 0]))
        >>> running.centroids()
        ChannelStatistics(means=(tensor([[2.]]),), variances=(tensor([[2.]]),))
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = torch.zeros(num_classes, dtype=torch.float64)
        self._sums: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, statistics: ChannelStatistics, labels: Tensor) -> None:
        """Add samples.

        Args:
            statistics: of each sample, layer by layer `(B, channels)`.
            labels: int64 `(B,)`, below the number of classes.
        """
        labels = labels.cpu()
        self._counts += torch.bincount(labels, minlength=len(self._counts))
        added = []
        for means, variances in zip(*statistics, strict=True):
            rows = (means.detach().double().cpu(), variances.detach().double().cpu())
            added.append(tuple(self._by_class(each, labels) for each in (rows[0], rows[0].square(), rows[1])))
        if self._sums:
            added = [tuple(map(torch.add, *pair)) for pair in zip(self._sums, added, strict=True)]
        self._sums = added  # type: ignore[assignment]

    def centroids(self) -> ChannelStatistics:
        """Return the statistics of each class, float32, layer by layer `(C, channels)`; NaN for one without samples."""
        means, variances = [], []
        for sums in self._sums:
            mean, square, within = (each / self._counts[:, None] for each in sums)
            means.append(mean.float())
            between = (square - mean.square()).clamp_min(0)
            variances.append((within + between).float() if within.shape[1] else within.float())
        return ChannelStatistics(tuple(means), tuple(variances))

    def _by_class(self, rows: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros(len(self._counts), rows.shape[1], dtype=rows.dtype).index_add(0, labels, rows)


def centroid_distances(
    statistics: ChannelStatistics, centroids: ChannelStatistics, *, mean_weight: float = 0.5
) -> Tensor:
    """Compute how far characteristic vectors lie from the centroid of each class (equation 8 of the paper).

    d = Σ_i γ_i (β (1 − cos(μ_i(x), μ_i(X_y))) + (1 − β) (1 − cos(σ_i²(x), σ_i²(X_y)))) with all γ_i = 1 / layers; the
    paper states neither its γ_i nor its β. At a layer that sees one position a sample there is no variance, and the
    means count alone.

    Args:
        statistics: of each sample, layer by layer `(B, channels)`.
        centroids: of each class, layer by layer `(C, channels)`.
        mean_weight: β, in [0, 1].

    Returns:
        float32 `(B, C)`, in [0, 2]; NaN where a centroid is.

    Raises:
        ValueError: where samples reach another number of layers, or other channels.

    Example:
        >>> samples = ChannelStatistics((torch.tensor([[1.0, 0.0]]),), (torch.tensor([[2.0, 2.0]]),))
        >>> classes = ChannelStatistics((torch.tensor([[2.0, 0.0], [0.0, 1.0]]),), (torch.tensor([[1.0, 1.0]] * 2),))
        >>> centroid_distances(samples, classes).round(decimals=3)
        tensor([[0.0000, 0.5000]])
    """
    shapes = [tuple(layer.shape[1] for layer in each.means) for each in (statistics, centroids)]
    if shapes[0] != shapes[1]:
        raise ValueError(expected("statistics", f"of layers with {shapes[1]} channels", str(shapes[0])))
    with full_precision(statistics.means[0].device):
        total = torch.zeros((), device=statistics.means[0].device)
        for mean, variance, own_mean, own_variance in zip(*statistics, *centroids, strict=True):
            apart = _cosine_distances(mean, own_mean)
            if variance.shape[1]:
                apart = mean_weight * apart + (1 - mean_weight) * _cosine_distances(variance, own_variance)
            total = total + apart / len(shapes[0])
        return total


def _cosine_distances(rows: Tensor, others: Tensor) -> Tensor:
    normalized = (nn.functional.normalize(each, dim=1) for each in (rows, others))
    first, second = normalized
    return 1 - first @ second.T
