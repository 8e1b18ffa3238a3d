"""Command line as a module: `python -m lightning_poison`."""

import sys

from lightning_poison.cli import main

if __name__ == "__main__":
    sys.exit(main())
