# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How long a run is, its learning rate at each step, and how it is made longer. Ends in time: test_time_budget.py."""

import json
import math
import shutil
import signal

import pytest
from conftest import SMALL, STEPS, SignalAt, metrics, same_tensors, samples

from hf_mae import MAEForPreTraining
from hf_mae.pretraining.command import PretrainingSettings, pretrain
from hf_mae.pretraining.schedule import Plan, plan_steps, resume_plan
from hf_mae.training.arguments import parse_duration
from hf_mae.training.optimization import learning_rate_at
from hf_mae.training.step_guard import RunStopped

WSD = {"schedule": "wsd", "max_steps": 100, "effective_batch_size": 8, "learning_rate": 0.5, "warmup_ratio": 0.1}


def plan(**settings):
    return plan_steps(PretrainingSettings(**{**WSD, **settings}), num_images=80)


# ----------------------------------------------------------------------------------------------------------------------
# Rates


def test_cosine__is_the_default_and_what_it_was():
    planned = plan(schedule=None)
    assert [planned.rate_at(step) for step in range(100)] == [
        learning_rate_at(step, 100, 10, 0.5) for step in range(100)
    ]
    assert planned.cooldown_start is None
    assert not planned.is_open


def test_wsd__rises_stays_and_falls_as_published():
    """Hägele et al. 2024, with N = 100, N_w = 10, N_d = 20: f = 1 - sqrt((n - (N - N_d)) / N_d)."""
    rates = [plan().rate_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(10)])
    assert rates[10:81] == [0.5] * 71
    assert rates[81:] == pytest.approx([0.5 * (1 - math.sqrt((step - 80) / 20)) for step in range(81, 101)])
    assert rates[100] == 0
    assert plan(cooldown_ratio=0.5).cooldown_start == 50


def test_cooldown__that_is_corrected_goes_on_from_its_rate():
    corrected = Plan(8, 10.0, 95, 0, 1.0, 10, [(80, 0.0), (90, 0.5), (95, 1.0)])
    halfway = 1 - math.sqrt(0.5)
    assert corrected.rate_at(90) == pytest.approx(halfway)
    assert corrected.rate_at(85) == pytest.approx(0.5)  # 1 - sqrt(1 / 4)
    assert corrected.rate_at(92) == pytest.approx(1 - math.sqrt(0.7))  # two of the five steps that are left
    assert corrected.rate_at(95) == 0


def test_plan__of_epochs():
    """80 images in batches of 8 are 10 steps an epoch; the rate is that of 256 images times 8 / 256."""
    cosine = {"num_train_epochs": 3, "effective_batch_size": 8, "base_learning_rate": 0.32, "warmup_ratio": 0.1}
    planned = plan_steps(PretrainingSettings(**cosine), num_images=80)
    assert planned == Plan(8, 10.0, 30, 3, pytest.approx(0.01), 3)
    assert plan_steps(PretrainingSettings(**{**cosine, "num_train_epochs": 0.01}), num_images=80).max_steps == 1
    own_batch = plan_steps(PretrainingSettings(**{**cosine, "effective_batch_size": None}), num_images=1000)
    assert (own_batch.batch_size, own_batch.max_steps) == (32, 94)  # 3 x 31.25


def test_plan__of_few_steps_has_one_that_is_no_warmup_and_one_of_cooldown():
    few = {"max_steps": 10, "effective_batch_size": 8, "learning_rate": 0.5, "warmup_ratio": 0.99}
    assert plan_steps(PretrainingSettings(**few), num_images=80).warmup_steps == 9
    assert plan_steps(PretrainingSettings(**{**few, "max_steps": 1}), num_images=80).warmup_steps == 0
    assert plan(max_steps=2).cooldown == [(1, 0.0), (2, 1.0)]


def test_plan__with_a_time_budget_is_open_and_goes_on_so():
    settings = {**WSD, "max_steps": -1, "time_budget": "2h"}
    planned = plan(**settings)
    assert (planned.is_open, planned.max_steps, planned.cooldown_start) == (True, 0, None)
    stored = state(50, planned, time_budget={"seconds": 3600.0})
    assert resume_plan(planned, stored, PretrainingSettings(**settings)) == (planned, None)


# ----------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("1.5h", 5400), ("2d", 172800), ("8h30m", 30600), (" 1H 5s", 3605), ("45", 45), (45.5, 45.5)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "8 hours", "-5", "nan", "5m3h", "h"])
def test_durations__that_are_none(text):
    with pytest.raises(ValueError, match="is no duration: write seconds, or 90m, 8h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine", "time_budget": "8h"}, "`time_budget` needs `schedule` wsd"),
        ({"max_steps": 10, "time_budget": "8h"}, "`max_steps` and `time_budget` both say"),
        ({"extend_to": 10, "time_budget": "8h"}, "made longer by a longer `time_budget`"),
        ({"time_budget": 20}, "`time_budget` must be at least 30 s, got 20 s"),
        ({"extend_to": 10}, "`extend_to` needs a run with `schedule` wsd.*`model_name_or_path`"),
        ({"schedule": "wsd", "cooldown_ratio": 0.96}, "`cooldown_ratio` must be above 0 and, with `warmup_ratio`"),
    ],
)
def test_settings__that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainingSettings(**settings)


# ----------------------------------------------------------------------------------------------------------------------
# Plans of runs that go on


def state(step, planned, **others):
    return json.loads(json.dumps({"step": step, "plan": planned.state(), **others}))


@pytest.mark.parametrize(("step", "goes_back"), [(0, None), (80, None), (81, 80), (100, 80)])
def test_extension__goes_on_before_the_cooldown(step, goes_back):
    longer, back = resume_plan(plan(), state(step, plan()), PretrainingSettings(**WSD, extend_to=200))
    assert back == goes_back
    assert (longer.max_steps, longer.cooldown, longer.warmup_steps) == (200, [(160, 0.0), (200, 1.0)], 10)
    again, back = resume_plan(plan(), state(120, longer), PretrainingSettings(**WSD, extend_to=200))
    assert (again, back) == (longer, None)  # it is on its way
    same, back = resume_plan(plan(), state(120, longer), PretrainingSettings(**WSD))
    assert (same, back) == (longer, None)
    third, back = resume_plan(plan(), state(190, longer), PretrainingSettings(**WSD, extend_to=300))
    assert (third.max_steps, back) == (300, 160)
    with pytest.raises(ValueError, match="`extend_to` 150 must be more than the 200 steps"):
        resume_plan(plan(), state(200, longer), PretrainingSettings(**WSD, extend_to=150))


def test_extension__of_a_run_that_has_not_started_is_its_end():
    longer, back = resume_plan(plan(), {"step": 0}, PretrainingSettings(**WSD, extend_to=200))
    assert (longer.max_steps, longer.warmup_steps, longer.eval_steps, back) == (200, 10, 10, None)


def test_longer_budget__opens_the_end_again():
    settings = {**WSD, "max_steps": -1, "time_budget": "2h"}
    decided = plan(**settings).ending_at(100, 20)
    stored = state(90, decided, time_budget={"seconds": 3600.0})
    longer, back = resume_plan(plan(**settings), stored, PretrainingSettings(**settings))
    assert (longer.is_open, back) == (True, 80)
    stored["time_budget"]["seconds"] = 7200.0
    same, back = resume_plan(plan(**settings), stored, PretrainingSettings(**settings))
    assert (same.cooldown, back) == (decided.cooldown, None)
    stored["time_budget"]["seconds"] = 9000.0
    with pytest.raises(ValueError, match="`time_budget` was 9,000 s .* can't become 7,200 s"):
        resume_plan(plan(**settings), stored, PretrainingSettings(**settings))


# ----------------------------------------------------------------------------------------------------------------------
# Runs

RUN = {
    **STEPS,
    "config_overrides": SMALL,
    "schedule": "wsd",
    "save_total_limit": 1,
    "save_steps": 100,
    "eval_steps": 50,
}
RUN.update(effective_batch_size=8, eval_images=10)


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A run of 15 steps with 1 of warm-up."""
    return pretrain(
        None, tmp_path_factory.mktemp("planned"), **{**RUN, "max_steps": 15, "warmup_ratio": 1 / 15}
    ).output_dir


@pytest.mark.slow
def test_extended_run__equals_one_that_was_planned_so_long(planned, tmp_path, capsys):
    """Bit for bit, also if the extension is interrupted. It keeps the checkpoint before its own cool-down."""
    options = {**RUN, "max_steps": 10, "warmup_ratio": 0.1}
    pretrain(None, tmp_path, **options)
    assert checkpoints(tmp_path) == [8, 10]
    shutil.copytree(tmp_path, tmp_path / "copy")
    with pytest.raises(RunStopped, match="saved at step 10"):
        pretrain(None, tmp_path, extend_to=15, trackers=[SignalAt(9, signal.SIGTERM)], **options)
    assert checkpoints(tmp_path) == [10]
    assert list(metrics(tmp_path, "loss")) == list(range(1, 11))
    pretrain(None, tmp_path, extend_to=15, **options)
    assert checkpoints(tmp_path) == [12, 15]
    for name in ("loss", "learning_rate", "grad_norm"):
        assert metrics(tmp_path, name) == metrics(planned, name)
    assert same_tensors("model.safetensors", tmp_path, planned)
    assert same_tensors("optimizer.safetensors", tmp_path / "checkpoint-15", planned / "checkpoint-15")
    assert samples(tmp_path) == samples(planned)
    assert "is finished" not in capsys.readouterr().out
    pretrain(None, tmp_path, **options)
    assert "is finished: 15 steps" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="differs in\\s+max_steps: 10 there, 20 now\n.*`extend_to` make the run longer"
    ):
        pretrain(None, tmp_path, **{**options, "max_steps": 20})
    pretrain(None, tmp_path, extend_to=20, **options)
    assert checkpoints(tmp_path) == [16, 20]
    shutil.rmtree(tmp_path / "copy" / "checkpoint-8")
    with pytest.raises(ValueError, match="checkpoint-8 can't be used: it is not there"):
        pretrain(None, tmp_path / "copy", extend_to=15, **options)


@pytest.mark.slow
def test_extended_run__that_ends_at_once_leaves_the_log_of_the_finished_one(tmp_path):
    options = {**RUN, "max_steps": 10, "warmup_ratio": 0.1}
    pretrain(None, tmp_path, **options)
    before = (tmp_path / "metrics.jsonl").read_text()

    class Broken(SignalAt):
        def log(self, values, step=None):
            raise OSError("no tracker")

    with pytest.raises(OSError, match="no tracker"):
        pretrain(None, tmp_path, extend_to=15, trackers=[Broken(0)], **options)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    pretrain(None, tmp_path, extend_to=15, **options)
    assert list(metrics(tmp_path, "loss")) == list(range(1, 16))


@pytest.mark.slow
def test_extended_run__whose_first_steps_are_bad_rolls_back_to_before_the_cooldown(planned, tmp_path, monkeypatch):
    """And not to the end of the finished run, which is newer and stays until the extension has saved a step."""
    options = {**RUN, "max_steps": 10, "warmup_ratio": 0.1}
    pretrain(None, tmp_path, **options)
    forward, calls = MAEForPreTraining.forward, iter(range(1000))

    def bad_twice(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.training and next(calls) < 2:
            output.loss = output.loss * math.nan
        return output

    monkeypatch.setattr(MAEForPreTraining, "forward", bad_twice)
    pretrain(None, tmp_path, extend_to=15, max_bad_steps=2, **options)
    assert list(metrics(tmp_path, "loss")) == list(range(1, 16))
    assert same_tensors("model.safetensors", tmp_path, planned)


@pytest.mark.slow
def test_wsd__interrupted_in_its_cooldown_ends_alike(planned, tmp_path):
    options = {**RUN, "max_steps": 15, "warmup_ratio": 1 / 15}
    with pytest.raises(RunStopped, match="saved at step 14"):
        pretrain(None, tmp_path, trackers=[SignalAt(13, signal.SIGTERM)], **options)
    assert checkpoints(tmp_path) == [12, 14]
    pretrain(None, tmp_path, **options)
    assert same_tensors("model.safetensors", tmp_path, planned)
