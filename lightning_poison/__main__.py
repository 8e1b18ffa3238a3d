"""`python -m lightning_poison` is the command line."""

import sys

from lightning_poison.cli import main

if __name__ == "__main__":
    sys.exit(main())
