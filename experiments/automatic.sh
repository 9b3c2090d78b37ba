#!/usr/bin/env bash
# Do the choices that a time budget makes by itself learn as much as a recipe that was made by hand, in the same time? Two
# runs at a time, side by side, so that both have the same share of the machine; measured on half of the pictures.
#
#   experiments/automatic.sh path/to/training/pictures [budget]    # one folder for each class; 15m
set -euo pipefail
data=$1 budget=${2:-15m} runs=${RUNS:-runs/automatic}

one() { # name flags ...
    experiments/evaluated.sh "$runs/$1-seed0" "$data" 0.5 --time_budget "$budget" "${@:2}"
}
one chosen & one recipe --recipe clothing & wait
one pixels_96 --image_size 96 --patch_size 12 & one views_2 --views_per_image 2 & wait
one crops_50 --crop_scale_min 0.5 & one batch_128 --effective_batch_size 128 & wait
