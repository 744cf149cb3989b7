"""One page a paper: the room's README, its pictures, recipes, models and their results side by side."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from model_table import is_ours, licence, parameters, row, weights
from repository_links import ROOT, repository_text

from zoo import catalog
from zoo.catalog import Manifest

_IMAGES = ROOT / "docs" / "images"


def table(page: str) -> str:
    """All papers, one a row, as Markdown for `page` (a path in docs/)."""
    lines = ["| Paper | Domain | Models | Recipes |", "|---|---|--:|--:|"]
    for slug in catalog.list_papers():
        paper = catalog.paper_info(slug)
        away = os.path.relpath(f"papers/{slug}.md", PurePosixPath(page).parent).replace(os.sep, "/")
        name, colon, rest = paper.title.rstrip(".").partition(": ")
        counts = [str(len(paper.models)), str(len(paper.recipes))]
        lines.append(row([f"[{name}]({away}){colon}{rest}", paper.domain, *counts]))
    return "\n".join(lines)


def page(slug: str) -> str:
    """Markdown of a paper's page: what it is, pictures, results, models, recipes, then the README's other sections."""
    paper = catalog.paper_info(slug)
    head, sections = _sections(repository_text(f"zoo/papers/{slug}/README.md", f"papers/{slug}.md"))
    models = [catalog.info(name) for name in paper.models]
    parts = [_facts(head, paper.domain, slug), _pictures(slug, head + "".join(sections.values()))]
    # Measured and published numbers follow each other, wherever the README has them.
    order = sorted(sections, key=lambda title: 0 if "easured" in title else 1 if "paper's results" in title else 2)
    parts += [_demoted(title, sections[title]) for title in order if order.index(title) < _results(sections)]
    parts.insert(2, "## Results\n")
    parts += [_side_by_side(models), _models(models), _recipes(paper.recipes)]
    parts += [f"## {title}\n\n{sections[title]}" for title in order if order.index(title) >= _results(sections)]
    parts.append(_details(models))
    return "\n\n".join(part for part in parts if part)


def _results(sections: dict[str, str]) -> int:
    return sum("easured" in title or "paper's results" in title for title in sections)


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first `## ` heading, and the sections by their titles. Fenced code is not looked into."""
    head: list[str] = []
    sections: dict[str, list[str]] = {}
    lines, fenced = head, False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            lines = sections.setdefault(line[3:].strip(), [])
        else:
            lines.append(line)
    return "\n".join(head).strip(), {title: "\n".join(lines).strip() for title, lines in sections.items()}


def _demoted(title: str, text: str) -> str:
    """A section one level down."""
    return f"### {title}\n\n" + re.sub(r"(?m)^(###+ )", r"#\1", text)


def _facts(head: str, domain: str, slug: str) -> str:
    facts = f"Domain: {domain} · [API](../api/{slug}.md)"
    title, _, rest = head.partition("\n")
    return f"{title}\n\n{facts}\n{{ .zoo-facts }}\n{rest}"


def _pictures(slug: str, text: str) -> str:
    """Pictures in docs/images that belong to the room and that its README does not show itself."""
    files = [path.name for path in sorted(_IMAGES.glob(f"{slug}*.png")) if path.name not in text]
    return "\n\n".join(f"![{_caption(name)}](../images/{name})\n\n*{_caption(name)}.*" for name in files)


def _caption(name: str) -> str:
    recipe = name.rsplit(".", 1)[0].rsplit("_", 1)[-1]
    return f"Drawn by the {recipe}"


def _side_by_side(models: list[Manifest]) -> str:
    """The manifests' results: measured here beside published, one row a model, metric and protocol."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for model in models:
        for found in model.results:
            values = rows.setdefault((model.name, found.metric, found.protocol or ""), ["", "", ""])
            values[0 if is_ours(found) else 1] = f"{found.value:g}"
            values[2] = values[2] if is_ours(found) else found.source or ""
    if not rows:
        return ""
    lines = ["### Of the models here\n", "| Model | Metric | Measured here | Published | How | Published by |"]
    lines.append("|---|---|--:|--:|---|---|")
    for (name, metric, protocol), (ours, theirs, source) in rows.items():
        lines.append(row([f"[`{name}`](#{name})", metric, ours, theirs, protocol, source]))
    return "\n".join(lines)


def _models(models: list[Manifest]) -> str:
    if not models:
        return ""
    lines = ["## Models\n", "| Model | What | Parameters | Licence | Weights |", "|---|---|--:|---|---|"]
    for model in models:
        cells = [f"[`{model.name}`](#{model.name})", model.title, parameters(model), licence(model), weights(model)]
        lines.append(row(cells))
    return "\n".join(lines)


def _recipes(names: tuple[str, ...]) -> str:
    lines = [
        "## Recipes\n",
        "Each runs as it stands or with any setting changed: `lightning run NAME --any.key VALUE`.\n",
    ]
    for name in names:
        recipe = catalog.recipe_info(name)
        text = recipe.path.read_text(encoding="utf-8")
        facts = {"Hardware": recipe.hardware, "Time": recipe.time, "Judged by": recipe.metric}
        known = [f"{recipe.title}.", *(f"{label}: {value}." for label, value in facts.items() if value)]
        anchor = name.replace("/", "-")
        lines += [f"#### {name} {{ #{anchor} }}\n", " ".join(known) + "\n"]
        lines += [f'??? abstract "{recipe.stage or "recipe"}: {name}.yaml"', "    ```yaml"]
        lines += [f"    {line}".rstrip() for line in text.splitlines()] + ["    ```\n"]
    return "\n".join(lines)


def _details(models: list[Manifest]) -> str:
    """Every model's manifest in words, below a heading of its own so that search and links find it."""
    if not models:
        return ""
    lines = ["## The models in detail\n"]
    for model in models:
        _, *facts = str(model).splitlines()
        lines += [f"#### {model.name} {{ #{model.name} }}\n", f"{model.title}.\n", '??? info "Facts"', "    ```text"]
        lines += [f"    {fact.strip()}" for fact in facts] + ["    ```\n"]
    return "\n".join(lines)
