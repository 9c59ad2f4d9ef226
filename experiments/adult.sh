#!/usr/bin/env bash
# Monotonicity on Adult: how often the score of the second label certainly rises or falls with a
# continuous feature over its whole range, by linear bounds alone and with branch and bound.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full examples=100 sizes=512
quick sizes=16 epochs=30
begin adult "Monotonicity on Adult" "$@"

for width in ${setting[sizes]}; do
    if $smoke; then
        train --data cancer --model adult_mlp --width "$width"
        network="stand-in for Adult: breast cancer table, MLP($width), 4 features"
        network_args+=(--features 0,1,2,3)
    else
        train --data adult --model adult_mlp --width "$width"
        network="Adult MLP($width)"
    fi
    for ((example = 0; example < setting[examples]; example++)); do
        signs=("${network_args[@]}" --mono --classes 1 --start "$example")
        queue crown "$network" "${signs[@]}" --timeout 1e-9
        queue bab "$network" "${signs[@]}" --timeout "${setting[timeout]}"
    done
done
finish
