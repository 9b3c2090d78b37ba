# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes features of images to a file: one row per image, with its name, its index and its label if it has one.

Vectors and maps are flat lists in parquet, with their shape in the metadata of the column. A `.safetensors` file is
kept in memory until the end. Pictures that cannot be read are named and get no row.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from ..conversion.image_processors import load_image_processor
from ..data.image_source import ImageSource
from ..data.windows import STRIDE, WindowGrid, check_stride
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor, resize
from ..modeling.modeling_mae import MAEModel
from ..modeling.modeling_mae_downstream import MAEForImageClassification
from ..modeling.patches_mae import patch_grid
from ..modeling.reading_mae import OpenedImage
from ..modeling.saving_mae import keeping_permissions
from ..publishing.records import replacing
from ..training.arguments import fit_values, parse_arguments
from .inference import (
    InferenceArguments,
    ReadableImages,
    SourceArguments,
    check_source,
    choose_device,
    collate_readable,
    describe_rows,
    open_source,
    printable,
)

KINDS = ("class_token", "mean", "patches", "pooler")
_ROW_GROUP_BYTES = 2**26  # small row groups are slow to read, large ones take memory
_DESCRIPTION = """Write features of images to a file, one row per image.

  hf-mae features --model_name_or_path out --data path/to/images --features class_token mean
  hf-mae features --model_name_or_path out --features patches --layers 6 -1 --output features.safetensors
  hf-mae features --model_name_or_path out --data path/to/scenes --tile 512
  hf-mae features --model_name_or_path out --data path/to/pictures --features patches --in_windows

Features, of each of --layers (1 is the first block, 0 its input; negative numbers count from the end):

  class_token  (width,)                the class token, the mean of them if there are several
  mean         (width,)                the mean of the patch tokens
  patches      (width, rows, columns)  the patch tokens as a map
  pooler       (width,)                the model's pooler_output, whatever --layers is

The output of the last block is taken after the final norm, as last_hidden_state; the others are taken without it, as
hidden_states. Of a classifier, pooler is the input of its linear layer; with mean pooling there is no final norm.

With --in_windows pictures are neither resized nor cropped: a map has the rows and columns of patches of the picture, in
patch_rows and patch_columns, and is put together of overlapping windows of the model's size.

How files are read (range of values, bands, no-data) is what the image processor of the model says. Rows of windows also
have the file, row and column of the pixel at their top left, rows of pages the file and the page, counted from 0."""


@dataclass
class ExtractionArguments(InferenceArguments, SourceArguments):
    """Settings of [`extract_features`]."""

    model_name_or_path: str | None = HfArg(default=None, help="Folder or name on the Hub of any model of hf_mae.")
    output: str = HfArg(default="features.parquet", help="File to write, .parquet or .safetensors.")
    overwrite: bool = HfArg(default=False, help="Replace the file if it is there.")
    features: list[str] = HfArg(
        default_factory=lambda: ["pooler"], help="Features to write, see above.", metadata={"choices": KINDS}
    )
    layers: list[int] | None = HfArg(
        default=None, help="Blocks. If given, the names of columns end in the block: mean_6. Default: the last."
    )
    image_size: int | None = HfArg(default=None, help="Pixels, a multiple of the patch. Default: the checkpoint's.")
    in_windows: bool = HfArg(
        default=False, help="Maps of whole pictures at their own size, put together of windows of the image size."
    )
    stride: float = HfArg(default=STRIDE, help="Largest distance of these windows, as a share of their side.")
    dtype: Literal["float32", "float16", "bfloat16"] = HfArg(
        default="float32", help="Type of what is written. Parquet has no bfloat16."
    )

    def __post_init__(self):
        fit_values(self)
        output = Path(self.output)
        if self.model_name_or_path is None:
            raise ValueError("`model_name_or_path` is missing: a folder or a name on the Hub with a model of hf_mae.")
        if output.suffix not in (".parquet", ".safetensors"):
            raise ValueError(f"`output` {self.output}: the name must end in .parquet or .safetensors.")
        if output.exists() and not self.overwrite:
            raise ValueError(f"`output` {self.output} is there already. Name another file, or set `overwrite`.")
        self.check_not_data(output)
        if output.suffix == ".parquet" and self.dtype == "bfloat16":
            raise ValueError(
                "Parquet has no bfloat16: set `dtype` to float16 or float32, or write a .safetensors file."
            )
        check_stride(self.stride)
        if not self.in_windows and self.stride != STRIDE:
            raise ValueError("`stride` is the distance of windows: set `in_windows`, too.")
        if self.in_windows and self.features != ["patches"]:
            raise ValueError(f"`in_windows` makes maps: set `features` to patches, got {' '.join(self.features)}.")
        if self.in_windows and output.suffix != ".parquet":
            raise ValueError("`in_windows` makes maps of several sizes, which only a .parquet `output` can hold.")
        self.device, self.dataloader_num_workers = choose_device(self.device, self.dataloader_num_workers)


class _PicturesAtOwnSize(ReadableImages):
    """Gives pictures at their own size, at most half a patch of which is stretched or squeezed at each side."""

    def __init__(self, images: ImageSource, image_processor: MAEImageProcessor, patch_size: tuple[int, int]):
        super().__init__(images, image_processor)
        self.patch_size = patch_size

    def _load(self, image: OpenedImage) -> torch.Tensor:
        (pixels,) = self.image_processor(image, do_resize=False, do_center_crop=False).pixel_values
        sides = zip(pixels.shape[1:], self.patch_size, strict=True)
        height, width = (max(round(side / patch), 1) * patch for side, patch in sides)
        return resize(pixels, (height, width))


def block_numbers(layers: Sequence[int], depth: int, model: str = "the model") -> list[int]:
    """Returns the numbers of blocks in [0, depth], without repetition; 0 is the input of the first.

    Args:
        layers (`Sequence[int]`): Blocks, negative ones from the end.
        depth (`int`): Number of blocks of the model.
        model (`str`, *optional*): What messages call the model.

    Raises:
        ValueError: If the model has no such block.
    """
    if wrong := [layer for layer in layers if not -depth - 1 <= layer <= depth]:
        raise ValueError(f"`layers` {wrong[0]}: {model} has {depth} blocks: 0 to {depth}, or -1 to {-depth - 1}.")
    return list(dict.fromkeys(layer % (depth + 1) for layer in layers))


@torch.no_grad()
def compute_features(
    model: MAEModel | MAEForImageClassification,
    pixel_values: torch.Tensor,
    kinds: list[str],
    layers: list[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Returns features of a batch by name, on the device of the model.

    Args:
        model ([`MAEModel`] or [`MAEForImageClassification`]): The model, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
        kinds (`list[str]`): Some of `class_token`, `mean`, `patches`, `pooler`, of a classifier the input of its
            linear layer.
        layers (`list[int]`, *optional*): Blocks from 0 (the input of the first) to the depth, or negative ones from the
            end. Default: the last.
    """
    pixel_values = pixel_values.to(model.device, non_blocking=True)
    grid_size = patch_grid(pixel_values, model.base_model.embeddings.patch_size)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        outputs = model.base_model(pixel_values, output_hidden_states=True)
        classifies = isinstance(model, MAEForImageClassification)
        features = {"pooler": model.pool_outputs(outputs) if classifies else outputs.pooler_output}
    states = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
    num_class_tokens = model.config.num_class_tokens
    for number in block_numbers([-1] if layers is None else layers, len(states) - 1):
        ending = "" if layers is None else f"_{number}"
        patches = states[number][:, num_class_tokens:]
        features["class_token" + ending] = states[number][:, :num_class_tokens].mean(dim=1)
        features["mean" + ending] = patches.mean(dim=1)
        features["patches" + ending] = patches.transpose(1, 2).unflatten(2, grid_size)
    return {name: values for name, values in features.items() if name.startswith(tuple(kinds))}


@torch.no_grad()
def compute_patch_maps(
    model: MAEModel | MAEForImageClassification,
    pixel_values: torch.Tensor,
    layers: list[int] | None = None,
    stride: float = STRIDE,
    batch_size: int = 64,
) -> dict[str, torch.Tensor]:
    """Returns the patch features of an image of any size by name, put together of windows of the model's size.

    Where windows overlap, the mean is taken, in which a window counts the less, the nearer a patch lies to its border,
    see [`hf_mae.data.windows.window_weights`]. Windows start at whole patches.

    Args:
        model ([`MAEModel`] or [`MAEForImageClassification`]): The model, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(1, channels, height, width)`): A normalised image, whose sides the patch
            divides. A side that is shorter than the model's is seen at once.
        layers (`list[int]`, *optional*): See [`compute_features`].
        stride (`float`, *optional*, defaults to 2/3): Largest distance of windows, as a share of their sides.
        batch_size (`int`, *optional*, defaults to 64): Windows of one forward pass.

    Returns:
        `dict[str, torch.Tensor]`: `patches`, or `patches_<layer>`: (1, width, rows, columns), on the device of the
        model.
    """
    patch_size = model.base_model.embeddings.patch_size
    sides = zip(height_width(model.config.image_size), patch_size, strict=True)
    window = tuple(side // patch for side, patch in sides)
    grid = WindowGrid.of_picture(patch_grid(pixel_values, patch_size), (window[0], window[1]), stride)
    (rows, columns), (vertical, horizontal) = grid.window, grid.weights
    places = [(i, j) for i in range(len(grid.tops)) for j in range(len(grid.lefts))]
    maps: dict[str, torch.Tensor] = {}
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        windows = [
            pixel_values[0, :, top : top + rows * patch_size[0], left : left + columns * patch_size[1]]
            for top, left in ((grid.tops[i] * patch_size[0], grid.lefts[j] * patch_size[1]) for i, j in some)
        ]
        for name, patches in compute_features(model, torch.stack(windows), ["patches"], layers).items():
            if name not in maps:
                maps[name] = patches.new_zeros(1, patches.shape[1], *grid.size, dtype=torch.float32)
            for (i, j), part in zip(some, patches.float(), strict=True):
                weights = (vertical[i][:, None] * horizontal[j]).to(part.device, non_blocking=True)
                top, left = grid.tops[i], grid.lefts[j]
                maps[name][0, :, top : top + rows, left : left + columns] += part * weights
    return maps


def _as_stored(features: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    # Copied, since a view would keep all tokens in memory.
    stored = {n: values.contiguous().to("cpu", getattr(torch, dtype), copy=True) for n, values in features.items()}
    if broken := [name for name, values in stored.items() if not values.isfinite().all()]:
        way_out = "" if dtype == "float32" else " Set `dtype` to float32."
        raise ValueError(f"{broken[0]} has values that are not finite in {dtype}.{way_out}")
    return stored


class FeatureFile:
    """Writes batches of rows to a parquet or safetensors file.

    To be used in a `with` statement: at its end the file gets its name, and an error leaves no half file behind.
    """

    def __init__(self, output: str, metadata: dict, maps_vary: bool = False):
        """
        Args:
            output (`str`): Name of the file.
            metadata (`dict`): Written into the file as JSON.
            maps_vary (`bool`, *optional*, defaults to `False`): Whether maps differ in size, which columns
                `patch_rows` and `patch_columns` have to state. Only for parquet.
        """
        self.maps_vary = maps_vary
        self.output, self.metadata = Path(output), {name: json.dumps(value) for name, value in metadata.items()}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._replacing = replacing(self.output)
        self.parquet, self.batches = self.output.suffix == ".parquet", []
        self.texts: dict[str, list[str]] = {"name": []}
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "FeatureFile":
        self.partial = self._replacing.__enter__()
        self.partial.write_bytes(b"")  # where none can be written, that is said before the work
        return self

    def __exit__(self, *error):
        self._replacing.__exit__(*error)

    def add(self, names: list[str], columns: dict[str, torch.Tensor], files: list[str] | None = None):
        """Adds rows.

        Args:
            names (`list[str]`): Names of the images.
            columns (`dict`): By name tensors whose first dimension is the number of images.
            files (`list[str]`, *optional*): Files of which the images are parts.
        """
        if self.parquet and sum(t.nbytes for batch in self.batches for t in batch.values()) > _ROW_GROUP_BYTES:
            self._write()  # without this batch, so that `finish` has something to write
        self.texts["name"] += names
        if files is not None:
            self.texts.setdefault("file", []).extend(files)
        self.batches.append(columns)

    def finish(self):
        """Writes what is left."""
        self._write()
        if self.parquet:
            self.writer.close()

    def _write(self):
        columns = {} if self.maps_vary else {name: torch.cat(self._parts(name)) for name in self.batches[0]}
        if not self.parquet:  # the names are a tensor, too, since metadata have a limit of 100 MB
            texts = {f"{name}s": bytearray(json.dumps(values).encode()) for name, values in self.texts.items()}
            tensors = {name: torch.frombuffer(text, dtype=torch.uint8) for name, text in texts.items()}
            with keeping_permissions(self.partial):
                save_file({**tensors, **columns}, self.partial, metadata=self.metadata)
            return
        arrays = [pa.array(values) for values in self.texts.values()]
        fields = [pa.field(name, pa.string()) for name in self.texts]
        for name in self.batches[0]:
            array, shape = self._varying(name) if self.maps_vary else _fixed(columns[name])
            arrays.append(array)
            fields.append(pa.field(name, arrays[-1].type, metadata={"shape": json.dumps(shape)}))
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=self.metadata))
        self.writer = self.writer or pq.ParquetWriter(self.partial, table.schema)
        self.writer.write_table(table)
        self.texts, self.batches = {name: [] for name in self.texts}, []

    def _parts(self, name: str) -> list[torch.Tensor]:
        return [batch[name] for batch in self.batches]

    def _varying(self, name: str) -> tuple[pa.Array, list]:
        """Returns a column of numbers, or of maps that differ in size, and what its metadata say of the shape."""
        parts = self._parts(name)
        if parts[0].ndim < 4:  # no maps: indices, labels, of which an image may have several
            return _fixed(torch.cat(parts))
        rows = [values.flatten().numpy() for part in parts for values in part]
        return pa.array(rows), [parts[0].shape[1], "patch_rows", "patch_columns"]


def _fixed(values: torch.Tensor) -> tuple[pa.Array, list]:
    """Returns a column of numbers or flat lists of one length, and the shape of a row."""
    array, shape = pa.array(values.flatten().numpy()), list(values.shape[1:])
    return pa.FixedSizeListArray.from_arrays(array, math.prod(shape)) if shape else array, shape


def load_feature_model(
    model_name_or_path: str, image_size: int | None = None
) -> tuple[MAEModel | MAEForImageClassification, MAEImageProcessor]:
    """Returns a model that gives features, in float32 and evaluation mode, and its image processor.

    Args:
        model_name_or_path (`str`): Folder or name on the Hub.
        image_size (`int`, *optional*): Pixels of the images. Default: the checkpoint's.
    """
    # AutoModel would give a classifier that pools by the mean a final norm that was never trained.
    config, sizes = MAEConfig.from_pretrained(model_name_or_path), {}
    model_class = MAEForImageClassification if is_classifier(config) else MAEModel
    image_processor = load_image_processor(model_name_or_path)
    if image_size is not None:
        sizes["image_size"], image_processor = image_size, image_processor.with_image_size(image_size)
    model = model_class.from_pretrained(model_name_or_path, dtype=torch.float32, **sizes)
    return model.eval(), image_processor


def is_classifier(config: MAEConfig) -> bool:
    """Returns whether a configuration was saved by a classifier."""
    return "MAEForImageClassification" in (config.architectures or [])


def extract_features(args: ExtractionArguments) -> Path:
    """Writes features of images to a file and returns its path. Prints progress and the pictures that it skipped.

    Args:
        args ([`ExtractionArguments`]): The settings.

    Raises:
        ValueError: If there are no images, none can be read, or the settings do not fit the model.
    """
    model, image_processor = load_feature_model(args.model_name_or_path, args.image_size)
    block_numbers(args.layers or [], model.config.num_hidden_layers)  # a wrong number is an error before the work
    images = open_source(args, image_processor)
    check_source(images, image_processor)
    model.to(args.device)
    loader = _loader(args, model, image_processor, images)
    print(f"{len(images):,} images from {printable(images.name)}, on {args.device}", flush=True)
    metadata = {"model": args.model_name_or_path, "label_names": images.label_names}
    written, skipped, started = 0, [], time.perf_counter()
    with FeatureFile(args.output, metadata, args.in_windows) as file, tqdm(total=len(images), unit="image") as bar:
        for indices, names, pixel_values, messages in loader:
            bar.write("".join(f"{message}\n" for message in messages), end="")
            if indices:
                described, files = describe_rows(images, indices)
                file.add(names, {**described, **_feature_columns(args, model, pixel_values)}, files)
            written += len(indices)
            skipped += messages
            bar.update(len(indices) + len(messages))
        if written == 0:
            raise ValueError(f"None of the images of {images.name} could be read. {skipped[-1]}")
        file.finish()
    speed = f"{written / (time.perf_counter() - started):,.0f} images/s"
    print(f"{written:,} rows in {args.output}, {len(skipped)} unreadable picture(s) left out, {speed}")
    return Path(args.output)


def _feature_columns(
    args: ExtractionArguments, model: MAEModel | MAEForImageClassification, pixel_values: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns the columns of a batch: features, and the rows and columns of patches where pictures differ in size."""
    if not args.in_windows:
        return _as_stored(compute_features(model, pixel_values, args.features, args.layers), args.dtype)
    maps = compute_patch_maps(model, pixel_values, args.layers, args.stride, args.batch_size)
    *_, rows, columns = next(iter(maps.values())).shape
    sizes = {"patch_rows": torch.tensor([rows]), "patch_columns": torch.tensor([columns])}
    return {**sizes, **_as_stored(maps, args.dtype)}


def _loader(
    args: ExtractionArguments,
    model: MAEModel | MAEForImageClassification,
    image_processor: MAEImageProcessor,
    images: ImageSource,
) -> DataLoader:
    dataset, batch_size = ReadableImages(images, image_processor), args.batch_size
    if args.in_windows:
        patch_size = model.base_model.embeddings.patch_size
        dataset, batch_size = _PicturesAtOwnSize(images, image_processor, patch_size), 1
    options = {"num_workers": args.dataloader_num_workers, "pin_memory": args.device.startswith("cuda")}
    return DataLoader(dataset, batch_size, collate_fn=collate_readable, **options)


def features_command(argv: list[str], prog: str):
    """Runs `hf-mae features`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    extract_features(parse_arguments(ExtractionArguments, argv, prog=prog, description=_DESCRIPTION))


__all__ = [
    "ExtractionArguments",
    "FeatureFile",
    "block_numbers",
    "compute_features",
    "compute_patch_maps",
    "extract_features",
    "features_command",
    "is_classifier",
    "load_feature_model",
]
