"""What is in a user's data and what is wrong with it, in plain words: behind `zoo check` and the report.

A data module has `audit(read=True) -> Audit`. Problems must be mended before training; warnings are for judgement.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from zoo.errors import ZooError

MOST_READ = 20_000
"""Samples of a side that are opened; of more, an even spread of so many."""
FEW = 10
"""Training samples of a class below which a warning says that they are few."""
UNEQUAL = 10.0
"""Largest class over smallest from which a warning says that they are unequal."""
_SHOWN = 3
T = TypeVar("T")


@dataclass
class Audit:
    """What was found.

    Attributes:
        facts: {what: in words}.
        tables: (title, header, rows).
        problems: what must be mended. warnings: what should be looked at.
    """

    facts: dict[str, str] = field(default_factory=dict)
    tables: list[tuple[str, list[str], list[list[Any]]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def sides(self, counts: Mapping[str, int], what: str = "samples") -> None:
        """How many samples are on each side."""
        self.facts[what] = ", ".join(f"{count:,} {side}" for side, count in counts.items())
        for side, count in counts.items():
            if not count:
                self.problems.append(f"There are no {what} for {side}.")

    def class_counts(self, labels: Mapping[str, Sequence[int]], classes: Sequence[str]) -> None:
        """A table of classes by side, and what is uneven about it. The first side is the one that trains."""
        counts = {side: np.bincount(np.asarray(y, int), minlength=len(classes)) for side, y in labels.items()}
        rows: list[list[Any]] = [
            [name, *(int(found[i]) for found in counts.values())] for i, name in enumerate(classes)
        ]
        if len(rows) > 60:
            rows = sorted(rows, key=lambda row: -row[1])
            rows = [*rows[:30], ["…", *([""] * len(counts))], *rows[-29:]]
        self.tables.append((f"{len(classes)} classes", ["class", *counts], rows))
        train, *others = counts.values()
        nowhere = [name for i, name in enumerate(classes) if not any(found[i] for found in counts.values())]
        if nowhere:
            self.warnings.append(f"No sample at all of the class {_some(nowhere)}.")
        untaught = [name for i, name in enumerate(classes) if not train[i] and any(other[i] for other in others)]
        if untaught:
            self.problems.append(f"No training sample of the class {_some(untaught)}, but held-out ones.")
        absent = [name for i, name in enumerate(classes) if train[i] and not all(other[i] for other in others)]
        if absent:
            self.warnings.append(
                f"No held-out sample of the class {_some(absent)}: how well it is found stays unknown."
            )
        rare = [name for i, name in enumerate(classes) if 0 < train[i] < FEW]
        if rare:
            self.warnings.append(f"Fewer than {FEW} training samples of the class {_some(rare)}.")
        there = train[train > 0]
        if len(there) > 1 and there.max() / there.min() >= UNEQUAL:
            self.warnings.append(
                f"The largest class has {there.max() / there.min():.0f} times the samples of the smallest: look at the "
                "balanced accuracy, and think of model.class_weights: balanced where the task has it."
            )

    def unreadable(self, errors: Sequence[str], what: str, passed_over: bool = False) -> None:
        """Files that could not be read, with what was wrong with the first ones."""
        if not errors:
            return
        text = f"{_capital(what)} that cannot be read: {len(errors)}. {' '.join(errors[:_SHOWN])}"
        if len(errors) > _SHOWN:
            text += f" And {len(errors) - _SHOWN} more."
        (self.warnings if passed_over else self.problems).append(text)

    def leaks(self, contents: Mapping[str, Mapping[str, Hashable]], what: str) -> None:
        """The same content on two sides, or twice on one. `contents` is {side: {name: key of the content}}."""
        places: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
        for side, found in contents.items():
            for name, key in found.items():
                places[key].append((side, name))
        across = [found for found in places.values() if len({side for side, _ in found}) > 1]
        if across:
            pairs = [" = ".join(f"{name} ({side})" for side, name in found[:2]) for found in across[:_SHOWN]]
            more = f"; and {len(across) - _SHOWN} more" if len(across) > _SHOWN else ""
            self.problems.append(
                f"{_capital(what)} on both sides of the split, so that results would be too good: {len(across)}. "
                f"{'; '.join(pairs)}{more}."
            )
        alone = [found for found in places.values() if len(found) > 1 and len({side for side, _ in found}) == 1]
        if alone:
            double, (first, second) = sum(len(found) - 1 for found in alone), (name for _, name in alone[0][:2])
            self.warnings.append(
                f"{_capital(what)} that are there twice on one side: {double}, such as {first} = {second}."
            )

    def spread(self, name: str, values: Sequence[float], unit: str = "") -> None:
        """Least, median and largest of some numbers."""
        if len(values):
            low, middle, high = np.min(values), np.median(values), np.max(values)
            unit = f" {unit}" if unit else ""
            self.facts[name] = f"{low:g}{unit}" if low == high else f"{low:g} to {high:g}{unit}, median {middle:g}"


def both_sides(module: Any, what: str = "samples") -> tuple[Audit, dict[str, Any], dict[str, int]]:
    """How an audit of `train_data` and `val_data` begins: the audit, each side's data, how many samples it has."""
    module.setup()
    data = {"training": module.train_data, "validation": module.val_data}
    counts = {side: len(part) for side, part in data.items()}
    found = Audit()
    found.sides(counts, what)
    return found, data, counts


def opened(audit: Audit, count: int, side: str) -> Iterator[int]:
    """The numbers of the samples to open, with a progress bar; says so where they are not all."""
    from rich.console import Console
    from rich.progress import track

    chosen = np.arange(count)
    if count > MOST_READ:
        chosen = np.linspace(0, count - 1, MOST_READ).astype(int)
        audit.facts[f"opened, {side}"] = f"{MOST_READ:,} of {count:,}, evenly spread"
    console = Console(stderr=True)
    yield from track(
        chosen.tolist(), f"reading {side}", console=console, transient=True, disable=not console.is_terminal
    )


def read_all(
    audit: Audit, sides: Mapping[str, int], read: Callable[[str, int], T], what: str, passed_over: bool = False
) -> dict[str, dict[int, T]]:
    """`read(side, number)` of every sample; those that raise `ZooError` become one line. {side: {number: result}}."""
    errors: list[str] = []
    found: dict[str, dict[int, T]] = {side: {} for side in sides}
    for side, count in sides.items():
        for index in opened(audit, count, side):
            try:
                found[side][index] = read(side, index)
            except ZooError as error:
                errors.append(str(error))
    audit.unreadable(errors, what, passed_over)
    return found


def file_key(path: str | Path) -> str:
    """sha256 of a file. Raises `ZooError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ZooError(f"Cannot read {path}: {error.strerror or error}.") from error


def bytes_key(*parts: Any) -> str:
    """Digest of arrays (their bytes and shapes) and texts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            array = np.ascontiguousarray(part)
            digest.update(str(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def most_common(values: Iterable[Any], top: int = 4) -> str:
    """The most frequent values with their numbers, in words."""
    counts = Counter(values)
    shown = [f"{value} ({count:,})" for value, count in counts.most_common(top)]
    return ", ".join(shown) + (f" and {len(counts) - top} others" if len(counts) > top else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
