from .attacks.crafting import craft as craft
from .attacks.poison import Poison as Poison
from .attacks.poisoned_dataset import PoisonedDataset as PoisonedDataset
from .attacks.threat import Surrogate as Surrogate
from .attacks.threat import Threat as Threat
from .callbacks.adversarial_training import AdversarialTraining as AdversarialTraining
from .callbacks.batch_augmentation import BatchAugmentation as BatchAugmentation
from .callbacks.lgm_injector import LGMInjector as LGMInjector
from .callbacks.sanitizer import Sanitizer as Sanitizer
from .data.pixel_range import PixelRange as PixelRange
from .data.sample_spec import SampleSpec as SampleSpec
from .data.views import SanitizedDataset as SanitizedDataset
from .datamodules import PoisonedDataModule as PoisonedDataModule
from .datamodules import SanitizedDataModule as SanitizedDataModule
from .mixins import LGMMixin as LGMMixin
from .registry.hookspecs import hookimpl as hookimpl
from .registry.registry import available_attacks as available_attacks
from .registry.registry import available_scorers as available_scorers
from .registry.registry import get_attack as get_attack
from .registry.registry import get_scorer as get_scorer
from .sanitization.pipeline import sanitize as sanitize
from .sanitization.verdict import Verdict as Verdict
from .scorers.combined import CombinedScorer as CombinedScorer
from .scorers.likelihood import LikelihoodScorer as LikelihoodScorer
from .scorers.recommended import RecommendedScorer as RecommendedScorer
from .scorers.union import UnionScorer as UnionScorer

__version__: str
