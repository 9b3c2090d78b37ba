# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws sheets of pictures: reconstructions, losses of patches, and the attention of the class token."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from unicodedata import combining, normalize

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.utils import logging

from ..cli import CommandParser
from ..conversion.image_processors import load_image_processor
from ..data.checking import check_embedded
from ..data.folders import SHARD_EXTENSIONS, FolderImages, walk
from ..data.sampling import spread_indices
from ..data.sources import open_images
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining, MAEModel, MAEPreTrainedModel
from ..modeling.patches_mae import at_least_float32, patch_grid
from ..modeling.reading_mae import UnsuitableImageError, extension_of
from ..publishing.records import save_picture
from ..training.arguments import check_range
from .baselines import interpolate_hidden

_MARGIN, _HEADING = 4, 16  # pixels
# Colours of a heat map from low to high. Brightness rises throughout, so that it also reads in grey.
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def reconstruction_sheet(
    model: MAEForPreTraining,
    image_processor: MAEImageProcessor,
    pixel_values: torch.Tensor,
    columns: int = 2,
    min_side: int = 112,
    **kwargs,
) -> PIL.Image.Image:
    """Draws each image four times: the original, its visible patches, an interpolation of these, the reconstruction.

    The interpolation shows what is possible without having learnt anything, see [`interpolate_hidden`].

    Args:
        model ([`MAEForPreTraining`]): The model.
        image_processor ([`MAEImageProcessor`]): The processor that made the pixel values.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images, any number of channels.
        columns (`int`, *optional*, defaults to 2): Images in a row of the sheet, each as four pictures.
        min_side (`int`, *optional*, defaults to 112): Smaller images are enlarged by a whole factor to this side.
        **kwargs: Arguments of `MAEForPreTraining.reconstruct`, such as `noise` or `mask_ratio`.
    """
    pixel_values = pixel_values.to(model.device)
    output = model.reconstruct(pixel_values, **kwargs)
    interpolation = interpolate_hidden(pixel_values, output.mask, model.mae.embeddings.patch_size, kwargs.get("valid"))
    kinds = (pixel_values, output.masked, interpolation, output.reconstruction)
    rows = list(zip(*map(image_processor.post_process_reconstruction, kinds), strict=True))
    titles = ("original", "masked", "interpolation", "reconstruction")
    return picture_sheet(rows, titles, enlarged(rows[0][0].size, min_side), columns)


def anomaly_sheet(
    model: MAEForPreTraining,
    image_processor: MAEImageProcessor,
    pixel_values: torch.Tensor,
    columns: int = 3,
    min_side: int = 112,
    **kwargs,
) -> PIL.Image.Image:
    """Draws each image next to its whole reconstruction and to the loss of its patches, from black to yellow.

    The maps of all images have one range of colours, see [`loss_maps`], whose ends are in their title.

    Args:
        model ([`MAEForPreTraining`]): The model.
        image_processor ([`MAEImageProcessor`]): The processor that made the pixel values.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images, any number of channels.
        columns (`int`, *optional*, defaults to 3): Images in a row of the sheet, each as a triple of pictures.
        min_side (`int`, *optional*, defaults to 112): Smaller images are enlarged by a whole factor to this side.
        **kwargs: Arguments of `MAEForPreTraining.reconstruct_all`, such as `num_masks`.
    """
    pixel_values = pixel_values.to(model.device)
    output = model.reconstruct_all(pixel_values, **kwargs)
    pictures, whole = map(image_processor.post_process_reconstruction, (pixel_values, output.reconstruction))
    size = enlarged(pictures[0].size, min_side)
    maps, (low, high) = loss_maps(output.patch_losses, size)
    titles = ("original", "reconstruction", f"loss {low:.2f} to {high:.2f}")
    return picture_sheet(list(zip(pictures, whole, maps, strict=True)), titles, size, columns)


@torch.no_grad()
def attention_sheet(
    model: MAEPreTrainedModel,
    image_processor: MAEImageProcessor,
    pixel_values: torch.Tensor,
    columns: int = 3,
    min_side: int = 168,
) -> PIL.Image.Image:
    """Draws each image next to two heat maps of what its class token attends to, from black to yellow.

    The first map is the attention of the last block, averaged over its heads; the second is [`attention_rollout`]. Both
    are averaged over the class tokens, if there are several. Each map is scaled to its own range and interpolated
    between the centres of the patches.

    Args:
        model ([`MAEPreTrainedModel`]): Any MAE model. Its encoder sees the whole images.
        image_processor ([`MAEImageProcessor`]): The processor that made the pixel values.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
        columns (`int`, *optional*, defaults to 3): Images in a row of the sheet, each as a triple of pictures.
        min_side (`int`, *optional*, defaults to 168): Smaller images are enlarged by a whole factor to this side.
    """
    encoder = model.base_model
    pixel_values = pixel_values.to(model.device)
    attentions = encoder(pixel_values, output_attentions=True).attentions
    num_class_tokens = encoder.config.num_class_tokens
    last = _from_class_tokens(attentions[-1].mean(dim=1), num_class_tokens)  # (B, N)
    grid_size = patch_grid(pixel_values, encoder.embeddings.patch_size)
    pictures = image_processor.post_process_reconstruction(pixel_values)
    size = enlarged(pictures[0].size, min_side)
    rollout = attention_rollout(attentions, num_class_tokens)
    maps = ([heat_map(row, grid_size, size) for row in rows] for rows in (last, rollout))
    return picture_sheet(list(zip(pictures, *maps, strict=True)), ("image", "last block", "rollout"), size, columns)


def attention_rollout(attentions: Sequence[torch.Tensor], num_class_tokens: int) -> torch.Tensor:
    """Computes how much each patch contributes to the class tokens through all blocks: attention rollout.

    The heads of each block are averaged, and the residual connection gets the same weight as the attention:
    `0.5 * A + 0.5 * I` with normalised rows. The product over all blocks gives the share of every input token in every
    output token. Source: Abnar and Zuidema 2020 (arXiv 2005.00928), section 3, equation 1.

    Args:
        attentions (`tuple` of `torch.Tensor` of shape `(batch, heads, tokens, tokens)`): Attention of each block, from
            first to last, with class tokens first: `attentions` of an encoder called with `output_attentions=True`.
        num_class_tokens (`int`): `config.num_class_tokens`, over which shares are averaged. The attentions do not say
            which of their tokens are patches.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`: Shares of the patches, in the order of their tokens, in float32
        or better. The shares of the class tokens themselves are left out; the others add up to 1.

    Raises:
        ValueError: If there are no attentions, or they are not square.
    """
    if attentions is None or len(attentions) == 0:
        raise ValueError("There are no attentions: call the model with output_attentions=True.")
    rollout = None
    for weights in attentions:
        if weights.ndim != 4 or weights.shape[2] != weights.shape[3]:
            raise ValueError(
                "Every attention must have the shape (batch, heads, tokens, tokens), as those of the encoder; got "
                f"{tuple(weights.shape)}. The last block of the decoder has fewer queries than keys."
            )
        mixing = at_least_float32(weights).mean(dim=1)  # (B, tokens, tokens)
        mixing = mixing + torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)
        mixing = mixing / mixing.sum(dim=-1, keepdim=True)  # rows of bfloat16 do not add up to 1
        rollout = mixing if rollout is None else mixing @ rollout
    patches = _from_class_tokens(rollout, num_class_tokens)
    return patches / patches.sum(dim=-1, keepdim=True)


def _from_class_tokens(weights: torch.Tensor, num_class_tokens: int) -> torch.Tensor:
    """Returns what class tokens, in the mean, take from each patch (B, N) of all weights (B, tokens, tokens)."""
    return weights[:, :num_class_tokens, num_class_tokens:].mean(dim=1)


def heat_map(
    values: torch.Tensor,
    grid_size: tuple[int, int],
    size: tuple[int, int],
    limits: tuple[float, float] | None = None,
) -> PIL.Image.Image:
    """Draws a value for each patch as colours from black to yellow, interpolated between the centres of the patches.

    Args:
        values (`torch.Tensor` of shape `(num_patches,)`): The values, in raster order.
        grid_size (`(rows, columns)`): Patches of an image.
        size (`(width, height)`): Pixels of the picture.
        limits (`(low, high)`, *optional*): Values that are black and yellow. Default: the lowest and the highest.
    """
    values = values.float().cpu()
    low, high = limits if limits is not None else (values.min().item(), values.max().item())
    values = (values - low) / max(high - low, 1e-12)
    smooth = PIL.Image.fromarray(values.reshape(grid_size).numpy()).resize(size, PIL.Image.Resampling.BICUBIC)
    levels = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(np.array(smooth), levels, _HEAT[:, channel]) for channel in range(3)]  # clips overshoots
    return PIL.Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def loss_maps(patch_losses: torch.Tensor, size: tuple[int, int]) -> tuple[list[PIL.Image.Image], tuple[float, float]]:
    """Draws the loss of each patch of some images as heat maps with one range of colours, and returns that range.

    Args:
        patch_losses (`torch.Tensor` of shape `(images, rows, columns)`): The losses. NaN, where there is no data, is
            drawn as the lowest.
        size (`(width, height)`): Pixels of each map.
    """
    finite = patch_losses[patch_losses.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 0.0)
    grid_size = tuple(patch_losses.shape[1:])
    rows = patch_losses.nan_to_num(nan=low).flatten(1)
    return [heat_map(row, grid_size, size, (low, high)) for row in rows], (low, high)


def enlarged(size: tuple[int, int], min_side: int) -> tuple[int, int]:
    """Returns (width, height) times the smallest whole factor that brings the shorter side to `min_side`."""
    factor = max(math.ceil(min_side / min(size)), 1)
    return size[0] * factor, size[1] * factor


def picture_sheet(
    rows: Sequence[Sequence[PIL.Image.Image]], titles: Sequence[str], size: tuple[int, int], columns: int
) -> PIL.Image.Image:
    """Puts the pictures of each image next to each other under their titles.

    Args:
        rows (`Sequence[Sequence[PIL.Image.Image]]`): For each image as many pictures as there are titles.
        titles (`Sequence[str]`): What the pictures are, written above the first images.
        size (`(width, height)`): Pixels of each picture in the sheet.
        columns (`int`): Images in a row of the sheet, with a gap between them.
    """
    (width, height), gap = size, 3 * _MARGIN
    columns = min(columns, len(rows))
    step_x, step_y = len(titles) * (width + _MARGIN) + gap, height + _MARGIN
    sheet_size = (columns * step_x - gap, _HEADING + math.ceil(len(rows) / columns) * step_y)
    sheet = PIL.Image.new("RGB", sheet_size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, pictures in enumerate(rows):
        row, column = divmod(number, columns)
        for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
            x = column * step_x + place * (width + _MARGIN)
            if row == 0:
                draw.text((x + 2, 2), title, fill="black")
            picture = picture.convert("RGB").resize(size, PIL.Image.Resampling.NEAREST)
            sheet.paste(picture, (x, _HEADING + row * step_y))
    return sheet


def drawable_names(names: Sequence[str]) -> list[str]:
    """Returns names of classes as Pillow's font can draw them. It has ASCII alone, and empty boxes for all else.

    Accents are left out, and a line break becomes a space. A name in another script is replaced by the number of its
    class.

    Args:
        names (`Sequence[str]`): Names of the classes 0, 1, ...
    """
    plain = ["".join(letter for letter in normalize("NFKD", name) if not combining(letter)) for name in names]
    plain = [" ".join(name.split()) for name in plain]  # Pillow does not measure a name of several lines
    return [name if name.isascii() and name else str(number) for number, name in enumerate(plain)]


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def reconstruct_command(argv: list[str], prog: str) -> None:
    """Runs `hf-mae reconstruct`: draws what a pre-trained model predicts for hidden patches of pictures."""
    description = (
        "Draws pictures next to their visible patches, an interpolation of these, and what the model predicts for\n"
        "the hidden ones. With --anomaly next to a whole reconstruction, in which every patch is the mean of its\n"
        "predictions with several masks that complement each other, and to the loss of each patch.\n\n"
        "  hf-mae reconstruct runs/fashion_mnist_sample\n"
        "  hf-mae reconstruct out picture.jpg --mask_ratio 0.5\n"
        "  hf-mae reconstruct out path/to/pictures --anomaly"
    )
    parser = _parser(prog, description, "reconstructions.png")
    parser.add_argument("--mask_ratio", type=float, help="Share of hidden patches. Default: that of the checkpoint.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the masks.")
    parser.add_argument("--anomaly", action="store_true", help="Draw how badly each patch is predicted.")
    parser.add_argument(
        "--num_masks", type=int, help="Masks of --anomaly. Default: 4 where three quarters are hidden, and so on."
    )
    args = parser.parse(argv)
    if args.num_masks is not None and not args.anomaly:
        raise ValueError("`num_masks` goes with `anomaly`: other sheets show one mask. Set both or none.")
    check_range("seed", args.seed)
    processor, inputs = _read_inputs(args)
    model = load_trained(MAEForPreTraining, args.model_name_or_path)
    masks = {"mask_ratio": args.mask_ratio, "valid": inputs.valid}
    if args.anomaly:
        what, draw = "Original, whole reconstruction and loss of the patches", anomaly_sheet
        masks.update(num_masks=args.num_masks, seed=args.seed)
    else:
        what, draw = "Original, visible patches, interpolation and reconstruction", reconstruction_sheet
        rows, columns = patch_grid(inputs.pixel_values, model.mae.embeddings.patch_size)
        generator = torch.Generator().manual_seed(args.seed)
        masks["noise"] = torch.rand(len(inputs.valid), rows * columns, generator=generator)
    _save(draw(model, processor, inputs.pixel_values, args.columns, **masks), args.output)
    print(f"{what} of {len(inputs.valid)} pictures: {args.output}")


def attention_command(argv: list[str], prog: str) -> None:
    """Runs `hf-mae attention`: draws what the class token attends to."""
    description = (
        "Draws pictures next to two maps of what the class token attends to: in the last block, and over all blocks.\n"
        "\n  hf-mae attention runs/fashion_mnist_sample                # some of the embedded pictures\n"
        "  hf-mae attention out picture.jpg path/to/pictures --output attention.png"
    )
    args = _parser(prog, description, "attention.png").parse(argv)
    processor, inputs = _read_inputs(args)
    model = load_trained(MAEModel, args.model_name_or_path)
    _save(attention_sheet(model, processor, inputs.pixel_values, args.columns), args.output)
    print(f"Attention maps of {len(inputs.valid)} pictures: {args.output}")


def _parser(prog: str, description: str, output: str) -> CommandParser:
    """Returns the arguments that both commands share."""
    parser = CommandParser(prog=prog, description=description)
    parser.add_argument("model_name_or_path", help="Checkpoint: a folder, or a name on the Hub.")
    # With a default, or argparse would call them required where the model is missing.
    parser.add_argument("images", nargs="*", default=[], help="Pictures, or folders. Default: the embedded images.")
    parser.add_argument("--num_images", type=int, default=6, help="How many are taken of a folder, evenly spread.")
    parser.add_argument("--image_size", type=int, help="Pixels, a multiple of the patch. Default: the checkpoint's.")
    parser.add_argument("--columns", type=int, default=2, help="Images in a row of the sheet.")
    parser.add_argument("--output", type=Path, default=output, help="Picture to write; an older one is replaced.")
    return parser


def _read_inputs(args: argparse.Namespace) -> tuple[MAEImageProcessor, BatchFeature]:
    """Returns the image processor of the checkpoint, and `pixel_values` and `valid` of the pictures."""
    if PIL.Image.registered_extensions().get(args.output.suffix.lower()) not in PIL.Image.SAVE:
        raise ValueError(f"`output` {args.output} is no name of a picture, such as sheet.png or sheet.jpg.")
    for name in ("num_images", "columns", "image_size"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}.")
    target = args.output.resolve()
    if any(path in (target, *target.parents) for path in map(Path.resolve, map(Path, args.images))):
        fault = "is one of the pictures and would be replaced" if target.exists() else "would be one of the pictures"
        raise ValueError(f"`output` {args.output} {fault}. Name another file, outside of the folders of pictures.")
    processor = load_image_processor(args.model_name_or_path)
    if args.image_size is not None:
        processor = processor.with_image_size(args.image_size)
    pictures = _pictures(args.images, args.num_images, processor)
    try:
        return processor, processor(pictures, return_tensors="pt", return_valid=True)
    except Exception:  # of any type, and decoders do not say of which file
        for picture in pictures:
            _check_picture(processor, picture)
        raise


def _check_picture(processor: MAEImageProcessor, picture: str):
    """Reads a picture, and names it in the error if that fails."""
    try:
        processor(picture)
    except UnsuitableImageError as error:
        raise error.of_file(picture) from error
    except Exception as error:
        raise OSError(f"{picture} can't be read: {error}. Leave it out.") from error


def _pictures(paths: list[str], num_images: int, processor: MAEImageProcessor) -> list:
    """Returns what the image processor opens: paths, of folders some, or without any some of the embedded images."""
    pictures: list = []
    for path in paths:
        if Path(path).is_dir():
            images = _images_below(path)
            pictures += [images.describe(index) for index in spread_indices(images, num_images)]
        elif Path(path).is_file():
            _refuse_shards(path, [path])
            pictures.append(path)
        else:
            raise OSError(f"There is no picture {path}.")
    if paths:
        return pictures
    embedded = open_images(split="test")
    check_embedded(embedded, processor)
    return [embedded[index] for index in spread_indices(embedded, num_images)]


def _images_below(folder: str) -> FolderImages:
    try:
        return FolderImages(folder)
    except ValueError:
        _refuse_shards(folder, [name for _, names in walk(folder) for name in names])
        raise


def _refuse_shards(path: str, files: list[str]):
    if any(extension_of(file) in SHARD_EXTENSIONS for file in files):
        raise ValueError(
            f"{path}: pictures in shards ({', '.join(SHARD_EXTENSIONS)}) are not drawn. Unpack some and name these."
        )


def load_trained(model_class: type[MAEPreTrainedModel], checkpoint: str, **sizes) -> MAEPreTrainedModel:
    """Loads a model in float32 and evaluation mode, in whichever type it was saved.

    Args:
        model_class (`type`): Its class.
        checkpoint (`str`): Folder or name on the Hub.
        **sizes: Fields of the configuration to change, such as `image_size`.

    Raises:
        ValueError: If its decoder would be new.
    """
    logging.disable_progress_bar()
    model, info = model_class.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True, **sizes)
    if any(name.startswith("decoder.") for name in info["missing_keys"]):
        raise ValueError(
            f"{checkpoint} holds no decoder, so it cannot predict patches. Give the folder of a pre-training run, or "
            "draw the attention of its encoder."
        )
    return model.eval()


def load_with_processor(checkpoint: str, image_size: int | None = None) -> tuple[MAEForPreTraining, MAEImageProcessor]:
    """Loads a pre-trained model, see [`load_trained`], and its image processor.

    Args:
        checkpoint (`str`): Folder or name on the Hub.
        image_size (`int`, *optional*): Pixels of the images. Default: the checkpoint's.
    """
    sizes = {} if image_size is None else {"image_size": image_size}
    model = load_trained(MAEForPreTraining, checkpoint, **sizes)
    image_processor = load_image_processor(checkpoint)
    return model, image_processor if image_size is None else image_processor.with_image_size(image_size)


def _save(sheet: PIL.Image.Image, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, sheet)


__all__ = [
    "anomaly_sheet",
    "attention_command",
    "attention_rollout",
    "attention_sheet",
    "drawable_names",
    "enlarged",
    "heat_map",
    "load_trained",
    "load_with_processor",
    "loss_maps",
    "picture_sheet",
    "reconstruct_command",
    "reconstruction_sheet",
]
