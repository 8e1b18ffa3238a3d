from .hookspecs import hookimpl as hookimpl
from .hookspecs import lightning_poison_attacks as lightning_poison_attacks
from .hookspecs import lightning_poison_scorers as lightning_poison_scorers
from .registry import available_attacks as available_attacks
from .registry import available_scorers as available_scorers
from .registry import get_attack as get_attack
from .registry import get_scorer as get_scorer
from .registry import load_plugins as load_plugins
