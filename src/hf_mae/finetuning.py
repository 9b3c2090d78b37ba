# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trainer for pre-trained encoders: defaults of the paper's fine-tuning and layer-wise learning rates."""

from dataclasses import dataclass

import torch
from transformers import Trainer, TrainingArguments

from .optimization import layer_decay_parameter_groups
from .recipes import setting


@dataclass
class FineTuningArguments(TrainingArguments):
    """Arguments of Trainer with other defaults: AdamW and weight decay of He et al. 2021, Table 9, the rest ours.

    Args:
        layer_decay (`float`, *optional*, defaults to 0.75): Factor of the learning rate from each block of the encoder
            to the one before, see [`layer_decay_parameter_groups`].
        **kwargs: Of [`~transformers.TrainingArguments`].
    """

    layer_decay: float = setting(0.75, "Factor of the learning rate from each block to the one before.")
    weight_decay: float = setting(0.05, "Of matrices.")
    adam_beta2: float = setting(0.999, "AdamW's second beta.")
    max_grad_norm: float = setting(0.0, "Clip gradients to this norm; 0, as in the paper: do not.")
    bf16: bool = setting(torch.cuda.is_available(), "Mixed precision.")
    eval_strategy: str = setting("epoch", "When to evaluate.")
    save_strategy: str = setting("epoch", "When to save.")
    save_total_limit: int | None = setting(2, "Checkpoints to keep.")
    logging_steps: float = setting(20, "Steps between lines of the log.")
    dataloader_pin_memory: bool = setting(torch.cuda.is_available(), "Faster copies to a GPU.")
    ddp_find_unused_parameters: bool = setting(False, "Look for parameters without gradient; here all have one.")
    remove_unused_columns: bool = setting(False, "Must be false: our data sets have the columns that are used.")
    report_to: str = setting("none", "tensorboard, trackio, wandb, ...")


class FineTuningTrainer(Trainer):
    """Trainer with layer-wise learning rates; its `args` are [`FineTuningArguments`]."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups = layer_decay_parameter_groups(self.model, args.learning_rate, args.weight_decay, args.layer_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer


__all__ = ["FineTuningArguments", "FineTuningTrainer"]
