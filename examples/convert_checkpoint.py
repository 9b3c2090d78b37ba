# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Converts checkpoints: official MAE code, timm, transformers' ViTMAE and ViT, lightly, hf_mae; from any to any.

    python examples/convert_checkpoint.py mae_pretrain_vit_base.pth mae-vit-base            # to a folder of hf_mae
    python examples/convert_checkpoint.py facebook/vit-mae-base mae-vit-base                # from the Hub
    python examples/convert_checkpoint.py timm/vit_base_patch16_224.mae mae-vit-base --push_to_hub me/mae-vit-base
    python examples/convert_checkpoint.py runs/fashion_mnist_sample vit-sample --to vit     # for stock ViTModel
    python examples/convert_checkpoint.py mae-vit-base mae.pth --to official

What the tensors do not tell is given by --config_overrides: 'norm_pix_loss=true,num_attention_heads=6'.
docs/checkpoints.md says which file holds what.
"""

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import cached_file, logging

from hf_mae import MAEImageProcessor, MAEModel, export_checkpoint, import_checkpoint
from hf_mae.conversion import detect_layout, names_in
from hf_mae.publishing import license_of, push_folder, write_model_card
from hf_mae.training.arguments import config_changes
from hf_mae.training.run_log import save_record


def image_processor_of(source: str, layout: str, model) -> MAEImageProcessor:
    """Ours, or one with the mean and deviation that are beside the weights, or else ImageNet's."""
    config, statistics = model.config, {}
    folder = str(Path(source).parent) if Path(source).is_file() else source
    for name in ("preprocessor_config.json", "config.json"):
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
        content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        if layout == "mae" and "image_processor_type" in content:
            processor = MAEImageProcessor.from_pretrained(folder)
            height, width = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
            if processor.num_channels == config.num_channels and processor.crop_height_width == (height, width):
                return processor
        weights = content.get("pretrained_cfg") or {}  # of timm
        for ours, theirs in (("image_mean", "mean"), ("image_std", "std")):
            value = content.get(ours) or weights.get(theirs)
            if value and len(value) == config.num_channels:
                statistics.setdefault(ours, value)
    if not statistics:
        print(
            "No mean and deviation are beside the weights: those of ImageNet are taken (0.5 unless there are 3 "
            "channels). Change them in preprocessor_config.json if the model was trained with others."
        )
    return MAEImageProcessor.for_image_size(config.image_size, num_channels=config.num_channels, **statistics)


def save_story(args: argparse.Namespace, layout: str):
    """Leaves the record of the run, if the source is ours, or where the weights come from; and the card."""
    source = Path(args.source)
    if args.to == "mae" and layout == "mae" and (source / "run.json").exists():
        for name in ("run.json", "metrics.jsonl", "recipe.yaml", "reconstructions.png"):
            if (source / name).exists():
                shutil.copy(source / name, args.target)
    else:
        license_ = args.license or license_of(args.source)
        name = source.name if source.exists() else args.source
        save_record(args.target, {"converted_from": name, "layout": layout, "license": license_})
    write_model_card(args.target)


def print_table(model, source: str, target: str):
    """Who calls what how, blocks together."""
    names = [name if not isinstance(model, MAEModel) else f"mae.{name}" for name in model.state_dict()]

    def called(layout: str, name: str) -> str:
        theirs = [name] if layout == "mae" else names_in(layout, names)[name]
        if len(theirs) == 3:  # queries, keys and values
            before, after = re.fullmatch(r"(.*?)q(?:uery)?(.*)", theirs[0]).groups()
            theirs = [f"{before}{{q,k,v}}{after}"]
        return "".join(theirs) or "-"

    layouts = list(dict.fromkeys((source, "mae", target)))
    stems = Counter()
    for name in names:
        row = [re.sub(r"\.\d+\.", ".N.", re.sub(r"\.(weight|bias)$", "", called(each, name))) for each in layouts]
        stems[tuple(row)] += 1
    rows = [tuple(layouts), *stems]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        count = f"{stems[row]:3} tensors" if row in stems else ""
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), count)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="File, folder, or name on the Hub.")
    parser.add_argument("target", type=Path, help="Folder to make; a .pth file for official and lightly.")
    parser.add_argument("--to", default="mae", choices=("mae", "official", "timm", "vit", "vit_mae", "lightly"))
    parser.add_argument("--config_overrides", help="Fields of MAEConfig: 'norm_pix_loss=true,num_attention_heads=6'.")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="Of the file. Default: float32.")
    parser.add_argument("--license", help="Of the weights, for the card. Meta's are known to be cc-by-nc-4.0.")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="Name on the Hub to push the folder to.")
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.to == "mae" and ((args.target / "config.json").exists() or args.target.is_file()):
        sys.exit(f"{args.target} exists already. Choose another path, or remove it.")
    if args.to == "mae" and args.target.suffix == ".pth":
        sys.exit(f"--to mae makes a folder, and {args.target} is the name of a file. --to official writes .pth files.")
    if args.push_to_hub and args.target.suffix == ".pth":
        sys.exit("--push_to_hub pushes folders: choose --to mae, vit, vit_mae or timm.")
    try:
        changes = config_changes(args.config_overrides)
        source = detect_layout(args.source)
        model = import_checkpoint(args.source, **changes)
        image_processor = image_processor_of(args.source, source, model)
        weights = model.state_dict()
        if args.dtype:
            weights = {name: tensor.to(getattr(torch, args.dtype)) for name, tensor in weights.items()}
        if args.to == "mae":  # the configuration goes on saying float32, and so weights of half the size are loaded
            model.save_pretrained(args.target, state_dict=weights)
            image_processor.save_pretrained(args.target)
        else:
            model.load_state_dict(weights, assign=True)
            export_checkpoint(model, args.target, args.to, image_processor)
        if args.target.is_dir():
            save_story(args, source)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{args.source} ({source}) to {args.target} ({args.to}): {type(model).__name__}, {model.num_parameters():,}")
    print_table(model, source, args.to)
    if args.push_to_hub:
        try:
            print(f"Pushed to {push_folder(args.target, args.push_to_hub)}")
        except OSError as error:
            sys.exit(f"{error}\nLater: python examples/push_to_hub.py {args.target} {args.push_to_hub}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
