# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes down what a run did: metrics, throughput, samples, unreadable images, record."""

import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from ..data.decoding import decoder_name
from ..modeling.configuration_mae import MAEConfig
from ..modeling.masking_mae import choose_mask
from ..modeling.modeling_mae import MAEForPreTraining
from ..publishing.records import json_lines

logger = logging.get_logger(__name__)


@dataclass
class PretrainingResult:
    """What a finished run leaves.

    Args:
        output_dir (`Path`): Folder with model, image processor, card, record, log and pictures.
        metrics (`dict[str, float]`): Newest value of everything that was logged. Empty except in the main process.
        model ([`MAEForPreTraining`] or `None`): The trained model in evaluation mode. `None` after a dry run, and, if
            the model was sharded, except in the main process.
    """

    output_dir: Path
    metrics: dict[str, float]
    model: MAEForPreTraining | None


@contextmanager
def progress_bars_off() -> Iterator[None]:
    """Turns off transformers' bars of loading and saving weights. A run has one of its own."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


class Throughput:
    """Measures how fast a run is, and how much of its time it waits for data."""

    def __init__(self):
        self._since, self._waited, self._excluded = time.perf_counter(), 0.0, 0.0
        self._wait_shares: list[float] = []
        self._advised = False

    @contextmanager
    def waiting(self):
        """Counts the enclosed time as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def excluded(self):
        """Excludes the enclosed time from throughput."""
        started = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - started

    def read(self, samples: int) -> dict[str, float]:
        """Returns `images_per_second` and `data_wait`, a share in [0, 1], since the last call.

        Args:
            samples (`int`): Number of samples that all processes together have trained on since then.
        """
        seconds = max(time.perf_counter() - self._since - self._excluded, 1e-9)
        values = {"images_per_second": samples / seconds, "data_wait": self._waited / seconds}
        self._since, self._waited, self._excluded = time.perf_counter(), 0.0, 0.0
        self._wait_shares.append(values["data_wait"])
        return values

    def advice(self, num_workers: int, views_per_image: int) -> str | None:
        """Returns, once, what to change if more than a tenth of the time goes into waiting for data, else `None`.

        Args:
            num_workers (`int`): Loader workers of this process.
            views_per_image (`int`): Crops of one decode.
        """
        shares = self._wait_shares[1:]  # the first one includes the start of the workers
        if self._advised or not shares or sum(shares) / len(shares) <= 0.1:
            return None
        self._advised = True
        ways = [f"`dataloader_num_workers` above {num_workers}, if there are free cores"]
        if decoder_name() == "PIL":
            ways.append("pip install simplejpeg, if the images are JPEGs")
        ways.append(f"`views_per_image` {2 * views_per_image}, which decodes half as often")
        return (
            f"{sum(shares) / len(shares):.0%} of the time goes into waiting for data. What helps: {'; '.join(ways)}; "
            "images on a local disk, not much larger than the crops."
        )


def last_metrics(output_dir: str | os.PathLike) -> dict[str, float]:
    """Returns the newest value of everything that a run has logged, and changes nothing in its folder."""
    return _newest(json_lines(Path(output_dir) / "metrics.jsonl"))


def _newest(lines: list[dict]) -> dict[str, float]:
    return {name: value for line in lines for name, value in line.items()}


class MetricsLog:
    """Writes the metrics of a run, one JSON object in each line of `metrics.jsonl` in its folder."""

    def __init__(self, output_dir: str | os.PathLike, step: int = 0, keeps_later: bool = False):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run.
            step (`int`, *optional*, defaults to 0): Position of the run. Lines of later steps, which a resumed run
                takes again, are dropped.
            keeps_later (`bool`, *optional*, defaults to `False`): Leave the file as it is until [`rewrite`] is called.
        """
        self.path, self._is_kept = Path(output_dir) / "metrics.jsonl", keeps_later
        self.lines = [line for line in json_lines(self.path) if line.get("step", step + 1) <= step]
        if not keeps_later:
            self.rewrite()

    def rewrite(self):
        """Makes the file what the lines are."""
        self._is_kept = False
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        partial.replace(self.path)

    def write(self, step: int, **values: float):
        """Appends a line. Floats are rounded to six digits; those that are not finite are left out."""
        finite = {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, **finite}
        self.lines.append(line)
        if self._is_kept:
            return
        _append(self.path, [json.dumps(line)])

    def has(self, step: int, name: str) -> bool:
        """Returns whether a value was logged at a step."""
        return any(line["step"] == step and name in line for line in self.lines)

    def last(self) -> dict[str, float]:
        """Returns the newest value of everything that was logged."""
        return _newest(self.lines)


def _append(path: Path, lines: list[str]):
    """Appends lines to a log. A log that cannot be written does not end the run."""
    try:
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        logger.warning(f"{path} could not be written to: {error}.")


class SampleLog:
    """Writes the samples of every step, one JSON object in each line of `samples-<process>.jsonl` in a run's folder.

    The lines of all processes together, sorted and without repetitions (`sort -u`), do not depend on the number of
    processes or on interruptions.
    """

    def __init__(self, output_dir: str | os.PathLike, process_index: int = 0):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run. It must exist.
            process_index (`int`, *optional*, defaults to 0): Number of the process that writes.
        """
        self.path = Path(output_dir) / f"samples-{process_index}.jsonl"

    def write(self, step: int, batch: dict[str, torch.Tensor], config: MAEConfig):
        """Appends the samples of a batch of [`hf_mae.data.datasets.collate`].

        Args:
            step (`int`): Global step, from 0.
            batch (`dict`): With `pixel_values`, `sample`, `crop_box`, `flipped` and `noise`.
            config ([`MAEConfig`]): Says how the model makes masks of the noise.
        """
        rule = (config.mask_sampling, config.mask_block_size, config.mask_ratio)
        kept, _ = choose_mask(batch["pixel_values"], config.grid_size, *rule, batch["noise"])
        kept = kept.sort(dim=1).values.tolist()
        rows = zip(batch["sample"].tolist(), batch["crop_box"].tolist(), batch["flipped"].tolist(), kept, strict=True)
        lines = []
        for (epoch, index, view), box, flipped, visible in rows:
            line = {"step": step, "epoch": epoch, "index": index, "view": view, "box": box, "flipped": flipped}
            lines.append(json.dumps({**line, "visible": visible}))
        _append(self.path, lines)


class UnreadableImages:
    """Counts the images of a run that cannot be read, and names them in `unreadable.txt` in its folder."""

    def __init__(self, output_dir: str | os.PathLike, num_images: int, max_share: float):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run.
            num_images (`int`): Images of the source.
            max_share (`float`): Share of them that may be unreadable, in [0, 1].
        """
        self.path, self.num_images, self.max_share = Path(output_dir) / "unreadable.txt", num_images, max_share
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape") if self.path.exists() else ""
        self.names = {line.split("\t")[0] for line in text.split("\n") if line}

    def __len__(self) -> int:
        return len(self.names)

    def add(self, found: dict[str, str], write: bool = True) -> list[str]:
        """Adds images that could not be read, and returns a line for each that is new: name, tab, reason.

        Args:
            found (`dict[str, str]`): Reasons by names.
            write (`bool`, *optional*, defaults to `True`): Whether to write the file, which one process does.
        """
        # A name may hold ends of lines and tabs: as blanks, or the next run would take it for others.
        found = {" ".join(re.split(r"\s", name)): " ".join(reason.split()) for name, reason in found.items()}
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
            f"{len(self.names):,} of {self.num_images:,} images can't be read, more than `max_unreadable` "
            f"{self.max_share:g} allows. They are named in {self.path}. Repair them where they are and delete that "
            "file, or raise `max_unreadable`, and start the run again: it goes on from its last checkpoint. Without "
            "them it would be another run."
        )


__all__ = [
    "MetricsLog",
    "PretrainingResult",
    "SampleLog",
    "Throughput",
    "UnreadableImages",
    "last_metrics",
    "progress_bars_off",
]
