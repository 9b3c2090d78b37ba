#!/usr/bin/env bash
# CIFAR-10 in two hours of two CPU cores: pre-trains, probes, and fine-tunes with 1 %, 10 % and all of the labels.
#
#   experiments/cifar10.sh [a folder of train-*.parquet and test-*.parquet, see experiments/prepare.py, or a name on the Hub]
set -euo pipefail
experiments/labelled.sh "${1:-uoft-cs/cifar10}" "${RUNS:-runs/cifar10}" cifar10_muon 500:40:3 5000:12:3 50000:3:3
