# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Converts checkpoints from files to files, with image processor, record and card: `hf-mae convert`."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging

from ..cli import CommandParser
from ..modeling.modeling_mae import MAEModel, MAEPreTrainedModel
from ..publishing.hub import push_folder
from ..publishing.licenses import license_of
from ..publishing.model_cards import write_model_card
from ..publishing.records import add_to_record, save_record
from ..training.arguments import config_changes
from .files import written_whole
from .image_processors import find_image_processor
from .names import LAYOUTS, names_in
from .weights import check_is_free, detect_layout, export_checkpoint, import_checkpoint


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str = "mae",
    dtype: str | None = None,
    license: str | None = None,  # noqa: A002
    **config,
) -> tuple[MAEPreTrainedModel, str]:
    """Converts a checkpoint of any known layout to another one, with image processor, record and model card.

    Args:
        source (`str` or `os.PathLike`): File, folder, or name on the Hub.
        target (`str` or `os.PathLike`): Folder to make, or a `.pth` file for layouts that are files.
        to (`str`, *optional*, defaults to `"mae"`): Layout of the target: `"mae"` for hf_mae, or that of
            [`export_checkpoint`].
        dtype (`str`, *optional*): Type of the tensors in the file, such as `"float16"`. Defaults to float32.
        license (`str`, *optional*): Licence of the weights for the model card. That of Meta's weights is known.
        **config: Fields of [`MAEConfig`], as in [`import_checkpoint`].

    Returns:
        `(model, layout)`: The model, and the layout of the source.

    Raises:
        OSError: If the source cannot be read, or there is something at `target` already.
        ValueError: If the weights cannot be converted.
    """
    target = Path(target)
    if to == "mae" and target.suffix == ".pth":
        raise ValueError(
            f"The layout 'mae' is a folder, and {target} is the name of a file. 'official' is a .pth file."
        )
    check_is_free(target)
    layout = detect_layout(source)
    model = import_checkpoint(source, **config)
    image_processor = find_image_processor(source, layout, model.config)
    weights = model.state_dict()
    if dtype is not None:
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    with written_whole(target) as place:
        if to == "mae":  # the configuration still says float32, so that the smaller weights load as float32
            model.save_pretrained(place, state_dict=weights)
            image_processor.save_pretrained(place)
        else:
            model.load_state_dict(weights, assign=True)
            export_checkpoint(model, place, to, image_processor)
        if place.is_dir():
            _write_provenance(Path(source), place, layout, to, license or license_of(source))
    return model, layout


def _write_provenance(source: Path, target: Path, layout: str, to: str, license_: str | None):
    """Copies the record of the run that made the source, or records where the weights come from; writes the card."""
    if to == layout == "mae" and (source / "run.json").exists():
        for name in ("run.json", "metrics.jsonl", "recipe.yaml", "reconstructions.png"):
            if (source / name).exists():
                shutil.copy(source / name, target)
        if license_:
            add_to_record(target, {"license": license_})
    else:
        name = source.name if source.exists() else os.fspath(source)
        save_record(target, {"converted_from": name, "layout": layout, "license": license_})
    write_model_card(target)


def convert_command(argv: list[str], prog: str) -> None:
    """Runs `hf-mae convert`: converts a checkpoint, and prints what each tensor is called on both sides."""
    args = _convert_parser(prog).parse(argv)
    if args.push_to_hub and args.target.suffix == ".pth":
        raise ValueError(
            "`push_to_hub` pushes folders, and the target is a file: choose mae, vit, vit_mae, timm, pixio."
        )
    changes = config_changes(args.config_overrides)
    logging.disable_progress_bar()
    with torch.no_grad():
        model, source = convert_checkpoint(args.source, args.target, args.to, args.dtype, args.license, **changes)
    print(f"{args.source} ({source}) to {args.target} ({args.to}): {type(model).__name__}, {model.num_parameters():,}")
    print(_name_table(model, source, args.to))
    if args.push_to_hub:
        try:
            print(f"Pushed to {push_folder(args.target, args.push_to_hub)}")
        except OSError as error:
            raise OSError(f"{error} Push it later: hf-mae push {args.target} {args.push_to_hub}") from None


def _convert_parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        description="Converts weights between hf_mae, the official MAE code, timm, transformers (ViTMAE, ViT, Pixio),\n"
        "mmpretrain, lightly and the official Pixio code. The layout of the source is recognised.\n\n"
        "  hf-mae convert mae_pretrain_vit_base.pth mae-vit-base     # a file of the official code\n"
        "  hf-mae convert facebook/vit-mae-base vit-mae-base         # from the Hub\n"
        "  hf-mae convert out vit --to vit                           # for transformers without custom code",
    )
    parser.add_argument("source", help="File, folder, or name on the Hub.")
    parser.add_argument(
        "target", type=Path, help="Folder to make, or a .pth file for official, mmpretrain, lightly, pixio_official."
    )
    parser.add_argument("--to", default="mae", choices=("mae", *LAYOUTS), help="Layout of the target.")
    parser.add_argument(
        "--config_overrides",
        help="What the tensors do not show, as fields of MAEConfig: 'norm_pix_loss=true,num_attention_heads=6'.",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="Type in the file. Default: float32."
    )
    parser.add_argument("--license", help="Licence of the weights, for the card. That of Meta's weights is known.")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="Name on the Hub to push the folder to.")
    return parser


def _name_table(model: MAEPreTrainedModel, source: str, target: str) -> str:
    """Returns a table of what tensors are called in the source, in hf_mae and in the target; blocks share a row."""
    prefix = "mae." if isinstance(model, MAEModel) else ""
    names = [prefix + name for name in model.state_dict()]
    layouts = list(dict.fromkeys((source, "mae", target)))
    tables = {layout: names_in(layout, names) for layout in layouts if layout != "mae"}
    counts = Counter()
    for name in names:
        row = [_short(tables[layout][name] if layout in tables else [name]) for layout in layouts]
        counts[tuple(row)] += 1
    rows = [tuple(layouts), *counts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines[1:] = [
        f"{line} {counts[row]:3} tensor{'s' if counts[row] > 1 else ''}"
        for line, row in zip(lines[1:], rows[1:], strict=True)
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _short(names: list[str]) -> str:
    """Returns the names of one of our tensors in short: `N` for the block, `{q,k,v}` for three of them."""
    if len(names) == 3:  # queries, keys and values
        before, after = re.fullmatch(r"(.*?)q(?:uery)?(.*)", names[0]).groups()
        names = [f"{before}{{q,k,v}}{after}"]
    return re.sub(r"\.\d+\.", ".N.", re.sub(r"\.(weight|bias)$", "", "".join(names) or "-"), count=1)


__all__ = ["convert_checkpoint", "convert_command"]
