#!/usr/bin/env bash
# Fine-tunes a checkpoint with few labels beside training from scratch with the same budget, a run per seed of each, two
# runs at a time (JOBS). Evaluates once, at the end of each run.
#
#   experiments/finetune.sh CHECKPOINT DATA RUNS LABELS EPOCHS [SEED ...]
set -euo pipefail
export checkpoint=$1 data=$2 runs=$3 labels=$4 epochs=$5 python=${PYTHON:-python} OMP_NUM_THREADS=1
shift 5

one() { # start seed
    local run=$runs/$1-$labels-seed$2
    [ -e "$run/run.json" ] && return
    $python examples/run_image_classification.py --recipe finetune_sample \
        --model_name_or_path "$checkpoint" --data "$data" --max_train_images "$labels" --num_train_epochs "$epochs" \
        --seed "$2" --eval_strategy no --save_strategy no --output_dir "$run" \
        $([ "$1" = scratch ] && echo --from_scratch --layer_decay 1)
}
export -f one
for seed in "${@:-0}"; do printf '%s\n' "pretrained $seed" "scratch $seed"; done |
    xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
