"""Texts that were written for their place in the repository, with links that hold on the site."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
# Code stays as it is, unless it is the label of a link.
_LINK_OR_CODE = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)|```.*?```|^(?: {4}|\t)[^\n]*$|`[^`\n]*`", re.S | re.M)


def repository_text(source: str, page: str) -> str:
    """The text of `source` (a path in the repository) for `page` (a path in docs/).

    A link to what has a page or lies in docs/ leads there; another file of the repository becomes its name in code. A
    link to nothing stops the build.
    """
    text = (ROOT / source).read_text(encoding="utf-8")

    def rewrite(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if target is None:
            return match.group()
        if re.match(r"[a-z]+:|#", target):
            return match.group()
        path, _, anchor = target.partition("#")
        here = os.path.normpath(PurePosixPath(source).parent / path).replace(os.sep, "/")
        if not (ROOT / here).exists():
            raise PluginError(f"{source}: the link to {target} leads nowhere.")
        there = _site_page(here)
        if there is None:
            return f"`{here}`" if label.strip("`") in (here, path) else f"{label} (`{here}`)"
        away = os.path.relpath(there, PurePosixPath(page).parent).replace(os.sep, "/")
        return f"{image}[{label}]({away}{'#' + anchor if anchor else ''})"

    return _LINK_OR_CODE.sub(rewrite, text)


def _site_page(path: str) -> str | None:
    """Where a file of the repository stands in docs/, if it does."""
    if room := re.fullmatch(r"(?:zoo/papers|recipes)/(\w+)(/[\w.-]+\.(md|yaml))?", path):
        return f"papers/{room[1]}.md"
    pages = {"CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
    return pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
