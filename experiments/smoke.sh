#!/usr/bin/env bash
# Every experiment with two examples and seconds of budget, on data that needs no download, two at
# a time. Further arguments go to each script.
set -euo pipefail
cd "$(dirname "$0")"
../setup.sh
scripts="synthetic_mlp_width synthetic_mlp_depth synthetic_cnn_width digits mnist cifar tinyimagenet
    adult ablations"
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT

status=0
# shellcheck disable=SC2086 # split into words on purpose
printf '%s\n' $scripts | xargs -P 2 -I{} bash -c 'script="$1" log="$2"; shift 2
    "./$script.sh" --smoke "$@" >"$log" 2>&1 || { echo "$script failed" >>"$log"; exit 1; }' \
    smoke {} "$logs/{}" "$@" || status=1
for script in $scripts; do
    echo "== $script"
    cat "$logs/$script"
done
exit $status
