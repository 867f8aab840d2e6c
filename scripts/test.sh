#!/usr/bin/env bash
# bash scripts/test.sh [PYTEST OPTIONS]: lint, policy, types and the everyday tests, in .venv (made if it is missing).
# bash scripts/test.sh --all [PYTEST OPTIONS]: also the slow tests: the proofs, the labs, all cells of the notebook.
. "$(dirname "$0")/common.sh"
if [ "${1:-}" = --all ]; then shift; else set -- -m "not slow" "$@"; fi
make_venv
install dev,offline
install_models
install_programs chromium:chromium chromedriver:chromium-driver node:nodejs
step "ruff"
"$bin/ruff" check .
"$bin/ruff" format --check .
step "policy"
"$bin/python" scripts/policy.py
step "mypy"
"$bin/mypy"
step "pytest"
# A process for each core; the tests of one file in one process, and the files that take longest first (conftest.py).
"$bin/python" -m pytest -n auto --dist=loadfile --no-loadscope-reorder "$@"
