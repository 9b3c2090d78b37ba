# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Are averages of the weights over the steps (EMA) better than the last ones? Pre-trains once and saves both.

    python experiments/averaging.py DATA RUN [name=value of a setting ...]

The average is a folder beside RUN with the decay in its name, RUN's record without its figures among its files. Measure
both with `hf-mae evaluate`.
"""

import json
import sys
from pathlib import Path

import torch
import yaml

from hf_mae import MAEImageProcessor, pretrain
from hf_mae.pretraining.run import PretrainingRun

DECAY = 0.98  # of a step: an average of about the last fifty, of five hundred in all


def main(data: str, run: Path, settings: dict):
    average: dict[str, torch.Tensor] = {}
    take_step = PretrainingRun.take_step

    def take_step_and_average(pretraining: PretrainingRun):
        take_step(pretraining)
        # The first steps count for less than the decay says, else the fresh weights would stay for long. A decay of
        # 0.98 is reached after 440 steps, one of 0.99 after 890.
        share = 1 - min(DECAY, (1 + pretraining.step) / (10 + pretraining.step))
        with torch.no_grad():
            for name, weight in pretraining.model.state_dict().items():
                average[name] = average[name].lerp(weight, share) if name in average else weight.clone()

    PretrainingRun.take_step = take_step_and_average
    model = pretrain(data, run, **settings).model
    record = json.loads((run / "run.json").read_text())
    folder = run.with_name(run.name.replace("-seed", f"_ema_{DECAY}-seed"))
    model.load_state_dict(average)
    model.save_pretrained(folder)
    MAEImageProcessor.from_pretrained(run).save_pretrained(folder)
    metrics = {"step": record["metrics"]["step"]}  # the others are those of the last weights
    (folder / "run.json").write_text(json.dumps({**record, "decay": DECAY, "metrics": metrics}, indent=2) + "\n")


if __name__ == "__main__":
    pairs = (word.split("=", 1) for word in sys.argv[3:])
    main(sys.argv[1], Path(sys.argv[2]), {name: yaml.safe_load(value) for name, value in pairs})
