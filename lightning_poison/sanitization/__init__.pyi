from .dataset_scores import score_samples as score_samples
from .evidence import Evidence as Evidence
from .finding import Finding as Finding
from .pipeline import sanitize as sanitize
from .reasons import reason_of as reason_of
from .settings import DecisionSettings as DecisionSettings
from .verdict import Verdict as Verdict
