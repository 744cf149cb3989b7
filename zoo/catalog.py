"""What the zoo holds: models (a manifest each, `checkpoints/<paper>/<name>.yaml`), recipes and papers.

Reading it needs no torch, so that listing is instant.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, did_you_mean
from zoo.paths import checkpoints_dir, recipes_dir
from zoo.recipes import HEADER, HEADER_FIELDS, find_recipe, load_yaml, recipe_names

SOURCE_KINDS = ("manual", "https", "hf", "gdrive", "file")
FORMATS = ("official", "zoo")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from.

    Attributes:
        kind: "https" (a direct link), "hf" (Hugging Face hub), "gdrive" (Google Drive), "manual" (a page that only a
            person can download from) or "file" (a file beside the manifest; needs no network).
        url: the link or page; for "hf" the repository `owner/name`; for "gdrive" a share link or file id.
        revision: "hf" only, and required there: the commit that is meant, 40 hex digits.
        filename: name of the file; required for "hf" and "file", a hint to the user for "manual".
        code: "manual" only: the access code that the page asks for.
        instructions: "manual" only: what else the person has to know.
    """

    kind: str
    url: str | None = None
    revision: str | None = None
    filename: str | None = None
    code: str | None = None
    instructions: str | None = None

    @property
    def identity(self) -> str:
        """The same for the same bytes upstream, another one as soon as anything points elsewhere."""
        return ":".join([self.kind, self.url or "", self.revision or "", self.filename or ""])


@dataclass(frozen=True)
class Result:
    """A published or measured number: `metric` in words with its unit, its `value`, how (`protocol`) and says who."""

    metric: str
    value: float
    protocol: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What the catalogue knows of one model; the fields are the keys of its YAML file.

    Attributes:
        name: what `zoo.load` takes; also the file's stem.
        title: one line for people.
        paper: slug of the paper's room.
        class_path: the ZooModule, `package.module.Class`.
        source: where the weights are.
        init_args: arguments of the class: network and the switches that the weights were trained with.
        sha256: of the file at the source; null where upstream publishes none: then the first download's is recorded
            in the cache and every later one must match.
        format: "official" (the paper's own key names) or "zoo" (ours).
        license: SPDX name of the weights' licence, null if unknown.
        citation: the paper, in a line.
        url: the paper's address.
        input: what `forward` takes, in words.
        parameters: number of parameters, the frozen ones included.
        trained_on: data set and length of training.
        results: published or measured numbers.
        verified: True once these facts were checked against the real file.
        notes: anything else a user should know.
        path: the manifest's own file (not a key).
    """

    name: str
    title: str
    paper: str
    class_path: str
    source: Source
    init_args: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    format: str = "zoo"
    license: str | None = None
    citation: str | None = None
    url: str | None = None
    input: str | None = None
    parameters: int | None = None
    trained_on: str | None = None
    results: tuple[Result, ...] = ()
    verified: bool = False
    notes: str | None = None
    path: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML."""
        values = asdict(self)
        values.pop("path")
        values["source"] = {key: value for key, value in values["source"].items() if value is not None}
        values["results"] = [
            {key: value for key, value in result.items() if value is not None} for result in values["results"]
        ]
        return values

    def __str__(self) -> str:
        rows = [("paper", self.citation or self.paper), ("url", self.url), ("class", self.class_path)]
        rows += [("parameters", f"{self.parameters:,}" if self.parameters is not None else None), ("input", self.input)]
        rows += [("trained on", self.trained_on), ("licence", self.license), ("source", describe_source(self.source))]
        rows += [("sha256", self.sha256 or "not published; recorded on first use"), ("format", self.format)]
        for result in self.results:
            detail = ", ".join(part for part in (result.protocol, result.source) if part)
            rows.append(("result", f"{result.metric} {result.value:g}" + (f" ({detail})" if detail else "")))
        rows += [
            ("verified", "yes" if self.verified else "no, not yet checked against the file"),
            ("notes", self.notes),
        ]
        lines = [f"{self.name}: {self.title}"]
        return "\n".join(lines + [f"  {label:<11}{value}" for label, value in rows if value is not None])


@dataclass(frozen=True)
class Recipe:
    """A recipe's header: `name` is `<paper>/<file stem>`, the rest is in its author's words."""

    name: str
    path: Path
    title: str = ""
    stage: str | None = None
    hardware: str | None = None
    time: str | None = None
    metric: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        rows = [("stage", self.stage), ("hardware", self.hardware), ("time", self.time), ("metric", self.metric)]
        rows += [
            ("file", str(self.path)),
            ("run it", f"lightning run {self.name}"),
            ("copy it", f"zoo cp {self.name} ."),
        ]
        return "\n".join([f"{self.name}: {self.title}"] + [f"  {label:<11}{value}" for label, value in rows if value])


@dataclass(frozen=True)
class Paper:
    """A paper of the zoo with the names of its models and recipes; `domain` says what its data is, in a word or two."""

    slug: str
    title: str
    models: tuple[str, ...]
    recipes: tuple[str, ...]
    domain: str = "other"


# ---------------------------------------------------------------------- the public face


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a glob pattern, sorted."""
    return sorted(name for name in _manifest_files() if fnmatchcase(name, pattern))


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes (`<paper>/<recipe>`) that match a glob pattern, sorted."""
    return [name for name in recipe_names() if fnmatchcase(name, pattern)]


def list_papers(pattern: str = "*") -> list[str]:
    """Slugs of the papers that match a glob pattern, sorted."""
    rooms = [path.parent for path in _rooms_dir().glob("*/__init__.py")]
    data = [path.parent for root in (checkpoints_dir(), recipes_dir()) for path in root.glob("*/*.yaml")]
    return sorted({path.name for path in rooms + data if fnmatchcase(path.name, pattern)})


def info(name: str) -> Manifest:
    """The manifest of a model in the catalogue. Raises `ZooError` that suggests the nearest names."""
    files = _manifest_files()
    if name not in files:
        raise ZooError(f"There is no model {name!r}.{did_you_mean(name, files)} `zoo ls` lists them all.")
    manifest = read_manifest(files[name])
    if manifest.name != name:
        raise ZooError(f"{files[name]}: name is {manifest.name!r}, but the file is called {name}.yaml.")
    return manifest


def recipe_info(name: str) -> Recipe:
    """The header of a recipe, by catalogue name or path. Raises `ZooError` for an unknown one or a broken file."""
    path = find_recipe(name)
    header = _read_yaml(path).get(HEADER) or {}
    if not isinstance(header, Mapping):
        raise ZooError(f"{path}: {HEADER} should hold {', '.join(HEADER_FIELDS)}.")
    known = {key: str(header[key]) for key in ("title", "stage", "hardware", "time", "metric") if header.get(key)}
    return Recipe(name=name, path=path, **known)


def paper_info(slug: str) -> Paper:
    """A paper's title (first line of its room's docstring), models, recipes and domain (`__domain__` in the room)."""
    if slug not in list_papers():
        raise ZooError(f"There is no paper {slug!r}.{did_you_mean(slug, list_papers())} `zoo ls papers` lists them.")
    init = _rooms_dir() / slug / "__init__.py"
    room = ast.parse(init.read_text(encoding="utf-8") if init.is_file() else "")
    models = sorted(name for name, path in _manifest_files().items() if path.parent.name == slug)
    title = (ast.get_docstring(room) or slug).splitlines()[0]
    return Paper(slug, title, tuple(models), tuple(list_recipes(f"{slug}/*")), _domain(room))


def _domain(room: ast.Module) -> str:
    """The word that a room sets as `__domain__`, read without importing it."""
    for node in room.body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__domain__"]:
            return str(ast.literal_eval(node.value))
    return Paper.domain


def describe_source(source: Source) -> str:
    """Where the weights are, in a line."""
    where = {
        "manual": f"{source.url} (download by hand" + (f", code {source.code}" if source.code else "") + ")",
        "https": source.url,
        "hf": f"Hugging Face hub {source.url}/{source.filename} at {(source.revision or '')[:10]}",
        "gdrive": f"Google Drive {source.url}",
        "file": f"{source.filename} beside the manifest",
    }
    return str(where[source.kind])


# ---------------------------------------------------------------------- reading manifests


def read_manifest(path: Path) -> Manifest:
    """Parses and checks a manifest. Raises `ZooError`, one line that names the file and the field."""
    values = _read_yaml(path)
    check = _Check(path)
    check.keys(values, Manifest, "")
    check.types(values, Manifest, "")
    if not NAME.fullmatch(values["name"]):
        check.fail("name", "is up to 100 letters, digits, '.', '_' and '-'")
    if not _is_plain(values.get("init_args") or {}):
        check.fail("init_args", "should hold names with plain values, lists and mappings, not nested into themselves")
    sha256 = values.get("sha256")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        check.fail("sha256", "is 64 hex digits, or null")
    if values.get("format", "zoo") not in FORMATS:
        check.fail("format", f"is one of {', '.join(FORMATS)}")
    if "." not in values["class_path"]:
        check.fail("class_path", "is written package.module.Class")
    results = []
    for index, result in enumerate(values.get("results") or []):
        where = f"results[{index}]."
        if not isinstance(result, Mapping):
            check.fail(where[:-1], "should hold metric and value")
        check.keys(result, Result, where)
        check.types(result, Result, where)
        results.append(Result(**result))
    given = {key: value for key, value in values.items() if value is not None}
    return Manifest(**{**given, "source": _source(values["source"], check), "results": tuple(results), "path": path})


def _source(values: Mapping[str, Any], check: _Check) -> Source:
    check.keys(values, Source, "source.")
    check.types(values, Source, "source.")
    kind = values["kind"]
    if kind not in SOURCE_KINDS:
        check.fail(
            "source.kind", f"is one of {', '.join(SOURCE_KINDS)}, not {kind!r}.{did_you_mean(kind, SOURCE_KINDS)}"
        )
    needed = {"manual": ["url"], "https": ["url"], "hf": ["url", "revision", "filename"], "gdrive": ["url"]}
    for key in needed.get(kind, ["filename"]):
        if not values.get(key):
            check.fail(f"source.{key}", f"is missing; a source of kind {kind!r} needs it")
    if kind == "hf" and not re.fullmatch(r"[0-9a-f]{40}", values["revision"]):
        check.fail("source.revision", "is a commit, 40 hex digits: a branch or tag could change under the model")
    for key in ("revision", "code", "instructions"):
        if values.get(key) and kind != ("hf" if key == "revision" else "manual"):
            check.fail(f"source.{key}", f"has no meaning for a source of kind {kind!r}")
    filename = values.get("filename")
    if filename and (not filename.isprintable() or Path(filename).is_absolute() or ".." in Path(filename).parts):
        check.fail("source.filename", "is a name without '..', not a path to elsewhere")
    return Source(**values)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether YAML gives `value` back as it is; its anchors can also nest a mapping into itself."""
    if depth > 20:
        return False
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, str | int | float)


class _Check:
    """Raises `ZooError`s that name the manifest's file and the field."""

    # By the dataclasses' annotations: what YAML should give, and that in words.
    _TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
        "str": (str, "text"),
        "int": (int, "a number"),
        "float": ((int, float), "a number"),
        "bool": (bool, "true or false"),
        "Source": (dict, "a mapping"),
        "dict[str, Any]": (dict, "a mapping"),
        "tuple[Result, ...]": (list, "a list"),
    }

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, key: str, what: str) -> None:
        raise ZooError(f"{self.path}: {key} {what}.")

    def keys(self, values: Mapping[str, Any], cls: type, prefix: str) -> None:
        known = [f.name for f in fields(cls) if f.name != "path"]
        for key in values:
            if key not in known:
                shown = " ".join(str(key).split())
                raise ZooError(f"{self.path}: unknown field '{prefix}{shown}'.{did_you_mean(shown, known)}")
        for f in fields(cls):
            required = f.default is f.default_factory  # both are dataclasses.MISSING
            if required and values.get(f.name) is None:
                self.fail(prefix + f.name, "is missing")

    def types(self, values: Mapping[str, Any], cls: type, prefix: str) -> None:
        for f in fields(cls):
            value = values.get(f.name)
            if value is None:
                continue
            wanted, words = self._TYPES[str(f.type).removesuffix(" | None")]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                self.fail(prefix + f.name, f"should be {words}, not {value!r}")


def _rooms_dir() -> Path:
    return Path(__file__).resolve().parent / "papers"


def _manifest_files() -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(checkpoints_dir().glob("*/*.yaml")):
        if path.stem in files:
            raise ZooError(f"{path} and {files[path.stem]} describe models of the same name: rename one.")
        files[path.stem] = path
    return files


def _read_yaml(path: Path) -> dict[str, Any]:
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise ZooError(f"{path} should hold fields and their values, one a line.")
    return values
