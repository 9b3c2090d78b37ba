# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads the settings of a command: defaults of a dataclass, overridden by a recipe, overridden by flags or keywords."""

import argparse
import difflib
import inspect
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.hf_argparser import string_to_bool

from ..cli import CommandParser
from ..modeling.configuration_mae import PRESET_FIELDS, MAEConfig

Arguments = TypeVar("Arguments")

RECIPES = Path(__file__).parent / "recipes"
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}  # by the units of a duration
_NOT_GIVEN = object()
# Settings of a recipe that a flag or keyword replaces by another setting.
_REPLACES = {
    "preset": ("model_name_or_path",),
    "model_name_or_path": ("preset",),
    "num_train_epochs": ("max_steps",),
    "time_budget": ("max_steps", "schedule"),
    "base_learning_rate": ("learning_rate",),
    "value_range": ("value_percentiles",),
    "value_percentiles": ("value_range",),
}
# How the names of the recipes of a command begin. Those of pre-training are all others.
_RECIPES_OF = {"finetune": "finetune_", "probe": "linear_probe_", "pretrain": ""}
_OTHERS = (
    "All other arguments of transformers' TrainingArguments work, too, apart from those that shard a model or name a "
    "checkpoint to go on from, and auto_find_batch_size."
)
# What numbers must be, by the names of settings, which mean the same in all commands.
_RANGES: dict[str, tuple[Callable[[float], bool], set[str]]] = {
    "be above 0": (
        lambda number: 0 < number < math.inf,
        {"num_train_epochs", "learning_rate", "base_learning_rate", "base_learning_rates", "layer_decay"}
        | {"max_scale", "image_std"},
    ),
    "not be negative": (
        lambda number: 0 <= number < math.inf,
        {"weight_decay", "max_grad_norm", "mixup", "cutmix", "warmup_ratio", "dataloader_num_workers"},
    ),
    "be above 0 and at most 1": (lambda share: 0 < share <= 1, {"crop_scale_min"}),
    "be at least 1": (
        lambda number: number >= 1,
        {"per_device_train_batch_size", "per_device_eval_batch_size", "effective_batch_size", "batch_size"}
        | {"gradient_accumulation_steps", "views_per_image", "max_bad_steps", "num_masks", "num_neighbors"}
        | {"head_size", "feature_pyramid_size", "num_queries", "num_pooling_queries", "sample_side", "few_labels"}
        | {"num_images"},
    ),
    "be in [0, 1]": (lambda share: 0 <= share <= 1, {"max_unreadable", "color_jitter", "random_erasing", "image_mean"}),
    "be in [0, 10)": (lambda strength: 0 <= strength < 10, {"rand_augment"}),
    "be in [0, 1)": (lambda share: 0 <= share < 1, {"adam_beta1", "adam_beta2"}),
    "be in [0, 65535]": (lambda port: 0 <= port <= 65535, {"port"}),
    "be in [0, 2 ** 63)": (lambda seed: 0 <= seed < 2**63, {"seed", "data_seed"}),  # as torch's generators need it
}
_NAMES_OF_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def parse_arguments(
    arguments_class: type[Arguments],
    argv: Sequence[str],
    prog: str,
    description: str,
    sample_recipe: str | None = None,
) -> Arguments:
    """Returns the arguments of a command: defaults, overridden by a recipe, overridden by flags.

    Args:
        arguments_class (`type`): A dataclass. Its fields are the flags; each class that it inherits from is a group of
            them in the help, under the first line of its docstring. Those of transformers are not listed.
        argv (`Sequence[str]`): Arguments of the command. `--recipe` names a recipe or the path of one.
        prog (`str`): What the command is called.
        description (`str`): What the help says before the flags.
        sample_recipe (`str`, *optional*): Recipe for the embedded images, taken without `--recipe` and `--data`.

    Raises:
        ValueError: If there is an argument or a setting that does not exist, or a value that does not fit.
        OSError: If there is no such recipe.
    """
    parser = CommandParser(arguments_class, prog=prog, description=description)
    known = _names_of_recipes(prog.split()[-1])
    parser.add_argument(
        "--recipe",
        help="Name or path of a recipe, a YAML file of these settings; flags override it."
        f"{' Names: ' if known else ''}{', '.join(known)}{'.' if known else ''}",
    )
    _group(parser, arguments_class)
    first = CommandParser(prog=prog, add_help=False)
    for name in ("--recipe", "--data"):
        first.add_argument(name)
    chosen, _ = first.parse_known_args(argv)
    wants_help = bool({"-h", "--help"} & set(argv))  # which shows the defaults for images of one's own
    recipe = chosen.recipe
    if recipe is None and chosen.data is None and not wants_help:
        recipe = sample_recipe
    settings = {} if recipe is None else load_recipe(recipe, arguments_class)
    for action in parser._actions:
        if action.type is string_to_bool:  # a flag by itself is true, also where None is the default
            action.nargs, action.const = "?", True
    for action in () if wants_help else parser._actions:
        action.required = action.required and action.dest not in settings  # what a recipe gives need not be given again
        action.default = _NOT_GIVEN
    given = {name: value for name, value in vars(parser.parse(argv)).items() if value is not _NOT_GIVEN}
    given.pop("recipe", None)
    return arguments_class(**override(settings, given))


def _names_of_recipes(command: str) -> list[str]:
    """Returns the names of the recipes for a command that come with the package, without those of the ablations."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    commands = [next(key for key, start in _RECIPES_OF.items() if name.startswith(start)) for name in names]
    return [name for name, of in zip(names, commands, strict=True) if of == command]


def _group(parser: CommandParser, arguments_class: type):
    """Sorts the flags into groups by the class that defines them, and hides those of transformers."""
    # Reversed, since `--no_flag` comes after `--flag` and has the same name.
    actions = {action.dest: action for action in reversed(parser._actions)}
    listed, groups = parser._optionals._group_actions, {}
    for owner in arguments_class.__mro__:
        own = [actions.pop(name) for name in inspect.get_annotations(owner) if name in actions]
        title = (owner.__doc__ or "").strip().split("\n")[0].rstrip(".")
        if owner is arguments_class or title.startswith(f"{owner.__name__}("):  # the docstring that dataclass makes
            title = "Settings"
        for action in own:
            if owner.__module__.startswith("transformers."):
                action.help = argparse.SUPPRESS
                parser.epilog = _OTHERS
            else:
                if title not in groups:  # a class and one that it inherits from may be one group
                    groups[title] = parser.add_argument_group(title)
                listed.remove(action)
                groups[title]._group_actions.append(action)
    for action in parser._actions:  # --no_flag, which stands for --flag false
        if action.dest not in actions and any(name.startswith("--no_") for name in action.option_strings):
            action.help = argparse.SUPPRESS


def load_recipe(recipe: str | os.PathLike | Mapping, arguments_class: type) -> dict:
    """Returns the settings of a recipe.

    Args:
        recipe (`str`, `os.PathLike` or `Mapping`): Name of a recipe that comes with the package, path of a YAML file,
            or the settings themselves.
        arguments_class (`type`): The dataclass whose fields they are.

    Raises:
        ValueError: If it has settings that do not exist, or is no YAML.
        OSError: If there is no such recipe.
    """
    settings = dict(recipe) if isinstance(recipe, Mapping) else _read_recipe(recipe)
    known = [field.name for field in fields(arguments_class)]
    if unknown := sorted(map(str, set(settings) - set(known))):
        where = "" if isinstance(recipe, Mapping) else f", which {os.fspath(recipe)} has"
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"There is no setting {', '.join(unknown)}{where}.{hint}")
    return settings


def override(recipe: Mapping, given: Mapping) -> dict:
    """Returns the settings of a recipe, overridden by those that were given as flags or keywords.

    What is given also takes away what it replaces: a number of epochs the number of steps of the recipe, a preset the
    sizes of the recipe's model. Of `config_overrides` only the fields that are given change, there or as settings.

    Args:
        recipe (`Mapping`): Settings.
        given (`Mapping`): Settings.
    """
    replaced = {name for key in given if given[key] is not None for name in _REPLACES.get(key, ())}
    given_changes = config_changes(given.get("config_overrides"))
    replaced |= set(given_changes)  # such as `image_size`, a setting of its own, too
    settings = {**{name: value for name, value in recipe.items() if name not in replaced}, **given}
    if "config_overrides" in recipe:
        changes = config_changes(recipe["config_overrides"])
        changes = {name: value for name, value in changes.items() if given.get(name) is None}
        start, other = ([source.get(name) for name in ("preset", "model_name_or_path")] for source in (recipe, given))
        if any(start) and any(other) and start != other:  # the sizes are those of another model
            changes = {name: value for name, value in changes.items() if name not in PRESET_FIELDS}
        changes.update(given_changes)
        settings["config_overrides"] = text_of_changes(changes) or None
    return settings


def fit_values(args):
    """Gives each setting the type that its field states, wherever it comes from: flags, a recipe, or Python.

    Numbers that no command can use are refused, before a run claims its folder.

    The text of a number or of a truth value fits, as do numbers of NumPy, paths, tuples, one value in place of a list,
    and a mapping in place of `"name=value,..."`; a `~` becomes the home folder. `None` is the default where it has no
    meaning of its own.

    Args:
        args (a dataclass): Settings, which are changed.

    Raises:
        ValueError: If a value does not fit, is none of the choices of its field, or is out of its range.
    """
    types = _types_of(type(args))
    for each in fields(args):
        value = getattr(args, each.name)
        if value is None and NoneType not in types[each.name]:
            value = _default(each)
        if value is not None:
            value = _fit(each.name, value, types[each.name])
        setattr(args, each.name, value)
        if value == _default(each):  # which need not be in the range: 0 epochs of detection stand for a number of steps
            continue
        # Of a variable of the shell that is not set. A model that is missing is named by the commands that need one.
        if value == "" and each.name != "model_name_or_path":
            raise ValueError(f"`{each.name}` is empty. Give it a value, or leave it out.")
        check_range(each.name, value)


def check_output(data: str | None, output_dir: str):
    """Refuses an output folder that is a file, or the folder of the images, among which pictures of a run would count.

    Args:
        data (`str`, *optional*): Where the images are.
        output_dir (`str`): Folder of the run.

    Raises:
        ValueError: If it is a file, or both are the same.
    """
    if os.path.exists(output_dir) and not os.path.isdir(output_dir):
        raise ValueError(f"{output_dir} is a file. Choose another `output_dir`.")
    if data is not None and os.path.realpath(data) == os.path.realpath(output_dir):
        raise ValueError("`output_dir` is the folder of the images. Choose another, which may be inside of it.")


def check_compile_mode(mode: str | None, accumulation: int, way_out: str):
    """Refuses CUDA graphs where a step adds up the gradients of several backward passes.

    Graphs write the gradients of each pass to the same memory, so that the sum would be wrong, even without an error
    (pytorch/pytorch, issues 96693 and 169545).

    Args:
        mode (`str`, *optional*): Of `torch.compile`.
        accumulation (`int`): Forward passes of a step.
        way_out (`str`): What to set so that one is enough.

    Raises:
        ValueError: If the mode uses CUDA graphs and a step has several passes.
    """
    if mode in ("reduce-overhead", "max-autotune") and accumulation > 1:
        raise ValueError(
            f"`torch_compile_mode` {mode} replays CUDA graphs, which cannot add up the gradients of several forward "
            f"passes, and a step has {accumulation}. Leave `torch_compile_mode` out, or set {way_out}."
        )


def check_range(name: str, value):
    """Raises `ValueError` if a number, or one of a list, is none that a setting of this name can have."""
    for words, (fits, names) in _RANGES.items():
        if name in names and value is not None and not all(map(fits, value if isinstance(value, list) else [value])):
            raise ValueError(f"`{name}` must {words}, got {value}.")


def _default(each: Field):
    return each.default if each.default_factory is MISSING else each.default_factory()


def _types_of(arguments_class: type) -> dict[str, tuple]:
    """Returns the types that the value of each field of a dataclass may have."""
    hints = get_type_hints(arguments_class)
    return {name: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,) for name, hint in hints.items()}


def _fit(name: str, value, options: Sequence[type]):
    if hasattr(value, "tolist"):  # of NumPy or torch
        value = value.tolist()
    for option in sorted(options, key=lambda option: type(value) is not option):
        with suppress(ValueError, TypeError, OverflowError, argparse.ArgumentTypeError):
            return _fit_type(value, option)
    known = [_describe(option) for option in options if option is not NoneType]
    if None in known:  # a type of transformers, which checks it
        return value
    raise ValueError(f"`{name}` must be {' or '.join(map(str, known))}, got {value!r}.")


def _fit_type(value, option: Any):
    """Returns a value as one of a type. A `ValueError` or `TypeError` says that it is none."""
    if get_origin(option) is Literal and value in get_args(option):
        return value
    if get_origin(option) is list and not isinstance(value, Mapping):
        values = value if isinstance(value, list | tuple) else [value]
        return [_fit("", each, get_args(option)) for each in values]
    if isinstance(value, bool) != (option is bool):  # which is a kind of whole number for Python
        return string_to_bool(str(value)) if option is bool else _refuse()
    if option in (int, float) and isinstance(value, str | int | float):
        number = float(value) if isinstance(value, str) else value
        return number if option is float else int(number) if number == int(number) else _refuse()
    if option is str and isinstance(value, Mapping):
        return text_of_changes(value)
    if option is str and isinstance(value, str | int | float | os.PathLike):
        text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
        return os.path.expanduser(text) if text.startswith("~") else text
    return value if isinstance(value, option) else _refuse()


def _refuse():
    raise ValueError


def _describe(option: Any) -> str | None:
    if get_origin(option) is Literal:
        return f"one of {', '.join(map(str, get_args(option)))}"
    if get_origin(option) is list:
        return f"a list, each {_describe(get_args(option)[0])}"
    return _NAMES_OF_TYPES.get(option)


class _RecipeLoader(yaml.SafeLoader):
    """Refuses a setting that is there twice. PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = Counter(str(key.value) for key, _ in node.value)
        if twice := [name for name, times in names.items() if times > 1]:
            raise yaml.MarkedYAMLError(
                problem=f"it has {', '.join(twice)} more than once", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read_recipe(recipe: str | os.PathLike) -> dict:
    path = Path(recipe).expanduser()
    if not path.is_file():
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        names = sorted(os.fspath(found.relative_to(RECIPES).with_suffix("")) for found in RECIPES.rglob("*.yaml"))
        raise OSError(f"There is no recipe {os.fspath(recipe)!r}: neither a file nor one of {', '.join(names)}.")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {path} is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"The recipe {path} must hold settings, one in each line as `name: value`.")
    return settings


def parse_duration(duration: str | float) -> float:
    """Returns a duration in seconds.

    Args:
        duration (`str` or `float`): A number of seconds, or days, hours, minutes and seconds: `"8h"`, `"1.5h"`,
            `"8h30m"`, `"2d"`.

    Raises:
        ValueError: If it is no duration.
    """
    text = str(duration).strip().lower().replace(" ", "")
    with suppress(ValueError):
        if math.isfinite(seconds := float(text)) and seconds >= 0:
            return seconds
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch("".join(f"(?:{number}{unit})?" for unit in _SECONDS), text)
    if not text or not found:
        raise ValueError(f"{duration!r} is no duration: write seconds, or 90m, 8h, 8h30m, 2d.")
    return sum(float(value or 0) * seconds for value, seconds in zip(found.groups(), _SECONDS.values(), strict=True))


def recipe_of(args, without: Collection[str] = ()) -> dict:
    """Returns the settings that are not the defaults, as a recipe may hold them.

    Args:
        args (a dataclass): Settings.
        without (`Collection[str]`, *optional*): Fields to leave out. Those of the Hub and of tokens always are.
    """
    recipe = {}
    for each in fields(args):
        value = getattr(args, each.name)
        value = value.value if isinstance(value, Enum) else value
        is_left_out = each.name in without or each.name.startswith(("hub_", "push_"))
        if isinstance(value, str | int | float | list) and value != _default(each) and not is_left_out:
            recipe[each.name] = comparable(value)
    return recipe


def comparable(value):
    """Returns a value that is equal to itself: NaN, which stands for pixels without data, as a text."""
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def config_changes(changes: str | Mapping | None) -> dict:
    """Returns the fields of [`MAEConfig`] in a text such as `"hidden_size=128,image_size=[98,126],qkv_bias=false"`.

    Args:
        changes (`str` or `Mapping`, *optional*): The text, or the fields themselves.

    Raises:
        ValueError: If it is no such text, or there is no such field.
    """
    if not changes:
        return {}
    if not isinstance(changes, Mapping):  # a comma within brackets separates two sides, and no fields
        changes = dict(map(_pair_of, re.split(r",(?![^\[]*\])", str(changes))))
    known, names = MAEConfig(), names_of(MAEConfig)
    for name, value in changes.items():
        if name not in names:
            raise ValueError(f"`config_overrides`: MAEConfig has no field {name}.")
        try:
            setattr(known, name, value)  # which checks its type
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"`config_overrides`: {value!r} is no value for {name}.") from error
    return dict(changes)


def text_of_changes(changes: Mapping) -> str:
    """Returns fields of [`MAEConfig`] as the text that [`config_changes`] reads."""
    return ",".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()
    )


def _pair_of(text: str) -> tuple[str, object]:
    name, is_pair, written = (part.strip() for part in text.partition("="))
    if not is_pair:
        raise ValueError(f"`config_overrides`: {name} has no value, write {name}=value.")
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise ValueError(f"`config_overrides`: {written!r} is no value for {name}.") from error
    with suppress(ValueError, TypeError):  # YAML takes 1e-5 for a text
        value = float(value) if isinstance(value, str) else value
    return name, value


def class_names_of(config: PreTrainedConfig) -> list[str]:
    """Returns the names of a model's classes in the order of their numbers."""
    return [config.id2label[number] for number in range(config.num_labels)]


def read_class_names(names: list[str] | None) -> list[str] | None:
    """Returns the names of classes, the lines of a file if the only name is that of a text file.

    Raises:
        ValueError: If a name is there twice.
        OSError: If there is no such file.
    """
    if names is not None and len(names) == 1 and (Path(names[0]).is_file() or names[0].endswith(".txt")):
        lines = Path(names[0]).read_text(encoding="utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"`class_names` has {', '.join(twice)} more than once. Every class needs another name.")
    return names


def names_of(settings_class: type) -> set[str]:
    """Returns the names of the fields of a dataclass, such as a group of settings."""
    return {field.name for field in fields(settings_class)}


__all__ = [
    "check_compile_mode",
    "check_output",
    "check_range",
    "class_names_of",
    "comparable",
    "config_changes",
    "fit_values",
    "load_recipe",
    "names_of",
    "override",
    "parse_arguments",
    "parse_duration",
    "read_class_names",
    "recipe_of",
    "text_of_changes",
]
