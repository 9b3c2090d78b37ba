# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Where a run stands: checkpoints that are complete or not taken at all, bad steps, stop signals, record and logs."""

import fnmatch
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.utils import logging

from .data import decoder_name
from .hub import json_lines, license_of, redact
from .image_processing_mae import MAEImageProcessor
from .modeling_mae import MAEForPreTraining, MAELayer
from .sources import ImageSource

logger = logging.get_logger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))
_STATE, _MANIFEST = "training_state.json", "manifest.json"


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
    """Saves everything a run needs to go on, as a folder that `from_pretrained` can load. Called by every process.

    The folder is written beside its place, flushed to the disk with a manifest of sizes and hashes, and renamed in, so
    that an interrupted save leaves the checkpoints before it as they were. A model that is sharded over processes
    (FSDP2) leaves its weights in one piece, gathered tensor by tensor, and its optimizer state in a file per process,
    which [`load_optimizer`] merges for any number of them.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run; the checkpoint becomes `checkpoint-<step>` in it.
        step (`int`): Optimizer steps done, the position of the run.
        model ([`MAEForPreTraining`]): Not wrapped by DDP; may be sharded by `fully_shard` over one mesh dimension.
        image_processor ([`MAEImageProcessor`]): Saved with the weights.
        optimizer (`torch.optim.Optimizer`): Over parameters of `model`.
        record (`dict`): What tells this run from another, see [`run_record`].
        save_total_limit (`int`, *optional*, defaults to 2): Older checkpoints beyond so many are removed.

    Returns:
        `Path`: The checkpoint.

    Raises:
        OSError: If it can't be written, for example because the disk is full. What was there before is intact.
    """
    output_dir = Path(output_dir)
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}.partial"
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    sharded = _is_sharded(model)
    if not is_main and not sharded:
        return final
    try:
        if is_main and _problem_of(final) is not None:  # else there is nothing to do: a run has one state at a step
            for left in output_dir.glob(".checkpoint-*"):  # by a run that was killed
                shutil.rmtree(left)
            partial.mkdir(parents=True)
        if sharded:
            dist.barrier()  # before the others look
        if partial.exists():
            _write_parts(partial, model, image_processor, optimizer, {"step": step, **record}, sharded)
            if is_main:
                _publish(partial, final)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(output_dir).free / 1e6 if output_dir.exists() else 0
        shutil.rmtree(partial, ignore_errors=True)
        before = next((path.name for path in _checkpoints(output_dir)), "no checkpoint")
        raise OSError(
            f"{final} could not be saved: {error}. {free:,.0f} MB are free there. What was there before is intact "
            f"({before}). Make room, or lower --save_total_limit."
        ) from error
    if is_main:
        # Later ones are broken, or the run would have gone on from there: no reason to remove good ones.
        done = [path for path in _checkpoints(output_dir) if _step_of(path) <= step]
        for old in done[max(save_total_limit, 1) :]:
            _remove(old)
    return final


def _write_parts(partial, model, image_processor, optimizer, state: dict, sharded: bool):
    """Writes what this process has to write of a checkpoint; if it is sharded, all wait for all and fail together."""
    is_main, part, problem = True, "optimizer.safetensors", None
    if sharded:
        is_main = dist.get_rank() == 0
        part = f"optimizer-{dist.get_rank() + 1:05}-of-{dist.get_world_size():05}.safetensors"
    whole = whole_model(model)
    try:
        save_file(_optimizer_tensors(model, optimizer), partial / part)
        if is_main:
            whole.save_pretrained(partial)
            image_processor.save_pretrained(partial)
            _write_json(partial / _STATE, state)
    except (OSError, SafetensorError) as error:
        problem = str(error)
    if sharded:
        problems = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        problem = next((p for p in problems if p is not None), None)
    if problem is not None:
        raise OSError(problem)


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_model(model: MAEForPreTraining) -> MAEForPreTraining | None:
    """Returns the model itself, or, if it is sharded, a whole copy on the CPU of the main process and `None` elsewhere.

    Of a sharded model it must be called by every process.
    """
    if not _is_sharded(model):
        return model
    is_main, weights = dist.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():  # one by one: the whole need not fit on a device
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main:
            weights[name] = tensor.cpu()
    if not is_main:
        return None
    with torch.device("meta"):
        whole = MAEForPreTraining(model.config)
    whole.load_state_dict(weights, assign=True)
    return whole.train(model.training)


def _publish(partial: Path, final: Path):
    _write_json(partial / _MANIFEST, {path.name: _fingerprint(path) for path in sorted(partial.iterdir())})
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if final.exists():  # broken, or it would not be written again
        _remove(final)
    partial.rename(final)
    _flush(final.parent)


def _remove(checkpoint: Path):
    """Removes a checkpoint in such an order that a kill in between leaves nothing that looks like one."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


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


def load_weights(checkpoint: str | os.PathLike, model: nn.Module):
    """Puts the weights of a checkpoint into a model, in place, also into a sharded one.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder that [`save_checkpoint`] wrote.
        model (`nn.Module`): Of the same configuration, not wrapped by DDP.
    """
    tensors = model.state_dict()
    for file in Path(checkpoint).glob("model*.safetensors"):
        with safe_open(file, "pt") as stored, torch.no_grad():
            for name in stored.keys():  # noqa: SIM118 - no dictionary
                tensors[name].copy_(_like(stored.get_tensor(name), tensors[name]))


def load_optimizer(checkpoint: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer):
    """Restores the optimizer's state, in place, whatever the number of processes that saved it.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder that [`save_checkpoint`] wrote.
        model (`nn.Module`): The model whose parameters are optimized, not wrapped by DDP.
        optimizer (`torch.optim.Optimizer`): A fresh one of the same kind.
    """
    parameters = dict(model.named_parameters())
    parts = [safe_open(file, "pt") for file in sorted(Path(checkpoint).glob("optimizer*.safetensors"))]
    for name_and_key in parts[0].keys():  # noqa: SIM118 - no dictionary
        name, _, key = name_and_key.rpartition(".")
        shards = [part.get_tensor(name_and_key) for part in parts]
        tensor = shards[0] if shards[0].ndim == 0 else torch.cat(shards)
        optimizer.state[parameters[name]][key] = _like(tensor, parameters[name])


def _like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """On the device of a parameter, and sharded as it is unless the tensor is a mere number."""
    tensor = tensor.to(example.device)
    if isinstance(example, DTensor) and tensor.ndim > 0:
        return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)
    return tensor


def shard_model(model: MAEForPreTraining, bf16: bool = False) -> MAEForPreTraining:
    """Shards weights, and with them gradients and the optimizer's state, over all processes (FSDP2), in place.

    To be called before the optimizer is made. Units are the blocks, the encoder, which the evaluation calls by itself,
    and the decoder. Not left to Accelerate, which would shard the patch embedding a second time (1.15).

    Args:
        model ([`MAEForPreTraining`]): On its device.
        bf16 (`bool`, *optional*, defaults to `False`): Gather weights in bfloat16, for a forward under autocast. Images
            and loss stay float32, and gradients are added up in it.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    dtype = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks = [module for module in model.modules() if isinstance(module, MAELayer)]
    for part in (*blocks, model.mae, model.decoder, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


def has_bf16() -> bool:
    """Whether there is a GPU that computes in bfloat16, and does not only emulate it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


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


def _checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit()]
    return sorted((path for path in found if path.is_dir()), key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len("checkpoint-") :])


def _problem_of(checkpoint: Path) -> str | None:
    """Returns what is wrong with a checkpoint, `None` if it is what was saved."""
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return f"its {_MANIFEST} can't be read ({type(error).__name__}: {error})"
    for part in (_STATE, "config.json", "model*.safetensors", "optimizer*.safetensors"):
        if not fnmatch.filter(expected, part):
            return f"its {_MANIFEST} names no {part}"
    try:
        for name, (size, sha256) in expected.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, {size:,} were saved"
            if _fingerprint(path)["sha256"] != sha256:
                return f"the content of {name} is not what was saved"
    except OSError as error:
        return f"it can't be read ({error})"
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
# Steps: bad ones and last ones


class StepGuard:
    """Looks at every step before it is taken: leaves out bad ones, and lets processes agree on when to stop.

    A step is bad if the loss of any process or the norm of the gradient is not finite. The optimizer then leaves
    weights and state as they are. Nothing here waits for the device; the counts are read when the run logs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_grad_norm: float = 0.0):
        """
        Args:
            optimizer (`torch.optim.Optimizer`): A fused one: it can leave out a step on the device itself.
            max_grad_norm (`float`, *optional*, defaults to 0.0): Gradients are scaled down to this norm; 0: never.
        """
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._distributed = dist.is_initialized() and dist.get_world_size() > 1
        device = self.parameters[0].device
        self._streak = torch.zeros((), device=device)  # bad steps in a row, up to now
        self._counts = torch.zeros(4, device=device)  # since the last read: losses, norms, good steps, longest streak
        self._stop_signals = [(0, None)] * 2  # of the last two steps, each with when it can be read
        self._steps = 0

    def check(self, loss: torch.Tensor, stop_signal: int = 0):
        """Decides on the step whose gradients have been computed. To be called before `optimizer.step()`.

        Args:
            loss (`torch.Tensor` of shape `()`): Of this process, on the device; over processes the mean counts.
            stop_signal (`int`, *optional*, defaults to 0): Number of the signal that this process received.
        """
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        bad = ((loss.detach() + norm) * 0 != 0).float()  # nan and inf times 0 are nan
        if self._distributed:
            both = torch.stack([bad, torch.full_like(bad, stop_signal)])
            dist.all_reduce(both, dist.ReduceOp.MAX)
            bad, stop_signal = both
        self._stop_signals = [self._stop_signals[1], _on_host(stop_signal)]
        self.optimizer.found_inf = bad
        if self.max_grad_norm > 0:
            clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        self._steps += 1
        self._streak = (self._streak + bad) * bad
        loss, norm = (torch.where(bad > 0, 0.0, value.float()) for value in (loss.detach(), norm))
        counts = self._counts[:3] + torch.stack([loss, norm, 1 - bad])
        self._counts = torch.cat([counts, torch.maximum(self._counts[3], self._streak)[None]])

    @property
    def stop_signal(self) -> int:
        """Number of a signal that some process received, 0 if none did. The same in all processes.

        With several it is that of the step before, whose exchange is over: reading it waits for nothing.
        """
        signal_number, arrived = self._stop_signals[0 if self._distributed else 1]
        if arrived is not None:
            arrived.synchronize()
        return int(signal_number)

    @property
    def streak(self) -> int:
        """Bad steps in a row up to now. Waits for the device."""
        return int(self._streak)

    def read(self) -> tuple[dict[str, float], int]:
        """Returns means over the good steps since the last call and how many were skipped, and the longest row of bad
        steps. The same in all processes.
        """
        if self._distributed:
            losses = self._counts[:1].clone()
            dist.all_reduce(losses)
            self._counts[0] = losses[0] / dist.get_world_size()
        loss, norm, good, longest = self._counts.tolist()
        values = {"loss": loss / good, "grad_norm": norm / good} if good else {}
        values["skipped"] = self._steps - good
        self._counts, self._steps = torch.zeros_like(self._counts), 0
        return values, int(longest)


def _on_host(value: torch.Tensor | int) -> tuple[torch.Tensor | int, torch.cuda.Event | None]:
    """Returns a number, to be read once the event has happened: the copy from a GPU waits for nothing."""
    if not isinstance(value, torch.Tensor) or value.device.type != "cuda":
        return value, None
    copied, arrived = torch.empty_like(value, device="cpu", pin_memory=True), torch.cuda.Event()
    copied.copy_(value, non_blocking=True)
    arrived.record()
    return copied, arrived


class Meter:
    """How fast a run is, and how much of its time it waits for data."""

    def __init__(self):
        self._since, self._waited, self._paused = time.perf_counter(), 0.0, 0.0
        self._shares: list[float] = []
        self._advised = False

    @contextmanager
    def waiting(self):
        """For the time in which the next batch is awaited."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def paused(self):
        """For what is no training: it does not count as slow training."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def read(self, samples: int) -> dict[str, float]:
        """Returns `images_per_second` and `data_wait`, a share in [0, 1], since the last call.

        Args:
            samples (`int`): How many were trained on since then, in all processes.
        """
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        values = {"images_per_second": samples / seconds, "data_wait": self._waited / seconds}
        self._since, self._waited, self._paused = time.perf_counter(), 0.0, 0.0
        self._shares.append(values["data_wait"])
        return values

    def advice(self, num_workers: int, views_per_image: int) -> str | None:
        """Returns, once, what to change if more than a tenth of the time goes into waiting, else `None`.

        Args:
            num_workers (`int`): Loader workers of this process.
            views_per_image (`int`): Crops of one decode.
        """
        shares = self._shares[1:]  # the first includes the start of the workers
        if self._advised or not shares or sum(shares) / len(shares) <= 0.1:
            return None
        self._advised = True
        ways = [f"--dataloader_num_workers above {num_workers}, if there are free cores"]
        if decoder_name() == "PIL":
            ways.append("pip install simplejpeg, if the images are JPEGs")
        ways.append(f"--views_per_image {2 * views_per_image}, which decodes half as often")
        return (
            f"{sum(shares) / len(shares):.0%} of the time goes into waiting for data. What helps: {'; '.join(ways)}; "
            "images on a local disk, not much larger than the crops."
        )


class StopSignals:
    """Takes SIGINT (Ctrl-C), SIGTERM and SIGUSR1 as wishes to save and end; a second one of a kind ends at once.

    Attributes:
        number (`int`): The first that came, 0 as long as none did.
    """

    def __init__(self):
        self.number, self._seen = 0, set()
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame):
        if number in self._seen:
            raise KeyboardInterrupt("Stopped at once; the last checkpoint stays.")
        self._seen.add(number)
        self.number = self.number or number

    @staticmethod
    def ignore(worker_id: int = 0):
        """Makes a process deaf to them: loader workers, since the step that is on its way still needs them."""
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


# ----------------------------------------------------------------------------------------------------------------------
# Record and log


def run_record(recipe: dict, images: ImageSource | None = None) -> dict:
    """Returns what is needed to repeat a run: recipe, data, command (without tokens), versions, machine, commit.

    Args:
        recipe (`dict`): The settings of the run, as JSON types.
        images ([`ImageSource`], *optional*): What it trains on.
    """
    data = {}
    if images is not None:
        data = {"data": images.name, "num_images": len(images)}
        data.update(dataset=images.dataset, data_license=images.license)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "recipe": recipe,
        **data,
        "license": license_of(recipe.get("model_name_or_path")),
        "command": redact(shlex.join(["python", *sys.argv])),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {device}",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "decoder": decoder_name(),
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
    """Removes checkpoints, logs, sheets and record of the run in a folder; other files stay."""
    output_dir = Path(output_dir)
    for checkpoint in (*_checkpoints(output_dir), *output_dir.glob(".checkpoint-*")):
        shutil.rmtree(checkpoint)
    for pattern in (
        "config.json",
        "metrics.jsonl",
        "run.json",
        "unreadable.txt",
        "samples-*.jsonl",
        "sheets/step-*.png",
    ):
        for path in output_dir.glob(pattern):
            path.unlink()


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
        self.lines = [line for line in json_lines(self.path) if line.get("step", step + 1) <= step]
        beside = self.path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        beside.replace(self.path)

    def write(self, step: int, **values: float):
        """Appends a line. Floats are rounded to six digits; those that are not finite are left out."""
        finite = {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, **finite}
        self.lines.append(line)
        _append(self.path, [json.dumps(line)])

    def last(self) -> dict[str, float]:
        """Returns the newest value of everything that was logged."""
        return {name: value for line in self.lines for name, value in line.items()}


def _append(path: Path, lines: list[str]):
    """Appends to a log. One that can't be written is no reason to end a run."""
    try:
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        logger.warning(f"{path} could not be written to: {error}.")


class SampleLog:
    """What every step was made of, one JSON object a sample: `samples-<process>.jsonl` in the folder of a run.

    The lines of all processes, sorted and each taken once (`sort -u`), are the same however the run was split and
    interrupted.
    """

    def __init__(self, output_dir: str | os.PathLike, process_index: int = 0):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run, which exists.
            process_index (`int`, *optional*, defaults to 0): Which process writes.
        """
        self.path = Path(output_dir) / f"samples-{process_index}.jsonl"

    def write(self, step: int, batch: dict[str, torch.Tensor], num_kept: int):
        """Appends the samples of a batch of [`hf_mae.data.collate`].

        Args:
            step (`int`): Global step, from 0.
            batch (`dict`): With `sample`, `crop_box`, `flipped` and `noise`.
            num_kept (`int`): Patches of an image that stay visible.
        """
        kept = batch["noise"].argsort(dim=1)[:, :num_kept].sort(dim=1).values.tolist()
        rows = zip(batch["sample"].tolist(), batch["crop_box"].tolist(), batch["flipped"].tolist(), kept, strict=True)
        lines = []
        for (epoch, index, view), box, flipped, visible in rows:
            line = {"step": step, "epoch": epoch, "index": index, "view": view, "box": box, "flipped": flipped}
            lines.append(json.dumps({**line, "visible": visible}))
        _append(self.path, lines)


class UnreadableImages:
    """The pictures of a run that can't be read, counted and named in `unreadable.txt` in its folder."""

    def __init__(self, output_dir: str | os.PathLike, num_images: int, max_share: float):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run.
            num_images (`int`): Images of the source.
            max_share (`float`): Share of them that may be unreadable, in [0, 1].
        """
        self.path, self.num_images, self.max_share = Path(output_dir) / "unreadable.txt", num_images, max_share
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape") if self.path.exists() else ""
        self.names = {line.split("\t")[0] for line in text.splitlines()}

    def __len__(self) -> int:
        return len(self.names)

    def add(self, found: dict[str, str], write: bool = True) -> list[str]:
        """Takes up pictures and reasons, and returns those that are new, as lines for the log.

        Args:
            found (`dict[str, str]`): Reasons by names.
            write (`bool`, *optional*, defaults to `True`): Whether to write the file: one process does.
        """
        new = [f"{name}\t{reason}" for name, reason in found.items() if name not in self.names]
        self.names.update(found)
        if new and write:
            _append(self.path, new)
        return new

    def problem(self) -> str | None:
        """Returns why the run should end, or `None`."""
        if len(self.names) <= self.max_share * self.num_images:
            return None
        return (
            f"{len(self.names):,} of {self.num_images:,} images can't be read, more than --max_unreadable "
            f"{self.max_share:g} allows. They are named in {self.path}. Repair or remove them, or raise "
            "--max_unreadable; the same command goes on."
        )


__all__ = [
    "Meter",
    "MetricsLog",
    "SampleLog",
    "StepGuard",
    "StopSignals",
    "UnreadableImages",
    "check_output_dir",
    "delete_run",
    "latest_checkpoint",
    "load_optimizer",
    "load_training_state",
    "load_weights",
    "run_record",
    "save_checkpoint",
    "save_record",
    "whole_model",
]
