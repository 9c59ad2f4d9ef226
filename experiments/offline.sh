#!/usr/bin/env bash
# A real run on data that needs no download, with all methods, into results/. Interrupted, it goes
# on where it stopped. Further arguments go to each script, such as --timeout 1 for a quick look.
set -euo pipefail
cd "$(dirname "$0")"
source ./forward.sh
results="${RESULTS:-results}"

run() {  # script arguments...
    local script="$1"
    shift
    echo "== $script"
    forward "./$script.sh" --output "$results" --timeout 6 --epochs 30 --jobs 2 "$@"
}

run synthetic_mlp_width --sizes "16 32 64 128" --eps "0.05 0.2" "$@"
run synthetic_mlp_depth --sizes "2 4 6" --eps "0.05 0.2" "$@"
run synthetic_cnn_width --sizes "1 2 4" --eps "0.05" "$@"
run digits --examples 2 --eps "0.01 0.05" "$@"
run ablations --sizes "64" --eps "0.2" "$@"

cd ..
{
    echo "# Results of experiments/offline.sh"
    for experiment in synthetic_mlp_width synthetic_mlp_depth synthetic_cnn_width digits ablations
    do
        echo
        sed 's/^# /## /' "$results/$experiment/table.md"
        for picture in "$results/$experiment"/*.png; do
            echo "![$(basename "$picture" .png)]($experiment/$(basename "$picture"))"
        done
    done
} >"$results/README.md"
