#!/usr/bin/env bash
# Fashion-MNIST in ten minutes of two CPU cores: probes the released checkpoint, which the recipe `fashion_mnist` has
# pre-trained, and fine-tunes it with 1 % of the labels.
#
#   experiments/fashion_mnist.sh [a folder of train-*.parquet and test-*.parquet, or a name on the Hub]
set -euo pipefail
experiments/labelled.sh "${1:-zalando-datasets/fashion_mnist}" "${RUNS:-runs/fashion_mnist}" model_cards/mae-fashion-mnist \
    600:40:3
