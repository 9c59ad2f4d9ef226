#!/usr/bin/env bash
# The tests, a process per core; arguments go to pytest, such as `-m slow` for the slow ones.
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
exec "${PYTHON:-${VENV:-.venv}/bin/python}" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
