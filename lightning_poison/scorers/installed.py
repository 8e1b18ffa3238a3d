"""The scorers that come with this package, by name."""

from collections.abc import Callable, Mapping

from lightning_poison.scorers.activation_clustering import ActivationClusteringScorer
from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.discriminator import DiscriminatorScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.mahalanobis import MahalanobisScorer
from lightning_poison.scorers.members import AnyScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer

OWN_SCORERS: Mapping[str, Callable[..., AnyScorer]] = {
    scorer.name: scorer
    for scorer in (
        ActivationClusteringScorer,
        CharacteristicVectorScorer,
        CombinedScorer,
        ConfidenceScorer,
        DeepKNNScorer,
        DiscriminatorScorer,
        LikelihoodScorer,
        MahalanobisScorer,
        PixelCountingScorer,
        RobustFeatureScorer,
        SpectralSignatureScorer,
    )
}
"""Defenses alone; the controls are not offered by name."""
