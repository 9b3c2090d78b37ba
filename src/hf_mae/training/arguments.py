# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The settings of a script: a dataclass, a recipe (a YAML file of its fields), and flags."""

import argparse
import os
import re
import sys
from contextlib import suppress
from dataclasses import MISSING, field, fields
from enum import Enum
from pathlib import Path
from typing import TypeVar

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import HfArgumentParser

from ..modeling.configuration_mae import MAEConfig

Arguments = TypeVar("Arguments")


def setting(default, text: str):
    """Returns a field of a dataclass of arguments: its default and what `--help` says of it."""
    return field(default=default, metadata={"help": text})


def parse_arguments(
    arguments_class: type[Arguments], description: str, sample_recipe: str | os.PathLike | None = None
) -> Arguments:
    """Returns the arguments of a script: defaults, overridden by a recipe, overridden by flags.

    Args:
        arguments_class (`type`): A dataclass; its fields are the flags.
        description (`str`): What `--help` says before the flags.
        sample_recipe (`str` or `os.PathLike`, *optional*): A recipe, that is a YAML file of fields, for the embedded
            images: taken if the first argument of the command is no recipe and `--data` is not given.

    Raises:
        ValueError: If the recipe has fields that do not exist.
    """
    argv = sys.argv[1:]
    if argv and argv[0].endswith((".yaml", ".yml")):
        recipe = argv.pop(0)
    else:
        has_data = any(argument.split("=")[0] == "--data" for argument in argv)
        recipe = None if has_data else sample_recipe
    parser = HfArgumentParser(
        arguments_class, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if recipe is not None:
        settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
        if unknown := sorted(set(settings) - {argument.name for argument in fields(arguments_class)}):
            raise ValueError(f"{recipe} has settings that do not exist: {', '.join(unknown)}. See --help.")
        parser.set_defaults(**settings)
    return parser.parse_args_into_dataclasses(argv)[0]


def recipe_of(args, without: set[str] = frozenset()) -> dict:
    """Returns the settings that are not the defaults, as a recipe may hold them.

    Args:
        args (a dataclass): What [`parse_arguments`] returned.
        without (`set[str]`, *optional*): Fields to leave out. Those of the Hub and of tokens always are.
    """
    recipe = {}
    for each in fields(args):
        value = getattr(args, each.name)
        value = value.value if isinstance(value, Enum) else value
        default = each.default if each.default_factory is MISSING else each.default_factory()
        plain = isinstance(value, str | int | float | list)
        if plain and value != default and each.name not in without and not each.name.startswith(("hub_", "push_")):
            recipe[each.name] = value
    return recipe


def config_changes(text: str | None) -> dict:
    """Returns the fields of [`MAEConfig`] in a text such as `"hidden_size=128,image_size=[98,126],qkv_bias=false"`.

    Raises:
        ValueError: If it is no such text, or there is no such field.
    """
    changes, known = {}, MAEConfig()
    for pair in re.split(r",(?![^\[]*\])", text) if text else ():
        name, is_pair, value = (part.strip() for part in pair.partition("="))
        if not hasattr(known, name):
            raise ValueError(f"--config_overrides: MAEConfig has no field {name}.")
        if not is_pair:
            raise ValueError(f"--config_overrides: {name} has no value, write {name}=value.")
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--config_overrides: {value!r} is no value for {name}.") from error
        with suppress(ValueError, TypeError):  # YAML takes 1e-5 for a text
            value = float(value) if isinstance(value, str) else value
        try:
            setattr(known, name, value)  # which checks its type
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"--config_overrides: {value!r} is no value for {name}.") from error
        changes[name] = value
    return changes


__all__ = ["config_changes", "parse_arguments", "recipe_of", "setting"]
