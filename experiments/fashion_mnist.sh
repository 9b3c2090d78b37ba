#!/usr/bin/env bash
# Fashion-MNIST: the released checkpoint, probed, and fine-tuned with 1 % of the labels, beside training from scratch with
# the same budget. Ten minutes of two CPU cores. The checkpoint itself: src/hf_mae/training/recipes/fashion_mnist.yaml.
#
#   experiments/fashion_mnist.sh [a folder of train-*.parquet and test-*.parquet, or a name on the Hub]
set -euo pipefail
data=${1:-zalando-datasets/fashion_mnist} runs=${RUNS:-runs/fashion_mnist} python=${PYTHON:-python}
checkpoint=model_cards/mae-fashion-mnist

$python examples/run_linear_probing.py --model_name_or_path $checkpoint --data "$data" --fast --pooling mean \
    --num_train_epochs 50 --output_dir "$runs/probe"
experiments/finetune.sh $checkpoint "$data" "$runs" 600 40 0 1 2
