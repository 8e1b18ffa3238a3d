from .gan import GanSettings as GanSettings
from .mismatch import NegativeSettings as NegativeSettings
from .noise import smooth_noise as smooth_noise
from .scorer import DiscriminatorScorer as DiscriminatorScorer
