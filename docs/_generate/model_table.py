"""The table of all models, made from their manifests; docs/assets/models.js makes it searchable."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from zoo import catalog
from zoo.catalog import Manifest, Result

_WEIGHTS = {
    "file": "in the package",
    "hf": "from the Hugging Face hub",
    "https": "by a direct link",
    "gdrive": "from Google Drive",
    "manual": "by hand, then `zoo add`",
}


def table(page: str) -> str:
    """All models, one a row, as Markdown for `page` (a path in docs/)."""
    lines = ["| Model | What | Domain | Parameters | Licence | Weights | Result |", "|---|---|---|--:|---|---|---|"]
    for slug in catalog.list_papers():
        room = os.path.relpath(f"papers/{slug}.md", PurePosixPath(page).parent).replace(os.sep, "/")
        paper = catalog.paper_info(slug)
        for name in paper.models:
            model = catalog.info(name)
            cells = [f"[`{name}`]({room}#{name})", model.title, paper.domain, parameters(model), licence(model)]
            cells += [weights(model), result(model.results[0]) if model.results else ""]
            lines.append(row(cells))
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def parameters(model: Manifest) -> str:
    """1.7 M and the like."""
    if model.parameters is None:
        return "unknown"
    return f"{model.parameters / 1e6:.3g} M" if model.parameters < 1e9 else f"{model.parameters / 1e9:.3g} G"


def licence(model: Manifest) -> str:
    """SPDX name, or the words before any explanation in brackets: what one filters by."""
    return (model.license or "unknown").split(" (")[0]


def weights(model: Manifest) -> str:
    """Where they come from, and whether somebody has looked at the real file."""
    return _WEIGHTS[model.source.kind] + ("" if model.verified else "; not verified")


def result(found: Result) -> str:
    """Value, metric, and whether it was measured here."""
    return f"{found.value:g}: {found.metric}" + ("" if is_ours(found) else " (published)")


def is_ours(found: Result) -> bool:
    """Whether the number was measured here."""
    return (found.source or "").startswith("measured here")
