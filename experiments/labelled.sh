#!/usr/bin/env bash
# What pre-training brings on labelled images of any source: pre-trains on the training images without their labels,
# probes the frozen encoder, and fine-tunes with few and with all labels, each compared with training from scratch for as
# long. The images to evaluate on are seen once, at the end of each run. Runs that are already finished are skipped.
#
#   experiments/labelled.sh DATA RUNS START LABELS:EPOCHS:SEEDS ...
#
#   DATA      a folder with train and test, or anything else that hf-mae reads
#   RUNS      a folder for the runs
#   START     a recipe of pre-training, or the folder of a checkpoint, which is then used as it is
#   LABELS    number of labelled images to fine-tune with; EPOCHS over them; SEEDS runs of each kind
#
#   SEED=1 experiments/labelled.sh pictures runs/pictures_seed1 clothing 300:40:3 3000:15:3
set -euo pipefail
data=$1 runs=$2 start=$3 python=${PYTHON:-python}
shift 3

if [ -e "$start/config.json" ]; then
    checkpoint=$start
else
    checkpoint=$runs/pretrained
    [ -e "$checkpoint/run.json" ] ||
        $python -m hf_mae pretrain --recipe "$start" --data "$data" --seed "${SEED:-0}" --output_dir "$checkpoint"
fi
[ -e "$runs/probe/run.json" ] || $python -m hf_mae probe --model_name_or_path "$checkpoint" --data "$data" --fast \
    --pooling mean --num_train_epochs 50 --output_dir "$runs/probe"
[ -e "$runs/attentive_probe/run.json" ] || $python -m hf_mae probe --model_name_or_path "$checkpoint" --data "$data" \
    --fast --pooling attentive --num_train_epochs 30 --output_dir "$runs/attentive_probe"
for budget in "$@"; do
    IFS=: read -r labels epochs seeds <<<"$budget"
    experiments/finetune.sh "$checkpoint" "$data" "$runs" "$labels" "$epochs" $(seq 0 $((seeds - 1)))
done
