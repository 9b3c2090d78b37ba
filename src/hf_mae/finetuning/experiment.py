# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Whether a run of fine-tuning starts in its output folder, goes on there, or is refused."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerState

from ..data.image_source import ImageSource, digest
from ..publishing.records import read_json, write_json
from ..training.arguments import recipe_of
from ..training.checkpointing import (
    delete_run,
    find_defect,
    hash_files,
    latest_checkpoint,
    list_checkpoints,
    lock_run,
    refuse_to_delete,
    unlock_run,
)
from ..training.distributed import check_agreement

if TYPE_CHECKING:
    from .settings import FineTuningArguments

EXPERIMENT = "experiment.json"
# Settings that leave the experiment what it is: where it reads and writes, how it logs, saves and evaluates. What is
# read is compared by its content, the sizes of batches by their product.
_NOT_COMPARED = {
    *("output_dir", "overwrite_output_dir", "data", "model_name_or_path", "run_name", "report_to"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("bf16", "fp16", "tf32", "use_cpu", "disable_tqdm", "full_determinism", "num_neighbors"),
}
_PREFIXES_NOT_COMPARED = (
    *("logging_", "log_", "save_", "eval_", "dataloader_", "ddp_", "torch_compile", "do_"),
    *("gradient_checkpointing", "activation_checkpointing", "torch_empty_cache", "include_"),
)
_LEFT_BY_A_RUN = (
    *(EXPERIMENT, "*.safetensors", "*_results.json", "*_config.json", "trainer_state.json", "training_args.bin"),
    *("segmentation.png", "detections.png", "confusion.png", "predictions.csv"),
)


def check_experiment(args: "FineTuningArguments", task: str, fingerprints: dict) -> Path | None:
    """Decides whether a run starts in its output folder, goes on there, or is refused, and writes `experiment.json`.

    From then on until the end of [`FineTuningTrainer.run`] no other process can start a run in the folder.

    Args:
        args ([`FineTuningArguments`]): The settings, as they were given.
        task (`str`): Which command it is.
        fingerprints (`dict`): What tells the data and the initial weights from others, by name.

    Returns:
        `Path`: The newest complete checkpoint to go on from, or `None` to start.

    Raises:
        ValueError: If the folder holds another experiment or a model of unknown origin, another process runs there,
            processes of this run have different images or settings, or batches would change their size.
    """
    if args.auto_find_batch_size:
        raise ValueError(
            "`auto_find_batch_size` would change the images of a step during the run, and not the learning rate, which "
            "follows from them. Leave it out, and set `per_device_train_batch_size` to what fits into memory and "
            "`gradient_accumulation_steps` to what makes up the rest."
        )
    output_dir, compared = Path(args.output_dir), recipe_of(args, _NOT_COMPARED)
    settings = {name: value for name, value in compared.items() if not name.startswith(_PREFIXES_NOT_COMPARED)}
    batch = {"effective batch size": args.effective_batch_size}
    experiment = json.loads(json.dumps({"task": task, **settings, **batch, **fingerprints}))
    check_agreement(experiment)
    with args.main_process_first(local=False), ExitStack() as if_refused:
        if args.overwrite_output_dir:
            refuse_to_delete(output_dir, args.model_name_or_path)
        if args.process_index == 0:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock_run(output_dir)
            if_refused.callback(unlock_run, output_dir)
        if args.process_index == 0 and args.overwrite_output_dir:
            _delete_experiment(output_dir)
        _compare(output_dir, experiment)
        if args.process_index == 0 and not (output_dir / EXPERIMENT).exists():
            write_json(output_dir / EXPERIMENT, experiment)
        checkpoint = latest_complete_checkpoint(output_dir)
        if checkpoint is not None and args.load_best_model_at_end:
            _check_best(checkpoint)
        if_refused.pop_all()
        return checkpoint


def _check_best(checkpoint: Path):
    """Refuses to go on if the best model until then is lost. Trainer would take the last one in its place."""
    best_step = TrainerState.load_from_json(os.fspath(checkpoint / "trainer_state.json")).best_global_step
    best = checkpoint.with_name(f"checkpoint-{best_step}")
    defect = None if best_step is None else find_defect(best, required=())
    if defect is not None:
        raise ValueError(
            f"`load_best_model_at_end` needs the best model of the run until step {checkpoint.name.split('-')[-1]}, "
            f"{best}, and that can't be used: {defect}. Set `overwrite_output_dir` to start anew, or take the last "
            f"model, {checkpoint}, and go on without the best one in another `output_dir`."
        )


def _compare(output_dir: Path, experiment: dict):
    way_out = "Choose another `output_dir`, or set `overwrite_output_dir` to delete what is there."
    if not (output_dir / EXPERIMENT).exists():
        if (output_dir / "config.json").exists() or list_checkpoints(output_dir):
            raise ValueError(f"{output_dir} holds a model or checkpoints, but no {EXPERIMENT} of this run. {way_out}")
        return
    theirs = read_json(output_dir / EXPERIMENT)
    names = [name for name in {**experiment, **theirs} if experiment.get(name) != theirs.get(name)]
    differences = [
        f"{name}: {theirs.get(name, 'the default')} there, {experiment.get(name, 'the default')} now" for name in names
    ]
    if differences:
        raise ValueError("\n  ".join([f"{output_dir} holds another run. It differs in", *differences]) + f"\n{way_out}")


def _delete_experiment(output_dir: Path):
    if not output_dir.is_dir():
        return
    delete_run(output_dir)
    for pattern in _LEFT_BY_A_RUN:
        for path in output_dir.glob(pattern):
            path.unlink()


def latest_complete_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """Returns the newest complete checkpoint of a fine-tuning run, see [`latest_checkpoint`].

    With `save_only_model` there is none: a run that went on from weights alone would begin its learning rates anew.
    """
    return latest_checkpoint(output_dir, required=("trainer_state.json", "optimizer.pt", "scheduler.pt"))


def labelled_fingerprints(
    model_name_or_path: str | None, train_images: ImageSource, test_images: ImageSource | None
) -> dict:
    """Returns the fingerprints of a run on labelled images, see [`check_experiment`].

    Args:
        model_name_or_path (`str`, *optional*): Where the initial weights come from.
        train_images ([`ImageSource`]): Images to train on.
        test_images ([`ImageSource`], *optional*): Images to evaluate on.
    """
    labels = [images.labels for images in (train_images, test_images) if images is not None]
    return {
        "images": train_images.fingerprint,
        "evaluation images": None if test_images is None else test_images.fingerprint,
        "labels": digest(*labels),
        "initial weights": weights_fingerprint(model_name_or_path),
    }


def weights_fingerprint(model_name_or_path: str | None) -> str | None:
    """Returns what tells initial weights from others: of a folder its content, else the name on the Hub."""
    if model_name_or_path is None or not Path(model_name_or_path).is_dir():
        return model_name_or_path
    return hash_files(*sorted(Path(model_name_or_path).glob("*.safetensors")))[:16]


__all__ = ["check_experiment", "labelled_fingerprints", "latest_complete_checkpoint", "weights_fingerprint"]
