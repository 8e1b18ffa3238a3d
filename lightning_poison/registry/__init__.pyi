from .hookspecs import AttackFactory as AttackFactory
from .hookspecs import ScorerFactory as ScorerFactory
from .hookspecs import hookimpl as hookimpl
from .registry import available_attacks as available_attacks
from .registry import available_scorers as available_scorers
from .registry import get_attack as get_attack
from .registry import get_scorer as get_scorer
from .registry import load_plugins as load_plugins
