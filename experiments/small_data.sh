#!/usr/bin/env bash
# What makes a small model learn more in the same steps? Variants of the recipe cifar10_small pre-train for three epochs on
# the training images of CIFAR-10 alone; `hf-mae evaluate` measures them on a tenth of these images, with the labels of
# 10,000 others. The test images stay unseen, so that choices can be made by these figures. About six minutes of a quiet
# CPU core for each run; JOBS of them run at a time. Runs that are already finished are skipped.
#
#   experiments/small_data.sh path/to/train-00000.parquet [seed ...]
set -euo pipefail
export data=$1 runs=${RUNS:-runs/small_data} python=${PYTHON:-python} OMP_NUM_THREADS=1
shift

one() { # name seed flags ...
    local run=$runs/$1-seed$2 seed=$2
    shift 2
    if [ ! -e "$run/run.json" ]; then
        $python -m hf_mae pretrain --recipe cifar10_small --data "$data" --seed "$seed" --output_dir "$run" \
            --num_train_epochs 3 --eval_images 1000 --eval_steps 600 "$@"
    fi
    if [ ! -e "$run/evaluation/evaluation.json" ]; then
        $python -m hf_mae evaluate --model "$run" --data "$data" --attentive false --held_out 0.1 \
            --max_train_images 10000 --output_dir "$run/evaluation"
    fi
}
export -f one
for seed in "${@:-0}"; do
    echo "adamw $seed"
    echo "adamw_double $seed --base_learning_rate 4e-3"
    echo "muon_double $seed --optimizer muon --base_learning_rate 4e-3"
    echo "muon_quad $seed --optimizer muon --base_learning_rate 8e-3"
    echo "muon_double_wsd $seed --optimizer muon --base_learning_rate 4e-3 --schedule wsd"
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' one
