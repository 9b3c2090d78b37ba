# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""When the learning rate falls in a run that has to end in time, by clocks that tests set."""

import json
import math
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, STEPS, SignalAt, metrics, same_tensors, samples

from hf_mae.pretraining import run as pretraining_run
from hf_mae.pretraining.command import PretrainingRun, PretrainingSettings, pretrain
from hf_mae.pretraining.schedule import Plan
from hf_mae.pretraining.time_budget import TimeBudget, measure_pace
from hf_mae.training.arguments import load_recipe
from hf_mae.training.step_guard import RunStopped, StepGuard

OPEN = Plan(
    batch_size=64, steps_per_epoch=100.0, max_steps=0, warmup_steps=0, learning_rate=1.0, eval_steps=1, cooldown=[]
)


class Simulation:
    """A run whose steps, evaluations and saves take the time that a test says."""

    def __init__(self, seconds, pace, evaluation=0.0, save=0.0, spent=0.0, save_steps=1000):
        self.now, self.pace, self.evaluation, self.save = spent, pace, evaluation, save
        self.budget = TimeBudget({"seconds": seconds}, 0.2, save_steps, lambda: self.now)
        self.step, self.save_steps, self.decisions, self.reviews = 0, save_steps, [], 0
        self.plan = self.budget.first_plan(OPEN, pace(0), 0.05, None, evaluated=0, parameters=0)

    def run(self, until=math.inf):
        ask = self.step + 1
        while self.plan.is_open or self.step < self.plan.max_steps:
            if self.step >= until:
                return self
            self.now += self.pace(self.now)
            self.step += 1
            if self.step >= ask:
                before, self.reviews = self.plan.cooldown, self.reviews + 1
                self.plan, ask = self.budget.review(self.step, self.plan)
                self.decisions += [self.plan] if self.plan.cooldown != before else []
            ended = self.step == self.plan.max_steps and not self.plan.is_open
            if ended or self.step % self.plan.eval_steps == 0:
                with self.budget.measuring("evaluation"):
                    self.now += self.evaluation
            if ended or self.step % self.save_steps == 0 or self.step == self.plan.cooldown_start:
                with self.budget.measuring("save"):
                    self.now += self.save
        self.now += self.save  # of the finished model
        return self


def share(simulation):
    """The part of the steps in the cool-down."""
    return 1 - simulation.plan.cooldown_start / simulation.plan.max_steps


def test_quiet_machine__ends_in_time_after_one_decision():
    simulation = Simulation(3600, lambda now: 0.5, evaluation=20, save=3).run()
    assert 0.97 * 3600 < simulation.now < 3600
    assert len(simulation.decisions) == 1
    assert share(simulation) == pytest.approx(0.2, abs=0.01)
    assert simulation.plan.warmup_steps == pytest.approx(0.05 * simulation.plan.max_steps, rel=0.1)
    assert simulation.plan.max_steps // simulation.plan.eval_steps in (9, 10, 11)
    assert simulation.reviews < 1000  # each is an exchange between processes


@pytest.mark.parametrize("evaluation", [1, 60, 300])
def test_slow_evaluations__are_counted(evaluation):
    simulation = Simulation(3600, lambda now: 0.5, evaluation=evaluation, save=30, save_steps=500).run()
    assert 0.9 * 3600 < simulation.now < 3600 * 1.03


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_pace__that_changes_before_the_cooldown_moves_it(factor):
    simulation = Simulation(3600, lambda now: 0.5 * (factor if now > 1200 else 1), evaluation=10).run()
    assert 0.97 * 3600 < simulation.now < 3600
    assert share(simulation) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("factor", [1.5, 0.6])
def test_pace__that_changes_in_the_cooldown_is_met_once(factor):
    """The rate goes on from where it is, and falls to 0 at the new end."""
    simulation = Simulation(3600, lambda now: 0.5 * (factor if now > 2900 else 1), evaluation=10).run()
    assert 0.97 * 3600 < simulation.now < 1.03 * 3600
    first, second = simulation.decisions
    (start, _), (middle, half), (end, _) = second.cooldown
    assert (start, end) == (first.cooldown_start, second.max_steps)
    assert start < middle < end
    assert (end > first.max_steps) == (factor < 1)
    assert half == pytest.approx(0.5, abs=0.01)
    assert second.rate_at(middle) == first.rate_at(middle)
    rates = [second.rate_at(step) for step in range(end + 1)]
    assert all(later <= earlier for earlier, later in zip(rates[start:], rates[start + 1 :], strict=False))
    assert rates[-1] == 0


class Clock:
    """A clock that only tests move."""

    now = 0.0

    def __call__(self):
        return self.now


def reviewed(seconds, **costs):
    """A budget after one step of a second, with what an evaluation and a save cost, and its clock."""
    clock = Clock()
    budget = TimeBudget({"seconds": seconds, **costs}, 0.2, 300, clock)
    for step in (1, 2):
        clock.now = step
        budget.review(step, replace(OPEN, eval_steps=100))
    return budget, clock


def test_steps_that_are_left__are_those_that_fit_with_all_that_comes_between():
    """Of 1000 s the end keeps 1.2 evaluations, two saves and 1 s, here 23 s, and another save of 5 s comes before.

    An evaluation and its save, each 100 steps, take 15 s, another save, each 300 steps, 5 s. After 200 s and as many
    steps there is time for 657 more, with seven evaluations (the first is due now) and two saves: 657 + 105 + 10 = 772.
    After 800 there is time for 137, less than a fifth of all: 137 + 30 + 5 = 172.
    """
    budget, clock = reviewed(1000, evaluation=10.0, save=5.0)
    plan = replace(OPEN, eval_steps=100)
    clock.now = 200
    assert budget.review(200, plan)[0] == replace(plan, max_steps=857)
    clock.now = 800
    assert budget.review(800, plan)[0] == replace(plan, max_steps=937, cooldown=[(800, 0.0), (937, 1.0)])


def test_pace__is_that_of_steps_alone_without_the_slowest_and_the_fastest_tenth():
    """Of twenty intervals two are slow, though short, and two are fast, though long. Evaluations do not count."""
    budget, clock = reviewed(1e6)
    step, intervals = 2, [(1, 5.0), *[(10, 10.0), (20, 20.0)] * 7, (30, 15.0), (1, 5.0), (30, 15.0), (10, 10.0)]
    for steps, seconds in intervals:  # and the one that `reviewed` made
        with budget.measuring("evaluation"):
            clock.now += 7
        clock.now += seconds
        step += steps
        budget.review(step, replace(OPEN, eval_steps=100))
    assert budget.pace == pytest.approx(1.0)
    assert budget.costs["evaluation"] == 7


def test_uneven_steps__count_with_their_mean_and_a_standstill_does_not():
    """Every fourth step is slow; and the machine stands still for five minutes at half of the time."""
    still = iter([300.0])

    def pace(now):
        pace.steps = getattr(pace, "steps", 0) + 1
        return (1.4 if pace.steps % 4 == 0 else 0.2) + (next(still, 0.0) if now > 1800 else 0.0)

    simulation = Simulation(3600, pace, evaluation=5).run()
    assert 0.95 * 3600 < simulation.now < 1.03 * 3600
    assert share(simulation) == pytest.approx(0.2, abs=0.02)


def test_time_that_is_over__leaves_a_short_cooldown():
    """As in a run that goes on when its time has passed."""
    simulation = Simulation(3600, lambda now: 0.5).run(until=1000)
    simulation.now = 4000
    simulation.run()
    assert (simulation.plan.cooldown_start, simulation.plan.max_steps) == (1001, 1001 + 51)  # 5 %, rounded up


def test_first_plan__of_too_little_time_says_what_would_do():
    budget = TimeBudget({"seconds": 60.0}, 0.2, 1000, lambda: 5.0)
    with pytest.raises(
        ValueError, match=r"`time_budget` 60 s is too short: a step takes 2 s here .* leaves 26 steps"
    ) as error:
        budget.first_plan(OPEN, 2.0, 0.05, None, evaluated=0, parameters=0)
    needed = float(str(error.value).split("would need about ")[1].split(" s")[0])
    TimeBudget({"seconds": needed}, 0.2, 1000, lambda: 5.0).first_plan(OPEN, 2.0, 0.05, None, 0, 0)


def test_first_plan__has_fewer_evaluations_where_they_are_slow():
    def evaluations(images):
        plan = TimeBudget({"seconds": 3600.0}, 0.2, 1000, lambda: 0.0).first_plan(OPEN, 1.0, 0.05, None, images, 0)
        return round(plan.max_steps / plan.eval_steps)

    # An image counts as one of training, of which a second has 64, so that 23,040 images take a tenth of the time.
    assert [evaluations(images) for images in (100, 2304, 4608, 23040, 40000)] == [10, 10, 5, 2, 2]
    assert TimeBudget({"seconds": 3600.0}, 0.2, 1000, lambda: 0.0).first_plan(OPEN, 1.0, 0.05, 7, 0, 0).eval_steps == 7


def test_first_plan__is_the_time_without_evaluations_and_the_end():
    """Of 3600 s the end keeps 1.2 evaluations of 36 s, two saves of 10 s (16 bytes of each parameter) and 1 s: 64.2 s.

    Nine more evaluations leave 3211.8 steps of a second; one every 100 steps leaves 3535.8 / 1.36.
    """
    budget = TimeBudget({"seconds": 3600.0}, 0.2, 1000, lambda: 0.0)
    plan = budget.first_plan(OPEN, 1.0, 0.05, None, evaluated=2304, parameters=125_000_000)
    assert (plan.max_steps, plan.warmup_steps, plan.eval_steps) == (3211, 161, 321)
    assert budget.first_plan(OPEN, 1.0, 0.05, 100, evaluated=2304, parameters=125_000_000).max_steps == 2599


def test_pace__is_measured_within_a_small_share_of_the_time(monkeypatch):
    now, taken = [0.0], []

    def take():
        taken.append(100.0 if not taken else 0.001 if len(taken) < 9 else 0.1)  # compiled, ready in the workers, read
        now[0] += taken[-1]

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert measure_pace(take, 8, 500.0, torch.device("cpu")) == pytest.approx(0.1)
    assert sum(taken[1:]) < 0.03 * 1e5


# ----------------------------------------------------------------------------------------------------------------------
# Runs

RUN = {**STEPS, "config_overrides": SMALL, "effective_batch_size": 8, "eval_images": 10, "save_steps": 1000}
RUN.update(max_steps=-1, save_total_limit=1, eval_steps=20, warmup_ratio=0.1, views_per_image=1)


@pytest.fixture(scope="module", autouse=True)
def _steps_as_seconds():
    """A clock by which a step takes a second and all else nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining_run, "measure_pace", lambda *_: 1.0)
        patch.setattr(pretraining_run.PretrainingRun, "seconds", property(lambda run: float(run.step)))
        yield


def plan_of(folder):
    return json.loads((folder / "run.json").read_text())["plan"]


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 60 seconds: its folder and what it printed."""
    printed = []
    settings = PretrainingSettings(
        **{
            **load_recipe("fashion_mnist_sample", PretrainingSettings),
            **RUN,
            "output_dir": str(tmp_path_factory.mktemp("finished") / "run"),
            "time_budget": 60,
        }
    )
    result = PretrainingRun(settings, echo=printed.append).run()
    return result.output_dir, "\n".join(printed)


@pytest.mark.slow
def test_run__ends_in_time_and_says_what_it_decides(finished):
    output_dir, printed = finished
    plan = plan_of(output_dir)
    (start, _), (end, _) = plan["cooldown"]
    assert 56 <= end <= 59  # a second is kept for the end of the run, and a little for what is not measured
    assert start == pytest.approx(0.8 * end, abs=1)
    assert checkpoints(output_dir) == [start, end]
    rates = metrics(output_dir, "learning_rate")
    assert [rates[step + 1] for step in (plan["warmup_steps"], start)] == [3e-3, 3e-3]
    assert rates[start + 2] == pytest.approx(3e-3 * (1 - math.sqrt(1 / (end - start))), rel=1e-5)
    assert list(metrics(output_dir, "eval_loss"))[-1] == end
    assert len(metrics(output_dir, "eval_loss")) <= 12
    assert "down to 0 when the time that is left is needed for it" in printed
    assert "epochs, in 60 s" in printed
    assert (
        f"step {start}: {start} s of 60 s are over, the learning rate begins to fall. It ends at step {end}" in printed
    )
    recipe = (output_dir / "recipe.yaml").read_text()
    assert "time_budget: 60" in recipe
    assert json.loads((output_dir / "run.json").read_text())["recipe"]["num_train_epochs"] is None


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(20, marks=pytest.mark.long), 52])
def test_run__interrupted_before_or_after_the_decision_is_the_same(finished, tmp_path, step):
    with pytest.raises(RunStopped):
        pretrain(None, tmp_path, time_budget=60, trackers=[SignalAt(step, signal.SIGTERM)], **RUN)
    pretrain(None, tmp_path, time_budget="60s", **RUN)
    assert plan_of(tmp_path) == plan_of(finished[0])
    assert same_tensors("model.safetensors", tmp_path, finished[0])
    for name in ("loss", "learning_rate", "eval_loss"):
        assert metrics(tmp_path, name) == metrics(finished[0], name)
    assert samples(tmp_path) == samples(finished[0])


@pytest.mark.slow
def test_longer_budget__goes_on_before_the_cooldown(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    before = plan_of(finished[0])
    pretrain(None, tmp_path / "run", time_budget=60, **RUN)
    assert "is finished" in capsys.readouterr().out
    pretrain(None, tmp_path / "run", time_budget=72, **RUN)
    assert f"continued from checkpoint-{before['cooldown'][0][0]}" in capsys.readouterr().out
    after = plan_of(tmp_path / "run")
    assert 68 <= after["max_steps"] <= 71
    assert (after["warmup_steps"], after["eval_steps"]) == (before["warmup_steps"], before["eval_steps"])
    assert checkpoints(tmp_path / "run") == [after["cooldown"][0][0], after["max_steps"]]
    rates = metrics(tmp_path / "run", "learning_rate")
    assert rates[after["cooldown"][0][0] + 1] == 3e-3
    assert list(rates) == list(range(1, after["max_steps"] + 1))
    with pytest.raises(ValueError, match="can't become 64 s"):
        pretrain(None, tmp_path / "run", time_budget=64, **RUN)
    with pytest.raises(ValueError, match="holds another run"):
        pretrain(None, tmp_path / "run", **{**RUN, "max_steps": 90, "schedule": "wsd"})


@pytest.mark.slow
def test_dry_run__of_a_budget_says_what_fits(tmp_path, capsys):
    pretrain(None, tmp_path / "run", time_budget="1h", dry_run=True, **RUN)
    printed = capsys.readouterr().out
    assert "as many as fit into 60 min" in printed
    found = re.search(
        r"60 min have room for about ([\d,]+) steps, [\d.]+ epochs: ([\d,]+) of warm-up, ([\d,]+) of cool-down", printed
    )
    steps, warmup, cooldown = (int(number.replace(",", "")) for number in found.groups())
    assert (warmup, cooldown) == (round(0.1 * steps), round(0.2 * steps))


@pytest.mark.slow
def test_rollback__takes_its_time_from_the_budget(tmp_path, monkeypatch, capsys):
    """To the last evaluation, where a run with a budget saves; the steps that are taken again leave fewer others."""
    taken, take_step, read = [0], PretrainingRun.take_step, StepGuard.read

    def count(run):
        taken[0] += 1
        take_step(run)

    def read_as_bad_once(guard):
        values, longest = read(guard)
        return values, 99 if taken[0] == 39 else longest

    monkeypatch.setattr(PretrainingRun, "take_step", count)
    monkeypatch.setattr(PretrainingRun, "seconds", property(lambda run: float(taken[0])))
    monkeypatch.setattr(StepGuard, "read", read_as_bad_once)
    result = pretrain(None, tmp_path, time_budget=60, **RUN)
    assert "rollback to checkpoint-20" in capsys.readouterr().out
    assert 55 <= taken[0] <= 60
    assert result.metrics["step"] == taken[0] - 19
    (start, _), (end, _) = plan_of(tmp_path)["cooldown"]
    assert start == pytest.approx(0.8 * end, abs=1)
