# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The table that `hf-mae evaluate` makes: as text, Markdown, JSON, and in model cards."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..publishing.model_cards import write_model_card
from ..publishing.records import add_to_record, is_model_of_ours, read_record, write_json, write_text

# How figures are called, and how their values are written.
COLUMNS = {
    "knn_accuracy": ("k-NN", "{:.1%}"),
    "linear_accuracy": ("linear", "{:.1%}"),
    "attentive_accuracy": ("attentive", "{:.1%}"),
    "finetuned_accuracy": ("fine-tuned", "{:.1%}"),
    "dense_knn_iou": ("dense k-NN", "{:.1%}"),
    "dense_linear_iou": ("dense linear", "{:.1%}"),
    "effective_rank": ("rank", "{:.1f}"),
    "twin_retrieval": ("twins", "{:.1%}"),
    "mean_cosine": ("cosine", "{:.2f}"),
}
_FINETUNED = "finetuned_accuracy"
_FEW = f"{_FINETUNED}_"  # followed by the number of images of a class
BEST = "*"


@dataclass
class Row:
    """Holds what was measured of one block of one model.

    Attributes:
        model (`str`): Its folder or name.
        block (`int`): Which block, 1 is the first.
        width (`int`): Width of the features.
        figures (`dict[str, float]`): By name, see `COLUMNS`; fine-tuning ends in the number of images of a class.
        choices (`dict`): What held-out training images chose: tokens, rates, and the accuracies by which.
        is_best (`bool`): Whether held-out training images prefer this block to others of the model.
        seconds (`float`): What it took.
    """

    model: str
    block: int
    width: int
    figures: dict[str, float] = field(default_factory=dict)
    choices: dict = field(default_factory=dict)
    is_best: bool = False
    seconds: float = 0.0


def mark_best_blocks(rows: list[Row]):
    """Marks the block of each model that held-out training images prefer, if several blocks were measured.

    Args:
        rows (`list[Row]`): All rows. Those without a choice by held-out images are left unmarked.
    """
    for model in {row.model for row in rows}:
        candidates = [row for row in rows if row.model == model and "held_out" in row.choices]
        if len(candidates) > 1:
            max(candidates, key=lambda row: row.choices["held_out"]).is_best = True


def table_of(rows: list[Row]) -> list[list[str]]:
    """Returns the cells of the table, the titles first. A figure that a model lacks is a dash."""
    measured = {name for row in rows for name in row.figures}
    few = sorted((name for name in measured if name.startswith(_FEW)), key=lambda name: int(name.removeprefix(_FEW)))
    order = [name for kind in COLUMNS for name in (few if kind == _FINETUNED else [kind])]
    names = [name for name in order if name in measured]
    lines = [["model", "block", *(_title(name) for name in names)]]
    for row in rows:
        lines.append([row.model, f"{row.block}{BEST * row.is_best}", *(_cell(row, name) for name in names)])
    return lines


def _title(name: str) -> str:
    if name.startswith(_FEW):
        return f"{COLUMNS[_FINETUNED][0]}, {name.removeprefix(_FEW)} a class"
    return COLUMNS[name][0]


def _cell(row: Row, name: str) -> str:
    value = row.figures.get(name)
    if value is None or not math.isfinite(value):
        return "-"
    text = COLUMNS[_FINETUNED if name.startswith(_FEW) else name][1].format(value)
    return f"{text} of {row.width}" if name == "effective_rank" else text


def as_text(lines: list[list[str]]) -> str:
    """Returns a table with columns of even width for a terminal."""
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for model, *cells in lines:
        rows.append([model.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
    return "\n".join(map("  ".join, rows))


def as_markdown(lines: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([rows[0], "|---|" + "---:|" * (len(lines[0]) - 1), *rows[1:]])


@dataclass
class Comparison:
    """Holds all that an evaluation found.

    Attributes:
        data (`str`): What the models were evaluated on, in words.
        rows (`list[Row]`): What was measured.
        protocol (`list[str]`): How, a sentence or more for each figure.
        pictures (`dict[str, Path]`): Files of sheets by title.
        record (`dict`): What is needed to repeat it, see [`run_record`], and the fingerprints of the images.
    """

    data: str
    rows: list[Row]
    protocol: list[str]
    pictures: dict[str, Path]
    record: dict

    def write(self, output_dir: Path):
        """Writes `evaluation.md` and `evaluation.json` into a folder."""
        output_dir.mkdir(parents=True, exist_ok=True)
        parts = ["# Evaluation", f"On {self.data}.", as_markdown(table_of(self.rows))]
        parts.append("\n".join(f"- {text}" for text in self.protocol))
        parts += [f"{title}:\n\n![{title}]({path.name})" for title, path in self.pictures.items()]
        page = "\n\n".join(parts) + "\n"
        write_text(output_dir / "evaluation.md", page)
        rows = [vars(row) for row in self.rows]
        content = {**self.record, "data": self.data, "protocol": self.protocol, "rows": rows}
        write_json(output_dir / "evaluation.json", content)

    def add_to_cards(self) -> list[str]:
        """Adds the rows of each model that is a folder of hf_mae to its record and its card, and returns the folders.

        Later evaluations on the same images take the place of earlier ones.
        """
        folders = [name for name in dict.fromkeys(row.model for row in self.rows) if is_model_of_ours(name)]
        for folder in folders:
            rows = [row for row in self.rows if row.model == folder]
            lines = [line[1:] for line in table_of(rows)]  # a card need not say which model it is about
            found = {"table": as_markdown(lines), "protocol": self.protocol, "rows": [vars(row) for row in rows]}
            evaluations = read_record(folder).get("evaluations") or {}
            add_to_record(folder, {"evaluations": {**evaluations, self.data: found}})
            write_model_card(folder)
        return folders


__all__ = ["COLUMNS", "Comparison", "Row", "as_markdown", "as_text", "mark_best_blocks", "table_of"]
