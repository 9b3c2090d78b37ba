# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trainer for pre-trained encoders: defaults of the paper's fine-tuning and layer-wise learning rates."""

import os
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..data.sampling import default_num_workers
from ..modeling.modeling_mae import MAEPreTrainedModel
from ..publishing import HubPush, link_files, write_model_card
from .arguments import setting
from .distributed import has_bf16
from .optimization import layer_decay_parameter_groups
from .run_log import save_record

# On a CPU the model has better use for the cores.
_NUM_WORKERS = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1))) if torch.cuda.is_available() else 0


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
    bf16: bool | None = setting(None, "Mixed precision. Nothing: where the device is a GPU that has it.")
    eval_strategy: str = setting("epoch", "When to evaluate.")
    save_strategy: str = setting("epoch", "When to save.")
    save_total_limit: int | None = setting(2, "Checkpoints to keep.")
    logging_steps: float = setting(20, "Steps between lines of the log.")
    dataloader_pin_memory: bool = setting(torch.cuda.is_available(), "Faster copies to a GPU.")
    dataloader_num_workers: int = setting(_NUM_WORKERS, "Loader processes; beside a GPU one per CPU core.")
    dataloader_persistent_workers: bool = setting(_NUM_WORKERS > 0, "Keep them from epoch to epoch.")
    ddp_find_unused_parameters: bool = setting(False, "Look for parameters without gradient; here all have one.")
    remove_unused_columns: bool = setting(False, "Must be false: our data sets have the columns that are used.")
    report_to: str = setting("none", "tensorboard, trackio, wandb, ...")

    def __post_init__(self):
        if self.bf16 is None:  # not asked at import, which should not touch a GPU
            self.bf16 = has_bf16()
        super().__post_init__()
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0  # else DataLoader refuses
        if self.hub_token:  # else it would be pickled with the arguments, beside the model
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None


class FineTuningTrainer(Trainer):
    """Trainer with layer-wise learning rates, whose pushes never end a run; its `args` are [`FineTuningArguments`]."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups = layer_decay_parameter_groups(self.model, args.learning_rate, args.weight_decay, args.layer_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def init_hf_repo(self, *args, **kwargs):
        """Called at the start with `--push_to_hub`. The first push makes the repository: a run starts offline, too."""
        self._hub = HubPush(self.args.output_dir, self.args.hub_model_id, self.args.hub_private_repo)
        self.hub_model_id = self._hub.repo_id

    def _push_from_checkpoint(self, checkpoint_folder: str):
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            message = f"Step {self.state.global_step} of {self.state.max_steps}"
            self._hub.start(lambda folder: link_files(checkpoint_folder, folder), message)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs):
        """Pushes the output folder, and waits for it. A failure is told, and how to try again."""
        if self.is_world_process_zero():
            print(*self._hub.push(self.args.output_dir, commit_message), sep="\n")

    def publish(self, record: dict):
        """Leaves record and model card beside the model, and with `--push_to_hub` pushes them.

        Args:
            record (`dict`): Of [`hf_mae.training.run_log.run_record`], with what else the card is to tell, see
                [`write_model_card`].
        """
        if not self.is_world_process_zero():
            return
        save_record(self.args.output_dir, record)
        write_model_card(self.args.output_dir, self.args.hub_model_id)
        if self.args.push_to_hub:
            if not isinstance(self.model, MAEPreTrainedModel):
                self.create_model_card()
            self.push_to_hub()


__all__ = ["FineTuningArguments", "FineTuningTrainer"]
