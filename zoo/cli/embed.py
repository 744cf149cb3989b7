"""Features of files: reading, batching, writing. Used by `zoo embed`."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.module import ZooModule


def expand(paths: Iterable[Path], pattern: str = "*") -> list[Path]:
    """The files that `paths` name; a folder stands for the files in it that match `pattern`, at any depth.

    Hidden files and folders are left out. Raises `ZooError` for a path that does not exist, or if nothing is found.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob(pattern) if file.is_file())
            files += [f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        elif path.is_file():
            files.append(path)
        else:
            raise ZooError(f"There is no file or folder {path}.")
    if not files:
        raise ZooError(f"No files that match {pattern!r} in {', '.join(str(path) for path in paths)}.")
    return files


def lines_of(files: Iterable[Path]) -> list[Line]:
    """The lines of text files that are not blank."""
    from zoo.nn.text import read_utf8

    lines = []
    for file in files:
        for number, text in enumerate(read_utf8(file).split("\n"), 1):
            if text.strip():
                lines.append(Line(file, number, text.strip()))
    if not lines:
        raise ZooError("There is no line with text in these files.")
    return lines


@dataclass(frozen=True)
class Line:
    """A line of a text file; as a string, where it stands."""

    file: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


def embed_files(
    model: ZooModule,
    files: Sequence[Path | Line],
    *,
    batch_size: int = 32,
    device: str = "auto",
    skip_bad: bool = False,
) -> tuple[list[Path | Line], np.ndarray, list[str]]:
    """`model(model.preprocess(file))` of every file, or of the text of every line; says on stderr how many were cut.

    Returns the files, their features (files, D) as float32 (further axes flattened), and why files were skipped.
    Raises `ZooError` that names an unreadable file, unless `skip_bad`.
    """
    target = pick_device(device)
    model = model.to(target)
    most = model.hparams.get("max_positions") or math.inf
    done: list[Path | Line] = []
    skipped: list[str] = []
    features: list[np.ndarray] = []
    full = 0  # texts that fill the model's length

    def read(file: Path | Line) -> Any:
        try:
            return model.preprocess(file.text if isinstance(file, Line) else file)
        except NotImplementedError as error:
            raise ZooError(f"{type(model).__name__} cannot read files: {error}.") from error
        except Exception as error:  # whatever the reader of this kind of file raises
            reason = " ".join(str(error).split()) or type(error).__name__
            return reason if str(file) in reason else f"Cannot read {file}: {reason}"

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with warnings.catch_warnings(), pool, _progress(len(files)) as advance:
        warnings.filterwarnings("ignore", ".*were cut")  # one a text; counted instead
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            good: list[Any] = []
            for file, item in zip(batch, pool.map(read, batch), strict=True):
                if isinstance(item, str):
                    if not skip_bad:
                        raise ZooError(f"{item.rstrip('.')}. --skip-bad leaves such files out.")
                    skipped.append(item)
                else:
                    good.append(item)
                    done.append(file)
            full += sum(_length(item) >= most for item in good)
            if good:
                with torch.inference_mode():
                    out = _features(model, good, target)
                features.append(out.flatten(1).float().cpu().numpy())
            advance(len(batch))
    if not features:
        raise ZooError(f"None of the {len(files)} files could be read; the first: {skipped[0]}.")
    if full:
        print(f"{full} of {len(done)} texts fill the model's {most} tokens; what goes beyond is cut.", file=sys.stderr)
    return done, np.concatenate(features), skipped


def _length(item: Any) -> int:
    """Tokens of a text; 0 of anything else."""
    return item["input_ids"].shape[1] if isinstance(item, Mapping) and "input_ids" in item else 0


def _features(model: ZooModule, items: list[Any], device: torch.device) -> Tensor:
    """(files, D). Mappings other than text may differ in their keys (sequences of a subject): those go one by one."""
    apart = isinstance(items[0], Mapping) and "input_ids" not in items[0]
    batches = [dict(item) for item in items] if apart else [_join(items)]
    return torch.cat([model(move_data_to_device(batch, device)) for batch in batches])


def _join(items: list[Any]) -> Any:
    """One batch of several: tensors along the first dimension, dicts of them key by key.

    Sequences of different lengths (B, L) are filled with zeros, which `attention_mask` marks as padding.
    """
    if not isinstance(items[0], dict):
        return torch.cat(items)
    length = max(item["input_ids"].shape[1] for item in items) if "input_ids" in items[0] else 0

    def fill(value: Tensor) -> Tensor:
        return torch.nn.functional.pad(value, (0, length - value.shape[1])) if length and value.ndim == 2 else value

    return {key: torch.cat([fill(item[key]) for item in items]) for key in items[0]}


def write_features(path: Path, files: Sequence[Path | Line], features: np.ndarray) -> None:
    """Writes `.npz` (arrays `files`, `features`) or `.parquet` (columns `file`, `feature`), whole or not at all."""
    names = [str(file) for file in files]
    new = path.with_name(f".{path.name}.new")
    make_folder(path)
    try:
        if path.suffix == ".npz":
            with new.open("wb") as file:
                np.savez(file, files=np.array(names), features=features)
        else:
            _write_parquet(new, names, features)
        os.replace(new, path)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        new.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes the folder that a file is to be written to, so that it is known before the work whether that can be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error


def pick_device(device: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one. Raises `ZooError` if it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ZooError(f"There is no device {device!r} here: {str(error).splitlines()[0].rstrip('.')}.") from error
    return chosen


def _write_parquet(path: Path, names: list[str], features: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    pq.write_table(pa.table({"file": pa.array(names), "feature": rows}), path)


def _progress(total: int) -> Any:
    """A bar on stderr for people who watch; yields a function that advances it."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        console = Console(stderr=True)
        columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=total)
            yield lambda count: progress.advance(task, count)

    return bar()
