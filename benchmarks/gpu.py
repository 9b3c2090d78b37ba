# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What to measure in the first ten minutes on a GPU, in order of worth.

    PYTHONPATH=src python benchmarks/gpu.py                        # everything, at most ten minutes
    PYTHONPATH=src python benchmarks/gpu.py --parts options data   # only these
    PYTHONPATH=src python benchmarks/gpu.py --smoke                # in small, also on a CPU: is the command sound?

Each case is measured in a process of its own with a time limit, and writes what it has found at once to
`gpu_<part>.json` in the output folder, with machine, versions and commit. So nothing is lost when the machine goes
away, and a case that fails or hangs costs only itself. A second call skips the cases that are done, on whichever
machine that was, and says so. Name another folder to measure all of them anew.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gpu_parts
from measuring import machine
from peers import MAKERS
from transformers.utils import logging

from hf_mae.training.run_record import run_record

PRESETS = ["base", "large", "huge", "small", "tiny"]
OPTIONS = ["compiled", "bf16 residual", "bf16 residual, compiled", "reduce-overhead", "max-autotune"]
SMALL = [f"adamw, {images}, {mode}" for images in (256, 1024) for mode in ("default", "reduce-overhead")]
SMALL += ["adamw, 256, eager", "muon, 1024, default", "muon, 1024, reduce-overhead"]
COMPILED = [f"{preset}, {name}" for preset in ("base", "tiny") for name in ("hf_mae", *MAKERS)]


class Part(NamedTuple):
    """What is measured, for which cases, how many seconds each may take, and whether they may share the machine."""

    measure: Callable[..., None]
    cases: list[str]
    limit: int
    at_once: bool = False


# In order of worth. Parts whose cases only have to be right come first, several cases at a time.
PARTS = {
    "engines": Part(gpu_parts.measure_engine, list(gpu_parts.ENGINES), 120, at_once=True),
    "commands": Part(gpu_parts.run_command, list(gpu_parts.COMMANDS), 120, at_once=True),
    "tests": Part(gpu_parts.run_tests, ["pytest"], 300, at_once=True),
    "compilation": Part(gpu_parts.measure_compilation, COMPILED, 150, at_once=True),
    "device": Part(gpu_parts.measure_device, ["context", "processor", "waits"], 60),
    "eager": Part(gpu_parts.measure_peers, PRESETS, 60),
    "compiled": Part(partial(gpu_parts.measure_peers, compiled=True), PRESETS, 150),
    "small": Part(gpu_parts.measure_small, SMALL, 120),
    "data": Part(gpu_parts.measure_data, ["base", "tiny"], 180),
    "options": Part(gpu_parts.measure_option, OPTIONS, 120),
    "batches": Part(gpu_parts.measure_batch_sizes, PRESETS, 60),
}
COMMAND = [sys.executable, __file__]


class Results:
    """The file of one part: its cases with machine, versions, commit, state, seconds and values.

    Each change is written at once.
    """

    def __init__(self, folder: Path, part: str):
        self.path = folder / f"gpu_{part}.json"

    def read(self) -> dict:
        """Returns the content of the file."""
        return json.loads(self.path.read_text()) if self.path.exists() else {"cases": {}}

    def add(self, case: str, **values):
        """Merges values into those of a case."""
        with self._alone():
            content = self.read()
            merge(content["cases"].setdefault(case, {}), values)
            self._write(content)

    def start(self, case: str):
        """Begins a case anew: what an earlier try has left may be of another machine or commit."""
        with self._alone():
            content = self.read()
            content["cases"][case] = {"state": "started"}
            self._write(content)

    def describe(self, case: str):
        """Writes down machine, versions and commit of a case, since a later call may be of others."""
        record = run_record({})
        self.add(case, machine=machine(gpu_parts.DEVICE), versions=record["versions"], commit=record["commit"])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits for other processes that write to the same folder, and locks it without a file of its own."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _write(self, content: dict):
        unfinished = self.path.with_suffix(".partial")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.path)  # a reader, or the end of the machine, never finds half a file


def merge(values: dict, new: dict):
    """Puts new values into a dictionary; dictionaries within are merged, too."""
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            merge(values[name], value)
        else:
            values[name] = value


def measure_here(folder: Path, part: str, case: str, smoke: bool):
    """Measures one case in this process."""
    results = Results(folder, part)
    results.describe(case)
    PARTS[part].measure(case, partial(results.add, case), smoke)
    results.add(case, state="done")


def measure_apart(folder: Path, part: str, case: str, smoke: bool, limit: float):
    """Measures one case in a process of its own, which is ended with all that it has started after `limit` seconds."""
    command = [*COMMAND, "--output", str(folder), "--case", part, case, *(["--smoke"] if smoke else [])]
    results = Results(folder, part)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=limit)
        if process.returncode:
            results.add(case, state=f"failed with exit status {process.returncode}", errors=errors[-3000:])
    except subprocess.TimeoutExpired:
        results.add(case, state=f"cut off after {limit:.0f} s")
    finally:
        if process.poll() is None:  # also when this process is interrupted
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_done(folder: Path, part: str, case: str) -> bool:
    """Returns whether a case has nothing left to do, on whichever machine it was done.

    Compiling is for the machine where its result is cached: it is done when the steps that need it have been timed.
    """
    if part == "compilation":
        part, case = "compiled", case.split(",")[0]
    return Results(folder, part).read()["cases"].get(case, {}).get("state") == "done"


def end_without(parent: int):
    """Ends this process and all that it has started when its parent is gone: they would disturb what is timed next."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def measure(folder: Path, parts: list[str], smoke: bool, total: float, here: bool):
    """Measures all cases that are not done yet, for at most `total` seconds."""
    ends = time.monotonic() + total

    def measure_case(part: str, case: str):
        remaining = ends - time.monotonic()
        if remaining < 5:
            print(f"{part}, {case}: no time left")
            return
        if is_done(folder, part, case):
            print(f"{part}, {case}: done before")
            return
        results, started = Results(folder, part), time.monotonic()
        results.start(case)
        if here:
            measure_here(folder, part, case, smoke)
        else:
            measure_apart(folder, part, case, smoke, min(PARTS[part].limit, remaining))
        results.add(case, total_seconds=time.monotonic() - started)
        print(f"{part}, {case}: {results.read()['cases'][case]['state']}", flush=True)

    # In small all presets are the same model.
    cases = [
        (part, case)
        for part in parts
        for case in PARTS[part].cases
        if not (smoke and case.split(",")[0] in PRESETS[1:])
    ]
    with ThreadPoolExecutor(1 if here else gpu_parts.AT_ONCE) as pool:
        list(pool.map(lambda each: measure_case(*each), [each for each in cases if PARTS[each[0]].at_once]))
    for part, case in cases:
        if not PARTS[part].at_once:
            measure_case(part, case)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=590, help="For everything.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="Folder for the files.")
    parser.add_argument("--smoke", action="store_true", help="Tiny models and few steps.")
    parser.add_argument("--here", action="store_true", help="Measure in this process, without time limits.")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.case:
        threading.Thread(target=end_without, args=(os.getppid(),), daemon=True).start()
        measure_here(args.output, *args.case, args.smoke)
    else:
        measure(args.output, args.parts, args.smoke, args.seconds, args.here)


if __name__ == "__main__":
    main()
