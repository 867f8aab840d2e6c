#!/usr/bin/env bash
# bash scripts/test.sh [PYTEST OPTIONS]: lint, types and tests, in .venv (made if it is missing).
. "$(dirname "$0")/common.sh"
make_venv
install dev,offline
step "ruff"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
step "mypy"
"$venv/bin/mypy"
step "pytest"
"$venv/bin/python" -m pytest "$@"
