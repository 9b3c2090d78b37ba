# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What do overlapping windows gain in segmentation? Trains on small pictures and predicts large ones, at some strides.

    python experiments/windows.py CHECKPOINT RUN     # about ten minutes of a CPU core

Training pictures show 2 x 2 embedded garments, those to predict hundreds, so that borders of windows cut garments.
Beside our weights, which fall to the border of a window, each stride is measured with the plain mean of all windows.
RUN's `run.json` gets the figures: the share of right pixels among all and among those of garments, and mean IoU.
"""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import UperNetForSemanticSegmentation

from hf_mae import MAEImageProcessor
from hf_mae.data import windows
from hf_mae.data.folders import FolderImages
from hf_mae.data.masks import sample_pairs
from hf_mae.evaluation.segmentation_metrics import ConfusionMatrix
from hf_mae.finetuning.segmentation import SegmentationArguments, segment
from hf_mae.finetuning.segmentation_maps import write_class_maps

STRIDES = (1.0, 0.8, 2 / 3, 0.5)
WINDOW = 56  # pixels: 2 x 2 garments
LARGE, SHIFT = 12, 14  # garments along a side of a large picture, of which half a garment is cut off


def plain_weights(starts, window: int, side: int) -> torch.Tensor:
    """Every window counts the same at a pixel: what `window_weights` is compared with."""
    total = torch.zeros(side)
    for start in starts:
        total[start : start + window] += 1
    return torch.stack([1 / total[start : start + window] for start in starts])


def write_pictures(folder: Path):
    for split, garments, shift in (("train", 2, 0), ("val", LARGE, SHIFT)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number, pair in enumerate(sample_pairs(split, garments)):
            for kind, picture in (("images", pair.images[pair.index]), ("masks", pair.mask)):
                picture = picture.crop((shift, shift, *picture.size))
                picture.save(folder / split / kind / f"{number:03}.png")


def figures(maps: Path, masks: Path, num_labels: int) -> dict[str, float]:
    """Returns what the maps are worth, over all pixels of all pictures."""
    confusion = ConfusionMatrix(num_labels)
    for path in masks.glob("*.png"):
        pictures = (np.array(PIL.Image.open(folder / path.name), dtype=np.int64) for folder in (maps, masks))
        confusion.add(*map(torch.from_numpy, pictures))
    garments = confusion.matrix[1:].double()  # by true and predicted class; the first is the background
    return {**confusion.figures()[0], "garment_accuracy": (garments[:, 1:].trace() / garments.sum()).item()}


def main(checkpoint: str, run: Path):
    data = run.with_name(run.name + "-data")
    write_pictures(data)
    options = {
        "num_train_epochs": 6,
        "learning_rate": 1e-3,
        "image_size": [WINDOW],
        "head_size": 32,
        "disable_tqdm": True,
    }
    arguments = {"model_name_or_path": checkpoint, "data": str(data), "output_dir": str(run)}
    segment(SegmentationArguments(**arguments, **options, eval_strategy="no", save_strategy="no"))
    model = UperNetForSemanticSegmentation.from_pretrained(run)
    image_processor = MAEImageProcessor.from_pretrained(run)
    images = FolderImages(data / "val" / "images", labels="none")
    found = []
    for weights, function in (("falling", windows.window_weights), ("equal", plain_weights)):
        windows.window_weights = function
        for stride in STRIDES:
            maps = run / "maps" / f"{weights}-{stride:.2f}"
            write_class_maps(model, images, image_processor, maps, (WINDOW, WINDOW), stride)
            row = figures(maps, data / "val" / "masks", model.config.num_labels)
            found.append({"weights": weights, "stride": round(stride, 3), **row})
            print(found[-1], flush=True)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "windows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
