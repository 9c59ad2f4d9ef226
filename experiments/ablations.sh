#!/usr/bin/env bash
# What the parts of the method are worth: relaxations of the Jacobian, optimised slopes, and in
# branch and bound semidefinite programs, the heuristic, the engine, recomputed intervals and splits
# used as constraints.
set -euo pipefail
source "$(dirname "$0")/common.sh"
paper="--bab --engine auto_lirpa --branch relu --batch-size 128 --max-domains 200000"
linear="--bab --branch relu --sdp never"
FLAGS+=(
    [crown_no_alpha]="--no-optimize"
    [crown_native]="--engine native"
    [bab_sign]="$linear --heuristic sign"
    [bab_slope]="$linear --heuristic slope"
    [bab_area]="$linear --heuristic area"
    [bab_babsr]="$linear --heuristic babsr"
    [bab_kept_intervals]="$linear --refresh off"
    [bab_no_beta]="$linear --beta-steps 0"
    [bab_sdp_auto]="--bab --branch relu --sdp auto"
    [bab_sdp_always]="--bab --branch relu --sdp always"
    [bab_inputs]="--bab --branch input"
    [bab_lirpa_slope]="$paper --heuristic slope"
    [bab_lirpa_area]="$paper --heuristic area"
    [bab_lirpa_babsr]="$paper --heuristic babsr"
)
relaxations="ibp fastlip recurjac crown_no_alpha crown crown_native alpha sdp"
searches="bab_sdp_auto bab_sdp_always bab_sign bab_slope bab_area bab_babsr bab_kept_intervals"
searches+=" bab_no_beta bab_inputs bab_lirpa_slope bab_lirpa_area bab_lirpa_babsr"
full examples=1 eps="0.05 0.1 0.2" sizes="32 64" methods="$relaxations $searches"
quick examples=1 eps="0.2" sizes="16"
begin ablations "Ablations" "$@"

for width in ${setting[sizes]}; do
    train --data simple --model simple_mlp_3layer --width "$width"
    bound "MLP, width $width"
done
finish
