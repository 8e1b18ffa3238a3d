"""Scorers: one a file, one paper a file; larger is always more suspicious.

Names are imported when they are first used, as those of the package are.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ActivationClusteringScorer": "activation_clustering",
    "CharacteristicVectorScorer": "characteristic_vectors",
    "CombinedScorer": "combined",
    "ConfidenceScorer": "confidence",
    "DeepKNNScorer": "deep_knn",
    "DiscriminatorScorer": "discriminator",
    "LikelihoodScorer": "likelihood",
    "MahalanobisScorer": "mahalanobis",
    "PerfectScorer": "controls",
    "PixelCountingScorer": "pixel_counting",
    "RandomScorer": "controls",
    "SpectralSignatureScorer": "spectral_signatures",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
