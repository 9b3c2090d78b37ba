# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The model card of a run, written from its record."""

import os
from pathlib import Path

from .modeling_mae import MAEForPreTraining

_CARD = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- masked-autoencoder
- mae
- vit
- self-supervised-learning
---

# {title}

A masked autoencoder ([He et al. 2021](https://arxiv.org/abs/2111.06377)), pre-trained with
hf_mae on {data} ({num_images:,} images).

![original | masked | reconstruction](reconstructions.png)

Original, what the encoder saw, and what the decoder made of it, for images that {held_out}.{normalised}

## Load it

With `pip install hf-mae`, or without it by `trust_remote_code=True` (the code is in this folder):

```python
from transformers import AutoImageProcessor, AutoModel

image_processor = AutoImageProcessor.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModel.from_pretrained("{folder}", trust_remote_code=True).eval()
outputs = model(**image_processor(image, return_tensors="pt"))
outputs.last_hidden_state  # (1, {tokens}, {width}): 1 class token + {patches} patch tokens in raster order
outputs.pooler_output      # (1, {width}): {pooling}
```

`AutoModelForPreTraining` loads the decoder as well. Images of other sizes work; positions are resampled.

## Model

| | encoder | decoder |
|---|---|---|
| blocks x width, heads | {layers} x {width}, {heads} | {decoder_layers} x {decoder_width}, {decoder_heads} |
| parameters | {encoder_parameters:.2f} M | {decoder_parameters:.2f} M |

Images of {image_size} pixels, {channels} channel(s), patches of {patch_size}; {mask_ratio:.0%} hidden ({sampling}
sampling); target: {target}.

## Training

{metrics}

- Command: `{command}`
- Commit of hf_mae: {commit}
- Machine: {machine}; {hours:.2f} hours; {versions}
- Log: `metrics.jsonl`; every setting: `run.json`

## Limits

The features carry what the training images show, with their gaps and biases, and were not tested for any decision about
people. No licence is stated above; whoever publishes this folder should state one that the data allow.

## Citation

```bibtex
@article{{he2021masked,
  title   = {{Masked Autoencoders Are Scalable Vision Learners}},
  author  = {{He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{{\\'a}}r, Piotr and
             Girshick, Ross}},
  journal = {{arXiv:2111.06377}},
  year    = {{2021}}
}}
```
"""


def write_model_card(output_dir: str | os.PathLike, model: MAEForPreTraining, record: dict):
    """Writes `README.md` from the model and the record of its run.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the model.
        model ([`MAEForPreTraining`]): The model.
        record (`dict`): Of [`hf_mae.training.run_record`], with `data`, `num_images`, `held_out`, `hours` and the last
            `metrics`.
    """
    config, metrics = model.config, record["metrics"]
    rows, columns = config.grid_size
    encoder_parameters = sum(parameter.numel() for parameter in model.mae.parameters()) / 1e6
    decoder_parameters = sum(parameter.numel() for parameter in model.decoder.parameters()) / 1e6
    names = {
        "step": "steps",
        "loss": "training loss",
        "eval_loss": "loss on the evaluation images, fixed masks",
        "knn_accuracy": "k-NN accuracy of the features",
    }
    table = "".join(f"| {names[name]} | {value:g} |\n" for name, value in metrics.items() if name in names)
    folder = Path(output_dir).name
    card = _CARD.format(
        title=folder,
        folder=folder,
        data=record["data"],
        num_images=record["num_images"],
        held_out="were held out" if record["held_out"] else "are part of the training set",
        normalised=(
            " Predictions are brought back to pixels with each hidden patch's own mean and deviation."
            if config.norm_pix_loss
            else ""
        ),
        tokens=1 + rows * columns,
        patches=rows * columns,
        width=config.hidden_size,
        pooling="mean of the patch tokens" if config.pooling == "mean" else "class token",
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        decoder_layers=config.decoder_num_hidden_layers,
        decoder_width=config.decoder_hidden_size,
        decoder_heads=config.decoder_num_attention_heads,
        encoder_parameters=encoder_parameters,
        decoder_parameters=decoder_parameters,
        image_size=config.image_size,
        channels=config.num_channels,
        patch_size=config.patch_size,
        mask_ratio=config.mask_ratio,
        sampling=config.mask_sampling,
        target="pixels normalised by patch" if config.norm_pix_loss else "pixels",
        metrics=f"| | |\n|---|---|\n{table}".rstrip(),
        command=record["command"],
        commit=record["commit"] or "installed package",
        machine=record["machine"],
        hours=record["hours"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    )
    (Path(output_dir) / "README.md").write_text(card, encoding="utf-8")


__all__ = ["write_model_card"]
