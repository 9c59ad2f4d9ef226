#!/usr/bin/env bash
# The main job on real data that needs no download: trains a CNN and an MLP on scikit-learn's 8x8
# digits, bounds their local Lipschitz constants at several radii, without and with branch and bound,
# ends with a table and a picture.
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
python="${PYTHON:-${VENV:-.venv}/bin/python}"
out=output/quickstart
radii="0.01 0.02 0.05"

run() {  # model width
    local checkpoint="models_pretrained/digits_$1_width$2.pth"
    [[ -f "$checkpoint" ]] ||
        "$python" train_model.py --data digits --model "$1" --width "$2" \
            --lr 0.005 --num-epochs 30 --batch-size 64 --quiet | tail -n 2
    for eps in $radii; do
        for search in "" "--bab --timeout 3"; do
            # $search is split into words on purpose
            "$python" main.py --data digits --model "$1" --width "$2" --load "$checkpoint" \
                --eps "$eps" --num-examples 5 $search --output "$out/$1.jsonl" --quiet
        done
    done
}

run simple_cnn_3layer 4
run simple_mlp_3layer 32
"$python" experiments/report.py "$out"/*.jsonl --output "$out"
