from .matrix import Cell as Cell
from .matrix import evaluate as evaluate
from .matrix import gap_closed as gap_closed
from .matrix import render_table as render_table
from .metrics import AttackSuccessRate as AttackSuccessRate
from .metrics import TPRAtFPR as TPRAtFPR
