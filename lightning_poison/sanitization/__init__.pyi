from .dataset_scores import score_samples as score_samples
from .evidence import Evidence as Evidence
from .pipeline import sanitize as sanitize
from .settings import DecisionSettings as DecisionSettings
from .verdict import Verdict as Verdict
