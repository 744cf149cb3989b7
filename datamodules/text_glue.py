"""GLUE's nine tasks: the columns of their files, and where these lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.text_records import Texts, read_rows
from zoo.errors import ZooError


@dataclass(frozen=True)
class GlueTask:
    """Columns of a GLUE task's TSV (negative ones from the right) and what its labels are.

    Attributes:
        text, pair, label: columns of the training and development file.
        labels: class names; empty for regression.
        header: whether the files begin with a header.
        dev: stem of the development file.
        hub: names of the two text fields in the hub's copy of GLUE.
        unordered: the order of the pair means nothing: ELECTRA's code trains on both.
        folder: GLUE's own name of the folder.
        test: stems of the unlabelled files, columns of their texts, and names of the files that GLUE takes.
    """

    text: int
    pair: int | None
    label: int
    labels: tuple[str, ...]
    hub: tuple[str, ...]
    header: bool = True
    dev: str = "dev"
    unordered: bool = False
    folder: str = ""
    test: tuple[tuple[str, int, int | None, str], ...] = ()


def _one(name: str, text: int, pair: int | None) -> tuple[tuple[str, int, int | None, str], ...]:
    return (("test", text, pair, name),)


_ENTAIL, _BINARY, _SENTENCES = ("entailment", "not_entailment"), ("0", "1"), ("sentence1", "sentence2")
GLUE = {
    "cola": GlueTask(3, None, 1, _BINARY, ("sentence",), header=False, folder="CoLA", test=_one("CoLA", 1, None)),
    "sst": GlueTask(0, None, 1, _BINARY, ("sentence",), folder="SST-2", test=_one("SST-2", 1, None)),
    "mrpc": GlueTask(3, 4, 0, _BINARY, _SENTENCES, unordered=True, folder="MRPC", test=_one("MRPC", 3, 4)),
    "qqp": GlueTask(3, 4, 5, _BINARY, ("question1", "question2"), folder="QQP", test=_one("QQP", 1, 2)),
    "sts": GlueTask(-3, -2, -1, (), _SENTENCES, unordered=True, folder="STS-B", test=_one("STS-B", -2, -1)),
    "mnli": GlueTask(
        8,
        9,
        -1,
        ("contradiction", "entailment", "neutral"),
        ("premise", "hypothesis"),
        dev="dev_matched",
        folder="MNLI",
        test=(("test_matched", 8, 9, "MNLI-m"), ("test_mismatched", 8, 9, "MNLI-mm"), ("diagnostic", 1, 2, "AX")),
    ),
    "qnli": GlueTask(1, 2, 3, _ENTAIL, ("question", "sentence"), folder="QNLI", test=_one("QNLI", 1, 2)),
    "rte": GlueTask(1, 2, 3, _ENTAIL, _SENTENCES, folder="RTE", test=_one("RTE", 1, 2)),
    "wnli": GlueTask(1, 2, 3, _BINARY, _SENTENCES, folder="WNLI", test=_one("WNLI", 1, 2)),
}
"""GLUE's nine tasks, by the folder names of the official code."""


def glue_folder(root: Path, task: str) -> Path:
    """Where a task's files lie under `root`: its name as in the released code or GLUE's own, or `root` itself."""
    names = (task, GLUE[task].folder)
    return next((root / name for name in names if (root / name).is_dir()), root)


def glue_test_sets(root: Path, task: str) -> dict[str, Texts]:
    """The unlabelled texts of a GLUE task, by the name of the file that GLUE takes (`MNLI-m`, `AX`, `SST-2`, ...).

    Raises:
        ZooError: none of the files is there, or a line of one lacks a column: GLUE wants a prediction for each.
    """
    folder = glue_folder(root, task)
    found: dict[str, Texts] = {}
    for stem, text, pair, name in GLUE[task].test:
        path = folder / f"{stem}.tsv"
        if not path.is_file():
            continue
        rows: Texts = []
        for number, row in read_rows(path)[1:]:
            try:
                rows.append(row[text] if pair is None else (row[text], row[pair]))
            except IndexError:
                raise ZooError(f"{path}, line {number}: a column is missing.") from None
        found[name] = rows
    if not found:
        raise ZooError(f"{folder} has none of {', '.join(f'{stem}.tsv' for stem, *_ in GLUE[task].test)}.")
    return found
