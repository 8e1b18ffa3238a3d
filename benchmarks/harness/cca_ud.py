"""CCA-UD: density clusters of each class, whose deviation is added to the features of benign samples.

Guo, Tondi, Barni, "Universal Detection of Backdoor Attacks via Density-based Clustering and Centroids Analysis", 2023,
arXiv 2301.04554. The features of a class are reduced to two dimensions by UMAP and clustered by DBSCAN. For each
cluster, the deviation of its centroid from that of the class in benign data is added to the features of benign samples
of other classes. If nearly all of them are then predicted as the class, the cluster is poison. It needs a small benign
set, which is given to it here.
"""

import torch
from sklearn.cluster import DBSCAN
from torch import Tensor, nn
from umap import UMAP

DIMENSIONS, MIN_SAMPLES, RADIUS = 2, 20, 0.8
"""Dimensions of UMAP, and DBSCAN's `min_samples` and `eps`."""

MISCLASSIFIED = 0.95
"""Share of benign samples of other classes that a poisonous deviation turns into the class."""


def keep_by_centroids(
    features: Tensor, labels: Tensor, benign: Tensor, benign_labels: Tensor, head: nn.Module, seed: int
) -> Tensor:
    """Return the mask of the samples that CCA-UD keeps, bool `(N,)`.

    Args:
        features: Features of the data `(N, D)`.
        labels: Labels, int64 `(N,)`.
        benign: Features of benign samples `(M, D)`.
        benign_labels: Labels of these, int64 `(M,)`.
        head: Maps features to logits.
        seed: Seed of UMAP.
    """
    keep = torch.ones(len(labels), dtype=torch.bool)
    for number in torch.unique(labels).tolist():
        own = (labels == number).nonzero().flatten()
        reduced = UMAP(n_components=DIMENSIONS, random_state=seed).fit_transform(features[own].numpy())
        clusters = torch.from_numpy(DBSCAN(eps=RADIUS, min_samples=MIN_SAMPLES).fit_predict(reduced))
        center = benign[benign_labels == number].mean(0)
        others = benign[benign_labels != number]
        for cluster in torch.unique(clusters).tolist():
            members = own[clusters == cluster]
            if cluster >= 0:
                shifted = others + features[members].mean(0) - center
                with torch.no_grad():
                    turned = head(shifted).argmax(1) == number
                if float(turned.double().mean()) >= MISCLASSIFIED:
                    keep[members] = False
    return keep
