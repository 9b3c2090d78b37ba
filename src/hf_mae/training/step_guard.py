# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Keeps bad steps out of the weights, and ends a run: stop signals, loader workers."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory, signal_handling

_HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed, or its connection has broken
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)]
if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:  # as under `nohup`
    STOP_SIGNALS.append(_HANGUP)


class RunStopped(Exception):  # noqa: N818 - a stop that was asked for is no error
    """Says that a run ended before its last step, and where it stands. The same call goes on from there.

    Attributes:
        exit_status (`int`): Status that a command ends with: 128 + signal after a signal, 1 after a problem.
    """

    def __init__(self, message: str, exit_status: int = 1):
        """
        Args:
            message (`str`): Why the run ended and how it goes on.
            exit_status (`int`, *optional*, defaults to 1): Status that a command ends with.
        """
        super().__init__(message)
        self.exit_status = exit_status


class StepGuard:
    """Takes the steps of an optimizer, except bad ones, and lets the processes of a run agree on when to stop.

    A step is bad if the loss of any process or the norm of the gradient is not finite. Weights and optimizer state then
    stay as they are. With a fused optimizer of torch, or Muon, the device decides, and nothing here waits for it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_grad_norm: float = 0.0):
        """
        Args:
            optimizer (`torch.optim.Optimizer`): Any. One whose groups do not say `fused` does not honour `found_inf`:
                for such a one every step waits for the device.
            max_grad_norm (`float`, *optional*, defaults to 0.0): Gradients are scaled down to this norm; 0 never does.
        """
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._skips_on_device = all(group.get("fused") for group in optimizer.param_groups)
        self._distributed = dist.is_initialized() and dist.get_world_size() > 1
        device = self.parameters[0].device
        self._bad_in_a_row = torch.zeros((), device=device)
        # Since the last read: sum of losses, sum of norms, number of good steps, longest row of bad steps.
        self._counts = torch.zeros(4, device=device)
        self._stop_signals = [(0, None)] * 2  # of the last two steps, each with the event after which it can be read
        self._steps = 0

    def step(self, loss: torch.Tensor, stop_signal: int = 0):
        """Takes the optimizer's step unless it is bad. To be called when the gradients have been computed.

        Args:
            loss (`torch.Tensor` of shape `()`): Of this process, on the device. The log has the mean over processes.
            stop_signal (`int`, *optional*, defaults to 0): Number of the signal that this process received.
        """
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        bad = ((loss.detach() + norm) * 0 != 0).float()  # nan and inf times 0 are nan
        if self._distributed:
            both = torch.stack([bad, torch.full_like(bad, stop_signal)])
            dist.all_reduce(both, dist.ReduceOp.MAX)
            bad, stop_signal = both
        self._stop_signals = [self._stop_signals[1], _copy_to_host(stop_signal)]
        if self.max_grad_norm > 0:
            clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        self._count(loss.detach(), norm, bad)
        if self._skips_on_device:
            self.optimizer.found_inf = bad
            self.optimizer.step()
        elif not bad:
            self.optimizer.step()

    def _count(self, loss: torch.Tensor, norm: torch.Tensor, bad: torch.Tensor):
        self._steps += 1
        self._bad_in_a_row = (self._bad_in_a_row + bad) * bad
        loss, norm = (torch.where(bad > 0, 0.0, value.float()) for value in (loss, norm))
        sums = self._counts[:3] + torch.stack([loss, norm, 1 - bad])
        self._counts = torch.cat([sums, torch.maximum(self._counts[3], self._bad_in_a_row)[None]])

    @property
    def stop_signal(self) -> int:
        """Number of a signal that some process received, 0 if none did. The same in all processes.

        With several processes it is that of the step before, whose exchange is over, so that reading it does not wait.
        """
        signal_number, event = self._stop_signals[0 if self._distributed else 1]
        if event is not None:
            event.synchronize()
        return int(signal_number)

    @property
    def bad_steps_in_a_row(self) -> int:
        """Number of bad steps up to now since the last good one. Waits for the device."""
        return int(self._bad_in_a_row)

    def read(self) -> tuple[dict[str, float], int]:
        """Returns what was counted since the last call. The same in all processes.

        Returns:
            `(values, longest)`: `loss` and `grad_norm`, means over the good steps if there were any, and `skipped`, the
            number of bad ones; and the longest row of bad steps.
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


def _copy_to_host(value: torch.Tensor | int) -> tuple[torch.Tensor | int, torch.cuda.Event | None]:
    """Starts to copy a number and returns where it arrives and the event after which it can be read there."""
    if not isinstance(value, torch.Tensor) or value.device.type != "cuda":
        return value, None
    copied = torch.empty_like(value, device="cpu", pin_memory=True)
    arrived = torch.cuda.Event(blocking=True)  # who waits for it sleeps and leaves the CPU to the loader workers
    copied.copy_(value, non_blocking=True)
    arrived.record()
    return copied, arrived


class StopSignals:
    """Takes SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and, from a closed terminal, SIGHUP as wishes to save and end. A second
    one of a kind ends at once, but for SIGHUP, which shell and system both send.

    To be used in a `with` statement, after which the handlers are the ones from before. Outside the main thread, where
    Python allows no handlers, it takes none.

    Attributes:
        number (`int`): The first signal that came, 0 as long as none did.
    """

    def __init__(self):
        self.number, self._seen, self._before = 0, set(), {}
        self._advised, self._terminals = False, [number for number in (1, 2) if os.isatty(number)]

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in set(STOP_SIGNALS)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def advice(self, seconds: float) -> str | None:
        """Returns, once, how to get more time for the save after a signal, if there may be too little, else `None`.

        torchrun and `accelerate launch` pass SIGTERM on, and kill the processes that still run some time later. Only
        they can be given another time: they read it from their environment.

        Args:
            seconds (`float`): Time that a save took.
        """
        limit = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30))
        if self._advised or "TORCHELASTIC_RUN_ID" not in os.environ or seconds < limit / 2:
            return None
        self._advised = True
        return (
            f"Saving took {seconds:.0f} s, and the launcher kills the processes {limit:.0f} s after SIGTERM. Start it "
            f"with TORCH_ELASTIC_SHUTDOWN_TIMEOUT={max(600, 10 * round(seconds))} in its environment, so that a run "
            "that is stopped has the time to save."
        )

    def _handle(self, number: int, frame: FrameType | None):
        if number in self._seen and number != _HANGUP:
            raise KeyboardInterrupt("Stopped at once. The last checkpoint stays.")
        self._seen.add(number)
        self.number = self.number or number
        if number == _HANGUP:  # to write to a terminal that is gone would be an error
            for terminal in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        elif number == signal.SIGINT and 2 in self._terminals and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nThe run saves and ends, after what it is at. Ctrl-C again ends it at once.\n")


def start_worker(worker_id: int):
    """Prepares a loader worker; the `worker_init_fn` of a `DataLoader`.

    The worker ignores stop signals, which torchrun and Slurm send to every process: the step in progress still needs
    it. It ends by itself when the process that asked for it is gone.
    """
    for number in set(STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_without_parent, args=(os.getppid(),), daemon=True).start()


def _end_without_parent(parent: int):
    # Of a fork server, which is the default from Python 3.14 on, the parent is the server, which outlives the run.
    creator = multiprocessing.parent_process()
    while os.getppid() == parent and (creator is None or creator.is_alive()):
        time.sleep(1)
    os._exit(1)


def with_prepared_workers(loader: DataLoader) -> DataLoader:
    """Makes the workers of a loader ignore stop signals and end by themselves when the run is gone.

    Args:
        loader (`DataLoader`): The loader, which is changed and returned.
    """
    inner = getattr(loader, "base_dataloader", loader)  # Accelerate's loaders hold the one that starts the workers
    before = inner.worker_init_fn
    if inner.num_workers > 0 and getattr(before, "func", None) is not _start_seeded:  # a loader may be used again
        inner.worker_init_fn = partial(_start_seeded, seed_worker=before)
    return loader


def _start_seeded(worker_id: int, seed_worker: Callable | None):
    start_worker(worker_id)
    if seed_worker is not None:
        seed_worker(worker_id)


def end_workers(spared: Iterable[multiprocessing.process.BaseProcess] = ()):
    """Ends the child processes of this one at once, so that the end of a run does not wait for them.

    Loader workers ignore SIGTERM, with which Python would end them, and then wait for them for ever.

    Args:
        spared (`Iterable`, *optional*): Children that were there before the run and go on.
    """
    children = [child for child in multiprocessing.active_children() if child not in set(spared)]
    if not children:
        return
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        # torch's handler would raise an error for each of them. It is set again by the next loader with workers.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal_handling._SIGCHLD_handler_set = False
    _forgive_pinning()
    for child in children:
        child.kill()
    for child in children:
        child.join()


def _forgive_pinning():
    """Lets the threads that pin batches for a GPU end in silence when the workers that they read from are gone."""
    hook = threading.excepthook
    if getattr(hook, "func", None) is not _print_unless_pinning:
        threading.excepthook = partial(_print_unless_pinning, hook)


def _print_unless_pinning(print_error: Callable, error: threading.ExceptHookArgs):
    frames = [frame for frame, _ in traceback.walk_tb(error.exc_traceback)]
    if not any(frame.f_code is pin_memory._pin_memory_loop.__code__ for frame in frames):
        print_error(error)


__all__ = [
    "STOP_SIGNALS",
    "RunStopped",
    "StepGuard",
    "StopSignals",
    "end_workers",
    "start_worker",
    "with_prepared_workers",
]
