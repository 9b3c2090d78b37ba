# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Saves, verifies and loads a run: atomic checkpoints, complete or ignored."""

import errno
import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.saving_mae import share_weights
from ..publishing.records import write_json
from .distributed import call_in_main_process, gather_from_processes, gather_model, is_sharded, place_like
from .step_guard import RunStopped

logger = logging.get_logger(__name__)


_FIRST_OPTIMIZER = "adamw"  # of checkpoints that name none
_STATE, _MANIFEST = "training_state.json", "manifest.json"
_PARTS = (_STATE, "config.json", "model*.safetensors", "optimizer*.safetensors")
_locks: dict[Path, IO] = {}  # of the folders in which this process runs


def save_checkpoint(
    output_dir: str | os.PathLike,
    step: int,
    model: MAEForPreTraining,
    image_processor: MAEImageProcessor,
    optimizer: torch.optim.Optimizer,
    record: dict,
    save_total_limit: int = 2,
    kept_step: int | None = None,
) -> Path:
    """Saves everything that a run needs to go on, as a folder that `from_pretrained` can load.

    Every process must call this. The folder is written under a temporary name, flushed to the disk with a manifest of
    sizes and hashes, and renamed, so that an interrupted save changes none of the earlier checkpoints. The weights of
    a model that is sharded over processes (FSDP2) are gathered tensor by tensor into one file; its optimizer state is
    written to one file per process, and [`load_optimizer`] merges those for any number of processes.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run; the checkpoint becomes `checkpoint-<step>` in it.
        step (`int`): Optimizer steps done, the position of the run.
        model ([`MAEForPreTraining`]): Not wrapped by DDP; may be sharded by `fully_shard` over one mesh dimension.
        image_processor ([`MAEImageProcessor`]): Saved with the weights.
        optimizer (`torch.optim.Optimizer`): Over parameters of `model`.
        record (`dict`): Describes the run, see [`hf_mae.training.run_record.run_record`].
        save_total_limit (`int`, *optional*, defaults to 2): Number of checkpoints to keep; older ones are removed.
        kept_step (`int`, *optional*): The checkpoint of this step is kept in any case and does not count.

    Returns:
        `Path`: The checkpoint.

    Raises:
        OSError: If it cannot be written, for example because the disk is full. Earlier checkpoints are intact.
    """
    output_dir = Path(output_dir)
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}.partial"
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    sharded = is_sharded(model)
    if not is_main and not sharded:
        return final
    try:
        # Where all processes write the main one decides: on a network disk the others may see files later.
        is_new = call_in_main_process(lambda: _make_room(final, partial)) if sharded else _make_room(final, partial)
        if is_new:
            _write_parts(partial, model, image_processor, optimizer, {"step": step, **record}, sharded)
            if is_main:
                _publish(partial, final)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(output_dir).free / 1e6 if output_dir.exists() else 0
        shutil.rmtree(partial, ignore_errors=True)
        before = next((path.name for path in list_checkpoints(output_dir)), "no checkpoint")
        raise OSError(
            f"{final} could not be saved: {error}. {free:,.0f} MB are free there. What was there before is intact "
            f"({before}). Make room, or lower `save_total_limit`."
        ) from error
    if is_main:
        done = [path for path in list_checkpoints(output_dir, step) if _step_of(path) != kept_step]
        for old in done[max(save_total_limit, 1) :]:
            remove_checkpoint(old)
    return final


@contextmanager
def naming_failed_saves(output_dir: str | os.PathLike, same_command: str) -> Iterator[None]:
    """Ends a run of transformers' `Trainer` if it can't save, for example on a full disk, and says what to do.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        same_command (`str`): The command that goes on with the run, in words.

    Raises:
        RunStopped: For errors of the disk, of safetensors and of `torch.save`.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # where torch.save writes
            raise
        free = shutil.disk_usage(output_dir).free / 1e6 if Path(output_dir).exists() else 0
        if any(find_defect(each, required=("optimizer.pt",)) is None for each in list_checkpoints(output_dir)):
            way_out = f"Complete checkpoints stay: make room, and {same_command} goes on from the last one."
        else:
            way_out = f"There is no checkpoint to go on from: make room, and {same_command} begins anew."
        raise RunStopped(
            f"The run could not be saved in {output_dir}, where {free:,.0f} MB are free: {error}. {way_out}"
        ) from error


def _make_room(final: Path, partial: Path) -> bool:
    """Makes the folder to write into. Returns `False` if the checkpoint is complete: a run has one state at a step."""
    if find_defect(final) is None:
        return False
    for leftover in final.parent.glob(".checkpoint-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    return True


def _write_parts(partial, model, image_processor, optimizer, state: dict, sharded: bool):
    """Writes the files of this process. With a sharded model all processes wait for each other and fail together."""
    part, problem = "optimizer.safetensors", None
    if sharded:
        part = f"optimizer-{dist.get_rank() + 1:05}-of-{dist.get_world_size():05}.safetensors"
    whole = gather_model(model)
    try:
        save_file(_optimizer_tensors(model, optimizer), partial / part, {"optimizer": _name_of(optimizer)})
        if whole is not None:  # only the main process has it
            whole.save_pretrained(partial)
            image_processor.save_pretrained(partial)
            write_json(partial / _STATE, state)
    except (OSError, SafetensorError) as error:
        problem = str(error)
    if sharded:
        problem = next((each for each in gather_from_processes(problem) if each is not None), None)
    if problem is not None:
        raise OSError(problem)


def _publish(partial: Path, final: Path):
    share_weights(partial)  # and the state of the optimizer, or nobody else can copy the folder
    write_manifest(partial)
    if final.exists():  # it is broken, since a complete one is not written again
        remove_checkpoint(final)
    partial.rename(final)
    _flush(final.parent)


def write_manifest(checkpoint: Path):
    """Writes sizes and hashes of the files of a checkpoint, by which [`find_defect`] knows it to be complete."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file() and path.name != _MANIFEST)
    write_json(checkpoint / _MANIFEST, {path.name: _fingerprint(path) for path in files})
    for path in (*files, checkpoint / _MANIFEST, checkpoint):
        _flush(path)


def remove_checkpoint(checkpoint: Path):
    """Renames a checkpoint before deleting it, so that an interrupted delete leaves no partial checkpoint."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def checkpoint_before_cooldown(output_dir: str | os.PathLike, step: int) -> Path:
    """Returns the checkpoint from which a run can be made longer.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        step (`int`): Step at which its learning rate began to fall.

    Raises:
        ValueError: If it is not there, or broken.
    """
    checkpoint = Path(output_dir) / f"checkpoint-{step}"
    problem = find_defect(checkpoint) if checkpoint.exists() else "it is not there"
    if problem is not None:
        raise ValueError(
            f"A run can only be made longer from the checkpoint before its cool-down, and {checkpoint} can't be used: "
            f"{problem}. To keep its weights, start a run in another `output_dir` from this one (`model_name_or_path`)."
        )
    return checkpoint


def cut_back(output_dir: str | os.PathLike, step: int):
    """Removes the checkpoints and sheets of later steps, which a run that is made longer takes in another way."""
    for checkpoint in list_checkpoints(output_dir):
        if _step_of(checkpoint) > step:
            remove_checkpoint(checkpoint)
    for path in Path(output_dir).glob("sheets/*-*.png"):
        number = path.stem.rpartition("-")[2]
        if number.isdigit() and int(number) > step:
            path.unlink()


def latest_checkpoint(output_dir: str | os.PathLike, required: Sequence[str] = _PARTS) -> Path | None:
    """Returns the newest complete checkpoint of a run, or `None`. The log names broken ones, which are ignored.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        required (`Sequence[str]`, *optional*): See [`find_defect`].
    """
    for checkpoint in list_checkpoints(output_dir):
        problem = find_defect(checkpoint, required)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is broken and not used: {problem}.")
    return None


def load_training_state(checkpoint: str | os.PathLike) -> dict:
    """Returns the `step` and the record that [`save_checkpoint`] wrote."""
    return json.loads((Path(checkpoint) / _STATE).read_text())


def load_weights(checkpoint: str | os.PathLike, model: nn.Module):
    """Copies the weights of a checkpoint into a model, which may be sharded, in place.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder that [`save_checkpoint`] wrote.
        model (`nn.Module`): Has the same configuration and is not wrapped by DDP.
    """
    tensors = model.state_dict()
    for file in Path(checkpoint).glob("model*.safetensors"):
        with safe_open(file, "pt") as stored, torch.no_grad():
            for name in stored.keys():  # noqa: SIM118 - no dictionary
                tensors[name].copy_(place_like(stored.get_tensor(name), tensors[name]))


def load_optimizer(checkpoint: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer):
    """Restores the state of an optimizer in place, for any number of processes that saved it.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder that [`save_checkpoint`] wrote.
        model (`nn.Module`): The model whose parameters are optimized, not wrapped by DDP.
        optimizer (`torch.optim.Optimizer`): A fresh one of the same class.

    Raises:
        ValueError: If the state is that of an optimizer of another class.
    """
    parameters = dict(model.named_parameters())
    parts = [safe_open(file, "pt") for file in sorted(Path(checkpoint).glob("optimizer*.safetensors"))]
    stored = (parts[0].metadata() or {}).get("optimizer", _FIRST_OPTIMIZER)
    if stored != _name_of(optimizer):
        raise ValueError(
            f"{checkpoint} holds the state of {stored}, which {_name_of(optimizer)} can't go on from. Set `optimizer` "
            f"to {stored}, or start a run in another `output_dir`."
        )
    for name_and_key in parts[0].keys():  # noqa: SIM118 - no dictionary
        name, _, key = name_and_key.rpartition(".")
        shards = [part.get_tensor(name_and_key) for part in parts]
        tensor = shards[0] if shards[0].ndim == 0 else torch.cat(shards)
        optimizer.state[parameters[name]][key] = place_like(tensor, parameters[name])


def _name_of(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__.lower()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    # By the names of parameters, so that nothing depends on their order; safetensors, so that nothing is pickled.
    tensors = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and parameter.device_mesh.ndim > 1:
            raise ValueError(
                "Sharding over more than one mesh dimension (HSDP) can't be saved. Use plain FSDP2 or DDP."
            )
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = (value.to_local() if isinstance(value, DTensor) else value).contiguous()
    return tensors


def list_checkpoints(output_dir: str | os.PathLike, last_step: int | None = None) -> list[Path]:
    """Returns the checkpoints of a run, the newest first.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        last_step (`int`, *optional*): The step of the run: those of later steps are left out. They are broken, or the
            run would have gone on from them.
    """
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit()]
    found = [path for path in found if path.is_dir() and (last_step is None or _step_of(path) <= last_step)]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len("checkpoint-") :])


def find_defect(checkpoint: Path, required: Sequence[str] = _PARTS) -> str | None:
    """Returns what is wrong with a checkpoint, or `None` if it is complete and unchanged.

    Args:
        checkpoint (`Path`): Folder with the manifest that [`write_manifest`] left.
        required (`Sequence[str]`, *optional*): Patterns of files that must be there. Default: those of a pre-training
            run.
    """
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return f"its {_MANIFEST} can't be read ({type(error).__name__}: {error})"
    for part in required:
        if not fnmatch.filter(expected, part):
            return f"its {_MANIFEST} names no {part}"
    try:
        for name, (size, sha256) in expected.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, {size:,} were saved"
            if hash_files(path) != sha256:
                return f"the content of {name} is not what was saved"
    except OSError as error:
        return f"it can't be read ({error})"
    return None


def hash_files(*paths: Path) -> str:
    """Returns the SHA-256 of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _fingerprint(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": hash_files(path)}


def _flush(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output_dir(output_dir: str | os.PathLike, recipe: dict, resume: bool) -> Path | None:
    """Decides whether a run starts in its output folder, goes on there, or is refused.

    Args:
        output_dir (`str` or `os.PathLike`): The folder, which need not exist.
        recipe (`dict`): The settings that define the run, without those of logging and saving.
        resume (`bool`): Whether a run in the folder may be continued.

    Returns:
        `Path`: The checkpoint to go on from, or `None` to start.

    Raises:
        ValueError: If the folder holds another run, or holds one and `resume` is false.
    """
    output_dir = Path(output_dir)
    way_out = "Choose another `output_dir`, or set `overwrite_output_dir` to delete the run."
    checkpoint = latest_checkpoint(output_dir)
    if checkpoint is None:
        if (output_dir / "config.json").exists() or list_checkpoints(output_dir):
            raise ValueError(f"{output_dir} holds a model or broken checkpoints, but none to go on from. {way_out}")
        return None
    if not resume:
        raise ValueError(f"{output_dir} holds a run at {checkpoint.name}, and `resume` is never. {way_out}")
    theirs = {"optimizer": _FIRST_OPTIMIZER, "schedule": "cosine", **load_training_state(checkpoint)["recipe"]}
    differences = {
        name: f"{theirs.get(name)} there, {value} now" for name, value in recipe.items() if theirs.get(name) != value
    }
    if differences:
        if theirs["schedule"] == "wsd" and differences.keys() <= {"max_steps", "num_train_epochs"}:
            has_budget = theirs.get("max_steps") is None
            longer = "a longer `time_budget`, and without `max_steps`," if has_budget else "`extend_to`"
            way_out += f" The same settings with {longer} make the run longer."
        lines = [f"{output_dir} holds another run. It differs in", *map(": ".join, differences.items())]
        raise ValueError("\n  ".join(lines) + f"\n{way_out}")
    return checkpoint


def refuse_to_delete(output_dir: str | os.PathLike, start: str | os.PathLike | None):
    """Refuses to delete a run from which another is to start.

    Args:
        output_dir (`str` or `os.PathLike`): Folder that is to be emptied.
        start (`str`, `os.PathLike` or `None`): Checkpoint to start from, or a name on the Hub.

    Raises:
        ValueError: If the checkpoint is in the folder.
    """
    folder = Path(output_dir).resolve()
    if start is not None and Path(start).exists() and folder in (Path(start).resolve(), *Path(start).resolve().parents):
        raise ValueError(
            f"`overwrite_output_dir` would delete {start}, from which the run is to start. Choose another `output_dir`."
        )


def lock_run(output_dir: str | os.PathLike):
    """Keeps other processes from running in a folder, until [`unlock_run`] or the end of this process.

    Raises:
        ValueError: If another process runs there.
    """
    path = Path(output_dir).resolve() / ".lock"
    while path not in _locks:
        file = open(path, "w")  # noqa: SIM115, since it stays open
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not `flock`, which loader workers would inherit
        except ImportError:  # Windows
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise ValueError(
                    f"Another run writes into {output_dir}. Wait for its end, or choose another `output_dir`."
                ) from error
        with suppress(FileNotFoundError):  # a run that ended just now deleted it: its lock would keep nobody out
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                _locks[path] = file
                return
        file.close()


def unlock_run(output_dir: str | os.PathLike):
    """Lets others run in a folder, if this process has locked it."""
    path = Path(output_dir).resolve() / ".lock"
    if file := _locks.pop(path, None):
        with suppress(OSError):  # Windows keeps open files
            path.unlink()
        file.close()


def delete_run(output_dir: str | os.PathLike):
    """Deletes the checkpoints, model, logs, sheets and record of the run in a folder. Other files stay."""
    output_dir = Path(output_dir)
    for checkpoint in (*list_checkpoints(output_dir), *output_dir.glob(".checkpoint-*")):
        shutil.rmtree(checkpoint)
    logs = ("metrics.jsonl", "run.json", "recipe.yaml", "unreadable.txt", "samples-*.jsonl")
    pictures = ("loss.png", "progress.png", "reconstructions.png", "sheets/*-*.png", "sheets/patches.safetensors")
    for pattern in ("config.json", "model*.safetensors*", *logs, *pictures):
        for path in output_dir.glob(pattern):
            path.unlink()


def hash_of_weights(model: torch.nn.Module) -> str:
    """Returns a short hash of all weights of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


__all__ = [
    "check_output_dir",
    "checkpoint_before_cooldown",
    "cut_back",
    "delete_run",
    "find_defect",
    "hash_files",
    "hash_of_weights",
    "latest_checkpoint",
    "list_checkpoints",
    "load_optimizer",
    "load_training_state",
    "load_weights",
    "lock_run",
    "naming_failed_saves",
    "refuse_to_delete",
    "remove_checkpoint",
    "save_checkpoint",
    "unlock_run",
    "write_manifest",
]
