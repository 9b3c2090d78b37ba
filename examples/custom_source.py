# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains on images from a place the package knows nothing of: here the pictures in a zip file.

    python examples/custom_source.py pictures.zip

A source is a sequence: its length, an image by index, and a fingerprint that changes whenever the images change. The
order of a run, resuming, workers and evaluation follow from these three. Names are an addition: `describe` returns what
messages call an image, `key` what decides whether it is held out for evaluation.
"""

import hashlib
import io
import sys
import zipfile

import PIL.Image

import hf_mae
from hf_mae.data.sources import ImageSource


class ZipImages(ImageSource):
    """Pictures in a zip file, read in place."""

    def __init__(self, path: str):
        self.name, self._path = path, path
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith((".png", ".jpg"))]
        self._names = sorted(member.filename for member in members)
        checksums = sorted((member.filename, member.CRC) for member in members)  # which the archive holds anyway
        self.fingerprint = hashlib.sha256(repr(checksums).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        with zipfile.ZipFile(self._path) as archive:  # opened by each worker: file positions do not survive a fork
            return PIL.Image.open(io.BytesIO(archive.read(self._names[index])))

    def describe(self, index: int) -> str:
        return f"{self._path}:{self._names[index]}"

    def key(self, index: int) -> str:
        return self._names[index]


if __name__ == "__main__":
    hf_mae.pretrain(ZipImages(sys.argv[1]), "zip-pretrained", preset="tiny", image_size=64, patch_size=8, max_steps=500)
