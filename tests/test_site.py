# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The site has all pages, leads to the right places, and its reference has all public names."""

import ast
import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

import hf_mae
from hf_mae_command import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ENTRIES = re.findall(
    r"^::: (\S+)",
    "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")),
    re.MULTILINE,
)


@pytest.fixture
def site(monkeypatch):
    """The modules of docs/_site, with stand-ins for the libraries that build the site, which tests do not need."""
    stand_ins = {"griffe": {"Extension": object}, "mkdocs.structure.files": {"File": None}}
    for name, content in {"mkdocs": {}, "mkdocs.structure": {}, **stand_ins}.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(content)
    modules = {}
    for name in ("pages", "docstrings"):
        spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "_site" / f"{name}.py")
        modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    return SimpleNamespace(**modules)


def pages_of(navigation) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_of(part)]


def test_navigation__has_every_page_once(site):
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | set(site.pages.PAGES.values())
    assert sorted(written - set(listed)) == [], "pages without a line in the navigation of mkdocs.yml"
    assert sorted(set(listed) - written) == [], "the navigation of mkdocs.yml names pages that do not exist"
    assert len(listed) == len(set(listed))


@functools.cache
def definitions_in(module: str) -> dict[str, ast.AST]:
    path = ROOT.joinpath("src", *module.split(".")).with_suffix(".py")
    return {getattr(node, "name", ""): node for node in ast.parse(path.read_text(encoding="utf-8")).body}


@pytest.mark.slow
def test_reference__names_exist():
    assert len(ENTRIES) == len(set(ENTRIES)) > 50
    for entry in ENTRIES:
        module, _, name = entry.rpartition(".")
        if module == "hf_mae":
            assert name in hf_mae.__all__, entry
            continue
        assert ast.get_docstring(definitions_in(module)[name]), entry


def test_reference__has_public_names_and_commands():
    assert set(hf_mae.__all__) <= {entry.rpartition(".")[2] for entry in ENTRIES}
    commands = re.findall(r"^## hf-mae (\w+)", (DOCS / "reference" / "commands.md").read_text(), re.MULTILINE)
    assert sorted(commands) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("page", "link", "on_site"),
    [
        ("training.md", "[x](images.md#x-ray)", "[x](images.md#x-ray)"),
        ("index.md", "[x](docs/images.md)", "[x](images.md)"),
        ("reference/model.md", "[x](../../CONTRIBUTING.md)", "[x](../contributing.md)"),
        ("training.md", "[x](../model_cards/mae-fashion-mnist)", "[x](mae-fashion-mnist.md)"),
        ("training.md", "[x](../examples)", "[x](https://example.org/a/b/tree/main/examples)"),
        ("training.md", "[x](../LICENSE)", "[x](https://example.org/a/b/blob/main/LICENSE)"),
        (
            "training.md",
            "[x](https://arxiv.org/abs/1) `[y](../LICENSE)`",
            "[x](https://arxiv.org/abs/1) `[y](../LICENSE)`",
        ),
        ("training.md", "<!-- from records: z -->1.2<!-- end -->", "1.2"),
    ],
)
def test_links__lead_to_pages_and_else_to_the_repository(site, page, link, on_site, monkeypatch):
    monkeypatch.setenv("REPOSITORY_URL", "git@example.org:a/b.git")
    config = site.pages.on_config(SimpleNamespace(repo_url=None))
    page = SimpleNamespace(file=SimpleNamespace(src_uri=page), meta={}, parent=None)
    assert site.pages.on_page_markdown(link, page, config, files=None) == on_site


def test_links__without_an_address_of_the_repository_are_names(site, monkeypatch):
    monkeypatch.setenv("REPOSITORY_URL", "/somewhere/on/a/disk")
    config = site.pages.on_config(SimpleNamespace(repo_url=None))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="training.md"), meta={}, parent=None)
    assert site.pages.on_page_markdown("[the examples](../examples)", page, config, files=None) == "the examples"


def test_docstrings__arguments_are_a_list_and_references_links(site):
    text = (
        "Draws, see [`Other`] and [`Other.draw`].\n\n"
        "Args:\n    images (`int` or `(height, width)`, *optional*, defaults to\n        3): What is\n        drawn.\n"
        "    a, b (`int`): Both.\n    **kwargs: More.\n\n"
        "Returns:\n    A [`Thing`].\n\nRaises:\n    ValueError: If none.\n"
    )
    link = '<autoref identifier="hf_mae.x.Other{0}" optional><code>Other{0}</code></autoref>'
    markdown = site.docstrings._as_markdown(text, {"Other": "hf_mae.x.Other"})
    assert markdown.split("\n\n") == [
        f"Draws, see {link.format('')} and {link.format('.draw')}.",
        "**Arguments**",
        "- **`images`** (`int` or `(height, width)`, *optional*, defaults to 3): What is\n    drawn.\n"
        "- **`a`**, **`b`** (`int`): Both.\n- **`**kwargs`**: More.",
        "**Returns**",
        'A <autoref identifier="Thing" optional><code>Thing</code></autoref>.',
        "**Raises**",
        "- `ValueError`: If none.",
        "",
    ]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [("float | None", "float"), ("Literal['a', 'b'] | None", "`a` or `b`"), ("str | list[int]", "str or list[int]")],
)
def test_types__are_in_words(site, annotation, words):
    assert site.docstrings._type(annotation) == words
