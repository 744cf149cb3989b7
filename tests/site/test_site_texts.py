"""What the pages say agrees with the code: error messages, commands, links, and a page for every room."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from support_docs import check_command, documented_commands

from zoo import catalog

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_generate"))
pytest.importorskip("mkdocs", reason="the site needs the extra [docs]")

import api_pages  # noqa: E402
import model_table  # noqa: E402
import paper_pages  # noqa: E402
import repository_links  # noqa: E402


def message(node: ast.expr) -> str:
    """A string expression with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(message(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message(node.left) + message(node.right)
    return "…"


def messages_of_the_code() -> list[str]:
    """All texts that an error may hold: string expressions of the sources, docstrings left out."""
    found = set()
    for path in [*ROOT.glob("zoo/**/*.py"), *ROOT.glob("datamodules/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.BinOp | ast.Constant) and id(node) not in docstrings:
                found.add(re.sub("…+", "…", message(node)))
    return sorted(found)


def test_every_quoted_message_stands_in_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"(?m)^### `(.*)` \{ #[\w-]+ \}$", text)
    assert len(quoted) == len(re.findall(r"(?m)^### ", text)) > 25
    known = messages_of_the_code()
    for words in quoted:
        pattern = re.sub("…+", "…", words)
        assert any(pattern in one for one in known), f"no error says {words!r} any more: mend docs/troubleshooting.md"


def test_commands_of_the_pages_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("index", "getting-started", "your-own-data", "troubleshooting"):
        for command in documented_commands((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")):
            check_command(command)


def test_every_paper_has_its_pages_with_all_models_and_recipes():
    table = model_table.table("models.md")
    api = api_pages.pages()
    for slug in catalog.list_papers():
        paper = catalog.paper_info(slug)
        page = paper_pages.page(slug)
        readme = (ROOT / "zoo" / "papers" / slug / "README.md").read_text(encoding="utf-8")
        for heading in re.findall(r"(?m)^## (.*)$", readme):
            assert re.search(rf"(?m)^###? {re.escape(heading)}$", page), f"{slug}: the section {heading!r} is lost"
        assert page.index("### Measured here") < page.index("## Recipes")
        for name in paper.models:
            assert f"[`{name}`](papers/{slug}.md#{name})" in table
            assert f"{{ #{name} }}" in page
        for name in paper.recipes:
            assert f"#### {name} " in page
        pictures = [path.name for path in (ROOT / "docs" / "images").glob(f"{slug}*.png")]
        assert all(name in page for name in pictures)
        assert f"::: zoo.papers.{slug}." in api[f"api/{slug}.md"]


def test_results_measured_here_stand_beside_published_ones():
    page = paper_pages.page("droppos")
    rows = [line for line in page.splitlines() if line.startswith("| [`droppos-vit")]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    results = [row for row in cells if len(row) == 6]
    assert any(row[2] and not row[3] for row in results)
    assert any(row[3] and not row[2] and row[5] for row in results)


def test_links_of_the_repository_hold_on_the_site(tmp_path, monkeypatch):
    monkeypatch.setattr(repository_links, "ROOT", tmp_path)
    files = "zoo/papers/a/README.md", "zoo/papers/b/README.md", "docs/images/x.png", "docs/models.md", "zoo/nn.py"
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    source = tmp_path / "zoo/papers/a/README.md"
    source.write_text(
        "![x](../../../docs/images/x.png) [b](../b/README.md#top) [t](../../../docs/models.md) "
        "[`zoo/nn.py`](../../nn.py) [parts](../../nn.py) [w](https://example.org/a) [h](#here) `[c](no.md)`\n\n"
        "    [code](nowhere.md)\n"
    )
    text = repository_links.repository_text("zoo/papers/a/README.md", "papers/a.md")
    assert text == (
        "![x](../images/x.png) [b](b.md#top) [t](../models.md) "
        "`zoo/nn.py` parts (`zoo/nn.py`) [w](https://example.org/a) [h](#here) `[c](no.md)`\n\n"
        "    [code](nowhere.md)\n"
    )
    source.write_text("[gone](gone.md)")
    with pytest.raises(Exception, match=r"gone\.md leads nowhere"):
        repository_links.repository_text("zoo/papers/a/README.md", "papers/a.md")
