#!/usr/bin/env bash
# MLP and CNN on scikit-learn's 8x8 digits: real data that needs no download.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full eps="0.01 0.02 0.05" epochs=30
quick eps="0.02" epochs=10
begin digits "Networks on 8x8 digits" "$@"

train --data digits --model simple_mlp_3layer --width 32
bound "digits MLP(32)"
train --data digits --model simple_cnn_3layer --width 4
bound "digits CNN(4)"
finish
