"""Labelled sentences and pairs: GLUE's nine tasks, your own TSV, CSV or JSONL, and docstrings by package."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.text import PYTHON_DOCS, OnBad
from datamodules.text_base import TextDataModule
from datamodules.text_glue import GLUE, GlueTask, glue_folder
from datamodules.text_pretraining import labelled_docstrings
from datamodules.text_records import read_records, read_rows
from zoo.errors import ZooError, did_you_mean
from zoo.nn.text import encode_texts, text_packages

_HUB_NAMES = {"sst": "sst2", "sts": "stsb"}
Example = tuple[str, str | None, str]


class LabelledTexts(Dataset):
    """Item i: `input_ids`, `attention_mask`, `token_type_ids` (max_length,) and `label`."""

    def __init__(self, examples: list[Example], labels: Tensor, tokenizer: Any, max_length: int) -> None:
        texts = [(a, b) if b is not None else a for a, b, _ in examples]
        self.batch = encode_texts(tokenizer, texts, max_length)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each text."""
        return self.batch["attention_mask"].sum(1).numpy()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.batch.items()} | {"label": self.labels[index]}


class TextClassificationDataModule(TextDataModule):
    """Labelled texts as dicts `input_ids`, `attention_mask`, `token_type_ids` (B, L) and `label` (B,).

    Args:
        root: the folder with the files of `task`; "python-docs" for docstrings by package; "hub" for GLUE from the hub.
        task: one of GLUE's nine (cola sst mrpc qqp sts mnli qnli rte wnli: `train.tsv` and `dev.tsv`), or "own":
            `train` and `dev` as .tsv, .csv (with a header) or .jsonl, with the columns below.
        text_column, pair_column, label_column: of your own files; no pair without `pair_column`.
        regression: your own labels are numbers.
        mismatched: score MNLI's mismatched development set, and not the matched one.
        tokenizer: path or hub id; None takes the model's own.
        max_length: longer texts are cut.
        double_unordered: train on both orders of a pair where the order means nothing (MRPC, STS-B), as ELECTRA does.
        limit: use at most so many training examples, the first of a fixed shuffle.
        bucket_by_length: training batches of texts of like length: less padding.
        on_bad_text: "error" names a malformed row (QQP has some) and stops; "skip" passes over it and counts.
        batch_size, num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        task: Literal["own", "cola", "sst", "mrpc", "qqp", "sts", "mnli", "qnli", "rte", "wnli"] = "own",
        text_column: str = "text",
        pair_column: str | None = None,
        label_column: str = "label",
        regression: bool = False,
        mismatched: bool = False,
        tokenizer: str | None = None,
        max_length: int = 128,
        double_unordered: bool = True,
        limit: int | None = None,
        bucket_by_length: bool = False,
        on_bad_text: OnBad = "error",
        batch_size: int = 32,
        num_workers: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(logger=False)
        if task != "own" and task not in GLUE:
            raise ZooError(f"There is no task {task!r}.{did_you_mean(task, GLUE)}")
        self.check_limit(limit)
        if mismatched and task != "mnli":
            raise ZooError(f"data.mismatched is MNLI's, the task is {task}.")
        if root not in (PYTHON_DOCS, "hub") and not Path(root).expanduser().is_dir():
            raise ZooError(f"There is no data folder {root!r}: give one with --data.root.")
        self.max_length = max_length
        self.tokenizer: Any = self.named_tokenizer(tokenizer)
        # Not through hparams: a subclass need not have these arguments.
        self.mismatched, self.double_unordered, self.bucket_by_length = mismatched, double_unordered, bucket_by_length
        self.skipped = 0
        self.classes: list[str] = []
        self.train_data: Dataset | None = None
        self.val_data: Dataset | None = None

    @property
    def regression(self) -> bool:
        return self.hparams.task == "sts" or bool(self.hparams.get("regression"))

    @property
    def num_skipped(self) -> int:
        return self.skipped

    @property
    def num_classes(self) -> int:
        self.setup()
        return 1 if self.regression else len(self.classes)

    def read(self) -> tuple[list[Example], list[Example]]:
        """Training and development examples, (text, second text or None, label); sets `classes`.

        Raises:
            ZooError: as the class says, for a row that is malformed or has a label that no training row has.
        """
        task = GLUE.get(self.hparams.task)
        self.skipped = 0
        train = self._examples("train")
        if self.regression:
            self.classes = []
        elif task is not None:
            self.classes = list(task.labels)
        elif not self.classes:
            self.classes = sorted({label for _, _, label in train})
        return train, self._examples("dev")

    def guessing_accuracy(self) -> float:
        """Accuracy (0 to 1) on the development set of always saying its most frequent class."""
        counts = Counter(label for _, _, label in self.read()[1])
        return max(counts.values()) / counts.total()

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is not None:
            return
        self.tokenizer = self.tokenizer or self.models_tokenizer()
        train, dev = self.read()
        task = GLUE.get(self.hparams.task)
        if task is not None and task.unordered and self.double_unordered:
            train = train + [(b or "", a, label) for a, b, label in train]
        if self.hparams.limit is not None:
            order = np.random.default_rng(0).permutation(len(train))[: self.hparams.limit]
            train = [train[i] for i in order]
        self.train_data = LabelledTexts(train, self._labels(train, "train"), self.tokenizer, self.max_length)
        self.val_data = LabelledTexts(dev, self._labels(dev, "dev"), self.tokenizer, self.max_length)

    def _labels(self, examples: list[Example], part: str) -> Tensor:
        if self.regression:
            try:
                values = torch.tensor([float(label) for _, _, label in examples])
            except ValueError as error:
                raise ZooError(f"A label of the {part} data is no number: {error}.") from error
            return values / 5 if self.hparams.task == "sts" else values  # GLUE's scores go from 0 to 5
        index = {name: number for number, name in enumerate(self.classes)}
        for _, _, label in examples:
            if label not in index:
                known = ", ".join(self.classes[:8])
                raise ZooError(f"The {part} data has the label {label!r}, which is none of: {known}.")
        return torch.tensor([index[label] for _, _, label in examples])

    def _examples(self, part: Literal["train", "dev"]) -> list[Example]:
        h = self.hparams
        if h.root == PYTHON_DOCS:
            rows = labelled_docstrings(10, 50)
            self.classes = [str(i) for i in range(max(label for _, label, _ in rows) + 1)]
            return [(text, None, str(label)) for text, label, held in rows if held == (part == "dev")]
        task = GLUE.get(h.task)
        if h.root == "hub":
            if task is None:
                raise ZooError("data.root hub reads GLUE: give data.task one of its names.")
            found = self._hub(task, part)
        elif task is not None:
            found = self._tsv(Path(h.root).expanduser(), task, part)
        else:
            found = self._own(Path(h.root).expanduser(), part)
        if not found:
            raise ZooError(f"There are no {part} examples in {h.root}.")
        return found

    def _bad(self, message: str) -> None:
        if self.hparams.on_bad_text == "error":
            raise ZooError(f"{message}. Repair it, or pass over such rows with --data.on_bad_text skip.")
        self.skipped += 1

    def _tsv(self, root: Path, task: GlueTask, part: str) -> list[Example]:
        dev = "dev_mismatched" if self.mismatched else task.dev
        path = glue_folder(root, self.hparams.task) / f"{dev if part == 'dev' else 'train'}.tsv"
        examples: list[Example] = []
        for number, row in read_rows(path):
            if number == 1 and task.header:
                continue
            try:
                label, text = row[task.label], row[task.text]
                pair = row[task.pair] if task.pair is not None else None
                if not text.strip() or (pair is not None and not pair.strip()):
                    raise IndexError
                if task.labels and label not in task.labels:
                    self._bad(f"{path}, line {number}: the label {label[:30]!r} is none of {', '.join(task.labels)}")
                    continue
            except IndexError:
                self._bad(f"{path}, line {number}: a column is missing or empty")
                continue
            examples.append((text, pair, label))
        return examples

    def _own(self, root: Path, part: str) -> list[Example]:
        h = self.hparams
        names = ("dev", "val", "validation", "test") if part == "dev" else ("train",)
        paths = [root / f"{name}{suffix}" for name in names for suffix in (".tsv", ".csv", ".jsonl")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ZooError(f"{root} has no {names[0]}.tsv, .csv or .jsonl.")
        examples: list[Example] = []
        for where, row in read_records(path):
            missing = [c for c in (h.text_column, h.label_column, h.pair_column) if c is not None and c not in row]
            if missing:
                raise ZooError(f"{where} has no column {missing[0]!r} (it has {', '.join(map(str, row))}).")
            text, pair = row[h.text_column], row[h.pair_column] if h.pair_column else None
            if not isinstance(text, str) or not text.strip() or row[h.label_column] in (None, ""):
                self._bad(f"{where}: text or label is empty")
                continue
            label = str(row[h.label_column])
            if self.classes and label not in self.classes:  # known from the training data
                self._bad(f"{where}: the label {label[:30]!r} is none of {', '.join(self.classes[:8])}")
                continue
            examples.append((text, pair, label))
        return examples

    def _hub(self, task: GlueTask, part: str) -> list[Example]:
        with text_packages():
            import datasets
        name = _HUB_NAMES.get(self.hparams.task, self.hparams.task)
        dev = "validation_" + ("mis" if self.mismatched else "") + "matched" if name == "mnli" else "validation"
        split = "train" if part == "train" else dev
        try:
            table = datasets.load_dataset("nyu-mll/glue", name, split=split)
        except Exception as error:
            raise ZooError(
                f"Cannot get GLUE's {name} from the hub ({type(error).__name__}): give data.root a folder with its TSV."
            ) from error
        # The hub numbers the classes in an order of its own: go by their names.
        feature = table.features["label"]
        examples = []
        for row in table:
            label = row["label"]
            if task.labels:
                text_label = feature.int2str(label)
                label = text_label if text_label in task.labels else str(label)
            fields = [row[name] for name in task.hub]
            examples.append((fields[0], fields[1] if len(fields) > 1 else None, str(label)))
        return examples

    def train_dataloader(self) -> DataLoader:
        data: Any = self.train_data
        return self.loader(data, train=True, lengths=data.lengths if self.bucket_by_length else None)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()
