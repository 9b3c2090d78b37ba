# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Parses the arguments of commands. hf_mae_command.py lists the commands and finds the function of each."""

import argparse
import difflib
import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from transformers import HfArgumentParser

_flags: set[str] = set()  # of all parsers of this process, by which messages are translated


class CommandParser(HfArgumentParser):
    """Parses the arguments of one command. Its mistakes are `ValueError`, its help is short and grouped."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})

    def add_argument(self, *names, **kwargs) -> argparse.Action:
        if kwargs.get("type") is int:
            kwargs["type"] = _whole_number
        _flags.update(name.removeprefix("--") for name in names if name.startswith("--"))
        return super().add_argument(*names, **kwargs)

    def error(self, message: str):
        raise ValueError(f"{message.rstrip('.')}. See {self.prog} --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses arguments.

        Raises:
            ValueError: If there is an argument that does not exist, or a value that does not fit.
        """
        namespace, unknown = self.parse_known_intermixed_args(argv)  # positional arguments may follow flags
        if unknown:
            actions = [action for action in self._actions if action.dest != "help"]
            known = [name for action in actions for name in action.option_strings if "-" not in name[2:]]
            wanted = unknown[0].split("=")[0]
            same = {"--model", "--model_name_or_path"}  # what a command calls one of these, others call the other
            close = [name for name in known if wanted in same and name in same]
            close = close or difflib.get_close_matches(wanted, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" See {self.prog} --help."
            raise ValueError(f"There is no argument {unknown[0]}.{hint}")
        for name, value in vars(namespace).items():
            setattr(namespace, name, _at_home(value))
        return namespace


def _at_home(value):
    """Returns a value with the folder of the user for a `~` at its start, which shells leave in `--output=~/a.png`."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value


def _whole_number(text: str) -> int:
    """Returns a whole number, also of `1e3`, which is one in recipes and in Python, too."""
    with suppress(ValueError):
        return int(text)
    if not (number := float(text)).is_integer():
        raise ValueError
    return int(number)


_whole_number.__name__ = "int"  # which help and mistakes show


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line for each argument: one spelling, its help and its default."""

    def __init__(self, prog: str):
        width = min(120, shutil.get_terminal_size(fallback=(120, 24)).columns)
        super().__init__(prog, max_help_position=36, width=max(width, 40))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fills the paragraphs of a description that are wider than the terminal. Examples and tables are indented."""
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph
            if paragraph.startswith(" ") or max(map(len, paragraph.split("\n"))) <= width
            else textwrap.fill(paragraph, width)
            for paragraph in paragraphs
        )

    def _format_usage(self, usage, actions, groups, prefix) -> str:
        if usage is not None:  # argparse formats it a second time where positional arguments may follow flags
            return f"{prefix or 'usage: '}{usage.strip()}\n\n"
        positional = [action for action in actions if not action.option_strings]
        return super()._format_usage(usage, positional, [], prefix).rstrip() + " [--flag value ...]\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        takes_value = action.nargs != 0 and not (isinstance(action.const, bool) and not action.default)
        metavar = f" {self._format_args(action, self._get_default_metavar_for_optional(action))}" if takes_value else ""
        return action.option_strings[0] + metavar

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs != "+":
            return super()._format_args(action, default_metavar)
        return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return (getattr(action.type, "__name__", "") or "value").removeprefix("string_to_").upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        default, text = action.default, (action.help or "").rstrip()
        if default is None or default is False or default in (argparse.SUPPRESS, []) or "Default:" in text:
            return text
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        shown = f"{default:.3g}" if isinstance(default, float) else str(default).replace("%", "%%")
        return f"{text} Default: {shown}."


def in_flags(message: str) -> str:
    """Returns a message with the parameters in backticks as flags: `` `max_steps` `` becomes `--max_steps`."""
    return re.sub(r"`(\w+)`", lambda match: f"--{match[1]}" if match[1] in _flags else match[0], message)


__all__ = ["CommandParser", "in_flags"]
