"""Runs programs on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

collect_ignore_glob = ["*_run.py", "parent_watch.py"]
"""Programs that the tests start; they are not tests and have no doctests."""


@pytest.fixture(scope="session")
def run_program():
    """Return a function that runs a program of this folder; its processes end with this one, even if interrupted."""

    def run(name, *arguments, **environment):
        reader, writer = os.pipe()
        command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
        try:
            ended = subprocess.run(
                command, stdin=reader, capture_output=True, text=True, check=False, env=os.environ | environment
            )
        finally:
            os.close(reader)
            os.close(writer)
        assert not ended.returncode, ended.stderr[-3000:]

    return run
