"""Lets the tests, and the processes that they start, import `evaluation_grids`."""

import os
import sys
from pathlib import Path

import pytest

collect_ignore = ["evaluation_grids.py"]

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def importable_by_ray(monkeypatch):
    """Let workers of Ray import what this process can."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
