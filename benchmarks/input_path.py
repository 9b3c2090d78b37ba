# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures the way from JPEG files to batches of crops: images/s of a core and of workers, and how long training waits.

    python benchmarks/input_path.py [path/to/jpegs] [--sizes 500x375 1600x1200 4000x3000]

Three ways are compared: the official one (PIL and torchvision's transforms, which are rewritten here in case there is
no torchvision), that of transformers' run_mae.py (`datasets` decodes, the same transforms follow), and ours with each
decoder and with several views of a decoded image. All give collated batches of 64: theirs float32, ours uint8, since we
normalise on the device.

Without a folder, pictures are made: noise with the spectrum of photographs, saved with quality 90. Their files are as
large as those of photographs (49 KB at 500 x 375, the mean of 200 of landscapes, cities and animals).
"""

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from measuring import in_turns, ratio, report, table
from torch.utils.data import DataLoader, default_collate
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import hf_mae.data.decoding
from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingDataset, collate
from hf_mae.data.decoding import random_crop_box
from hf_mae.data.sources import FolderImages

try:
    from torchvision import transforms
except ImportError:
    transforms = None

BATCH_SIZE = 64
CPU = torch.device("cpu")


def in_batches(samples: list, size: int) -> list[list]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def official_transform():
    """Returns crop, flip, conversion, normalisation (He et al. 2021, appendix A.1), of torchvision or in its steps."""
    if transforms is not None:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=3),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            ]
        )
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    rng = np.random.default_rng()

    def transform(image: PIL.Image.Image) -> torch.Tensor:
        top, left, height, width = random_crop_box(image.size[::-1], (224, 224), (0.2, 1.0), rng)
        crop = image.crop((left, top, left + width, top + height)).resize((224, 224), PIL.Image.Resampling.BICUBIC)
        crop = crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(mean).div_(std)

    return transform


class OfficialWay(torch.utils.data.Dataset):
    """Returns the sample of an index, as torchvision's ImageFolder does."""

    collate = staticmethod(default_collate)

    def __init__(self, images: FolderImages):
        self.paths = [images.describe(index) for index in range(len(images))]
        self.transform = official_transform()

    def __getitem__(self, index: int) -> torch.Tensor:
        with open(self.paths[index], "rb") as file:
            image = PIL.Image.open(file).convert("RGB")
        return self.transform(image)

    def batches(self, count: int) -> list[list[int]]:
        return in_batches(list(range(count)), BATCH_SIZE)


class TransformersWay(OfficialWay):
    """Does what the example run_mae.py does: a data set decodes, and transforms are set on it."""

    def __init__(self, images: FolderImages):
        super().__init__(images)
        table = datasets.Dataset.from_dict({"image": self.paths}).cast_column("image", datasets.Image())
        table.set_transform(lambda rows: {"pixel_values": [self.transform(i.convert("RGB")) for i in rows["image"]]})
        self.table = table

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.table[index]["pixel_values"]


class OurWay(PretrainingDataset):
    collate = staticmethod(collate)

    def __init__(self, images: FolderImages, views: int, decoder):
        super().__init__(images, (224, 224), 196)
        self.views, self.decoder = views, decoder

    def __getitems__(self, samples: list[tuple]) -> list[dict]:
        hf_mae.data.decoding.simplejpeg = self.decoder
        return super().__getitems__(samples)

    def batches(self, count: int) -> list[list[tuple]]:
        samples = [(0, index, view) for index in range(count) for view in range(self.views)]
        return in_batches(samples, BATCH_SIZE)


def all_ways(images: FolderImages) -> dict[str, torch.utils.data.Dataset]:
    fast = hf_mae.data.decoding.simplejpeg
    ways = {
        f"official ({'torchvision' if transforms else 'PIL, written out'})": OfficialWay(images),
        "transformers run_mae (datasets)": TransformersWay(images),
        "hf_mae, PIL": OurWay(images, 1, None),
    }
    if fast is not None:
        ways["hf_mae, simplejpeg"] = OurWay(images, 1, fast)
    best = "simplejpeg" if fast else "PIL"
    ways.update({f"hf_mae, {best}, {views} views": OurWay(images, views, fast) for views in (2, 4)})
    return ways


def make_batch(way, samples: list):
    """Makes one batch, as a loader worker does."""
    return way.collate(way.__getitems__(samples) if hasattr(way, "__getitems__") else [way[index] for index in samples])


def make_batches(way, batches: list[list]):
    for samples in batches:
        make_batch(way, samples)


def through_loader(way, count: int, workers: int) -> float:
    """Returns images/s of a loader by wall clock, from the moment when the batches made ahead are used up."""
    batches = way.batches(count)
    batches = batches * -(-12 * workers // len(batches))
    loader = DataLoader(way, batch_sampler=batches, num_workers=workers, collate_fn=way.collate)
    samples = 0
    for number, _ in enumerate(loader):
        if number == 2 * workers:  # up to here, batches were made ahead
            started, samples = time.perf_counter(), 0
        samples += len(batches[number])
    return (samples - len(batches[2 * workers])) / (time.perf_counter() - started)


def data_wait(images: FolderImages, preset: str, steps: int = 10) -> dict:
    """Trains on the pictures and returns the share of time spent waiting for them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MAEForPreTraining(MAEConfig.from_preset(preset)).to(device)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    processor, way = MAEImageProcessor(), OurWay(images, 1, hf_mae.data.decoding.simplejpeg)
    size = BATCH_SIZE if device.type == "cuda" else 16
    workers = os.cpu_count() if device.type == "cuda" else 0
    warm_up = 2 + 2 * workers  # the batches that are made ahead
    steps = warm_up + max(steps, 4 * workers)
    samples = [(epoch, index, 0) for epoch in range(-(-steps * size // len(images))) for index in range(len(images))]
    batches = in_batches(samples, size)[:steps]
    loader = iter(
        DataLoader(way, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=workers > 0)
    )
    waited = 0.0
    for step in range(len(batches)):
        if step == warm_up:
            if device.type == "cuda":
                torch.cuda.synchronize()
            started, waited = time.perf_counter(), 0.0
        before = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - before
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            pixels = processor.rescale_and_normalize(batch["pixel_values"].to(device, non_blocking=True))
            loss = model(pixels, noise=batch["noise"].to(device, non_blocking=True)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loss.item()
    taken = time.perf_counter() - started
    rate = size * (len(batches) - warm_up) / taken
    return {"preset": preset, "workers": workers, "images_per_second": rate, "data_wait": waited / taken}


def make_photographs(folder: Path, count: int, size: tuple[int, int] = (375, 500)):
    """Writes pictures of noise whose power falls with the frequency as in photographs."""
    height, width = size
    y, x = np.meshgrid(np.fft.fftfreq(height) * height, np.fft.rfftfreq(width) * width, indexing="ij")
    falling = np.maximum(np.hypot(y, x), 1) ** -1.4
    for number in range(count):
        rng = np.random.default_rng(number)
        spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) * falling
        pixels = np.fft.irfft2(spectrum, s=size)
        pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std() + rng.normal(scale=1, size=pixels.shape)
        picture = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        picture.save(folder / f"{number:04}.jpg", quality=90)


def measure(folder: Path, workers_tried: list[int], args: argparse.Namespace) -> dict:
    images = FolderImages(str(folder))
    ways, count = all_ways(images), min(args.images, len(images))
    calls = {name: partial(make_batches, way, way.batches(count)) for name, way in ways.items()}
    times = in_turns(calls, args.rounds, 1, CPU)
    samples = {name: sum(map(len, way.batches(count))) for name, way in ways.items()}
    per_sample = {name: [taken / samples[name] for taken in values] for name, values in times.items()}
    base = next(iter(ways))
    rows = {
        name: {
            "images_per_second_of_a_core": 1 / statistics.median(values),
            f"ratio to {base}": ratio(values, per_sample[base]),
            "workers": {},
        }
        for name, values in per_sample.items()
    }
    for workers in workers_tried:
        for _ in range(args.rounds):
            for name, way in ways.items():
                rows[name]["workers"].setdefault(workers, []).append(through_loader(way, count, workers))
    with PIL.Image.open(images.describe(0)) as first:
        size = f"{first.width} x {first.height}"
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"first_size": size, "images": count, "kilobytes": total / len(images) / 1000, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument(
        "--sizes", nargs="+", default=["500x375", "1600x1200", "4000x3000"], help="Sizes of the pictures to make."
    )
    parser.add_argument(
        "--images", type=int, default=192, help="Pictures of 500 x 375; of larger sizes fewer, but at least 6."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers",
        nargs="*",
        type=int,
        default=[1, os.cpu_count()],
        help="Numbers of workers to try, on the first size only.",
    )
    parser.add_argument("--train", nargs="*", default=["tiny", "base"], help="Presets to train on the first size.")
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folders = [args.folder]
        if args.folder is None:
            folders = [Path(root) / size for size in args.sizes]
            for folder, size in zip(folders, args.sizes, strict=True):
                folder.mkdir()
                width, height = map(int, size.split("x"))
                make_photographs(folder, max(6, args.images * 500 * 375 // (width * height)), (height, width))
        results = [measure(folder, args.workers if folder == folders[0] else [], args) for folder in folders]
        torch.set_num_threads(threads)
        training = [data_wait(FolderImages(str(folders[0])), preset) for preset in args.train]
    tables = []
    for result in results:
        rows = result["rows"].items()
        base = next(key for key in next(iter(rows))[1] if key.startswith("ratio"))
        tables.append(f"## {result['first_size']}, {result['images']} pictures, {result['kilobytes']:.0f} KB each")
        workers = next(iter(rows))[1]["workers"]
        head = ["", "images/s of a core", base, *(f"images/s, {n} worker(s)" for n in workers)]
        body = [
            [name, row["images_per_second_of_a_core"], row[base], *map(statistics.median, row["workers"].values())]
            for name, row in rows
        ]
        tables.append(table(head, body))
    if training:
        head = ["training", "loader workers", "images/s", "share of the time waiting for data"]
        tables.append(table(head, [list(row.values()) for row in training]))
    report("Input path", tables, {"pictures": results, "training": training}, CPU, args.output)


if __name__ == "__main__":
    main()
