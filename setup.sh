#!/usr/bin/env bash
# Makes .venv with everything the tool and its tests need; a second call changes nothing.
# --extra adds the optional packages of single methods and file formats (requirements-extra.txt).
# VENV=folder makes the environment there instead.
# PYTHON=/path/to/python uses that environment as it is and only checks that it is complete.
set -euo pipefail
cd "$(dirname "$0")"
venv="${VENV:-.venv}"

extra=
case "${1:-}" in
    "") ;;
    --extra) extra=1 ;;
    *)
        echo "error: unknown argument '$1': expected --extra or nothing" >&2
        exit 2
        ;;
esac

if [[ -n "${PYTHON:-}" ]]; then
    EXTRA="$extra" "$PYTHON" - <<'EOF'
import importlib.util, os, sys
needed = "torch torchvision auto_LiRPA numpy appdirs tqdm scipy sklearn pandas matplotlib"
needed += " pytest xdist hypothesis build hatchling"
needed += " cvxpy eclipse_nn onnx h5py" if os.environ["EXTRA"] else ""
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}: install them there "
             "(pip install -r requirements.txt; pip install --no-deps auto_LiRPA==0.3; "
             "optional: pip install -r requirements-extra.txt)")
EOF
    exit 0
fi

# Runs the rest of its arguments unless it has done so for the present content of its files.
# Usage: once STAMP "FILES" COMMAND...
once() {
    local stamp="$venv/$1" wanted
    wanted="$(cat $2 setup.sh | cksum)"
    [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && return
    "${@:3}"
    echo "$wanted" > "$stamp"
}

install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

everything() {
    [[ -x "$venv/bin/python" ]] || python3 -m venv "$venv"
    install -r requirements.txt
    # Its metadata pins torch < 1.13; lipschitz/bounds/lirpa/compat.py makes it run on current versions.
    install --no-deps auto_LiRPA==0.3
}

once installed requirements.txt everything
if [[ -n "$extra" ]]; then
    # Under the same limits, so that an optional package never changes what is there.
    once installed-extra "requirements.txt requirements-extra.txt" \
        install -c requirements.txt -r requirements-extra.txt
fi
