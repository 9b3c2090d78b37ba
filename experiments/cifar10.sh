#!/usr/bin/env bash
# CIFAR-10 in an hour and a half of two CPU cores: pre-trains, probes, and fine-tunes with 1 %, 10 % and all of the
# labels, each compared with training from scratch on the same budget. All settings are in the recipes. Fine-tuning sees
# the test images once, at its end; pre-training logs their loss and k-NN accuracy but chooses nothing by them.
#
#   experiments/cifar10.sh [a folder of train-*.parquet and test-*.parquet, see experiments/prepare.py, or a name on the Hub]
set -euo pipefail
data=${1:-uoft-cs/cifar10} runs=${RUNS:-runs/cifar10} python=${PYTHON:-python}

$python -m hf_mae pretrain --recipe cifar10_small --data "$data" --seed "${SEED:-0}" --output_dir "$runs/pretrained"
$python -m hf_mae probe --model_name_or_path "$runs/pretrained" --data "$data" --fast --pooling mean \
    --num_train_epochs 50 --output_dir "$runs/probe"
experiments/finetune.sh "$runs/pretrained" "$data" "$runs" 500 40 0 1 2
experiments/finetune.sh "$runs/pretrained" "$data" "$runs" 5000 12 0 1 2
experiments/finetune.sh "$runs/pretrained" "$data" "$runs" 50000 3 0
