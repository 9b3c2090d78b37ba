# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The licence that weights pass on to the models that are made from them."""

import os
import re
from contextlib import suppress
from pathlib import Path

import yaml
from huggingface_hub import metadata_load
from transformers.utils import cached_file

from .records import initial_weights, read_json

_META_LICENSE = "cc-by-nc-4.0"
_PIXIO_LICENSE = "fair-noncommercial-research-license"
# Weights that Meta published, wherever they are: names on the Hub, folders of its cache, files.
_META = {
    _META_LICENSE: (
        r"(^|/|--)facebook(/|--)vit-mae-|(^|[/:]|--)timm(/|--)vit_\w+\.mae|"
        r"mae_(pretrain|visualize|finetuned?)_vit[^/]*$"
    ),
    _PIXIO_LICENSE: r"(^|/|--)facebook(/|--)pixio-|(^|/)pixio_vit\w*\.pth$",
}
_LICENSE_NAMES = {_META_LICENSE: "CC-BY-NC 4.0", _PIXIO_LICENSE: "the FAIR Noncommercial Research License"}
_NON_COMMERCIAL = r"(^|-)nc(-|$)|non-?commercial"  # in identifiers of licences


def license_of(source: str | os.PathLike | None) -> str | None:
    """Returns the licence that weights pass on to models made from them: a non-commercial one, or `None`.

    It is known of the weights that Meta published, and otherwise read from the record or the card next to the weights.

    Args:
        source (`str` or `os.PathLike`, *optional*): File, folder, or name on the Hub of the weights.
    """
    if source is None:
        return None
    source = os.fspath(source)
    if (known := _license_of_meta(source)) is not None:
        return known
    facts = [read_json(path) if path.suffix == ".json" else _read_card(path) for path in _records_of(source)]
    stated = [str(each.get(name)) for each in facts for name in ("license", "license_name")]
    return next((license_ for license_ in stated if re.search(_NON_COMMERCIAL, license_.lower())), None)


def _records_of(source: str) -> list[Path]:
    """Returns where the record and the card of weights are, if there are any."""
    here, above = Path(source), Path(source).parent
    if not here.exists():
        with suppress(OSError):  # else it is a folder that is gone
            names = ("run.json", "README.md")
            found = [cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in names]
            return [Path(path) for path in found if path is not None]
    # The record is in the folder itself, or above a file or a checkpoint in it.
    return [here / "run.json", above / "run.json", (here if here.is_dir() else above) / "README.md"]


def _license_of_meta(source: str) -> str | None:
    """Returns the licence of weights that Meta published, by their name, or `None` if it is another name."""
    return next((license_ for license_, names in _META.items() if re.search(names, source.rstrip("/"))), None)


def _read_card(path: Path) -> dict:
    """Returns the metadata of a model card; without any, they are empty."""
    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def describe_license(record: dict) -> str:
    """Returns what a card says about the licence of the weights and of the code."""
    license_, source = record.get("license"), record.get("converted_from") or initial_weights(record) or ""
    code = "The code in this repository is under Apache-2.0."
    if license_ in _LICENSE_NAMES:
        meta = "come from those that Meta published and " if _license_of_meta(source) is not None else ""
        return f"The weights {meta}are under {_LICENSE_NAMES[license_]}: no commercial use. {code}"
    if license_:
        return f"The weights are under `{license_}`. {code}"
    return f"{code} No licence of the weights is stated: whoever publishes them should state one that the data allow."


__all__ = [
    "describe_license",
    "license_of",
]
