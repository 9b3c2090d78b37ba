# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Describes a run: what is needed to repeat it."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from ..data.decoding import decoder_name
from ..data.sources import ImageSource
from ..publishing.licenses import license_of
from ..publishing.records import redact


def run_record(recipe: dict, images: ImageSource | None = None) -> dict:
    """Returns what is needed to repeat a run: recipe, data, command without tokens, versions, machine, commit.

    Args:
        recipe (`dict`): The settings of the run, as JSON types.
        images ([`ImageSource`], *optional*): The images that it trains on.
    """
    data = {}
    if images is not None:
        data = {"data": images.name, "num_images": len(images)}
        data.update(dataset=images.dataset, data_license=images.license)
        if images.num_held_out:
            data["num_held_out"] = images.num_held_out
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "recipe": recipe,
        **data,
        "license": license_of(recipe.get("model_name_or_path")),
        "command": redact(_command()),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {device}",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "decoder": decoder_name(),
    }


def _command() -> str:
    """Returns the command of this process as one would type it again, without the folder of the installation."""
    program = Path(sys.argv[0])
    if program.stem == "hf-mae" or program.parts[-2:] == ("hf_mae", "__main__.py"):
        return shlex.join(["hf-mae", *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])


def _commit() -> str | None:
    """Returns the commit of the checkout that this file is part of, marked if there are changes, else `None`."""
    try:
        # Installed into an environment inside of somebody else's repository, the file is not part of that.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


__all__ = [
    "run_record",
]
