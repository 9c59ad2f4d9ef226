#!/usr/bin/env bash
# MLPs of width 32 and growing depth on the random-K-cluster data.
set -euo pipefail
source "$(dirname "$0")/common.sh"
full examples=1 eps="0.05 0.1 0.2" sizes="2 3 4 5 6 7 8"
quick examples=1 eps="0.2" sizes="2 3"
begin synthetic_mlp_depth "Synthetic MLPs of growing depth" "$@"

for depth in ${setting[sizes]}; do
    train --data simple --model simple_mlp_width32 --depth "$depth"
    bound "MLP, depth $depth"
done
finish
