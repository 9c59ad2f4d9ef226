#!/usr/bin/env bash
# Every experiment with two examples and seconds of budget, on data that needs no download, two at
# a time. Further arguments go to each script.
set -euo pipefail
cd "$(dirname "$0")"
source ./forward.sh
../setup.sh
scripts="synthetic_mlp_width synthetic_mlp_depth synthetic_cnn_width digits mnist cifar tinyimagenet
    adult ablations"
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT

stop() {  # exit status: ends the scripts under way, which end their workers
    trap - TERM HUP INT
    # shellcheck disable=SC2046 # split into words on purpose
    kill -TERM $(jobs -rp) 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 143' TERM HUP
trap 'stop 130' INT

run() {  # script arguments...: its output goes to a file, so that two do not mix
    forward "./$1.sh" --smoke "${@:2}" >"$logs/$1" 2>&1 || {
        echo "$1 failed" >>"$logs/$1"
        touch "$logs/failed"
    }
}

for script in $scripts; do
    while (($(jobs -rp | wc -l) >= 2)); do wait -n || true; done
    run "$script" "$@" &
done
wait
status=0
[[ ! -e "$logs/failed" ]] || status=1
for script in $scripts; do
    echo "== $script"
    cat "$logs/$script"
done
exit $status
