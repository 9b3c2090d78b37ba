#!/usr/bin/env bash
# Batches of 64 or of 128 photographs, in the same time: two runs side by side, so that both have the same share of the
# machine; measured on half of the pictures.
#
#   experiments/clothing_time.sh path/to/training/pictures [budget]    # one folder for each class; 10m
set -euo pipefail
data=$1 budget=${2:-10m} runs=${RUNS:-runs/clothing_time}

one() { # name flags ...
    experiments/evaluated.sh "$runs/$1-seed0" "$data" 0.5 --recipe clothing --time_budget "$budget" "${@:2}"
}
one batch_128 & one batch_64 --effective_batch_size 64 & wait
