#!/usr/bin/env bash
# 4- and 6-layer CNNs on CIFAR-10.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full eps="1/255 2/255 4/255 8/255"
quick eps="4/255"
begin cifar "CIFAR-10" "$@"

for depth in 4 6; do
    if $smoke; then
        stand_in --model "cnn_${depth}layer_stride1_padding0" \
            --model-params in_ch=3,in_dim=9,width=4,linear_size=16
        bound "stand-in for CIFAR-10: CNN, $depth layers, 4 channels, 3 outputs, digits scaled to 3x9x9"
    else
        train --data CIFAR --model "cnn_${depth}layer_stride1_padding0"
        bound "CIFAR-10 CNN, $depth layers"
    fi
done
finish
