#!/usr/bin/env bash
# The paper's ablations (He et al. 2021, Table 1 and Fig. 5) in small. Each recipe pre-trains on CIFAR-10, then a linear
# probe on all labels measures the features. A run takes about eight minutes of a CPU core; two run at a time (JOBS).
# Runs that are already finished are skipped.
#
#   experiments/ablations.sh [a folder of train-*.parquet and test-*.parquet, or a name on the Hub]
set -euo pipefail
export data=${1:-uoft-cs/cifar10} runs=${RUNS:-runs/ablations} python=${PYTHON:-python} OMP_NUM_THREADS=1

one() { # recipe seed
    local run=$runs/$1-seed$2
    if [ ! -e "$run/probe/run.json" ]; then
        $python -m hf_mae pretrain --recipe "ablations/$1" --data "$data" --seed "$2" --output_dir "$run"
        $python -m hf_mae probe --model_name_or_path "$run" --data "$data" --fast --pooling mean --num_train_epochs 20 \
            --seed "$2" --output_dir "$run/probe"
    fi
}
export -f one
{
    for recipe in src/hf_mae/training/recipes/ablations/*.yaml; do echo "$(basename "$recipe" .yaml) 0"; done
    # What the docs recommend by has three seeds.
    for recipe in default mask_50 normalised_target decoder_depth_1 no_augmentation; do
        echo "$recipe 1"
        echo "$recipe 2"
    done
} | xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
