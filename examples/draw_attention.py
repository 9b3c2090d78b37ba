# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws what the class token attends to: picture | attention of the last block | rollout over all blocks.

python examples/draw_attention.py runs/fashion_mnist_sample                # some of the embedded images
python examples/draw_attention.py out picture.jpg ... --image_size 448     # larger images have finer maps
"""

import argparse

import torch
from PIL import Image, ImageOps
from transformers import AutoModel
from transformers.utils import logging

from hf_mae import MAEImageProcessor
from hf_mae.data.sampling import spread_indices
from hf_mae.data.sources import open_images
from hf_mae.evaluation.visualization import attention_sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path", help="Checkpoint of any MAE model, ours.")
    parser.add_argument("images", nargs="*", help="Pictures. Nothing: some of the embedded ones.")
    parser.add_argument("--num_images", type=int, default=6, help="How many of the embedded ones.")
    parser.add_argument("--image_size", type=int, help="Pixels, if not the checkpoint's: a multiple of the patch.")
    parser.add_argument("--columns", type=int, default=2, help="Pictures, each with its two maps, beside each other.")
    parser.add_argument("--output", default="attention.png", help="Picture to write; replaced if it is there.")
    args = parser.parse_args()
    logging.disable_progress_bar()

    if args.images:
        images = [ImageOps.exif_transpose(Image.open(path)) for path in args.images]
    else:
        embedded = open_images(split="test")
        images = [embedded[index] for index in spread_indices(embedded, args.num_images)]
    processor = MAEImageProcessor.from_pretrained(args.model_name_or_path)
    if args.image_size is not None:
        processor = processor.with_image_size(args.image_size)
    pixel_values = processor(images, return_tensors="pt").pixel_values
    # Float32, whatever the checkpoint was saved in.
    model = AutoModel.from_pretrained(args.model_name_or_path, dtype=torch.float32).eval()
    attention_sheet(model, processor, pixel_values, args.columns).save(args.output)
    print(f"{len(images)} picture(s) and their maps are in {args.output}")


if __name__ == "__main__":
    main()
