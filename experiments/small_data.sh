#!/usr/bin/env bash
# What makes a small model learn more in the same steps? Variants of a recipe pre-train for three epochs on the training
# images of CIFAR-10 (cifar10_small) or Fashion-MNIST (fashion_mnist) alone, and are measured on a tenth of them. About
# six minutes of a quiet CPU core for each run; JOBS of them run at a time.
#
#   experiments/small_data.sh path/to/train-00000.parquet [seed ...]
#   RECIPE=fashion_mnist RUNS=runs/fashion_mnist_choices experiments/small_data.sh path/to/train-00000.parquet [seed ...]
set -euo pipefail
export data=$1 recipe=${RECIPE:-cifar10_small} runs=${RUNS:-runs/small_data}
shift

one() { # name seed flags ...
    experiments/evaluated.sh "$runs/$1-seed$2" "$data" 0.1 --recipe "$recipe" --num_train_epochs 3 \
        --eval_images 1000 --eval_steps 600 --seed "${@:2}"
}
export -f one
for seed in "${@:-0}"; do
    echo "adamw $seed"
    echo "adamw_double $seed --base_learning_rate 4e-3"
    echo "muon_double $seed --optimizer muon --base_learning_rate 4e-3"
    echo "muon_quad $seed --optimizer muon --base_learning_rate 8e-3"
    echo "muon_quad_wsd $seed --optimizer muon --base_learning_rate 8e-3 --schedule wsd"
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' one
