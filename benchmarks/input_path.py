# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images/s of one core, from JPEG files to batches, beside the usual way (PIL, float32 on the CPU).

    python benchmarks/input_path.py [path/to/jpegs] [--images 200] [--rounds 5]

Without a folder the pictures are made here: 500 x 375 pixels, quality 90, noise of all scales, about as many bytes as
ImageNet's. The ways take turns, round by round, on the same files; the table shows medians and ratios to the first.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from measuring import machine, save, seconds

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


def make_photographs(folder: Path, count: int, size: tuple[int, int] = (375, 500)):
    """Pictures of noise whose power falls with the square of the frequency, as that of photographs does."""
    height, width = size
    y, x = np.meshgrid(np.fft.fftfreq(height) * height, np.fft.rfftfreq(width) * width, indexing="ij")
    falling = 1 / np.maximum(np.hypot(y, x), 1)
    for number in range(count):
        rng = np.random.default_rng(number)
        spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) * falling
        pixels = np.fft.irfft2(spectrum, s=size)
        pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std() + rng.normal(scale=3, size=pixels.shape)
        picture = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        picture.save(folder / f"{number:04}.jpg", quality=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results.")
    args = parser.parse_args()
    if args.folder is not None:
        run(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        make_photographs(Path(folder), args.images)
        run(args)


def run(args: argparse.Namespace):
    images, fast = FolderImages(args.folder), hf_mae.data.simplejpeg
    ways = {"usual (PIL, float32)": UsualWay(images), "ours, PIL": OurWay(images, 1, None)}
    if fast is not None:
        ways["ours, simplejpeg"] = OurWay(images, 1, fast)
        ways["ours, simplejpeg, 4 views"] = OurWay(images, 4, fast)
    count = min(args.images, len(images))
    speeds = {name: [] for name in ways}
    for round_number in range(args.rounds + 1):  # the first warms up
        for name, way in ways.items():
            taken = seconds(partial(way, count), torch.device("cpu"))
            if round_number:
                speeds[name].append(count / taken)
    first = statistics.median(speeds["usual (PIL, float32)"])
    where = f"{machine(torch.device('cpu'))}, torch {torch.__version__}, PIL {PIL.__version__}"
    size = sum(path.stat().st_size for path in Path(args.folder).rglob("*") if path.is_file()) / len(images)
    print(f"{where}; {count} images, {size / 1000:.0f} KB each")
    print("| way | images/s of a core | ratio |\n|---|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.0f} | {statistics.median(values) / first:.2f} |")
    save(args.output, {"machine": where, "images": count, "bytes": size, "images_per_second": speeds})


if __name__ == "__main__":
    main()
