# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Tables next to the images of a folder: `metadata.csv`, `.jsonl` or `.parquet`, as imagefolder of `datasets` has."""

import csv
import functools
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_table(folder: str | os.PathLike) -> Path | None:
    """Returns the table of a folder, in it or in the folder above, or `None` if there is none."""
    folder = Path(folder)
    return next((place / name for place in (folder, folder.parent) for name in TABLES if (place / name).exists()), None)


def read_table(table: Path) -> list[dict]:
    """Returns the rows of a table. Blanks around the cells and names of a CSV file do not count.

    Raises:
        ValueError: If it can't be read.
    """
    try:
        if table.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(table).to_pylist()
        with open(table, encoding="utf-8-sig", newline="") as file:
            return _read_csv(file) if table.suffix == ".csv" else _read_json_lines(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not in UTF-8 ({error}). Save it in that encoding.") from error
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


def _read_csv(file: Iterable[str]) -> list[dict]:
    reader, rows = csv.DictReader(file, skipinitialspace=True), []
    if len(names := reader.fieldnames or []) == 1 and ";" in names[0]:
        raise ValueError("its cells are separated by semicolons. Save it with commas between them.")
    for row in reader:
        if None in row:
            raise ValueError(
                f"line {reader.line_num} has more cells than there are columns. Put quotation marks around cells with "
                "commas."
            )
        rows.append({name.strip(): cell if cell is None else cell.strip() for name, cell in row.items()})
    return rows


def _read_json_lines(file: Iterable[str]) -> list[dict]:
    rows = []
    for number, line in enumerate(file, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON ({error}).") from error
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object, as every line must be.")
        rows += [] if row is None else [row]
    return rows


def columns_of(rows: list[dict]) -> list[str]:
    """Returns the names of all columns. A row may lack some of them."""
    return list(dict.fromkeys(name for row in rows for name in row))


def values_of_files(table: Path, rows: list[dict], columns: Sequence[str], files: Sequence[str]) -> list[list]:
    """Returns the values of columns for each file. The log names rows of files that are not there.

    Args:
        table (`Path`): Where the table is. Its column `file_name` holds paths below that folder.
        rows (`list[dict]`): Its rows.
        columns (`Sequence[str]`): Columns that it has.
        files (`Sequence[str]`): Paths of the files.

    Raises:
        ValueError: If the table has no column `file_name`, files are not in it, or it states two things of one.
    """
    if unnamed := sum(not row.get("file_name") for row in rows):
        raise ValueError(f"{unnamed} of {len(rows)} rows of {table} have no file_name, the path of the image.")
    by_name: dict[str, list] = {}
    for row in rows:
        name, values = _compared(str(row["file_name"])), [row.get(column) for column in columns]
        if by_name.setdefault(name, values) != values:
            raise ValueError(f"{table} has two rows for {name} that differ in {' or '.join(columns)}. Keep one.")
    relative_to_table = functools.cache(functools.partial(os.path.relpath, start=table.parent))  # once for each folder
    splits = map(os.path.split, files)
    names = [_compared(os.path.join(relative_to_table(folder or "."), name)) for folder, name in splits]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images are not in {table}, first {missing[0]}. Add their rows, with an "
            f"empty {' and '.join(columns)} if they have none, or take the images out."
        )
    _warn_of_absent_files(table, by_name, names)
    return [by_name[name] for name in names]


def _warn_of_absent_files(table: Path, rows: Iterable[str], names: list[str]):
    """Names rows without a file. Those outside of the folder of all files may be of another split."""
    found, common = set(names), os.path.join(os.path.commonpath(map(os.path.dirname, names)), "")
    if absent := [name for name in rows if name not in found and name.startswith(common)]:
        logger.warning_once(f"{len(absent)} rows of {table} name no image that is there, first {absent[0]}: left out.")


def normal_path(path: str) -> str:
    """Returns the path of a file as this system has it: tables from Windows have backslashes."""
    return os.path.normpath(path.replace("\\", "/"))


def _compared(path: str) -> str:
    """Returns a path as it is compared: in names from a Mac accents are apart from their letters."""
    return unicodedata.normalize("NFC", normal_path(path))


__all__ = ["TABLES", "columns_of", "find_table", "normal_path", "read_table", "values_of_files"]
