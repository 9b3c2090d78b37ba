# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Tables next to the images of a folder: `metadata.csv` or `metadata.jsonl`, as `datasets`' imagefolder has them."""

import csv
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

TABLES = ("metadata.csv", "metadata.jsonl")


def find_table(folder: str | os.PathLike) -> Path | None:
    """Returns the table of a folder, in it or in the folder above, or `None` if there is none."""
    folder = Path(folder)
    return next((place / name for place in (folder, folder.parent) for name in TABLES if (place / name).exists()), None)


def read_table(table: Path) -> list[dict]:
    """Returns the rows of a table."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file if line.strip()]


def values_of_files(table: Path, rows: list[dict], columns: Sequence[str], files: Sequence[str]) -> list[list]:
    """Returns the values of columns for each file.

    Args:
        table (`Path`): Where the table is. Its column `file_name` holds paths below that folder.
        rows (`list[dict]`): Its rows.
        columns (`Sequence[str]`): Columns that it has.
        files (`Sequence[str]`): Paths of the files.

    Raises:
        ValueError: If files are not in the table.
    """
    relative_to_table = functools.cache(functools.partial(os.path.relpath, start=table.parent))  # once for each folder
    by_name = {os.path.normpath(str(row["file_name"])): [row.get(name) for name in columns] for row in rows}
    splits = map(os.path.split, files)
    names = [os.path.normpath(os.path.join(relative_to_table(folder or "."), name)) for folder, name in splits]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images are not in {table}, first {missing[0]}. Add their rows, with an "
            f"empty {' and '.join(columns)} if they have none, or take the images out."
        )
    return [by_name[name] for name in names]


__all__ = ["TABLES", "find_table", "read_table", "values_of_files"]
