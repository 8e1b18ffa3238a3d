"""Lets the tests import `evaluation_records`."""

import sys
from pathlib import Path

collect_ignore = ["evaluation_records.py"]

sys.path.append(str(Path(__file__).parent))
