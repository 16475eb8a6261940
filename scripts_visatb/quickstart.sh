#!/usr/bin/env bash
# The whole experiment on five tiny tasks, on a fresh machine: environment, data, proxies, λ, final runs, report.
#   bash scripts_visatb/quickstart.sh              EW and VisATB at the end
#   STL=1 bash scripts_visatb/quickstart.sh        single-task training too: five more runs
# Cost: about 3 minutes on 2 CPU cores, and once 2 to 3 minutes for the environment (docs/tiny.md: measured times).
# Result: the path of the report, as the last line. Started again, it goes on where it was stopped.
# Further arguments go to `visatb run`. VENV and PYTHON as in setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts_visatb/setup.sh
export PATH="$(cd "${VENV:-.venv}" && pwd)/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

visatb prepare tiny --output data/tiny
experiment=examples/tiny.yaml
if [ "${STL:-0}" = 1 ]; then
  experiment=outputs/tiny_stl.yaml
  mkdir -p outputs
  sed 's/^methods: .*/methods: [STL, EW, VisATB]/' examples/tiny.yaml >"$experiment"
fi
visatb run "$experiment" --workdir outputs/tiny "$@"
