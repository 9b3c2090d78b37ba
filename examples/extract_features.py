# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes features of images to a file: one row per image, with its name, its index and its label if it has one.

    python examples/extract_features.py --model_name_or_path out --data path/to/images --features class_token mean
    python examples/extract_features.py --model_name_or_path out --features patches --layers 6 -1 --output o.safetensors

What can be written, of each of --layers (blocks from 1; 0: what enters the first one; negative: from the end):

    class_token  (width,)                the class token
    mean         (width,)                the mean of the patch tokens
    patches      (width, rows, columns)  the patch tokens as a map
    pooler       (width,)                the model's pooler_output, whatever --layers

The last block is taken after the final norm, as last_hidden_state; the others as they are, as hidden_states. Of a
classifier, pooler is what its linear layer sees; one that pools by the mean has no final norm. Vectors and maps are
flat lists in parquet, with their shape in the metadata of the column; a .safetensors file is kept in memory until the
end. Pictures that can't be read are named and get no row.
"""

import json
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForImageClassification, MAEImageProcessor, MAEModel
from hf_mae.data.sampling import default_num_workers
from hf_mae.data.sources import ImageSource, open_images
from hf_mae.modeling.patches_mae import patch_grid
from hf_mae.training.arguments import parse_arguments, setting

KINDS = ("class_token", "mean", "patches", "pooler")
ROW_GROUP_BYTES = 2**26  # small row groups are slow to read, large ones take memory


@dataclass
class ExtractionArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint of any MAE model, ours."})
    data: str | None = setting(None, "Folder, .tar or .parquet file, Hub name. Nothing: the embedded images.")
    split: Literal["train", "test"] = setting("train", "Which images of it.")
    output: str = setting("features.parquet", "File to write, .parquet or .safetensors.")
    overwrite: bool = setting(False, "Replace --output if it is there.")
    features: list[str] = field(default_factory=lambda: ["pooler"], metadata={"help": "See above.", "choices": KINDS})
    layers: list[int] | None = setting(None, "Nothing: the last. If given, the names of columns end in it: mean_6.")
    image_size: int | None = setting(None, "Pixels, if not the checkpoint's: a multiple of the patch.")
    dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", "Of what is written; parquet: no bfloat16.")
    batch_size: int = setting(64, "Images of one forward pass.")
    device: str | None = setting(None, "Nothing: cuda if there is one, else cpu. On cuda with bfloat16 autocast.")
    dataloader_num_workers: int | None = setting(None, "Nothing: one per CPU core, at most 16; on a CPU none.")

    def __post_init__(self):
        output = Path(self.output)
        if output.suffix not in (".parquet", ".safetensors"):
            raise ValueError(f"--output {self.output}: the name must end in .parquet or .safetensors.")
        if output.exists() and not self.overwrite:
            raise ValueError(f"--output {self.output} is there already. Name another file, or add --overwrite.")
        if output.suffix == ".parquet" and self.dtype == "bfloat16":
            raise ValueError("Parquet has no bfloat16: take --dtype float16 or float32, or a .safetensors file.")
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.dataloader_num_workers is None:  # on a CPU the model has better use for the cores
            self.dataloader_num_workers = 0 if self.device == "cpu" else default_num_workers()


class ReadableImages(Dataset):
    """Images through the image processor. No other stands in for one that can't be read."""

    def __init__(self, images: ImageSource, image_processor: MAEImageProcessor):
        self.images, self.image_processor = images, image_processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, str, torch.Tensor | None, str | None]:
        """Returns index, name, pixel values (channels, height, width), and what to say if there are none."""
        name = os.fsencode(self.images.describe(index)).decode(errors="replace")  # files may not be named in UTF-8
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PIL about what it mends
                image = self.images[index]
                image = ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image
                return index, name, self.image_processor(image, return_tensors="pt").pixel_values[0], None
        except Exception as error:  # decoders raise what they like for broken files
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
            return index, name, None, f"Skipped {name}, which can't be read: {reason}"


def collate(samples: list[tuple]) -> tuple[list[int], list[str], torch.Tensor | None, list[str]]:
    """Indices, names and stacked pixel values of the images that can be read, and what to say of the others."""
    messages = [sample[3] for sample in samples if sample[2] is None]
    samples = [sample for sample in samples if sample[2] is not None]
    pixel_values = torch.stack([sample[2] for sample in samples]) if samples else None
    return [sample[0] for sample in samples], [sample[1] for sample in samples], pixel_values, messages


def names_of_layers(layers: list[int] | None, depth: int) -> dict[int, str]:
    """Numbers of blocks, from 0 to depth, and what the names of their columns end in."""
    if layers is None:
        return {depth: ""}
    if wrong := [layer for layer in layers if not -depth - 1 <= layer <= depth]:
        raise ValueError(f"--layers {wrong[0]}: the model has {depth} blocks: 0 to {depth}, or -1 to {-depth - 1}.")
    return {layer % (depth + 1): f"_{layer % (depth + 1)}" for layer in layers}


@torch.no_grad()
def extract(model: MAEModel, pixel_values: torch.Tensor, args: ExtractionArguments) -> dict[str, torch.Tensor]:
    """Features (images, ...) by the names of their columns, as they are to be written. Takes classifiers, too."""
    pixel_values = pixel_values.to(model.device, non_blocking=True)
    grid_size = patch_grid(pixel_values, model.base_model.embeddings.patch_size)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        outputs = model.base_model(pixel_values, output_hidden_states=True)
        features = {"pooler": getattr(model, "fc_norm", torch.nn.Identity())(outputs.pooler_output)}
    states = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
    for layer, ending in names_of_layers(args.layers, len(states) - 1).items():
        patches = states[layer][:, 1:]
        features["class_token" + ending] = states[layer][:, 0]
        features["mean" + ending] = patches.mean(dim=1)
        features["patches" + ending] = patches.transpose(1, 2).unflatten(2, grid_size)
    chosen = {name: values for name, values in features.items() if name.startswith(tuple(args.features))}
    # Copied: a view would keep all tokens in memory.
    stored = {n: values.contiguous().to("cpu", getattr(torch, args.dtype), copy=True) for n, values in chosen.items()}
    if broken := [name for name, values in stored.items() if not values.isfinite().all()]:
        raise ValueError(f"{broken[0]} has values that are not finite in {args.dtype}. Try --dtype float32.")
    return stored


class FeatureFile:
    """Takes batches of rows. The file has its name only when it is whole."""

    def __init__(self, output: str, metadata: dict):
        self.output, self.metadata = Path(output), {name: json.dumps(value) for name, value in metadata.items()}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.partial = self.output.with_name(self.output.name + ".partial")
        self.parquet, self.writer, self.names, self.batches = self.output.suffix == ".parquet", None, [], []

    def add(self, names: list[str], columns: dict[str, torch.Tensor]):
        if self.parquet and sum(t.nbytes for batch in self.batches for t in batch.values()) > ROW_GROUP_BYTES:
            self._write()  # all but this batch, so that there is something to finish with
        self.names += names
        self.batches.append(columns)

    def finish(self):
        self._write()
        if self.parquet:
            self.writer.close()
        os.replace(self.partial, self.output)

    def _write(self):
        columns = {name: torch.cat([batch[name] for batch in self.batches]) for name in self.batches[0]}
        if not self.parquet:  # the names are a tensor, too: metadata have a limit of 100 MB
            names = torch.frombuffer(bytearray(json.dumps(self.names).encode()), dtype=torch.uint8)
            save_file({"names": names, **columns}, self.partial, metadata=self.metadata)
            return
        arrays, fields = [pa.array(self.names)], [pa.field("name", pa.string())]
        for name, values in columns.items():
            array, shape = pa.array(values.flatten().numpy()), list(values.shape[1:])
            arrays.append(pa.FixedSizeListArray.from_arrays(array, math.prod(shape)) if shape else array)
            fields.append(pa.field(name, arrays[-1].type, metadata={"shape": json.dumps(shape)}))
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=self.metadata))
        self.writer = self.writer or pq.ParquetWriter(self.partial, table.schema)
        self.writer.write_table(table)
        self.names, self.batches = [], []


def main():
    args = parse_arguments(ExtractionArguments, __doc__)
    logging.disable_progress_bar()
    images = open_images(args.data, args.split)
    if images is None:
        raise ValueError(f"{args.data} has no images for --split {args.split}.")
    # AutoModel would give a classifier that pools by the mean a final norm that no one has trained.
    classifier = "MAEForImageClassification" in (MAEConfig.from_pretrained(args.model_name_or_path).architectures or [])
    model_class, size = MAEForImageClassification if classifier else MAEModel, {}
    processor = MAEImageProcessor.from_pretrained(args.model_name_or_path)
    if args.image_size is not None:
        size["image_size"], processor = args.image_size, processor.with_image_size(args.image_size)
    model = model_class.from_pretrained(args.model_name_or_path, dtype=torch.float32, **size).to(args.device).eval()
    names_of_layers(args.layers, model.config.num_hidden_layers)  # wrong ones are told before the work
    options = {"num_workers": args.dataloader_num_workers, "pin_memory": args.device.startswith("cuda")}
    loader = DataLoader(ReadableImages(images, processor), args.batch_size, collate_fn=collate, **options)
    file = FeatureFile(args.output, {"model": args.model_name_or_path, "label_names": images.label_names})
    print(f"{len(images):,} images from {images.name}, on {args.device}", flush=True)
    written, skipped = 0, []
    try:
        with tqdm(total=len(images), unit="image") as bar:
            for indices, names, pixel_values, messages in loader:
                bar.write("".join(f"{message}\n" for message in messages), end="")
                if indices:
                    labels = {} if images.labels is None else {"label": torch.from_numpy(images.labels[indices])}
                    file.add(names, {"index": torch.tensor(indices), **labels, **extract(model, pixel_values, args)})
                written += len(indices)
                skipped += messages
                bar.update(len(indices) + len(messages))
        if written == 0:
            raise ValueError(f"None of the images of {images.name} could be read. {skipped[-1]}")
        file.finish()
    finally:
        file.partial.unlink(missing_ok=True)
    speed = f"{written / bar.format_dict['elapsed']:,.0f} images/s"
    print(f"{written:,} rows in {args.output}, {len(skipped)} unreadable picture(s) left out, {speed}")


if __name__ == "__main__":
    main()
