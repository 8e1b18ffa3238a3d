"""Keep poison out of a Lightning training.

Names are imported when they are first used, so that a plug-in or a script that needs no Lightning loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_poison.adversarial.free import Free as Free
    from lightning_poison.adversarial.guard import CollapseGuard as CollapseGuard
    from lightning_poison.adversarial.immunity import PoisonImmunity as PoisonImmunity
    from lightning_poison.adversarial.recipes import Madry as Madry
    from lightning_poison.adversarial.trades import TRADES as TRADES
    from lightning_poison.adversaries import FGSM as FGSM
    from lightning_poison.adversaries import PGD as PGD
    from lightning_poison.callbacks.adversarial_training import AdversarialTraining as AdversarialTraining
    from lightning_poison.callbacks.batch_augmentation import BatchAugmentation as BatchAugmentation
    from lightning_poison.callbacks.lgm_injector import LGMInjector as LGMInjector
    from lightning_poison.callbacks.sanitizer import Sanitizer as Sanitizer
    from lightning_poison.datamodules import PoisonedDataModule as PoisonedDataModule
    from lightning_poison.datamodules import SanitizedDataModule as SanitizedDataModule
    from lightning_poison.datasets import PoisonedDataset as PoisonedDataset
    from lightning_poison.datasets import SanitizedDataset as SanitizedDataset
    from lightning_poison.door import craft as craft
    from lightning_poison.features import FeatureExtractor as FeatureExtractor
    from lightning_poison.fitting import FitSettings as FitSettings
    from lightning_poison.frozen_features import FrozenFeatureClassifier as FrozenFeatureClassifier
    from lightning_poison.heads import LGMHead as LGMHead
    from lightning_poison.heads import lgm_parameter_groups as lgm_parameter_groups
    from lightning_poison.hookspecs import hookimpl as hookimpl
    from lightning_poison.manifest import Manifest as Manifest
    from lightning_poison.manifest import keep_by_hand as keep_by_hand
    from lightning_poison.manifest import read_manifest as read_manifest
    from lightning_poison.manifest import write_manifest as write_manifest
    from lightning_poison.metrics import AttackSuccessRate as AttackSuccessRate
    from lightning_poison.metrics import TPRAtFPR as TPRAtFPR
    from lightning_poison.mixins import LGMMixin as LGMMixin
    from lightning_poison.pixels import PixelRange as PixelRange
    from lightning_poison.poison import Poison as Poison
    from lightning_poison.registry import available_attacks as available_attacks
    from lightning_poison.registry import available_scorers as available_scorers
    from lightning_poison.registry import get_attack as get_attack
    from lightning_poison.registry import get_scorer as get_scorer
    from lightning_poison.removal_metrics import RemovalFalsePositiveRate as RemovalFalsePositiveRate
    from lightning_poison.removal_metrics import RemovalPrecision as RemovalPrecision
    from lightning_poison.removal_metrics import RemovalRecall as RemovalRecall
    from lightning_poison.runtime import LocalRuntime as LocalRuntime
    from lightning_poison.samples import SampleSpec as SampleSpec
    from lightning_poison.sanitizing import sanitize as sanitize
    from lightning_poison.scorers.activation_clustering import ActivationClusteringScorer as ActivationClusteringScorer
    from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer as CharacteristicVectorScorer
    from lightning_poison.scorers.combined import CombinedScorer as CombinedScorer
    from lightning_poison.scorers.confidence import ConfidenceScorer as ConfidenceScorer
    from lightning_poison.scorers.controls import PerfectScorer as PerfectScorer
    from lightning_poison.scorers.controls import RandomScorer as RandomScorer
    from lightning_poison.scorers.deep_knn import DeepKNNScorer as DeepKNNScorer
    from lightning_poison.scorers.discriminator import DiscriminatorScorer as DiscriminatorScorer
    from lightning_poison.scorers.discriminator_negatives import NegativeSettings as NegativeSettings
    from lightning_poison.scorers.feature_model import FeatureModel as FeatureModel
    from lightning_poison.scorers.files import load_scorer as load_scorer
    from lightning_poison.scorers.files import save_scorer as save_scorer
    from lightning_poison.scorers.gan_settings import GanSettings as GanSettings
    from lightning_poison.scorers.likelihood import LikelihoodScorer as LikelihoodScorer
    from lightning_poison.scorers.mahalanobis import MahalanobisScorer as MahalanobisScorer
    from lightning_poison.scorers.pixel_counting import PixelCountingScorer as PixelCountingScorer
    from lightning_poison.scorers.robust_features import RobustFeatureScorer as RobustFeatureScorer
    from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer as SpectralSignatureScorer
    from lightning_poison.scoring import score_dataset as score_dataset
    from lightning_poison.threat import Surrogate as Surrogate
    from lightning_poison.threat import Threat as Threat
    from lightning_poison.verdict import Verdict as Verdict

__version__ = "0.1.0"

_HOMES = {
    "NegativeSettings": "scorers.discriminator_negatives",
    "GanSettings": "scorers.gan_settings",
    "SpectralSignatureScorer": "scorers.spectral_signatures",
    "RobustFeatureScorer": "scorers.robust_features",
    "MahalanobisScorer": "scorers.mahalanobis",
    "DiscriminatorScorer": "scorers.discriminator",
    "DeepKNNScorer": "scorers.deep_knn",
    "ConfidenceScorer": "scorers.confidence",
    "CharacteristicVectorScorer": "scorers.characteristic_vectors",
    "ActivationClusteringScorer": "scorers.activation_clustering",
    "AdversarialTraining": "callbacks.adversarial_training",
    "AttackSuccessRate": "metrics",
    "BatchAugmentation": "callbacks.batch_augmentation",
    "CollapseGuard": "adversarial.guard",
    "FGSM": "adversaries",
    "Free": "adversarial.free",
    "Madry": "adversarial.recipes",
    "PGD": "adversaries",
    "PoisonImmunity": "adversarial.immunity",
    "TRADES": "adversarial.trades",
    "CombinedScorer": "scorers.combined",
    "FeatureExtractor": "features",
    "FeatureModel": "scorers.feature_model",
    "FitSettings": "fitting",
    "FrozenFeatureClassifier": "frozen_features",
    "LGMHead": "heads",
    "LGMInjector": "callbacks.lgm_injector",
    "LGMMixin": "mixins",
    "LikelihoodScorer": "scorers.likelihood",
    "LocalRuntime": "runtime",
    "Manifest": "manifest",
    "PerfectScorer": "scorers.controls",
    "PixelCountingScorer": "scorers.pixel_counting",
    "PixelRange": "pixels",
    "Poison": "poison",
    "PoisonedDataModule": "datamodules",
    "PoisonedDataset": "datasets",
    "RandomScorer": "scorers.controls",
    "SampleSpec": "samples",
    "SanitizedDataModule": "datamodules",
    "SanitizedDataset": "datasets",
    "Sanitizer": "callbacks.sanitizer",
    "Surrogate": "threat",
    "TPRAtFPR": "metrics",
    "Threat": "threat",
    "Verdict": "verdict",
    "available_attacks": "registry",
    "available_scorers": "registry",
    "craft": "door",
    "get_attack": "registry",
    "get_scorer": "registry",
    "RemovalFalsePositiveRate": "removal_metrics",
    "RemovalPrecision": "removal_metrics",
    "RemovalRecall": "removal_metrics",
    "hookimpl": "hookspecs",
    "keep_by_hand": "manifest",
    "lgm_parameter_groups": "heads",
    "load_scorer": "scorers.files",
    "read_manifest": "manifest",
    "sanitize": "sanitizing",
    "save_scorer": "scorers.files",
    "score_dataset": "scoring",
    "write_manifest": "manifest",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
