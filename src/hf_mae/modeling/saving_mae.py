# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Saving with the code, so that a folder loads with `trust_remote_code=True` where hf_mae is not installed."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from huggingface_hub.errors import HFValidationError
from transformers.utils import CONFIG_NAME


def has_config(name: str | os.PathLike, subfolder: str | None = None) -> bool:
    """Returns whether a folder, or a folder in it, has the configuration of a model."""
    return os.path.exists(os.path.join(name, subfolder or "", CONFIG_NAME))


def no_model_in(name: str | os.PathLike, subfolder: str | None = None) -> OSError:
    """Returns the error that says that a folder, or a folder in it, has no configuration of a model."""
    folder = Path(name, subfolder or "")
    if (folder / "adapter_config.json").exists():
        return OSError(
            f"{folder} holds an adapter, and no model. Save peft.PeftModel.from_pretrained(base_model, "
            f"{os.fspath(folder)!r}).merge_and_unload() with save_pretrained, and take that folder."
        )
    return OSError(f"{folder} holds no model: there is no {CONFIG_NAME}.")


def check_is_object(folder: str | os.PathLike, subfolder: str | None = None, name: str = CONFIG_NAME):
    """Raises `OSError` if a JSON file of a folder holds something else than an object, which transformers expects.

    Args:
        folder (`str` or `os.PathLike`): Folder, or a name on the Hub, where nothing is checked.
        subfolder (`str`, *optional*): A folder in it.
        name (`str`, *optional*): Name of the file. Defaults to that of the configuration.
    """
    path = Path(folder, subfolder or "", name)
    with suppress(ValueError):  # what is no JSON at all is refused by transformers
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(content, dict):
            raise OSError(f"{path} must hold a JSON object, got {type(content).__name__}.")


@contextmanager
def explaining_missing(name: str | os.PathLike, subfolder: str | None = None) -> Iterator[None]:
    """Says that there is no such folder, or no model in it, where libraries complain about repositories of the Hub.

    Args:
        name (`str` or `os.PathLike`): What is being loaded: a folder, or a name on the Hub.
        subfolder (`str`, *optional*): A folder in it.

    Raises:
        OSError: If it is not there. The message names it, and why the Hub has not given it if it could be a name there.
    """
    try:
        yield
    except (OSError, HFValidationError, UnicodeDecodeError) as error:
        name = os.fspath(name)
        if os.path.isdir(name) and not has_config(name, subfolder):
            raise no_model_in(name, subfolder) from error
        if os.path.isfile(name):
            raise OSError(
                f"{name} is a file, and a model is a folder with {CONFIG_NAME} and model.safetensors. Give that "
                "folder; `hf-mae convert` makes one of the weights of other implementations."
            ) from error
        if os.path.exists(name):
            raise
        message = f"There is no folder {name!r}"
        if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            reason = str(error).split("\n")[0].split(". ")[0]
            message += f", and the Hub has given no model of this name: {reason}"
        raise OSError(message.removesuffix(".") + ".") from error


def share_weights(folder: str | os.PathLike):
    """Gives weights the permissions of the configuration next to them. safetensors lets only their owner read them.

    Args:
        folder (`str` or `os.PathLike`): Folder that a model was saved into.
    """
    for path in Path(folder).glob("*.safetensors"):
        with suppress(OSError):  # not all file systems have permissions, and older files may be those of somebody else
            shutil.copymode(Path(folder, CONFIG_NAME), path)


@contextmanager
def keeping_permissions(path: Path) -> Iterator[None]:
    """Keeps the permissions of a file that is written inside of the `with` statement; a new file gets the usual ones.

    Args:
        path (`Path`): File that safetensors writes, which would let only its owner read it.
    """
    path.touch()
    permissions = path.stat().st_mode
    yield
    with suppress(OSError):  # of file systems without permissions
        path.chmod(permissions)


class SavesCode:
    """Adds the code and an `auto_map` to what is saved. For the configuration and the image processor.

    transformers would save the files that one class imports and an `auto_map` for this class alone. Here every folder
    gets all files of the model and an `auto_map` that points into `auto_mae.py`, which imports them all.
    """

    # "AutoModel": "auto_mae.MAEModel" and so on. Set by auto_mae.py: this file can't import the classes that import it.
    _full_auto_map: ClassVar[dict[str, str]] = {}

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None):
        """Does nothing, since all classes are saved anyway.

        transformers calls this on classes that it loaded as remote code, and would then write an `auto_map` of its own.
        """

    def to_json_file(self, json_file_path: str | os.PathLike, *args, **kwargs):
        """Writes the JSON file with `auto_map`, and the code next to it.

        `save_pretrained` calls this after it has listed what the folder held before, so `push_to_hub=True` uploads the
        code as well.
        """
        self.auto_map = self._auto_map_to_save()
        super().to_json_file(json_file_path, *args, **kwargs)
        folder = Path(json_file_path).resolve().parent
        for path in Path(__file__).resolve().parent.glob("*_mae*.py"):
            if path.parent != folder:
                shutil.copyfile(path, folder / path.name)

    def _auto_map_to_save(self) -> dict[str, str]:
        return dict(self._full_auto_map)
