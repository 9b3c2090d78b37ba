# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads boxes as their files state them: COCO, YOLO, Pascal VOC, a column of a table or of a data set."""

from pathlib import Path

from ..shards import DatasetImages, ParquetImages
from ..sources import open_images
from .coco import find_coco, read_coco
from .columns import is_table_of_boxes, open_table, read_column
from .stated import AnnotatedImages, Label, StatedBoxes
from .voc import find_voc
from .yolo import find_yolo


def open_annotated(
    data: str,
    split: str,
    annotations: str | None = None,
    objects_column: str = "objects",
    box_format: str = "xywh",
    image_column: str | None = None,
    dataset_config: str | None = None,
) -> AnnotatedImages | None:
    """Opens images and reads their boxes, in the format that is found. No image is decoded.

    Args:
        data (`str`): A folder, parquet files, or a data set on the Hub.
        split (`str`): `train` or `val`.
        annotations (`str`, *optional*): COCO file of the images in `data`, instead of a look for one.
        objects_column (`str`, *optional*, defaults to `"objects"`): Column with the boxes, of data sets and tables.
        box_format (`str`, *optional*, defaults to `"xywh"`): What the numbers in that column are: `"xywh"` (left, top,
            width, height) or `"xyxy"` (left, top, right, bottom).
        image_column, dataset_config (*optional*): See [`open_images`].

    Returns:
        [`AnnotatedImages`], or `None` if there is no such split.

    Raises:
        OSError: If a file can't be found or read.
        ValueError: If no boxes are found, or several files could be meant.
    """
    root = Path(data)
    if annotations is not None:
        return read_coco(Path(annotations), root)
    if root.is_dir():
        found = find_coco(root, split) or find_yolo(root, split) or find_voc(root, split)
        if found is not None:
            return found
        if is_table_of_boxes(root, objects_column):
            return open_table(root, split, objects_column, box_format)
        if split == "val" and any(find(root, "train") for find in (find_coco, find_yolo, find_voc)):
            return None
    images = open_images(
        data,
        "train" if split == "train" else "test",
        image_column=image_column,
        dataset_config=dataset_config,
        labels="none",
    )
    if images is None:
        return None
    if not isinstance(images, ParquetImages | DatasetImages):
        raise ValueError(
            f"Found no boxes in {data}. Expected a COCO file (.json with images, annotations and categories), YOLO "
            "files (images/ and labels/), Pascal VOC files (Annotations/*.xml), or metadata.jsonl with a column "
            f"{objects_column!r}. A COCO file that lies elsewhere is named by `annotations`."
        )
    return read_column(images, objects_column, box_format)


__all__ = ["AnnotatedImages", "Label", "StatedBoxes", "open_annotated"]
