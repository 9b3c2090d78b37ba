#!/usr/bin/env bash
# Fine-tunes a checkpoint with few labels beside training from scratch with the same budget, three seeds each. Evaluates
# once, at the end of each run.
#
#   records/finetune.sh CHECKPOINT DATA RUNS LABELS EPOCHS
set -euo pipefail
python=${PYTHON:-python}
for seed in 0 1 2; do
    for start in pretrained scratch; do
        $python examples/run_image_classification.py examples/recipes/finetune_sample.yaml --model_name_or_path "$1" \
            --data "$2" --max_train_images "$4" --num_train_epochs "$5" --seed $seed --eval_strategy no \
            --save_strategy no --output_dir "$3/$start-$4-seed$seed" \
            $([ $start = scratch ] && echo --from_scratch --layer_decay 1)
    done
done
