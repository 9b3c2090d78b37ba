# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Loads a pre-trained encoder and its image processor, and prints the shapes of the features of a picture.

python examples/load_pretrained.py runs/fashion_mnist_sample [picture.jpg]
"""

import sys

import torch
from PIL import Image
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

# This import registers the model. Where hf_mae is not installed, pass trust_remote_code=True below.
from hf_mae.data.sources import open_images

folder, *pictures = sys.argv[1:] or ["runs/fashion_mnist_sample"]
image_processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
image = Image.open(pictures[0]) if pictures else open_images(split="test")[0]

inputs = image_processor(image, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
print(f"{type(model).__name__} from {folder}: an image of {image.width} x {image.height} pixels gives")
print(f"  last_hidden_state {tuple(outputs.last_hidden_state.shape)}: class token, then patches in raster order")
print(f"  pooler_output     {tuple(outputs.pooler_output.shape)}: one feature for the image")
