# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains with transformers' own `Trainer`, for those who build on its callbacks, hooks or launchers.

    python examples/custom_trainer.py [folder of images]

`hf-mae pretrain` does more (exact resuming, evaluation, sheets of reconstructions) and is faster. This shows how the
parts fit into another training loop: a dataset by integer index, a collator that normalises, a model that returns
its loss.
"""

import sys

from transformers import Trainer, TrainingArguments

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingCollator, PretrainingDataset, channel_statistics
from hf_mae.data.sources import open_images


def pretrain_with_trainer(data: str | None, output_dir: str, max_steps: int = 200, batch_size: int = 64) -> Trainer:
    """Trains a tiny model on 32 x 32 pixel crops and returns the trainer, whose log holds the losses."""
    images = open_images(data)
    channels = 1 if data is None else 3  # the embedded sample is grey
    mean, std = channel_statistics(images, channels, max_images=1000)
    processor = MAEImageProcessor.for_image_size(32, num_channels=channels, image_mean=mean, image_std=std)
    config = MAEConfig.from_preset("tiny", image_size=32, patch_size=8, num_channels=channels, norm_pix_loss=True)
    arguments = TrainingArguments(
        output_dir,
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        warmup_steps=max_steps // 10,
        weight_decay=0.05,
        adam_beta2=0.95,
        logging_steps=max(max_steps // 20, 1),
        report_to="none",
    )
    trainer = Trainer(
        model=MAEForPreTraining(config),
        args=arguments,
        train_dataset=PretrainingDataset(images, (32, 32), num_patches=16, num_channels=channels),
        data_collator=PretrainingCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    pretrain_with_trainer(sys.argv[1] if len(sys.argv) > 1 else None, "trainer-pretrained")
