#!/usr/bin/env bash
# Makes .venv with everything the tool and its tests need; a second call changes nothing.
# PYTHON=/path/to/python uses that environment as it is and only checks that it is complete.
set -euo pipefail
cd "$(dirname "$0")"

if [[ -n "${PYTHON:-}" ]]; then
    "$PYTHON" - <<'EOF'
import importlib.util, sys
needed = "torch torchvision auto_LiRPA numpy appdirs tqdm scipy sklearn pandas matplotlib pytest hypothesis"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}: install them there "
             "(pip install -r requirements.txt; pip install --no-deps auto_LiRPA==0.3)")
EOF
    exit 0
fi

stamp=.venv/installed
wanted="$(cat requirements.txt setup.sh | cksum)"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
    exit 0
fi
[[ -x .venv/bin/python ]] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
# Its metadata pins torch < 1.13; lipschitz/lirpa/compat.py makes it run on current versions.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps auto_LiRPA==0.3
echo "$wanted" > "$stamp"
