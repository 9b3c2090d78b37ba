# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads and writes the record of a run, `run.json`, and keeps access tokens out of it."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import PIL.Image
from huggingface_hub import get_token

from ..modeling.configuration_mae import MAEConfig
from ..modeling.saving_mae import has_config, no_model_in

# Metrics that a card states as results, in the terms of the Hub.
ACCURACIES = {"knn_accuracy", "linear_accuracy", "attentive_accuracy", "finetuned_accuracy", "eval_accuracy"}


def redact(text: str) -> str:
    """Replaces access tokens in a text by `***`: values of `--hub_token`, what looks like a token, the one in use."""
    text = re.sub(r"(--[\w-]*tok\w*[= ])\S+", r"\1***", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)
    token = get_token()
    return text.replace(token, "***") if token else text


def save_record(folder: str | os.PathLike, record: dict):
    """Writes the record of a finished run, `run.json`, into its folder."""
    write_json(Path(folder) / "run.json", record)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name to write a file under, which gets its own when it is complete.

    A full disk, or the end of the process, leaves what was there before.

    Args:
        path (`Path`): File to write. If it is a link, the file that this leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")  # Pillow goes by the end of the name
    try:
        yield partial
        with suppress(OSError):  # there was none, or the file system has no permissions
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Writes a text, in which names of files may be any bytes, see [`replacing`]."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: dict):
    """Writes a JSON object for people to read. Values of other types become texts, numbers that are not finite null."""
    write_text(path, json.dumps(_finite(content), indent=2, default=str) + "\n")


def save_picture(path: Path, picture: PIL.Image.Image):
    """Writes a picture, see [`replacing`]."""
    with replacing(path) as partial:
        picture.save(partial)


def _finite(content):
    """Returns a value with `None` for numbers that are not finite, which JSON has no words for."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_record(folder: str | os.PathLike) -> dict:
    """Reads the record of a finished run; without one it is empty."""
    return read_json(Path(folder) / "run.json")


def add_to_record(folder: str | os.PathLike, facts: dict, evaluations: Sequence[str | os.PathLike] = ()):
    """Adds facts that no run knows, and accuracies that later runs found, to the record of a model.

    Args:
        folder (`str` or `os.PathLike`): Folder of the model.
        facts (`dict`): Entries of the record, such as `license`; see [`write_model_card`].
        evaluations (`Sequence[str | os.PathLike]`, *optional*): Folders of probes and fine-tuned models of it. Their
            accuracies are added to the metrics.

    Raises:
        OSError: If the folder holds no model, or an evaluation has no record.
        ValueError: If an evaluation has no accuracy.
    """
    check_is_model(Path(folder))
    record = read_record(folder)
    metrics, splits = dict(record.get("metrics") or {}), dict(record.get("splits") or {})
    for evaluation in evaluations:
        if not (Path(evaluation) / "run.json").exists():
            raise OSError(f"`evaluation`: {evaluation} is not the folder of a finished run, it has no run.json.")
        run = read_record(evaluation)
        found = run.get("metrics") or {}
        named = {name.replace("eval_", "finetuned_"): value for name, value in found.items()}
        accuracies = {name: value for name, value in named.items() if name in ACCURACIES}
        if not accuracies:
            raise ValueError(
                f"`evaluation`: {evaluation} has no accuracy that the card could show, only "
                f"{', '.join(found) or 'nothing'}. State such figures with `notes`."
            )
        metrics |= accuracies
        splits |= dict.fromkeys(accuracies, "train" if run.get("num_held_out") else "test")
    if evaluations:
        facts = {**facts, "metrics": metrics, "splits": splits}
    if facts:
        save_record(folder, {**record, **facts})


def json_lines(path: str | os.PathLike) -> list[dict]:
    """Reads the lines of a log that are JSON objects. The last line of a process that was killed may be broken."""
    path, lines = Path(path), []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def read_json(path: Path) -> dict:
    """Reads a JSON object; without the file it is empty.

    Raises:
        ValueError: If the file is no JSON, or holds another value.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Mend it, or take it away.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}. Mend it, or take it away.")
    return content


def is_model_of_ours(folder: str | os.PathLike) -> bool:
    """Returns whether a folder holds a model of hf_mae, and not, say, one with our encoder as its backbone."""
    return read_json(Path(folder) / "config.json").get("model_type") == MAEConfig.model_type


def initial_weights(record: dict) -> str | None:
    """Returns what a run started from, by its record, or `None` if it started from fresh weights."""
    return (record.get("recipe") or {}).get("model_name_or_path")


def check_is_model(folder: Path):
    """Refuses a folder without a model.

    Raises:
        OSError: If it has no `config.json`.
    """
    if not has_config(folder):
        raise no_model_in(folder)


__all__ = [
    "ACCURACIES",
    "add_to_record",
    "check_is_model",
    "initial_weights",
    "is_model_of_ours",
    "json_lines",
    "read_json",
    "read_record",
    "redact",
    "replacing",
    "save_picture",
    "save_record",
    "write_json",
    "write_text",
]
