# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Takes steps of Muon for the matrices of blocks, and of AdamW for all other parameters."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from .distributed import has_bf16, place_like

# Of a x + b x^3 + c x^5, which five times in a row brings singular values near 1. Source: Jordan et al. 2024
# (kellerjordan.github.io/posts/muon).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Elements of the matrices that are multiplied together: enough to occupy a GPU, and 0.3 GB of float32.
_MOST_ELEMENTS = 2**26


class Muon(torch.optim.Optimizer):
    """Replaces the averaged gradient of a matrix by the nearest orthogonal one; all other parameters follow AdamW.

    For a matrix W of m x n elements with gradient G: `M = momentum * M + (1 - momentum) * G`, `U = momentum * M +
    (1 - momentum) * G`, `W = (1 - lr * weight_decay) * W - lr * 0.2 * sqrt(max(m, n)) * newton_schulz(U)`. The factor
    gives the update the size that AdamW's has (a root mean square of 0.2), so that rate and decay of AdamW carry over.
    Sources: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Liu et al. 2025 (arXiv 2502.16982) for factor and
    decay; Loshchilov & Hutter 2017 (arXiv 1711.05101) for AdamW, which is torch's fused one.

    The products are computed in bfloat16 on GPUs that have it, elsewhere in float32 or better. A step with a
    `found_inf` that is not 0, as [`StepGuard`] sets it, changes nothing, and the host does not wait for the device to
    know. A step overwrites the gradients of the matrices.

    With several processes every one must take every step, with the same gradients (DDP) or its shards of them (FSDP2):
    each orthogonalizes an equal share of the matrices of each shape and gets the results of the others. All then hold
    the same weights, equal to those of a single process up to rounding.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        """
        Args:
            params (`Iterable`): Groups as [`muon_parameter_groups`] makes them: with `matrices`, the number of matrices
                of equal shape `(rows, columns)` that each parameter `(matrices * rows, columns)` of the group stacks.
                Parameters of groups without it, or with 0, follow AdamW.
            lr (`float` or `torch.Tensor`): Learning rate, for both.
            betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.95)`): Of AdamW (MAE's, Table 8).
            eps (`float`, *optional*, defaults to 1e-8): Of AdamW.
            weight_decay (`float`, *optional*, defaults to 0.0): Decoupled, for both.
            momentum (`float`, *optional*, defaults to 0.95): Of the averaged gradients of matrices.

        Raises:
            ValueError: If a parameter of a group with `matrices` is not as described.
        """
        # `fused` means as in torch: the device itself leaves out bad steps, and step counts are on the device.
        settings = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum, "fused": True}
        super().__init__(params, {"lr": lr, "matrices": 0, **settings})
        for group in self.param_groups:
            for parameter in group["params"] if group["matrices"] else ():
                if parameter.ndim != 2 or parameter.shape[0] % group["matrices"]:
                    raise ValueError(
                        f"A parameter of shape {tuple(parameter.shape)} does not stack {group['matrices']} matrices. "
                        "Put it into a group with `matrices` 0, which follows AdamW."
                    )

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Makes one step. `closure` may compute the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        is_bad = None if found_inf is None else found_inf > 0
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["matrices"]:
                self._average(parameters, group["momentum"], is_bad)
                for alike in _of_equal_shape(parameters, group["matrices"]):
                    _move(alike, group, is_bad)
            else:
                self._step_by_adamw(parameters, group, found_inf)
        return loss

    def _average(self, parameters: list[nn.Parameter], momentum: float, is_bad: torch.Tensor | None):
        """Takes the gradients into their averages, and puts in their place what is to be orthogonalized."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [_local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        gradients = [_local(parameter.grad) for parameter in parameters]
        if is_bad is not None:  # a gradient that equals the average leaves it as it is
            for average, gradient in zip(averages, gradients, strict=True):
                torch.where(is_bad, average, gradient, out=gradient)
        if parameters:
            torch._foreach_lerp_(averages, gradients, 1 - momentum)
            torch._foreach_lerp_(gradients, averages, momentum)

    def _step_by_adamw(self, parameters: list[nn.Parameter], group: dict, found_inf: torch.Tensor | None):
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def newton_schulz(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Returns nearly orthogonal matrices with the singular vectors of the given ones, by products alone.

    Five steps bring singular values from 0.002 to 1 times the Frobenius norm into [0.68, 1.21]; smaller ones grow up to
    485-fold. It compiles as one graph: `torch.compile(newton_schulz, fullgraph=True)`.

    Args:
        matrices (`torch.Tensor` of shape `(matrices, rows, columns)`): With at most as many rows as columns. Their
            dtype is that of the products. A matrix of zeros stays zero.
        steps (`int`, *optional*, defaults to 5): Number of times that the polynomial is applied.
    """
    a, b, c = _COEFFICIENTS
    matrices = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        squares = matrices @ matrices.mT
        factors = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, factors, matrices, beta=a)
    return matrices


def _move(parameters: list[nn.Parameter], group: dict, is_bad: torch.Tensor | None):
    """Decays parameters and adds their updates, which stand in the place of their gradients.

    Args:
        parameters (`list[nn.Parameter]`): Their matrices have equal shapes, except that some may be transposed.
        group (`dict`): Their group.
        is_bad (`torch.Tensor` of shape `()`, *optional*): Nothing changes if it is true.
    """
    count, dtype = group["matrices"], _dtype_of_products(parameters[0])
    # Of a sharded update every process gets the whole; cast before, which halves what is sent.
    updates = [_whole(each.grad, dtype).unflatten(0, (count, -1)) for each in parameters]
    orthogonal = _orthogonalize([matrix for each in updates for matrix in _wide(each)], dtype)
    moves = orthogonal.to(parameters[0].dtype).mul_(group["lr"] * 0.2 * math.sqrt(orthogonal.shape[-1]))
    decay = 1 - group["lr"] * group["weight_decay"]
    if is_bad is not None:
        moves, decay = torch.where(is_bad, 0.0, moves), torch.where(is_bad, 1.0, decay)
    weights, shards = [_local(parameter) for parameter in parameters], []
    for parameter, update, move in zip(parameters, updates, moves.split(count), strict=True):
        move = move if move.shape == update.shape else move.mT
        shards.append(_local(place_like(move.flatten(0, 1), parameter)))
    torch._foreach_mul_(weights, decay)
    torch._foreach_sub_(weights, shards)


def _orthogonalize(matrices: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Returns `newton_schulz` of matrices of equal shape, stacked; with several processes each computes a share."""
    processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    share = math.ceil(len(matrices) / processes)
    own = matrices[rank * share : (rank + 1) * share]
    stack = matrices[0].new_zeros(share, *matrices[0].shape, dtype=dtype)  # the last shares may be smaller
    if own:
        torch._foreach_copy_(list(stack[: len(own)]), own)
    stack = newton_schulz(stack)
    if processes == 1:
        return stack
    gathered = stack.new_empty(processes * share, *stack.shape[1:])
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # which torch 2.13 warns of
    gather(gathered, stack)
    return gathered[: len(matrices)]


def _of_equal_shape(parameters: list[nn.Parameter], matrices: int) -> Iterator[list[nn.Parameter]]:
    """Yields parameters whose matrices, if need be transposed, can be multiplied together; not too many at once."""
    shapes: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        shape = frozenset((parameter.shape[0] // matrices, parameter.shape[1]))
        shapes.setdefault((shape, parameter.dtype, parameter.device), []).append(parameter)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    for alike in shapes.values():
        count = math.ceil(_MOST_ELEMENTS / alike[0].numel() / processes) * processes  # so that shares are equal
        yield from (alike[start : start + count] for start in range(0, len(alike), count))


def _wide(matrices: torch.Tensor) -> torch.Tensor:
    """Returns matrices, transposed if they have more rows than columns."""
    return matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices


def _dtype_of_products(parameter: nn.Parameter) -> torch.dtype:
    """Returns bfloat16 for GPUs that have it; on CPUs it is 24 to 33 times slower than float32."""
    return torch.bfloat16 if has_bf16(parameter.device) else torch.promote_types(parameter.dtype, torch.float32)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the shard of this process, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the whole of a tensor in a dtype if it is sharded, or the tensor itself."""
    return tensor.to(dtype).full_tensor() if isinstance(tensor, DTensor) else tensor


__all__ = ["Muon", "newton_schulz"]
