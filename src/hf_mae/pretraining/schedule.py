# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Plans the length and the learning rates of a pre-training run: half a cosine, or constant with a cool-down."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..training.arguments import parse_duration
from ..training.optimization import default_effective_batch_size, learning_rate_at, scaled_learning_rate
from .settings import PretrainingSettings


@dataclass
class Plan:
    """How long a run is, and its learning rate.

    Args:
        batch_size (`int`): Images of a step over all processes.
        steps_per_epoch (`float`): Steps in which as many crops are taken as there are images.
        max_steps (`int`): Steps of the run; an estimate as long as the plan is open, 0 before there is one.
        warmup_steps (`int`): Steps with a rising learning rate.
        learning_rate (`float`): Highest learning rate.
        eval_steps (`int`): Steps between evaluations.
        cooldown (`list` of `(step, share)`, *optional*): `None`: the rate falls by half a cosine. Else it is constant
            and then falls: each point says which share of the cool-down is over at a step, from 0 to 1 at `max_steps`,
            linear in between. The list is empty as long as the start of the cool-down is open.
    """

    batch_size: int
    steps_per_epoch: float
    max_steps: int
    warmup_steps: int
    learning_rate: float
    eval_steps: int
    cooldown: list[tuple[int, float]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is not decided yet when the rate falls, and so when the run ends."""
        return self.cooldown == []

    @property
    def cooldown_start(self) -> int | None:
        """First step of the cool-down: the checkpoint of this step is kept, so that the run can be made longer."""
        return self.cooldown[0][0] if self.cooldown else None

    def cooldown_share(self, step: int) -> float:
        """Returns which share of the cool-down is over before a step, in [0, 1]."""
        steps, shares = zip(*self.cooldown or [(self.max_steps, 0.0)], strict=True)
        return float(np.interp(step, steps, shares))

    def rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0.

        With a cool-down it rises linearly during the warm-up, is constant, and is `1 - sqrt(share)` of that in the
        cool-down. Source: Hägele et al. 2024 (arXiv 2405.18392), who find this better than a linear fall.
        """
        if self.cooldown is None:
            return learning_rate_at(step, self.max_steps, self.warmup_steps, self.learning_rate)
        risen = step / self.warmup_steps if step < self.warmup_steps else 1.0
        return self.learning_rate * risen * (1 - math.sqrt(self.cooldown_share(step)))

    def ending_at(self, max_steps: int, cooldown_steps: int) -> "Plan":
        """Returns the plan with another end, at which the rate has fallen to 0 in so many steps."""
        return replace(self, max_steps=max_steps, cooldown=[(max_steps - cooldown_steps, 0.0), (max_steps, 1.0)])

    def state(self) -> dict:
        """Returns what a run decides, and what differs when it is made longer: for checkpoints and record."""
        names = ("max_steps", "warmup_steps", "eval_steps", "cooldown")
        return {name: value for name, value in asdict(self).items() if name in names}


def plan_steps(settings: PretrainingSettings, num_images: int) -> Plan:
    """Returns how long a run is, and its learning rate. With a time budget its length is open, see [`TimeBudget`].

    Args:
        settings ([`PretrainingSettings`]): The settings.
        num_images (`int`): Images to train on.
    """
    batch_size = settings.effective_batch_size or default_effective_batch_size(num_images)
    steps_per_epoch = num_images / batch_size  # an epoch is as many crops as there are images
    max_steps = settings.max_steps
    if settings.time_budget is not None:
        max_steps = 0
    elif max_steps <= 0:
        max_steps = max(round(settings.num_train_epochs * steps_per_epoch), 1)
    plan = Plan(
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        max_steps=max_steps,
        warmup_steps=min(round(settings.warmup_ratio * max_steps), max(max_steps - 1, 0)),
        learning_rate=settings.learning_rate or scaled_learning_rate(settings.base_learning_rate, batch_size),
        eval_steps=settings.eval_steps or max(max_steps // 10, 1),
    )
    if settings.time_budget is not None:
        return replace(plan, cooldown=[])
    return plan.ending_at(max_steps, _cooldown_steps(settings, max_steps)) if settings.has_cooldown else plan


def _cooldown_steps(settings: PretrainingSettings, max_steps: int) -> int:
    return max(round(settings.cooldown_ratio * max_steps), 1)


def resume_plan(plan: Plan, state: Mapping, settings: PretrainingSettings) -> tuple[Plan, int | None]:
    """Returns the plan of a run that starts or goes on: with its earlier decisions, and longer if the settings say so.

    A run is made longer where its rate is still constant.

    Args:
        plan ([`Plan`]): By the settings alone.
        state (`Mapping`): What the newest checkpoint holds: `step`, and under `plan` what [`Plan.state`] returned.
        settings ([`PretrainingSettings`]): May have another `extend_to` or `time_budget` than before.

    Returns:
        `(plan, step)`: the plan, and the step to whose checkpoint the run has to go back, `None` if it has not.

    Raises:
        ValueError: If the run would become shorter.
    """
    stored = state.get("plan")
    if stored is not None and settings.has_cooldown:
        points = [(int(step), float(share)) for step, share in stored["cooldown"]]
        eval_steps = settings.eval_steps or stored["eval_steps"]
        plan = replace(plan, **{**stored, "cooldown": points, "eval_steps": eval_steps})
    before = plan
    if settings.extend_to is not None and settings.extend_to != plan.max_steps:
        if settings.extend_to < plan.max_steps:
            raise ValueError(
                f"`extend_to` {settings.extend_to} must be more than the {plan.max_steps} steps that the run has."
            )
        plan = plan.ending_at(settings.extend_to, _cooldown_steps(settings, settings.extend_to))
    if settings.time_budget is not None and stored is not None and not plan.is_open:
        time_budget, had = parse_duration(settings.time_budget), state["time_budget"]["seconds"]
        if time_budget < had:
            raise ValueError(
                f"`time_budget` was {had:,.0f} s when the learning rate began to fall, and can't become "
                f"{time_budget:,.0f} s. It can become longer."
            )
        plan = replace(plan, cooldown=[]) if time_budget > had else plan
    start = before.cooldown_start
    goes_back = start is not None and state["step"] > start and plan.cooldown != before.cooldown
    return plan, start if goes_back else None


__all__ = ["Plan", "plan_steps", "resume_plan"]
