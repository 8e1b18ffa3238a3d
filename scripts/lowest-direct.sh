#!/usr/bin/env bash
# Runs the tests on the lowest direct versions that pyproject.toml allows, in an environment of its own.
# Not part of CI: it installs a second PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
uv run --isolated --all-packages --resolution lowest-direct pytest "$@"
