"""Questions and contexts for extractive question answering: SQuAD's files, your own in that layout, or the hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from datamodules.audit import Audit, bytes_key
from datamodules.folds import check_fold, held_out_by_fold
from datamodules.text import OnBad
from datamodules.text_base import TextDataModule
from datamodules.text_squad import Question, Squad, SquadWindows, read_squad
from zoo.errors import ZooError
from zoo.nn.text import text_packages

_NAMES = {
    "train": ("train.json", "train-v2.0.json", "train-v1.1.json"),
    "dev": ("dev.json", "dev-v2.0.json", "dev-v1.1.json"),
}


class SquadDataModule(TextDataModule):
    """SQuAD 1.1 or 2.0 as windows `input_ids`, `attention_mask`, `token_type_ids` (B, L), `window` (B,), and for
    training `start`, `end`, `impossible` (B,).

    Args:
        root: a folder with `train.json` and `dev.json` (or train-v1.1.json, train-v2.0.json, ...), or "hub".
        version: "auto" sees by `is_impossible` whether questions may have no answer; "1.1" takes the answerable ones
            alone; "2.0".
        tokenizer: path or hub id; None takes the model's own.
        max_length: tokens of question and window together; doc_stride: tokens from one window to the next; max_query:
            longer questions are cut.
        limit: use at most so many training questions, the first of a fixed shuffle.
        bucket_by_length: batches of windows of like length: less padding.
        on_bad_text: "error" names a question whose answer is not where the file says (SQuAD has some) and stops; "skip"
            passes over it and counts.
        folds, fold: hold out part `fold` of `folds` of the training questions instead (`zoo kfold`); all questions of a
            text stay together. None for the usual split.
        batch_size, num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        version: Literal["auto", "1.1", "2.0"] = "auto",
        tokenizer: str | None = None,
        max_length: int = 384,
        doc_stride: int = 128,
        max_query: int = 64,
        limit: int | None = None,
        bucket_by_length: bool = False,
        on_bad_text: OnBad = "error",
        folds: int | None = None,
        fold: int = 0,
        batch_size: int = 32,
        num_workers: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(logger=False)
        if version not in ("auto", "1.1", "2.0"):
            raise ZooError(f"data.version is auto, 1.1 or 2.0, not {version!r}.")
        if doc_stride < 1 or max_query < 1 or max_length < 8:
            raise ZooError("doc_stride and max_query are at least 1, max_length at least 8.")
        check_fold(folds, fold)
        self.check_limit(limit)
        if root != "hub" and not Path(root).expanduser().is_dir():
            raise ZooError(f"There is no data folder {root!r}: give one with --data.root.")
        self.max_length = max_length
        self.tokenizer: Any = self.named_tokenizer(tokenizer)
        self.skipped = 0
        self.no_answer = False
        self.train_data: SquadWindows | None = None
        self.val_data: SquadWindows | None = None

    @property
    def num_skipped(self) -> int:
        return self.skipped

    def _bad(self, message: str) -> None:
        if self.hparams.on_bad_text == "error":
            raise ZooError(f"{message}. Repair it, or pass over such questions with --data.on_bad_text skip.")
        self.skipped += 1

    def _read(self, part: Literal["train", "dev"]) -> Squad:
        h = self.hparams
        if h.root == "hub":
            squad = self._hub(part)
        else:
            folder = Path(h.root).expanduser()
            plain, *versions = _NAMES[part]
            names = [plain, *(name for name in versions if h.version == "auto" or h.version in name)]
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is None:
                raise ZooError(f"{folder} has none of {', '.join(names)}.")
            squad = read_squad(path, self._bad)
        if h.version != "auto":
            squad.no_answer = h.version == "2.0"
        if not squad.no_answer:
            squad.questions = [question for question in squad.questions if not question.impossible]
        if not squad.questions:
            raise ZooError(f"There are no {part} questions in {h.root}.")
        return squad

    def _hub(self, part: str) -> Squad:
        name = "rajpurkar/squad" if self.hparams.version == "1.1" else "rajpurkar/squad_v2"
        with text_packages():
            import datasets
        try:
            table = datasets.load_dataset(name, split="train" if part == "train" else "validation")
        except Exception as error:
            raise ZooError(
                f"Cannot get {name} from the hub ({type(error).__name__}): give data.root a folder with its JSON."
            ) from error
        contexts: dict[str, int] = {}
        squad = Squad([], [], name.endswith("v2"))
        for row in table:
            number = contexts.setdefault(row["context"], len(contexts))
            texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
            start = starts[0] if starts else None
            squad.questions.append(Question(row["id"], row["question"], number, list(texts), start, not texts))
        squad.contexts = list(contexts)
        return squad

    def setup(self, stage: str | None = None) -> None:
        if self.val_data is not None:
            return
        self.tokenizer = self.tokenizer or self.models_tokenizer()
        train = self._read("train")
        dev = self._read("dev") if self.hparams.folds is None else self._hold_out(train)
        self.no_answer = train.no_answer
        if self.hparams.limit is not None:
            order = np.random.default_rng(0).permutation(len(train.questions))[: self.hparams.limit]
            train.questions = [train.questions[i] for i in order]
        h = self.hparams
        shape = (self.tokenizer, h.max_length, h.doc_stride, h.max_query)
        self.train_data = SquadWindows(train, *shape, train=True, bad=self._bad)
        if not len(self.train_data):
            raise ZooError(f"None of the {len(train.questions)} training questions of {h.root} can be used.")
        self.val_data = SquadWindows(dev, *shape)

    def _hold_out(self, train: Squad) -> Squad:
        """The questions of this fold, taken out of `train`."""
        questions = train.questions
        texts = [question.context for question in questions]
        out = held_out_by_fold([0] * len(questions), self.hparams.folds, self.hparams.fold, groups=texts)
        train.questions = [question for question, held in zip(questions, out, strict=True) if not held]
        held_out = [question for question, held in zip(questions, out, strict=True) if held]
        return Squad(train.contexts, held_out, train.no_answer)

    def audit(self, read: bool = True) -> Audit:
        self.setup()
        assert self.train_data is not None
        assert self.val_data is not None
        found, data = Audit(), {"training": self.train_data, "validation": self.val_data}
        found.sides({side: len(part.questions) for side, part in data.items()}, "questions")
        found.sides({side: len(part) for side, part in data.items()}, "windows of text")
        for side, part in data.items():
            none = sum(not question.answers for question in part.questions)
            if none and not self.no_answer:
                found.problems.append(
                    f"{none} {side} questions have no answer, but the file does not say is_impossible."
                )
            elif none:
                found.facts[f"without answer, {side}"] = f"{none:,} of {len(part.questions):,}"
        if self.num_skipped:
            found.warnings.append(f"{self.num_skipped} questions were passed over (data.on_bad_text: skip).")
        keys = {side: {f"{q.id} {q.text[:40]!r}": bytes_key(q.text) for q in p.questions} for side, p in data.items()}
        found.leaks(keys, "questions")
        return found

    def windows(self, stage: str) -> SquadWindows:
        """The windows that an evaluation goes over."""
        assert self.val_data is not None
        return self.val_data

    def train_dataloader(self) -> DataLoader:
        assert self.train_data is not None
        lengths = self.train_data.lengths if self.hparams.bucket_by_length else None
        return self.loader(self.train_data, train=True, lengths=lengths)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()
