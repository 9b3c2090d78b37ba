# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes the classes that a segmentation model predicts: a PNG for each picture, a GeoTIFF for each TIFF."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import UperNetForSemanticSegmentation

from ..data.decoding import try_to_read
from ..data.folders import FolderImages
from ..data.masks import IGNORED
from ..data.parts import TiledImages, Window
from ..modeling.formats_mae import EXIF_ORIENTATION, library
from ..modeling.image_processing_mae import MAEImageProcessor, resize
from ..modeling.reading_mae import OpenedImage, extension_of, fill_missing, read_stored, to_byte_range

# Where a GeoTIFF lies on the earth. Source: OGC GeoTIFF 1.1, annex D: ModelPixelScale, ModelTiepoint,
# ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams.
_GEOGRAPHIC_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_NODATA = 42113  # GDAL's GTiff driver


class PicturesToSegment(Dataset):
    """Gives pictures, or windows of scenes, resized as a whole to the size of a segmentation model.

    A sample has `picture` (the index of its file), `pixel_values` (channels, height, width), `no_data` (bool, of the
    size that the part has in the file, or `None`), `size` of the part, `place` (top row, left column) and `whole`, the
    size of the picture. Of a file that can't be read it has `picture` and `failure`, the reason.
    """

    def __init__(self, images: FolderImages, image_processor: MAEImageProcessor, tile: int | None = None):
        """
        Args:
            images ([`FolderImages`]): The pictures or scenes.
            image_processor ([`MAEImageProcessor`]): Says how files are read. Its `size` is that of the model.
            tile (`int`, *optional*): Side of the windows that scenes are read in. Default: whole pictures.
        """
        self.image_processor = image_processor
        self.parts = images if tile is None else TiledImages(images, tile, image_processor.reading, drop_empty=False)

    def __len__(self) -> int:
        return len(self.parts)

    def picture_of(self, index: int) -> int:
        """Returns the index of the file that part `index` belongs to."""
        return int(self.parts.parts[index, 0]) if isinstance(self.parts, TiledImages) else index

    def __getitem__(self, index: int) -> dict:
        sample, failure = try_to_read(self.parts, index, self._load)
        return {"picture": self.picture_of(index), **({"failure": failure} if sample is None else sample)}

    def _load(self, image: OpenedImage) -> dict:
        processor = self.image_processor
        stored = read_stored(image, processor.num_channels, processor.reading)
        pixels, no_data = fill_missing(to_byte_range(stored, processor.reading), processor.reading)
        resized = resize(pixels, (processor.size.height, processor.size.width)).clamp(0, 255)
        in_scene = isinstance(image, Window)
        return {
            "pixel_values": processor.rescale_and_normalize(resized),
            "no_data": no_data,
            "size": tuple(pixels.shape[1:]),
            "place": (image.rows.start, image.columns.start) if in_scene else (0, 0),
            "whole": image.scene.size if in_scene else tuple(pixels.shape[1:]),
        }


def write_class_maps(
    model: UperNetForSemanticSegmentation,
    images: FolderImages,
    image_processor: MAEImageProcessor,
    output_dir: str | os.PathLike,
    tile: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    bf16: bool = False,
) -> list[Path]:
    """Writes a map of the class of each pixel for every picture, and returns the files. Prints what can't be read.

    A map is as large as its picture. TIFF files give TIFF files with the same place on the earth, all others PNG. The
    values are numbers of classes; 255 is no data (65535 in maps of 16 bits, for more than 255 classes).

    Args:
        model ([`~transformers.UperNetForSemanticSegmentation`]): The model.
        images ([`FolderImages`]): The pictures or scenes.
        image_processor ([`MAEImageProcessor`]): That of the model.
        output_dir (`str`): Folder for the maps, which lie there as the pictures do in theirs.
        tile (`int`, *optional*): Side of the windows that TIFF and `.npy` scenes are read in; the map is put together
            of those. Default: whole pictures, resized to the size of the model.
        batch_size (`int`, *optional*, defaults to 16): Images of one forward pass.
        num_workers (`int`, *optional*, defaults to 0): Number of processes that read.
        bf16 (`bool`, *optional*, defaults to `False`): Whether to compute in bfloat16 where that is safe.

    Raises:
        UnsuitableImageError: If a picture does not suit the model, or can't be read in windows.
        ValueError: If no picture can be read.
    """
    dataset, names = PicturesToSegment(images, image_processor, tile), _names_of_maps(images)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=list)
    num_labels = model.config.num_labels
    dtype, no_data = (np.uint8, IGNORED) if num_labels <= IGNORED else (np.uint16, 65535)
    samples, written = _with_classes(model.eval(), tqdm(loader, unit="batch"), bf16), []
    for picture, parts in groupby(samples, lambda sample: sample["picture"]):
        classes, failure = _put_together(parts, dtype, no_data)
        if failure:
            print(f"Skipped {images.describe(picture)}, which can't be read: {failure}", flush=True)
            continue
        path = Path(output_dir) / names[picture]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        _write_map(partial, classes, images.describe(picture), no_data)
        os.replace(partial, path)
        written.append(path)
    if not written:
        raise ValueError(f"None of the {len(images)} pictures of {images.name} could be read.")
    return written


def _names_of_maps(images: FolderImages) -> list[str]:
    """Returns the path of each map below the folder: that of the picture, with another extension."""
    paths = [os.path.relpath(images.describe(index), images.folder) for index in range(len(images))]
    kinds = [".tif" if _is_tiff(path) else ".png" for path in paths]
    names = [path[: len(path) - len(extension_of(path))] + kind for path, kind in zip(paths, kinds, strict=True)]
    times = Counter(names)  # a.jpg and a.png
    return [name if times[name] == 1 else path + kind for name, path, kind in zip(names, paths, kinds, strict=True)]


def _is_tiff(path: str) -> bool:
    return extension_of(path) in (".tif", ".tiff")


@torch.no_grad()
def _with_classes(model: UperNetForSemanticSegmentation, batches, bf16: bool) -> Iterator[dict]:
    """Yields the samples with their `classes`, of the size that the part has in the file."""
    for batch in batches:
        readable = [sample for sample in batch if "failure" not in sample]
        if readable:
            pixel_values = torch.stack([sample["pixel_values"] for sample in readable]).to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                logits = model(pixel_values).logits
            for sample, scores in zip(readable, logits.float(), strict=True):
                scores = nn.functional.interpolate(scores[None], size=sample["size"], mode="bilinear")[0]
                sample["classes"] = scores.argmax(dim=0).cpu()
        yield from batch


def _put_together(parts: Iterator[dict], dtype: type, no_data: int) -> tuple[np.ndarray | None, str | None]:
    """Returns the map of a picture, or why there is none."""
    classes, failure = None, None
    for part in parts:
        if "failure" in part:
            failure = part["failure"]
            continue
        if classes is None:
            classes = np.full(part["whole"], no_data, dtype=dtype)
        values = part["classes"] if part["no_data"] is None else part["classes"].masked_fill(part["no_data"], no_data)
        (top, left), (height, width) = part["place"], part["size"]
        classes[top : top + height, left : left + width] = values.numpy()
    return classes, failure


def _write_map(path: Path, classes: np.ndarray, source: str, no_data: int):
    """Writes a map as PNG or, if it is that of a TIFF, as a tiled TIFF with the geographic tags of that."""
    if not _is_tiff(source):
        PIL.Image.fromarray(classes).save(path, format="PNG")
        return
    tifffile = library("tifffile", "tiff", "A map of a TIFF")
    options = {"photometric": "minisblack", "metadata": None, "compression": "zlib"}
    tags = [*_geographic_tags(source), (_NODATA, "s", 0, str(no_data), True)]
    tifffile.imwrite(path, classes, tile=(256, 256), extratags=tags, **options)


def _geographic_tags(source: str) -> list[tuple]:
    """Returns the tags of a TIFF that say where it lies, as tifffile writes them; none of one that is to be turned."""
    with library("tifffile", "tiff", "A map of a TIFF").TiffFile(source) as tiff:
        tags = tiff.pages[0].tags
        with suppress(KeyError):
            if tags[EXIF_ORIENTATION].value != 1:
                return []
        found = [tags[code] for code in _GEOGRAPHIC_TAGS if code in tags]
        return [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in found]


__all__ = ["PicturesToSegment", "write_class_maps"]
