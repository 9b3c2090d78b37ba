# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Where a run stands: its record, its log, and checkpoints that are complete or not taken at all."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from .image_processing_mae import MAEImageProcessor
from .modeling_mae import MAEForPreTraining

logger = logging.get_logger(__name__)

_OPTIMIZER, _STATE, _MANIFEST = "optimizer.safetensors", "training_state.json", "manifest.json"


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(
    output_dir: str | os.PathLike,
    step: int,
    model: MAEForPreTraining,
    image_processor: MAEImageProcessor,
    optimizer: torch.optim.Optimizer,
    record: dict,
    save_total_limit: int = 2,
) -> Path:
    """Saves everything a run needs to go on, as a folder that `from_pretrained` can load.

    The folder is written beside its place, flushed to the disk with a manifest of sizes and hashes, and renamed in, so
    that an interrupted save leaves the checkpoints before it as they were.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run; the checkpoint becomes `checkpoint-<step>` in it.
        step (`int`): Optimizer steps done, the position of the run.
        model ([`MAEForPreTraining`]): Not wrapped for distributed training.
        image_processor ([`MAEImageProcessor`]): Saved with the weights.
        optimizer (`torch.optim.Optimizer`): Over parameters of `model`.
        record (`dict`): What tells this run from another, see [`run_record`].
        save_total_limit (`int`, *optional*, defaults to 2): Older checkpoints beyond so many are removed.

    Returns:
        `Path`: The checkpoint.
    """
    output_dir = Path(output_dir)
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    image_processor.save_pretrained(partial)
    save_file(_optimizer_tensors(model, optimizer), partial / _OPTIMIZER)
    _write_json(partial / _STATE, {"step": step, **record})
    _write_json(partial / _MANIFEST, {path.name: _fingerprint(path) for path in sorted(partial.iterdir())})
    for path in (*partial.iterdir(), partial):
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush(output_dir)
    for old in _checkpoints(output_dir)[save_total_limit:]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """Returns the newest checkpoint of a run that is complete; broken ones are named in the log and passed over."""
    for checkpoint in _checkpoints(output_dir):
        problem = _problem_of(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is broken and not used: {problem}.")
    return None


def load_training_state(checkpoint: str | os.PathLike) -> dict:
    """Returns `step` and the record that [`save_checkpoint`] wrote."""
    return json.loads((Path(checkpoint) / _STATE).read_text())


def load_optimizer(checkpoint: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer):
    """Restores the optimizer's state, in place.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder that [`save_checkpoint`] wrote.
        model (`nn.Module`): The model whose parameters are optimized, not wrapped.
        optimizer (`torch.optim.Optimizer`): A fresh one of the same kind.
    """
    parameters = dict(model.named_parameters())
    for name_and_key, tensor in load_file(Path(checkpoint) / _OPTIMIZER).items():
        name, _, key = name_and_key.rpartition(".")
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    # By the names of parameters, so that nothing depends on their order; safetensors, so that nothing is pickled.
    return {
        f"{name}.{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit()]
    return sorted(found, key=lambda path: int(path.name[len("checkpoint-") :]), reverse=True)


def _problem_of(checkpoint: Path) -> str | None:
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its {_MANIFEST} can't be read ({error})"
    for name, expected in manifest.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _fingerprint(checkpoint / name) != expected:
            return f"{name} is not what was saved"
    return None


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


# ----------------------------------------------------------------------------------------------------------------------
# Record and log


def run_record(recipe: dict) -> dict:
    """Returns what is needed to repeat a run: recipe, command, versions, machine, commit.

    Args:
        recipe (`dict`): All settings of the run, as JSON types.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "recipe": recipe,
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {device}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _commit() -> str | None:
    """The commit of the checkout this file is part of, marked if there are changes; `None` if it is installed."""
    try:
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_output_dir(output_dir: str | os.PathLike, recipe: dict, resume: bool) -> Path | None:
    """Decides what a run may do with its output folder.

    Args:
        output_dir (`str` or `os.PathLike`): The folder, which need not exist.
        recipe (`dict`): The settings that make the run what it is; not those of logging and saving.
        resume (`bool`): Whether a run that is there may be continued.

    Returns:
        `Path`: The checkpoint to go on from, or `None` to start.

    Raises:
        ValueError: If the folder holds another run, or holds one and `resume` is false.
    """
    output_dir = Path(output_dir)
    way_out = "Choose another --output_dir, or pass --overwrite_output_dir to delete the run."
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{output_dir} is a file. Choose another --output_dir.")
    checkpoint = latest_checkpoint(output_dir)
    if checkpoint is None:
        if (output_dir / "config.json").exists() or _checkpoints(output_dir):
            raise ValueError(f"{output_dir} holds a model or broken checkpoints, but none to go on from. {way_out}")
        return None
    if not resume:
        raise ValueError(f"{output_dir} holds a run at {checkpoint.name}, and --resume is never. {way_out}")
    theirs = load_training_state(checkpoint)["recipe"]
    differences = [
        f"{name}: {theirs.get(name)} there, {value} now" for name, value in recipe.items() if theirs.get(name) != value
    ]
    if differences:
        raise ValueError("\n  ".join([f"{output_dir} holds another run. It differs in", *differences]) + f"\n{way_out}")
    return checkpoint


def delete_run(output_dir: str | os.PathLike):
    """Removes checkpoints, log and record of the run in a folder; other files stay."""
    for checkpoint in _checkpoints(output_dir):
        shutil.rmtree(checkpoint)
    for name in ("config.json", "metrics.jsonl", "run.json"):
        (Path(output_dir) / name).unlink(missing_ok=True)


def save_record(output_dir: str | os.PathLike, record: dict):
    """Writes the record of a finished run, `run.json`."""
    _write_json(Path(output_dir) / "run.json", record)


class MetricsLog:
    """One JSON object a line, `metrics.jsonl` in the folder of a run."""

    def __init__(self, output_dir: str | os.PathLike, step: int = 0):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run.
            step (`int`, *optional*, defaults to 0): Position of the run. Lines past it are dropped: they tell of steps
                that a resumed run takes again.
        """
        self.path = Path(output_dir) / "metrics.jsonl"
        self.lines = []
        if self.path.exists():
            lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
            self.lines = [line for line in lines if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def write(self, step: int, **values: float):
        """Appends a line. Floats are rounded to six digits."""
        line = {"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        self.lines.append(line)
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def last(self) -> dict[str, float]:
        """Returns the newest value of everything that was logged."""
        return {name: value for line in self.lines for name, value in line.items()}


__all__ = [
    "MetricsLog",
    "check_output_dir",
    "delete_run",
    "latest_checkpoint",
    "load_optimizer",
    "load_training_state",
    "run_record",
    "save_checkpoint",
    "save_record",
]
