#!/usr/bin/env bash
# Trains detectors on the generated scenes from a checkpoint and from scratch: the same encoder, the same steps, so the same
# time; from scratch all blocks learn at the full rate. One run of each per seed, JOBS at a time. Runs that are already
# finished are skipped.
#
#   experiments/detection.sh CHECKPOINT RUNS [SEED ...]
set -euo pipefail
export checkpoint=$1 runs=$2 python=${PYTHON:-python} OMP_NUM_THREADS=1
shift 2

one() { # start seed
    local run=$runs/$1-seed$2
    [ -e "$run/run.json" ] && return
    $python -m hf_mae detect --model_name_or_path "$checkpoint" --seed "$2" --max_steps "${STEPS:-600}" \
        --output_dir "$run" $([ "$1" = scratch ] && echo --from_scratch)
}
export -f one
for seed in "${@:-0}"; do printf '%s\n' "pretrained $seed" "scratch $seed"; done |
    xargs -P "${JOBS:-2}" -L 1 bash -c 'one $0 $1'
for run in "$runs"/*-seed*; do
    $python -c 'import json, sys; r = json.load(open(sys.argv[1] + "/eval_results.json"))
print(sys.argv[1], *(f"{name} {r[name]:.4f}" for name in ("eval_map", "eval_map50", "eval_map75")))' "$run"
done
