"""The API pages: which modules stand on which, as mkdocstrings' directives. Found, not listed, wherever possible."""

from __future__ import annotations

import ast
from pathlib import Path

from repository_links import ROOT

from zoo import catalog

_FACE = {
    "zoo": ["zoo.load", "zoo.list_models", "zoo.list_recipes", "zoo.info", "zoo.ZooError"],
    "zoo.catalog": ["zoo.catalog.Manifest", "zoo.catalog.Source", "zoo.catalog.Result"],
}
_FLOOR = ["zoo.module", "zoo.optim", "zoo.precision", "zoo.seeding", "zoo.strategies", "zoo.hub"]
_GROUPS = {
    "callbacks": ("Callbacks", "zoo/callbacks"),
    "nn": ("Network parts", "zoo/nn"),
    "tasks": ("Fine-tuning and probes", "zoo/tasks"),
    "datamodules": ("Data", "datamodules"),
}


def pages() -> dict[str, str]:
    """{path in docs/: Markdown}; the overview comes first."""
    found = {"api/index.md": _overview(), "api/module.md": _page("Base class, optimisers, precision", _FLOOR)}
    for name, (title, folder) in _GROUPS.items():
        found[f"api/{name}.md"] = _page(title, _modules(folder))
    for slug in catalog.list_papers():
        names = public_names(ROOT / "zoo" / "papers" / slug / "__init__.py")
        intro = f"`from zoo.papers.{slug} import {', '.join(names)}`. [What it is](../papers/{slug}.md)."
        found[f"api/{slug}.md"] = _page(_title(slug), list(names.values()), intro, full_path=False)
    return found


def public_names(init: Path) -> dict[str, str]:
    """{name in `__all__`: where it is defined} of a package, read without importing it."""
    tree = ast.parse(init.read_text(encoding="utf-8"))
    package = ".".join(init.parent.relative_to(ROOT).parts)
    defined = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return {name: defined.get(name, f"{package}.{name}") for name in ast.literal_eval(node.value)}
    return {}


def _overview() -> str:
    text = [
        "# API",
        "What `import zoo` gives. Further pages: base class, callbacks, parts, tasks, data, rooms.",
    ]
    return "\n\n".join(text + [f"::: {name}" for names in _FACE.values() for name in names])


def _page(title: str, names: list[str], intro: str = "", full_path: bool = True) -> str:
    options = "" if full_path else "\n    options:\n      show_root_full_path: false"
    return "\n\n".join([f"# {title}", intro, *(f"::: {name}{options}" for name in names)])


def _title(slug: str) -> str:
    readme = (ROOT / "zoo" / "papers" / slug / "README.md").read_text(encoding="utf-8")
    return readme.splitlines()[0].removeprefix("# ")


def _modules(folder: str) -> list[str]:
    """Dotted names of the modules below a folder that define something public, with a docstring."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        public = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
        if public and path.stem != "__init__":
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found
