#!/usr/bin/env bash
# Fashion-MNIST: probes the released checkpoint and fine-tunes it with 1 % of the labels, compared with training from
# scratch on the same budget. Ten minutes of two CPU cores. The recipe `fashion_mnist` pre-trained the checkpoint itself.
#
#   experiments/fashion_mnist.sh [a folder of train-*.parquet and test-*.parquet, or a name on the Hub]
set -euo pipefail
data=${1:-zalando-datasets/fashion_mnist} runs=${RUNS:-runs/fashion_mnist} python=${PYTHON:-python}
checkpoint=model_cards/mae-fashion-mnist

$python -m hf_mae probe --model_name_or_path $checkpoint --data "$data" --fast --pooling mean --num_train_epochs 50 \
    --output_dir "$runs/probe"
experiments/finetune.sh $checkpoint "$data" "$runs" 600 40 0 1 2
