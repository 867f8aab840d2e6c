#!/usr/bin/env bash
# bash scripts/test.sh [PYTEST OPTIONS]: lint, types and the everyday tests, in .venv (made if it is missing).
# bash scripts/test.sh --all [PYTEST OPTIONS]: also the slow tests, such as the complete notebook, the proofs and the labs.
. "$(dirname "$0")/common.sh"
if [ "${1:-}" = --all ]; then shift; else set -- -m "not slow" "$@"; fi
make_venv
install dev,offline
install_smollm2
if ! command -v chromium > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    step "installing Chromium, for the tests of the report" # without it they are skipped, and fail where CI is set
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install chromium chromium-driver; } > /dev/null 2>&1 ||
        echo "not possible here: apt-get install chromium chromium-driver"
fi
step "ruff"
"$bin/ruff" check .
"$bin/ruff" format --check .
step "pytest, with mypy in the background"
types="$(mktemp)"
"$bin/mypy" > "$types" 2>&1 &
checking=$!
# A process for each core; the tests of one file in one process, and the files that take longest first (conftest.py).
status=0
"$bin/python" -m pytest -n auto --dist=loadfile --no-loadscope-reorder "$@" || status=$?
wait "$checking" || status=1
cat "$types"
rm "$types"
exit "$status"
