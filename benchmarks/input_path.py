# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images/s of one core, from JPEG files to batches, beside the usual way (PIL, float32 on the CPU).

    python benchmarks/input_path.py path/to/jpegs [--images 200] [--rounds 5]

The ways take turns, round by round, on the same files; the table shows medians and ratios to the first.
"""

import argparse
import os
import platform
import statistics
import time

import numpy as np
import PIL.Image
import torch

import hf_mae.data
from hf_mae.data import PretrainingDataset, collate, random_crop_box
from hf_mae.sources import FolderImages

torch.set_num_threads(1)


class UsualWay:
    """What the official augmentation does: the whole picture, crop, bicubic resize by PIL, normalise in float32."""

    def __init__(self, images: FolderImages):
        self.images = images
        self.mean, self.std = (torch.rand(3, 1, 1) for _ in range(2))

    def __call__(self, count: int):
        for index in range(count):
            image = self.images[index].convert("RGB")
            rng = np.random.default_rng(index)
            top, left, height, width = random_crop_box(image.size[::-1], (224, 224), (0.2, 1.0), rng)
            crop = image.crop((left, top, left + width, top + height)).resize((224, 224), PIL.Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous().float().div(255)
            (pixels - self.mean) / self.std


class OurWay:
    def __init__(self, images: FolderImages, views: int, decoder):
        self.dataset, self.views, self.decoder = PretrainingDataset(images, (224, 224), 196), views, decoder

    def __call__(self, count: int):
        hf_mae.data.simplejpeg = self.decoder
        samples = [(0, sample // self.views, sample % self.views) for sample in range(count)]
        collate(self.dataset.__getitems__(samples))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    images, fast = FolderImages(args.folder), hf_mae.data.simplejpeg
    ways = {"usual (PIL, float32)": UsualWay(images), "ours, PIL": OurWay(images, 1, None)}
    if fast is not None:
        ways["ours, simplejpeg"] = OurWay(images, 1, fast)
        ways["ours, simplejpeg, 4 views"] = OurWay(images, 4, fast)
    count = min(args.images, len(images))
    speeds = {name: [] for name in ways}
    for round_number in range(args.rounds + 1):  # the first warms up
        for name, way in ways.items():
            started = time.process_time()
            way(count)
            if round_number:
                speeds[name].append(count / (time.process_time() - started))
    first = statistics.median(speeds["usual (PIL, float32)"])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, PIL {PIL.__version__}"
    print(f"{machine}; {count} images")
    print("| way | images/s of a core | ratio |\n|---|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.0f} | {statistics.median(values) / first:.2f} |")


if __name__ == "__main__":
    main()
