#!/usr/bin/env bash
# What makes a small model learn more from a few thousand photographs in as many epochs? Variants of the recipe clothing
# pre-train for twenty epochs, and are measured on half of the pictures. About six minutes of a quiet CPU core for each
# run, four times that for 80 epochs; JOBS of them run at a time. The two schedules are fine-tuned, too.
#
#   experiments/clothing_choices.sh path/to/training/pictures [seed ...]    # one folder for each class
set -euo pipefail
export data=$1 runs=${RUNS:-runs/clothing_choices}
shift
export model="hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512,decoder_hidden_size=64"
model+=",decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=256"

one() { # name seed flags ...
    experiments/evaluated.sh "$runs/$1-seed$2" "$data" 0.5 --recipe clothing --num_train_epochs 20 --seed "${@:2}"
}
finetuned() { # name seed
    local run=$runs/finetuned_$1-seed$2
    [ -e "$run/run.json" ] || ${PYTHON:-python} -m hf_mae finetune --recipe finetune_sample --data "$data" \
        --model_name_or_path "$runs/$1-seed$2" --held_out 0.5 --num_train_epochs 12 --seed "$2" --eval_strategy no \
        --save_strategy no --output_dir "$run"
}
export -f one finetuned
for seed in "${@:-0}"; do
    echo "muon $seed"
    echo "muon_half $seed --base_learning_rate 4e-3"
    echo "muon_double $seed --base_learning_rate 16e-3"
    echo "wsd $seed --schedule wsd"
    echo "batch_64 $seed --effective_batch_size 64"
    echo "batch_256 $seed --effective_batch_size 256"
    echo "views_2 $seed --views_per_image 2"
    echo "prediction_50 $seed --config_overrides $model,prediction_ratio=0.5"
    echo "crops_fifth $seed --crop_scale_min 0.2"
    echo "muon_80 $seed --num_train_epochs 80"
    echo "batch_64_80 $seed --num_train_epochs 80 --effective_batch_size 64"
    echo "crops_fifth_80 $seed --num_train_epochs 80 --crop_scale_min 0.2"
    echo "wsd_80 $seed --num_train_epochs 80 --schedule wsd"
    echo "adamw_80 $seed --num_train_epochs 80 --optimizer adamw --base_learning_rate 4e-3"
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' one
for seed in "${@:-0}"; do
    printf '%s\n' "wsd_80 $seed" "muon_80 $seed"
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'finetuned "$@"' finetuned
