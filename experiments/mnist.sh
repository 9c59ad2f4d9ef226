#!/usr/bin/env bash
# 3-layer MLP and 4-layer CNN on MNIST.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full eps="0.01 0.02 0.05"
quick eps="0.02" sizes="8"
begin mnist "MNIST" "$@"

if $smoke; then
    stand_in --model mnist_mlp_3layer --model-params "width=${setting[sizes]}"
    bound "stand-in for the MNIST MLP(20): MLP(${setting[sizes]}), 3 outputs, digits scaled to 28x28"
    stand_in --model cnn_4layer_stride1_padding0 \
        --model-params in_ch=1,in_dim=9,width=4,linear_size=16
    bound "stand-in for the MNIST CNN: 4 layers, 4 channels, 3 outputs, digits scaled to 9x9"
else
    for width in ${setting[sizes]:-20}; do
        train --data MNIST --model mnist_mlp_3layer --width "$width"
        bound "MNIST MLP($width)"
    done
    train --data MNIST --model mnist_cnn_4layer
    bound "MNIST CNN, 4 layers"
fi
finish
