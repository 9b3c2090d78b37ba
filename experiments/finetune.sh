#!/usr/bin/env bash
# Fine-tunes a checkpoint with few labels and trains from scratch on the same budget, one run of each per seed. Two runs
# at a time (JOBS). Each run is evaluated once, at its end. Runs that are already finished are skipped.
#
#   experiments/finetune.sh CHECKPOINT DATA RUNS LABELS EPOCHS [SEED ...]
set -euo pipefail
export checkpoint=$1 data=$2 runs=$3 labels=$4 epochs=$5 python=${PYTHON:-python} OMP_NUM_THREADS=1
shift 5

one() { # start seed
    local run=$runs/$1-$labels-seed$2
    [ -e "$run/run.json" ] && return
    $python -m hf_mae finetune --recipe finetune_sample --model_name_or_path "$checkpoint" --data "$data" \
        --max_train_images "$labels" --num_train_epochs "$epochs" --seed "$2" --eval_strategy no --save_strategy no \
        --output_dir "$run" $([ "$1" = scratch ] && echo --from_scratch --layer_decay 1)
}
export -f one
for seed in "${@:-0}"; do printf '%s\n' "pretrained $seed" "scratch $seed"; done |
    xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
