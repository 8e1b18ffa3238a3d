#!/usr/bin/env bash
# Runs the tests on the lowest direct versions that the pyproject.toml files allow, in an environment of its own.
# Not part of CI: it installs a second PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
uv venv -q "$environment/lowest"
export VIRTUAL_ENV="$environment/lowest"
members=(-e .)
for plugin in plugins/*/; do members+=(-e "$plugin"); done
uv pip install -q --resolution lowest-direct --group dev "${members[@]}"
uv pip list -q
"$VIRTUAL_ENV/bin/python" -m pytest "$@"
