# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Ends a pre-training run in time: measures its pace and decides from it when the learning rate falls."""

import math
import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..training.distributed import call_in_main_process
from .schedule import Plan

FEWEST_STEPS = 50  # of a run with a warm-up, a cool-down and evaluations
_INTERVAL, _SHARE_OF_INTERVAL = 1.0, 0.002  # between reviews: a second, or this share of the time if that is longer
_BLOCKS = 100  # reviews by which the pace is judged: the last fifth of the time, as long as the cool-down
_TRIAL_SHARE, _LONGEST_TRIAL = 0.02, 20.0  # time to measure the pace before the first step: share of all, seconds
_EVALUATIONS, _EVALUATION_SHARE = (2, 10), 0.1  # number of evaluations, and which share of the time they may take
_SHORTEST_COOLDOWN = 0.05  # of the steps before it; Hägele et al. 2024: 5 % does nearly as well as a cosine
_END = 1.0  # seconds to write the card and to end processes
_PACE_CHANGED = 0.02  # change of the remaining steps from which on the cool-down is corrected
_BYTES_A_SECOND = 2e8  # of a disk that has not been measured: slow


class TimeBudget:
    """Decides from the measured pace of a run when its rate falls, so that it ends when its time is over.

    A run with a budget has a warm-up and a constant rate at first, and its end is open. [`TimeBudget.review`] is asked
    about once a second. When the time that is left is needed for the cool-down, it fixes its start and its length;
    halfway through it corrects the length, once, if the pace has changed. Each decision changes the [`Plan`], which
    is stored with the checkpoints: from then on the rate is a function of the step alone.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        cooldown_ratio: float,
        save_steps: int,
        clock: Callable[[], float],
    ):
        """
        Args:
            costs (`Mapping[str, float]`): `seconds` that the run may take in all. A run that goes on has those of an
                `evaluation` and a `save`, too, which an earlier part has measured.
            cooldown_ratio (`float`): Share of the steps in which the rate falls.
            save_steps (`int`): Steps between checkpoints.
            clock (`Callable[[], float]`): Returns how many seconds the run has taken, over all its parts.
        """
        self.seconds, self.clock = costs["seconds"], clock
        self.cooldown_ratio, self.save_steps = cooldown_ratio, save_steps
        self.costs = {"evaluation": 0.0, "save": 0.0, **costs}
        self._blocks: deque[tuple[float, int]] = deque(maxlen=_BLOCKS)  # seconds and steps between two reviews
        self._mark: tuple[float, int] | None = None
        self._excluded, self._corrected = 0.0, False

    @contextmanager
    def measuring(self, cost: str) -> Iterator[None]:
        """Measures what an `evaluation` or a `save` costs, and leaves it out of the pace."""
        started = self.clock()
        yield
        self.costs[cost] = self.clock() - started
        self._excluded += self.costs[cost]

    # ------------------------------------------------------------------------------------------------------------------
    # Before the first step

    def first_plan(
        self, plan: Plan, pace: float, warmup_ratio: float, eval_steps: int | None, evaluated: float, parameters: int
    ) -> Plan:
        """Returns a plan with estimates: of the steps, and from that the warm-up and the steps between evaluations.

        There are ten evaluations, or fewer, but two, where ten would take more than a tenth of the time.

        Args:
            plan ([`Plan`]): Batch and rate.
            pace (`float`): Seconds of a step.
            warmup_ratio (`float`): Share of the steps with a rising rate.
            eval_steps (`int`, *optional*): Steps between evaluations, if they are given.
            evaluated (`float`): Images of an evaluation. Until one is measured, each counts as a sample of training.
            parameters (`int`): Of the model. Until a save is measured, it is 16 bytes of each on a slow disk.

        Raises:
            ValueError: If the time is too short.
        """
        self.costs.update(evaluation=evaluated * pace / plan.batch_size, save=16 * parameters / _BYTES_A_SECOND)
        left, cost = self.seconds - self.clock() - self._reserve, max(self.costs["evaluation"], 1e-9)
        evaluations = min(max(int(_EVALUATION_SHARE * self.seconds / cost), _EVALUATIONS[0]), _EVALUATIONS[1])
        if eval_steps is None:  # all evaluations but the last one, which is in the reserve
            steps = int((left - (evaluations - 1) * cost) / pace)
        else:
            steps = int(left / (pace + cost / eval_steps))
        if steps < FEWEST_STEPS:
            # 1.25: for what is not known yet.
            needed = 1.25 * (self.seconds - left + (_EVALUATIONS[0] - 1) * cost + FEWEST_STEPS * pace)
            raise ValueError(
                f"`time_budget` {self.seconds:,.0f} s is too short: a step takes {pace:.3g} s here and an evaluation "
                f"about {cost:.3g} s, which leaves {max(steps, 0)} steps. {FEWEST_STEPS} steps would need about "
                f"{needed:,.0f} s. Set a longer one, a smaller `preset` or `effective_batch_size`, or fewer "
                "`eval_images`."
            )
        warmup_steps = round(warmup_ratio * steps)
        eval_steps = eval_steps or max(steps // evaluations, 1)
        return replace(plan, max_steps=steps, warmup_steps=warmup_steps, eval_steps=eval_steps)

    # ------------------------------------------------------------------------------------------------------------------
    # During the run

    def review(self, step: int, plan: Plan) -> tuple[Plan, int]:
        """Decides what there is to decide after a step.

        Args:
            step (`int`): Steps taken.
            plan ([`Plan`]): The plan so far.

        Returns:
            `(plan, step)`: the plan from now on, and after which step to ask again.
        """
        self._measure(step)
        if plan.is_open:
            plan = self._decide(step, plan)
        if plan.cooldown and len(plan.cooldown) == 2 and not self._corrected:
            (start, _), (end, _) = plan.cooldown
            middle = (start + end + 1) // 2
            if step < middle or not self._blocks:
                return plan, max(step + 1, min(step + self._interval, middle))
            self._corrected, plan = True, self._correct(step, plan)
        return plan, step + self._interval if plan.is_open else sys.maxsize

    def _measure(self, step: int):
        """Adds the steps since the last review to the pace. Those before the first one prepare much."""
        now = self.clock()
        if self._mark is not None and step > self._mark[1]:
            self._blocks.append((max(now - self._mark[0] - self._excluded, 1e-9), step - self._mark[1]))
        self._mark, self._excluded = (now, step), 0.0

    @property
    def pace(self) -> float:
        """Seconds of a step without evaluations and saves, of late.

        The slowest and the fastest tenth of the time do not count: a machine that stands still for a minute says
        nothing about the next hour.
        """
        blocks = sorted(self._blocks, key=lambda block: block[0] / block[1])
        cut = len(blocks) // 10
        blocks = blocks[cut : len(blocks) - cut]
        return sum(seconds for seconds, _ in blocks) / sum(steps for _, steps in blocks)

    @property
    def _interval(self) -> int:
        seconds = max(_INTERVAL, _SHARE_OF_INTERVAL * self.seconds)
        return max(int(seconds / self.pace), 1) if self._blocks else 1

    @property
    def _reserve(self) -> float:
        """Seconds of the last evaluation and save, and of the end of the run: another sheet, another save, the card."""
        return 1.2 * self.costs["evaluation"] + 2 * self.costs["save"] + _END

    def _steps_that_fit(self, step: int, plan: Plan, left: float) -> int:
        """Returns how many steps fit into some time, with the evaluations and saves that come between them."""
        pace = self.pace

        def needed(steps: int) -> float:
            evaluations, saves = (
                math.ceil((step + steps) / every) - math.ceil(step / every)
                for every in (plan.eval_steps, self.save_steps)
            )
            saves += evaluations  # a run with a budget saves where it evaluates, too
            return steps * pace + evaluations * self.costs["evaluation"] + saves * self.costs["save"]

        return max(bisect_right(range(max(int(left / pace), 0) + 1), left, key=needed) - 1, 0)

    def _decide(self, step: int, plan: Plan) -> Plan:
        """Returns the plan with a cool-down, if the time that is left is needed for it, else with a new estimate."""
        left = self.seconds - self.clock() - self._reserve - self.costs["save"]  # that of the checkpoint that is kept
        if not self._blocks and left > 0:
            return plan
        steps = self._steps_that_fit(step, plan, left) if self._blocks else 0
        if steps > step * self.cooldown_ratio / (1 - self.cooldown_ratio):
            return replace(plan, max_steps=step + steps)
        steps = max(steps, math.ceil(_SHORTEST_COOLDOWN * step), 1)
        self._blocks.clear()  # the correction is by what comes now
        return plan.ending_at(step + steps, steps)

    def _correct(self, step: int, plan: Plan) -> Plan:
        """Returns the plan with another end, to which the rate goes on from where it is, if the pace has changed."""
        left = self.seconds - self.clock() - self._reserve
        start, planned = plan.cooldown_start or 0, plan.max_steps - step
        shortest = max(math.ceil(_SHORTEST_COOLDOWN * start) - (step - start), 1)
        steps = max(self._steps_that_fit(step, plan, left), shortest)
        if planned < 1 or abs(steps - planned) <= max(_PACE_CHANGED * planned, 1):
            return plan
        points = [(start, 0.0), (step, plan.cooldown_share(step)), (step + steps, 1.0)]
        return replace(plan, max_steps=step + steps, cooldown=points)


def measure_pace(take_batch: Callable[[], None], ready: int, budget: float, device: torch.device) -> float:
    """Returns how many seconds a batch takes. Every process must call this, and takes as many batches.

    Args:
        take_batch (`Callable[[], None]`): Reads a batch and computes its gradients.
        ready (`int`): Batches that loader workers have ready, which would be too fast.
        budget (`float`): Seconds of the run. The first batch may be compiled, and on a GPU the second be recorded for
            replay. One more is taken, and then more for a fiftieth of the budget, at most 20 s.
        device (`torch.device`): Of this process.
    """

    def timed(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            take_batch()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / count

    timed(2 if device.type == "cuda" else 1)
    taken = timed(1)
    fit = call_in_main_process(lambda: int(min(_TRIAL_SHARE * budget, _LONGEST_TRIAL) / taken))
    if fit < 2:
        return taken
    timed(min(ready, fit // 2) or 1)
    taken = timed(fit - min(ready, fit // 2))
    return call_in_main_process(lambda: taken)


__all__ = ["FEWEST_STEPS", "TimeBudget", "measure_pace"]
