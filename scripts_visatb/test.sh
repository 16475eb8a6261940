#!/usr/bin/env bash
# Checks style and types and runs the tests, on a fresh machine as well: it makes its own environment first.
#   bash scripts_visatb/test.sh                    the default suite
#   bash scripts_visatb/test.sh -m slow            the long tests; any pytest argument can be given
# Cost: under 15 minutes on 2 cores, plus 3 for the environment. Result: pytest's closing line, exit status 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts_visatb/setup.sh --dev
export PATH="$PWD/${VENV:-.venv}/bin:$PATH"
# One thread a process: distributed tests run several, and results must not depend on the number of cores.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
if [ $# -eq 0 ]; then
  ruff check --quiet .
  ruff format --check --quiet .
  mypy --no-error-summary
fi
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --quiet "$@"
