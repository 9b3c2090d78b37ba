#!/usr/bin/env bash
# Pre-trains once and measures the encoder with `hf-mae evaluate` on images that are held out of the training images, so
# that choices can be made by these figures while the test images stay unseen. What is finished already is skipped.
#
#   experiments/evaluated.sh RUN DATA HELD_OUT [flags of pretrain ...]
#
#   HELD_OUT   share of the images that the encoders are measured on, with the labels of (at most 10,000 of) the others
set -euo pipefail
run=$1 data=$2 held_out=$3 python=${PYTHON:-python}
export OMP_NUM_THREADS=1
shift 3
[ -e "$run/run.json" ] || $python -m hf_mae pretrain --data "$data" --output_dir "$run" "$@"
[ -e "$run/evaluation/evaluation.json" ] || $python -m hf_mae evaluate --model "$run" --data "$data" --attentive false \
    --held_out "$held_out" --max_train_images 10000 --output_dir "$run/evaluation"
