"""Documents from where users have them: text, JSONL, Parquet, a folder of these, a hub id, or Python's own manual.

`read_documents` decides by looking and gives one document after the other, so that a corpus may be larger than memory.
A document is a string; its lines are what builders of sentence pairs take for sentences.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datamodules.text_made_up import MADE_UP_DOCUMENTS, MadeUpLanguage
from zoo.errors import ZooError
from zoo.nn.text import text_packages
from zoo.paths import cache_dir

PYTHON_DOCS = "python-docs"
MADE_UP = "made-up"
SUFFIXES = (".txt", ".jsonl", ".parquet")
OnBad = Literal["error", "skip"]


class Documents:
    """An iterable over the documents of a source; each iteration reads it anew.

    Args:
        root: one of
            - a `.txt` file: documents separated by blank lines, one sentence a line (as BERT and ELECTRA want it);
            - a `.jsonl` file: one object a line, its text under `column`;
            - a `.parquet` file with a column `column` of strings;
            - a folder of such files, read in order of their names;
            - a hub id, `owner/name` or `owner/name:config`, read as a stream (split "train");
            - the word `python-docs`: the manual's topics and the standard library's docstrings of this Python;
              `python-docs:numpy,scipy` adds the docstrings of installed packages;
            - the word `made-up`: a made-up language (`datamodules.text_made_up`).
        column: name of the text field of JSONL and Parquet.
        on_bad_text: "error" names a broken or empty document and stops; "skip" passes over it and counts.

    Raises:
        ZooError: no such source, nothing in it, or (while reading) a document that cannot be read.
    """

    def __init__(self, root: str | Path, column: str = "text", on_bad_text: OnBad = "error") -> None:
        if on_bad_text not in ("error", "skip"):
            raise ZooError(f"on_bad_text is 'error' or 'skip', not {on_bad_text!r}.")
        self.root, self.column, self.on_bad_text = str(root), column, on_bad_text
        self.num_skipped = 0
        self.files = self._find()

    def _find(self) -> list[Path]:
        if is_python_docs(self.root):
            _package_folders(_packages(self.root))  # says which one is missing
            return []
        if self.root == MADE_UP:
            return []
        path = Path(self.root).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
            if not files:
                raise ZooError(f"{path} holds no text: looked for {', '.join(SUFFIXES)}.")
            return files
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise ZooError(f"{path} is none of {', '.join(SUFFIXES)}: rename plain text to .txt.")
            return [path]
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", self.root) or path.suffix in SUFFIXES:
            raise ZooError(f"There is no text at {self.root!r}: give a file or folder with --data.root.")
        return []

    @functools.cached_property
    def content_key(self) -> str:
        """Hash of what is read: the bytes of the files, or names and versions of Python and packages, or hub id."""
        digest = hashlib.blake2b(f"{self.column}|{self.on_bad_text}".encode(), digest_size=16)
        if not self.files:
            versions = _docs_key(_packages(self.root)) if is_python_docs(self.root) else ""
            versions = MadeUpLanguage().sentence(0) if self.root == MADE_UP else versions
            digest.update(f"{self.root}|{versions}".encode())
        for file in self.files:
            digest.update(file.suffix.encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        self.num_skipped = 0
        found = False
        for where, text in self._raw():
            if text is None or not text.strip():
                self._bad(f"{where}: " + ("no text" if text is None else "an empty document"))
                continue
            found = True
            yield text
        if not found:
            raise ZooError(f"There is no text in {self.root}.")

    def _bad(self, message: str) -> None:
        if self.on_bad_text == "error":
            raise ZooError(
                f"{message}. Repair it, or pass over such documents: --data.on_bad_text skip, or --skip-bad."
            )
        self.num_skipped += 1

    def _raw(self) -> Iterator[tuple[str, str | None]]:
        if is_python_docs(self.root):
            found = python_documents(packages=_packages(self.root))
            yield from ((f"docstring of {package}", text) for package, text in found)
            return
        if self.root == MADE_UP:
            yield from ((MADE_UP, text) for text in MadeUpLanguage().documents(MADE_UP_DOCUMENTS))
            return
        if not self.files:
            yield from self._hub()
        for file in self.files:
            reader = {".txt": self._plain, ".jsonl": self._jsonl, ".parquet": self._parquet}[file.suffix]
            yield from reader(file)

    def _lines(self, file: Path) -> Iterator[tuple[int, str | None]]:
        """Line numbers and decoded lines; None where a line is no UTF-8 text."""
        try:
            with file.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if b"\0" in line:
                        self._bad(f"{file}, line {number}: a zero byte, no text")
                        yield number, None
                        continue
                    try:
                        yield number, line.decode("utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        self._bad(f"{file}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x})")
                        yield number, None
        except OSError as error:
            raise ZooError(f"Cannot read {file}: {error.strerror or error}.") from error

    def _plain(self, file: Path) -> Iterator[tuple[str, str | None]]:
        lines: list[str] = []
        start = 1
        for number, line in self._lines(file):
            if line is None:
                continue
            if line.strip():
                start = start if lines else number
                lines.append(line.strip())
            elif lines:
                yield f"{file}, line {start}", "\n".join(lines)
                lines = []
        if lines:
            yield f"{file}, line {start}", "\n".join(lines)

    def _jsonl(self, file: Path) -> Iterator[tuple[str, str | None]]:
        for number, line in self._lines(file):
            if line is None or not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                self._bad(f"{file}, line {number}: not JSON ({error.msg})")
                continue
            yield f"{file}, line {number}", self._field(row, f"{file}, line {number}")

    def _field(self, row: Any, where: str) -> str | None:
        if not isinstance(row, dict) or self.column not in row:
            names = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ZooError(f"{where} has no field {self.column!r} (it has {names}): set data.column.")
        value = row[self.column]
        return value if isinstance(value, str) else None

    def _parquet(self, file: Path) -> Iterator[tuple[str, str | None]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(file)
            if self.column not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise ZooError(f"{file} has no column {self.column!r} (it has {names}): set data.column.")
            row = 0
            for batch in table.iter_batches(columns=[self.column]):
                for value in batch.column(0).to_pylist():
                    yield f"{file}, row {row}", value
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise ZooError(f"Cannot read {file}: {' '.join(str(error).split())[:200].rstrip('.')}.") from error

    def _hub(self) -> Iterator[tuple[str, str | None]]:
        with text_packages():
            import datasets
        name, _, config = self.root.partition(":")
        try:
            stream = datasets.load_dataset(name, config or None, split="train", streaming=True)
        except Exception as error:  # the hub client's many kinds
            raise ZooError(
                f"Cannot read {self.root!r}: it is no file or folder here, and the hub does not give it "
                f"({type(error).__name__}: {str(error).splitlines()[0][:120]})."
            ) from error
        for row, values in enumerate(stream):
            yield f"{self.root}, row {row}", self._field(values, f"{self.root}, row {row}")


def is_python_docs(root: str) -> bool:
    """Whether a source is `python-docs`, with or without names of packages."""
    return root.partition(":")[0] == PYTHON_DOCS


def _packages(root: str) -> tuple[str, ...]:
    return tuple(name for name in root.partition(":")[2].replace(" ", "").split(",") if name)


def python_documents(min_chars: int = 40, packages: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(package, text) of the manual's topics ("topics") and of every docstring in the standard library of this Python.

    Docstrings of the installed `packages` follow, without lines that have no letter. Docstrings shorter than
    `min_chars` are left out, a text that comes twice is taken once. Parsing takes seconds, so the result is kept in the
    cache, by the versions.

    Raises:
        ZooError: a package is not installed.
    """
    return list(_python_documents(min_chars, packages))


def _package_folders(packages: tuple[str, ...]) -> list[Path]:
    """Where the sources of packages lie; nothing is imported."""
    folders = []
    for name in packages:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ZooError(f"There is no installed package {name!r}, whose docstrings {PYTHON_DOCS}:{name} asks for.")
        folders.append(Path(next(iter(spec.submodule_search_locations))))
    return folders


def _docs_key(packages: tuple[str, ...]) -> str:
    versions = [f"{sys.version}|{sysconfig.get_path('stdlib')}"]
    for name in packages:
        owners = importlib.metadata.packages_distributions().get(name, [])
        versions.append(f"{name} {' '.join(importlib.metadata.version(owner) for owner in sorted(set(owners)))}")
    return "|".join(versions)


_LETTER = re.compile(r"[^\W\d_]")
_NO_DOCS = ("test", "tests", "testing", "idlelib", "site-packages", "lib2to3", "turtledemo", "__pycache__",
            "pydoc_data", "_vendor")  # fmt: skip


@functools.lru_cache(maxsize=2)
def _python_documents(min_chars: int, packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    from pydoc_data.topics import topics

    key = hashlib.blake2b(f"{_docs_key(packages)}|{min_chars}|2".encode(), digest_size=16)
    cached = cache_dir() / "text" / f"python-{key.hexdigest()}.json"
    if cached.is_file():
        return tuple((package, text) for package, text in json.loads(cached.read_text(encoding="utf-8")))
    found = [("topics", text) for _, text in sorted(topics.items())]
    found += _docstrings(Path(sysconfig.get_path("stdlib")), None, min_chars)
    for name, folder in zip(packages, _package_folders(packages), strict=True):
        found += _docstrings(folder, name, min_chars)
    seen: set[str] = set()
    unique = []
    for package, text in found:
        text = "\n".join(line.strip() for line in text.splitlines() if line.strip())
        if text not in seen:
            seen.add(text)
            unique.append((package, text))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        new = cached.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(unique), encoding="utf-8")
        os.replace(new, cached)
    except OSError:  # only slower next time
        pass
    return tuple(unique)


def _docstrings(root: Path, package: str | None, min_chars: int) -> list[tuple[str, str]]:
    """(package, docstring) of every file below `root`, in order; without a name the first folder's is the package."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _NO_DOCS)
        for file in sorted(files):
            if not file.endswith(".py"):
                continue
            path = Path(folder, file)
            try:
                with warnings.catch_warnings():  # of escapes in other people's strings
                    warnings.simplefilter("ignore")
                    tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError):  # deliberately broken files are part of the library
                continue
            name = package or path.relative_to(root).parts[0].removesuffix(".py")
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node)
                    if text and package:  # the rules under numpydoc's headings are no text
                        text = "\n".join(line for line in text.splitlines() if _LETTER.search(line))
                    if text and len(text) >= min_chars:
                        found.append((name, text))
    return found


def held_out(index: int, share: float) -> bool:
    """Whether document `index` belongs to the held-out `share`: a hash of its number, the same on every run."""
    number = int.from_bytes(hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8).digest(), "little")
    return number < share * 2**64
