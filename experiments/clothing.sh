#!/usr/bin/env bash
# Photographs of clothes (3,068 to train on, ten classes, CC0), 96 x 96 pixels, two CPU cores: what does pre-training on so
# few pictures bring? Fine-tunes with 10 % and with all of the labels, three seeds each.
#
#   experiments/clothing.sh path/to/pictures    # a folder with train and test, each with one folder for each class
set -euo pipefail
experiments/labelled.sh "$1" "${RUNS:-runs/clothing}" clothing 307:40:3 3068:6:3
