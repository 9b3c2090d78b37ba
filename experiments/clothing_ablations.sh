#!/usr/bin/env bash
# Do the parts of Pixio help on a few thousand photographs? Recipes of the ablations pre-train for twenty epochs on pictures
# of 96 x 96 pixels; `hf-mae evaluate` then measures all encoders on the same half of the pictures, with the labels of the
# other half. About five minutes of a CPU core for each run; JOBS of them run at a time. Runs that are already finished
# are skipped. experiments/report.py makes the table.
#
#   experiments/clothing_ablations.sh path/to/training/pictures [seed ...]    # one folder for each class
set -euo pipefail
export data=$1 runs=${RUNS:-runs/clothing_ablations} python=${PYTHON:-python} OMP_NUM_THREADS=1
shift

one() { # recipe seed
    local run=$runs/$1-seed$2
    if [ ! -e "$run/run.json" ]; then
        $python -m hf_mae pretrain --recipe "ablations/$1" --data "$data" --seed "$2" --output_dir "$run" \
            --image_size 96 --patch_size 12 --norm_pix_loss true --num_train_epochs 20
    fi
    if [ ! -e "$run/evaluation/evaluation.json" ]; then
        $python -m hf_mae evaluate --model "$run" --data "$data" --attentive false --held_out 0.5 \
            --output_dir "$run/evaluation"
    fi
}
export -f one
for seed in "${@:-0}"; do
    for recipe in default cells_2 cells_4 class_tokens_4 class_tokens_8 learned_positions decoder_depth_{1,4,8}; do
        echo "$recipe $seed"
    done
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
