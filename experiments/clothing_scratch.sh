#!/usr/bin/env bash
# How far does training from scratch come on few photographs where it gets the time of pre-training, too? Ten times the
# epochs of experiments/clothing.sh: about forty minutes of a CPU core for each run, which is more than pre-training and
# fine-tuning take together. The test pictures are seen once, at the end. JOBS runs at a time.
#
#   experiments/clothing_scratch.sh path/to/pictures [seed ...]    # a folder with train and test
set -euo pipefail
export data=$1 runs=${RUNS:-runs/clothing_scratch} python=${PYTHON:-python} OMP_NUM_THREADS=1
shift

one() { # labels epochs seed
    local run=$runs/scratch_long-$1-seed$3
    [ -e "$run/run.json" ] || $python -m hf_mae finetune --recipe finetune_sample --from_scratch --layer_decay 1 \
        --model_name_or_path model_cards/mae-clothing --data "$data" --max_train_images "$1" --num_train_epochs "$2" \
        --seed "$3" --eval_strategy no --save_strategy no --output_dir "$run"
}
export -f one
for seed in "${@:-0}"; do printf '%s\n' "307 400 $seed" "3068 60 $seed"; done |
    xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' one
