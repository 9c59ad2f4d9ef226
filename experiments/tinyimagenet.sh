#!/usr/bin/env bash
# 4- and 6-layer CNNs with 200 outputs on TinyImageNet; its data comes from
# data/tinyImageNet/tinyimagenet_download.sh.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full eps="1/255 2/255 4/255 8/255"
quick eps="4/255"
begin tinyimagenet "TinyImageNet" "$@"

for depth in 4 6; do
    if $smoke; then
        stand_in --model "cnn_${depth}layer_stride2_imagenet" \
            --model-params in_ch=3,in_dim=8,width=4,linear_size=16
        bound "stand-in for TinyImageNet: CNN, $depth layers, 4 channels, 3 outputs, digits scaled to 3x8x8"
    else
        train --data tinyimagenet --model "cnn_${depth}layer_stride2_imagenet"
        bound "TinyImageNet CNN, $depth layers"
    fi
done
finish
