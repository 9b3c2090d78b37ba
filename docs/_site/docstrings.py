# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes docstrings as Markdown for the reference: an extension of griffe, which reads sources without running them.

Our docstrings have the form of transformers': "name (`type`, *optional*): text" under "Args:", and [`Name`] for a link.
Settings and flags of commands have their help in the code; tables are made of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import griffe

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Example):\n((?:(?: {4,}.*)?(?:\n|\Z))+)", re.MULTILINE)
_ENTRY = re.compile(r"^(\*{0,2}[\w., ]+?)(?: \((.+?)\))?:\s+(.*)$", re.DOTALL)
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)(\(\))?`\](?![(\[])")
_TITLES = {"Args": "Arguments"}


class Docstrings(griffe.Extension):
    """Rewrites all docstrings of the package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        objects = list(_objects_of(pkg))
        paths = {
            each.name: each.path for each in objects if each.is_class or each.is_function and not each.parent.is_class
        }
        for each in objects:
            if each.docstring is not None:
                each.docstring.value = _as_markdown(each.docstring.value, paths)
            tables = ""
            if each.is_class:
                tables = _settings_tables(each)
            elif each.is_function and each.name.endswith("_command"):
                tables = _flags_table(each)
            if tables:
                doc = each.docstring.value if each.docstring is not None else ""
                each.docstring = griffe.Docstring(f"{doc}\n\n{tables}", parent=each)


def _objects_of(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects_of(member)


# ----------------------------------------------------------------------------------------------------------------------
# Docstrings


def _as_markdown(text: str, paths: dict[str, str]) -> str:
    """Returns a docstring whose sections are lists, with links where the reference has what is named."""
    text = _SECTION.sub(lambda section: _section(section[1], section[2]), text)

    def link(reference: re.Match) -> str:
        shortened, name, call = reference.groups()
        first, *rest = name.split(".")
        path = name if first == "hf_mae" else ".".join([paths.get(first, first), *rest])
        shown = f"<code>{name.rpartition('.')[2] if shortened else name}{call or ''}</code>"
        return f'<autoref identifier="{path}" optional>{shown}</autoref>'  # plain where there is no such entry

    return _REFERENCE.sub(link, text)


def _section(name: str, body: str) -> str:
    lines = [line[4:] for line in body.rstrip("\n").split("\n")]
    title = f"**{_TITLES.get(name, name)}**"
    if name in ("Returns", "Yields", "Example"):
        return f"{title}\n\n" + "\n".join(lines) + "\n\n"
    entries: list[list[str]] = []
    for line in lines:
        if line and not line.startswith(" "):
            entries.append([line])
        elif entries:
            entries[-1].append(line)
    return f"{title}\n\n" + "\n".join(_entry("\n".join(entry), name == "Raises") for entry in entries) + "\n\n"


def _entry(text: str, plain: bool) -> str:
    match = _ENTRY.match(text)
    if match is None:
        return f"- {text}"
    name, kind, meaning = match.groups()
    kind = f" ({' '.join(kind.split())})" if kind else ""
    names = ", ".join(f"`{each}`" if plain else f"**`{each}`**" for each in name.split(", "))
    return f"- {names}{kind}: {meaning}"


# ----------------------------------------------------------------------------------------------------------------------
# Settings and flags


def _settings_tables(owner: griffe.Class) -> str:
    """Returns a table for each group of settings, in the order and with the titles of the command's help."""
    tables = {}
    for group in [owner, *owner.mro()]:
        rows = [row for member in group.members.values() if member.is_attribute and (row := _setting(member))]
        title = (group.docstring.value if group.docstring is not None else "").split("\n")[0].rstrip(".")
        tables.setdefault("Settings" if group is owner else title, []).extend(rows)
    inherited = any(rows for title, rows in tables.items() if title != "Settings")
    parts = []
    for title, rows in tables.items():
        if rows:
            parts.append((f"**{title}**\n\n" if inherited else "") + _table(("setting", "type", "default"), rows))
    return "\n\n".join(parts)


def _setting(attribute: griffe.Attribute) -> tuple[str, str, str, str] | None:
    call = _call_of(attribute.value)
    if call is None or not str(attribute.value).startswith("HfArg("):
        return None
    words = {each.arg: each.value for each in call.keywords}
    meaning = _text(words.get("help"))
    if not meaning:  # those that the help does not show either
        return None
    default = words.get("default")
    shown = "" if default is None or _text(default) == "None" else f"`{_text(default)}`"
    return f"`{attribute.name}`", _type(str(attribute.annotation)), shown, meaning


def _flags_table(command: griffe.Function) -> str:
    """Returns a table of the arguments that a command adds to its parser, by itself and in a `_parser` function."""
    rows = []
    sources = [command.source]
    for name, member in command.parent.members.items():
        if name.endswith("_parser") and re.search(rf"\b{name}\(", command.source):
            sources.insert(0, member.source)
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            words = {each.arg: each.value for each in node.keywords}
            kind = _text(words.get("type")) or ("bool" if "action" in words else "str")
            if "choices" in words and isinstance(words["choices"], ast.Tuple):
                kind = " or ".join(
                    f"`{_text(each)}`" for each in words["choices"].elts if isinstance(each, ast.Constant)
                )
                kind += ", ..." if any(isinstance(each, ast.Starred) for each in words["choices"].elts) else ""
            default = _text(words.get("default"))
            rows.append((f"`{_text(node.args[0])}`", kind, f"`{default}`" if default else "", _text(words.get("help"))))
    return _table(("argument", "type", "default"), rows) if rows else ""


def _call_of(value) -> ast.Call | None:
    tree = ast.parse(str(value), mode="eval").body if value is not None else None
    return tree if isinstance(tree, ast.Call) else None


def _text(node: ast.expr | None) -> str:
    if node is None:
        return ""
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _type(annotation: str) -> str:
    """Returns an annotation in words: "float | None" is "float", "Literal['a', 'b']" is "`a` or `b`"."""
    kinds = [kind.strip() for kind in re.split(r"\|(?![^\[]*\])", annotation) if kind.strip() != "None"]
    return " or ".join(
        " or ".join(f"`{each}`" for each in re.findall(r"['\"](\S*?)['\"]", kind))
        if kind.startswith("Literal")
        else kind
        for kind in kinds
    )


def _table(heads: tuple[str, str, str], rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| " + " | ".join([*heads, "meaning"]) + " |", "|---|---|---|---|"]
    for row in rows:
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)
