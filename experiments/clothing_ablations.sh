#!/usr/bin/env bash
# Do the parts of Pixio help on a few thousand photographs? Recipes of the ablations pre-train for twenty epochs on pictures
# of 96 x 96 pixels, and are measured on half of the pictures. About five minutes of a CPU core for each run; JOBS of them
# run at a time. experiments/report.py makes the table.
#
#   experiments/clothing_ablations.sh path/to/training/pictures [seed ...]    # one folder for each class
set -euo pipefail
export data=$1 runs=${RUNS:-runs/clothing_ablations}
shift

one() { # recipe seed
    experiments/evaluated.sh "$runs/$1-seed$2" "$data" 0.5 --recipe "ablations/$1" --seed "$2" \
        --image_size 96 --patch_size 12 --norm_pix_loss true --num_train_epochs 20 --held_out 0.01
}
export -f one
for seed in "${@:-0}"; do
    for recipe in default cells_2 cells_4 class_tokens_4 class_tokens_8 learned_positions decoder_depth_{1,4,8}; do
        echo "$recipe $seed"
    done
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
