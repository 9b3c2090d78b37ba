# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Makes the site of pages that are written for GitHub: hooks of MkDocs that mkdocs.yml names.

The README, the changelog and others outside docs/ become pages, too, so that nothing is written twice. A relative link
leads to the page of the site if there is one, and else to the file in the repository.
"""

import logging
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# Pages from outside docs/, by their place in the repository. mkdocs.yml names them by their place on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/NOTES.md": "notes.md",
    **{
        f"model_cards/{card.parent.name}/README.md": f"{card.parent.name}.md"
        for card in ROOT.glob("model_cards/*/README.md")
    },
}
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_log = logging.getLogger("mkdocs.hooks.pages")  # a warning of MkDocs' loggers ends a strict build


def on_config(config):
    """Takes the address of the repository from `REPOSITORY_URL`, as git writes it. A path of a disk is none."""
    address = re.sub(r"^git@([^:]+):", r"https://\1/", os.environ.get("REPOSITORY_URL", "")).removesuffix(".git")
    if address.startswith("https://"):
        config.repo_url, config.repo_name = address, "/".join(address.split("/")[-2:])
    return config


def on_files(files, config):
    """Adds the pages from outside docs/."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leaves out comments, which mark tables made from records, and turns relative links into those of the site."""
    if page.parent is None:  # a tab of its own, which has nothing to list at the side
        page.meta["hide"] = ["navigation"]
    source = {uri: source for source, uri in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    text = re.sub(r"^<!--.*?-->\n", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    parts = _CODE.split(text)  # every second one is code
    parts[::2] = [_LINK.sub(lambda link: _on_site(link, source, page, config, files), part) for part in parts[::2]]
    return "".join(parts)


def _on_site(link: re.Match, source: str, page, config, files) -> str:
    mark, text, address = link.groups()
    if re.match(r"[a-z]+:|#", address):
        return link[0]
    path, _, heading = address.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / target).exists():
        _log.warning(f"{source} links to {address}, which does not exist.")
        return link[0]
    card = f"{target}/README.md"  # GitHub shows it under the folder
    uri = PAGES.get(card, PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None))
    if mark and uri is None:
        uri = target
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    if uri is not None:
        uri = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({uri}{'#' if heading else ''}{heading})"
    if not config.repo_url:  # a copy whose repository has no address: name the file
        return text
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{target})"
