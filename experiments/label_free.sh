#!/usr/bin/env bash
# Do figures without labels rank pre-training runs as a probe does? Each recipe of the ablations pre-trains for one epoch of
# CIFAR-10; `hf-mae evaluate` then measures all models on the same images. About three minutes of a CPU core for each recipe;
# JOBS of them run at a time. Runs that are already finished are skipped. experiments/report.py makes the table.
#
#   experiments/label_free.sh [a folder of train-*.parquet and test-*.parquet, or a name on the Hub]
set -euo pipefail
export data=${1:-uoft-cs/cifar10} runs=${RUNS:-runs/label_free} python=${PYTHON:-python} OMP_NUM_THREADS=1

one() { # recipe seed
    local run=$runs/$1-seed$2
    if [ ! -e "$run/run.json" ]; then
        $python -m hf_mae pretrain --recipe "ablations/$1" --data "$data" --seed "$2" --output_dir "$run" \
            --num_train_epochs 1 --eval_images 5000
    fi
    if [ ! -e "$run/evaluation/evaluation.json" ]; then
        $python -m hf_mae evaluate --model "$run" --data "$data" --attentive false --max_train_images 10000 \
            --output_dir "$run/evaluation"
    fi
}
export -f one
{
    for recipe in src/hf_mae/training/recipes/ablations/*.yaml; do echo "$(basename "$recipe" .yaml) 0"; done
    echo "default 1"
    echo "default 2"
} | xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
