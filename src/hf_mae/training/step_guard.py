# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Leaves out bad steps, and takes stop signals."""

import signal

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))


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


__all__ = ["StepGuard", "StopSignals"]
