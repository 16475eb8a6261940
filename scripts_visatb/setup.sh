#!/usr/bin/env bash
# Makes the project's virtual environment, once.
#   bash scripts_visatb/setup.sh          what it takes to run
#   bash scripts_visatb/setup.sh --dev    what it takes to test, too
# Cost: 2 to 3 minutes, about 3 GB with a CPU build of torch. Result: VENV (default .venv in the repository), which
# later calls leave as it is until a requirements file changes. PYTHON chooses the interpreter (3.10 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}
files=(requirements.txt)
[ "${1:-}" = --dev ] && files+=(requirements-dev.txt)

command -v "$python" > /dev/null || {
  echo "setup: there is no $python; set PYTHON to a Python of 3.10 or newer" >&2
  exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "setup: $python is older than Python 3.10; set PYTHON to a newer one" >&2
  exit 1
}
stamp=$(cat "${files[@]}" pyproject.toml | cksum | cut -d' ' -f1)
[ -f "$venv/.visatb-$stamp" ] && exit 0

echo "setup: installing into $venv (2 to 3 minutes)" >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
# torch first and exactly: a range would fetch the newest build.
"${pip[@]}" "$(grep '^torch==' requirements.txt)"
"${pip[@]}" "${files[@]/#/-r}"
"${pip[@]}" --no-deps --editable .
rm -f "$venv"/.visatb-*
touch "$venv/.visatb-$stamp"
