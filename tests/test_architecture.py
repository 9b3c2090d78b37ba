# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The package is built as docs/architecture.md says: its tree, who imports whom, the sizes of files and functions.

And the versions in pyproject.toml fit those that the tests pass with.
"""

import ast
import graphlib
import re
import statistics
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hf_mae"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def absolute_name(node: ast.ImportFrom, importer: str) -> list[str]:
    """Returns the parts of the module of ours that `from ..x import y` names, relative to the package."""
    if not node.level:
        return node.module.split(".")[1:]
    folder = importer.split(".")[: -node.level] if importer != "__init__" else []
    return [*folder, *(node.module.split(".") if node.module else [])]


def imports_of(name: str) -> set[str]:
    """Returns the modules of ours that a module imports when it is imported itself."""
    found = set()
    for node in _run_at_import(parse(name)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("hf_mae.")):
            parts = absolute_name(node, name)
            names = {".".join([*parts, alias.name]) for alias in node.names} & set(MODULES)
            found |= names or {".".join(parts)}
    return found & set(MODULES)


def _run_at_import(tree: ast.AST):
    """Yields the nodes that are not inside a function."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _run_at_import(child)


def test_imports_of__are_found():
    assert {"modeling.masking_mae", "modeling.targets_mae"} <= imports_of("modeling.modeling_mae")
    assert "pretraining.images" in imports_of("pretraining.run")
    # What `pretrain` needs is loaded later.
    assert imports_of("__init__") == {"conversion.weights", "modeling.auto_mae", "modeling.modeling_mae_downstream"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("modeling.")])
def test_modeling__ships_without_the_package(name):
    """Only `from .name import X`, which transformers copies to the Hub, and libraries that every user of it has."""
    available = {"torch", "numpy", "PIL", "transformers", "huggingface_hub", "safetensors"} | sys.stdlib_module_names
    tree = parse(name)
    optional = {id(node) for part in ast.walk(tree) if isinstance(part, ast.Try) for node in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert f"modeling.{node.module}" in MODULES
        elif isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in optional:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {module.split(".")[0] for module in modules} <= available


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("data.")])
def test_data__imports_reading_and_its_own_room(name):
    allowed = {f"modeling.{each}_mae" for each in ("image_processing", "reading", "formats", "tiff")}
    assert {each for each in imports_of(name) if not each.startswith("data.")} <= allowed


def test_imports__have_no_circle():
    graph = {name: imports_of(name) for name in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError
    graph["modeling.patches_mae"] = {"modeling.modeling_mae"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def functions_of(name: str) -> list[tuple[str, int]]:
    """Returns the functions of a module with the number of their lines, docstrings left out."""
    found = []
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            lines = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
            found.append((f"{name}.{node.name}", lines))
    return found


@pytest.mark.slow
def test_sizes__stay_readable():
    functions = [function for name in MODULES for function in functions_of(name)]
    assert [name for name, lines in functions if lines > 60] == []
    assert statistics.median(lines for _, lines in functions) <= 12
    files = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in files.items() if lines > 700} == {}
    assert not any(path.stem == "utils" for path in MODULES.values())


def tree_of(page: str) -> dict[str, list[str]]:
    """Returns the entries of each folder in the page's tree whose entries it lists; folders end in a slash."""
    lines = re.search(r"## The tree\n.*?```\n(.*?)```", page, re.DOTALL)[1].splitlines()
    folders, open_folders = {}, []
    for line in lines:
        indent, name = re.match(r"( *)(\S+) +\S", line).groups()  # each has some words
        depth = len(indent) // 2
        del open_folders[depth:]
        folders.setdefault("".join(open_folders), []).append(name)
        open_folders.append(name)
    return folders


def test_tree__is_that_on_disk():
    folders = tree_of(PAGE)
    assert {"src/hf_mae/modeling/", "examples/"} <= set(folders)
    assert all((ROOT / name).exists() for name in folders.pop(""))
    for folder, listed in folders.items():
        found = [path for path in (ROOT / folder).iterdir() if not path.name.startswith((".", "__pycache__"))]
        names = {f"{path.name}/" if path.is_dir() else path.name for path in found if path.suffix != ".egg-info"}
        assert set(listed) == names, folder


@pytest.mark.parametrize("name", MODULES)
def test_messages__name_no_page_that_an_installed_package_does_not_have(name):
    tree = parse(name)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(getattr(node, "body", None), list) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [node.value for node in texts if id(node) not in docs and re.search(r"docs/\w+\.md", node.value)]


def test_versions__that_the_tests_pass_with_are_allowed_and_can_be_had_for_the_lowest_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = [project["dependencies"], *project["optional-dependencies"].values()]
    allowed = {each.name.lower(): each.specifier for group in allowed for each in map(Requirement, group)}
    lowest = project["requires-python"].removeprefix(">=")
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    installed = {each.name: each for each in metadata.distributions()}
    for pin in (pin for pin in pins if pin.marker is None or pin.marker.evaluate()):
        (version,) = (each.version for each in pin.specifier)
        assert allowed.get(pin.name.lower(), SpecifierSet()).contains(version), pin
        if pin.name in installed and installed[pin.name].version == version:
            pythons = installed[pin.name].metadata["Requires-Python"] or ""
            assert SpecifierSet(pythons).contains(lowest), f"{pin} needs Python {pythons}"
