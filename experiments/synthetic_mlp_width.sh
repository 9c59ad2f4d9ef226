#!/usr/bin/env bash
# 3-layer MLPs of growing width on the random-K-cluster data: bounds and seconds of every method.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full examples=1 eps="0.05 0.1 0.2" sizes="16 32 64 128 256 512"
quick examples=1 eps="0.05 0.2" sizes="8 16"
begin synthetic_mlp_width "Synthetic MLPs of growing width" "$@"

for width in ${setting[sizes]}; do
    train --data simple --model simple_mlp_3layer --width "$width"
    bound "MLP, width $width"
done
finish
