# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import math
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import _pin_memory_loop

from hf_mae.training.optimization import (
    LARS,
    parameter_groups,
)
from hf_mae.training.step_guard import StepGuard, StopSignals, end_workers, with_prepared_workers

OPTIMIZERS = {
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "not fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=False),
    "LARS": lambda groups: LARS(groups, lr=1e-3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("what", ["loss nan", "loss inf", "gradient nan", "gradient inf"])
def test_guard__leaves_out_bad_steps_alone(tiny_model, what, kind):
    """With every kind of optimizer: only torch's fused ones can leave out a step by themselves."""
    model = tiny_model().train()
    optimizer = OPTIMIZERS[kind](parameter_groups(model, 0.05))
    guard = StepGuard(optimizer)
    tried = []
    for step in range(6):
        loss = model(torch.randn(2, 3, 32, 32)).loss
        loss.backward()
        place, value = what.split()
        if step in (2, 3):
            loss = loss * float(value) if place == "loss" else loss
            if place == "gradient":
                model.mae.layernorm.weight.grad[3] = float(value)
        before = [parameter.clone() for parameter in model.parameters()]
        guard.step(loss)
        optimizer.zero_grad()
        tried.append(all(map(torch.equal, before, model.parameters())))
    assert tried == [False, False, True, True, False, False]
    assert {int(state["step"]) for state in optimizer.state.values() if "step" in state} <= {4}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    values, longest = guard.read()
    assert (values["skipped"], longest) == (2, 2)
    assert 0 < values["loss"] < 10
    assert values["grad_norm"] > 0
    assert guard.read() == ({"skipped": 0}, 0)


def test_guard__clips_as_torch_does_and_changes_nothing_else(tiny_model):
    results = []
    for guarded in (False, True):
        torch.manual_seed(0)
        model = tiny_model().train()
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3, fused=True)
        guard = StepGuard(optimizer, max_grad_norm=0.1)
        for _ in range(3):
            loss = model(torch.randn(2, 3, 32, 32)).loss
            loss.backward()
            if guarded:
                guard.step(loss)
            else:
                # In the optimizer's order, in which the guard sums the norm: the last bit depends on it.
                torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)
                optimizer.step()
            optimizer.zero_grad()
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*results)


def test_guard__logs_means_over_the_good_steps_and_by_default_does_not_clip():
    weight = torch.nn.Parameter(torch.zeros(2))
    guard = StepGuard(torch.optim.SGD([weight], lr=1.0))
    for loss, gradient in ((1.0, (3.0, 4.0)), (7.0, (math.nan, 1.0)), (math.inf, (1.0, 1.0)), (4.0, (-5.0, 12.0))):
        weight.grad = torch.tensor(gradient)
        guard.step(torch.tensor(loss))
    assert weight.tolist() == [2, -16]
    assert guard.read() == ({"loss": 2.5, "grad_norm": 9.0, "skipped": 2}, 2)  # norms of 5 and 13


def test_stop_signals__first_is_noted_second_ends_at_once():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    with StopSignals() as signals:
        assert signals.number == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.number == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt, match="last checkpoint stays"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in numbers} == before


def test_closed_terminal__is_a_wish_to_save_and_writes_to_it_no_more(monkeypatch):
    """Shell and system both send SIGHUP, and to write to a terminal that is gone is an error."""
    reader, terminal = os.openpty()
    monkeypatch.setattr("os.isatty", lambda number: number == 2)
    monkeypatch.setattr("hf_mae.training.step_guard.STOP_SIGNALS", [signal.SIGINT, signal.SIGHUP])
    kept, before = os.dup(2), signal.getsignal(signal.SIGHUP)
    try:
        os.dup2(terminal, 2)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert b"Ctrl-C again ends it at once" in os.read(reader, 1000)
            os.close(reader)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(2, b"a line")
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert os.write(2, b"a line") == 6
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(terminal)
    assert signals.number == signal.SIGINT
    assert signal.getsignal(signal.SIGHUP) == before


def test_closed_terminal__is_nothing_to_a_run_under_nohup():
    code = "import signal; from hf_mae.training.step_guard import STOP_SIGNALS as s; print(signal.SIGHUP in s)"
    command = ["nohup", sys.executable, "-c", code]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout == b"False\n"


def test_workers__are_prepared_once_and_still_seeded(monkeypatch):
    called = []
    monkeypatch.setattr("hf_mae.training.step_guard.start_worker", lambda number: called.append(("prepared", number)))
    loader = DataLoader(range(4), num_workers=1, worker_init_fn=lambda number: called.append(("seeded", number)))
    for _ in range(2):  # a loader may be used again
        with_prepared_workers(loader)
    loader.worker_init_fn(3)
    assert called == [("prepared", 3), ("seeded", 3)]
    assert with_prepared_workers(DataLoader(range(4))).worker_init_fn is None


class QueueOfAKilledWorker(queue.Queue):
    def get(self, *args, **kwargs):
        raise ConnectionResetError


def test_end_of_workers__is_silent_in_the_thread_that_pins_their_batches(monkeypatch):
    """On a GPU such a thread reads from the workers when they are killed. Errors of other threads are printed."""
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda error: printed.append(error.thread.name))
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    end_workers(set(multiprocessing.active_children()) - {worker})
    assert worker.exitcode == -signal.SIGKILL
    pinning = (QueueOfAKilledWorker(), queue.Queue(), 0, threading.Event(), "cpu")
    threads = [
        threading.Thread(target=_pin_memory_loop, args=pinning, name="pinning"),
        threading.Thread(target=QueueOfAKilledWorker().get, name="another"),
    ]
    for thread in threads:
        thread.start()
        thread.join()
    assert printed == ["another"]


def test_slow_save__under_a_launcher_asks_once_for_more_time(monkeypatch):
    """torchrun kills the processes 30 seconds after SIGTERM, unless its environment says otherwise."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert StopSignals().advice(1000) is None  # without a launcher
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    signals = StopSignals()
    assert signals.advice(2) is None
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in signals.advice(36)
    assert signals.advice(36) is None
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert StopSignals().advice(36) is None
