#!/usr/bin/env bash
# CIFAR-10 in an hour and a half of two CPU cores: pre-train, probe, fine-tune with 1 %, 10 % and all of the labels, each
# beside training from scratch with the same budget. Every choice is in the recipes; fine-tuning looks at the test images
# once, at the end; pre-training logs their loss and k-NN accuracy and chooses nothing by them.
#
#   experiments/cifar10.sh [a folder of train-*.parquet and test-*.parquet, see experiments/prepare.py, or a name on the Hub]
set -euo pipefail
data=${1:-uoft-cs/cifar10} runs=${RUNS:-runs/cifar10} python=${PYTHON:-python}

$python examples/run_pretraining.py src/hf_mae/training/recipes/cifar10_small.yaml --data "$data" --seed "${SEED:-0}" \
    --output_dir "$runs/pretrained"
$python examples/run_linear_probing.py --model_name_or_path "$runs/pretrained" --data "$data" --fast --pooling mean \
    --num_train_epochs 50 --output_dir "$runs/probe"
experiments/finetune.sh "$runs/pretrained" "$data" "$runs" 500 40 0 1 2
experiments/finetune.sh "$runs/pretrained" "$data" "$runs" 5000 12 0 1 2
experiments/finetune.sh "$runs/pretrained" "$data" "$runs" 50000 3 0
