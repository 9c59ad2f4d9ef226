#!/usr/bin/env bash
# 3-layer CNNs of growing width on the random-K-cluster data in 8x8 images.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full examples=1 eps="0.02 0.05 0.1" sizes="2 4 8 16"
quick examples=1 eps="0.05" sizes="1 2"
begin synthetic_cnn_width "Synthetic CNNs of growing width" "$@"

for width in ${setting[sizes]}; do
    train --data simple --model simple_cnn_3layer --width "$width"
    bound "CNN, width $width"
done
finish
