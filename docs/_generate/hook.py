"""Adds the generated pages to the site while `mkdocs build` runs: papers, models, API, contributing.

Everything comes from what lies in the repository, so a new room has its pages without an edit here.
"""

from __future__ import annotations

import api_pages
import model_table
import paper_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository_links import ROOT, repository_text

from zoo import catalog

_TABLES = {"<!-- models -->": model_table.table, "<!-- papers -->": paper_pages.table}


def on_config(config: MkDocsConfig) -> None:
    """A page for every paper below Papers and API; `mkdocs serve` builds again when their sources change."""
    below = {"Papers": [f"papers/{slug}.md" for slug in catalog.list_papers()], "API": list(api_pages.pages())[1:]}
    config.nav = [
        {title: [page, *below[title]] if title in below else page}
        for entry in config.nav or []
        for title, page in entry.items()
    ]
    config.watch += [str(ROOT / name) for name in ("zoo", "datamodules", "recipes", "checkpoints", "CONTRIBUTING.md")]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {f"papers/{slug}.md": paper_pages.page(slug) for slug in catalog.list_papers()}
    pages["contributing.md"] = repository_text("CONTRIBUTING.md", "contributing.md")
    for name, text in {**pages, **api_pages.pages()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    for mark, table in _TABLES.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table(page.file.src_uri))
    return markdown
