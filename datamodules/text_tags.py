"""Tagged words: CoNLL files, their words cut into pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.audit import Audit, bytes_key
from datamodules.folds import check_fold, held_out_by_fold
from datamodules.text import OnBad
from datamodules.text_base import TextDataModule
from zoo.errors import ZooError
from zoo.nn.entities import to_bioes
from zoo.nn.text import SpecialIds, read_utf8

Sentence = tuple[list[str], list[str]]  # words, tags
_SUFFIXES = (".txt", ".conll", ".bio", ".iob")
_PARTS = {"train": ("train",), "dev": ("dev", "valid", "testa", "test")}


def read_conll(path: Path, word_column: int = 0, tag_column: int | None = -1, bad: Callable[[str], None] | None = None
               ) -> list[Sentence]:  # fmt: skip
    """Sentences of a CoNLL file: a word a line with columns set apart by white space, blank lines between sentences.

    Lines that begin with -DOCSTART- stand for document borders and are left out, so are comments of CoNLL-U ("# ").

    Args:
        tag_column: None for files without tags: every tag is "O".
        bad: is told of a line that lacks a column, and may raise; without it such a line is an error.

    Raises:
        ZooError: the file cannot be read, or a line lacks a column.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*read_utf8(path).split("\n"), ""], 1):
        columns = line.split()
        if not columns:
            if words:
                sentences.append((words, tags))
                words, tags = [], []
            continue
        if columns[0] == "-DOCSTART-" or (columns[0] == "#" and not words and len(columns) > 1 and tag_column != 0):
            continue
        try:
            word, tag = columns[word_column], "O" if tag_column is None else columns[tag_column]
            if tag_column is not None and len(columns) == 1:
                raise IndexError
        except IndexError:
            message = f"{path}, line {number}: there are {len(columns)} columns, word and tag need more"
            if bad is None:
                raise ZooError(f"{message}.") from None
            bad(message)
            continue
        words.append(word)
        tags.append(tag)
    return sentences


class TaggedWords(Dataset):
    """Sentences as pieces: [CLS] pieces [SEP]; a sentence that is too long goes on in the next item.

    Item i: `input_ids`, `attention_mask`, `token_type_ids`, `tags` (max_length,), the latter -100 where no word begins,
    and `index`, its number.

    Args:
        segment: the `token_type_ids` of all tokens: ELECTRA's code has 1 for tagging.
    """

    def __init__(
        self, sentences: list[Sentence], names: list[str], tokenizer: Any, max_length: int, segment: int = 0
    ) -> None:
        self.sentences, self.max_length, self.segment = sentences, max_length, segment
        self.special = SpecialIds.of(tokenizer)
        numbers = {name: number for number, name in enumerate(names)}
        codes = tokenizer.encode_batch(
            [words for words, _ in sentences], is_pretokenized=True, add_special_tokens=False
        )
        self.rows: list[tuple[int, list[int], list[int]]] = []  # sentence, pieces, tags
        room = max_length - 2
        for at, ((words, tags), code) in enumerate(zip(sentences, codes, strict=True)):
            pieces: list[list[int]] = [[] for _ in words]
            for piece, word in zip(code.ids, code.word_ids, strict=True):
                pieces[word].append(piece)
            ids: list[int] = []
            labels: list[int] = []
            for word, tag in zip(pieces, tags, strict=True):
                word = (word or [self.special.unk])[:room]  # nothing is left of a control character
                if len(ids) + len(word) > room:
                    self.rows.append((at, ids, labels))
                    ids, labels = [], []
                ids, labels = ids + word, [*labels, numbers[tag], *[-100] * (len(word) - 1)]
            self.rows.append((at, ids, labels))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each item."""
        return np.array([len(ids) + 2 for _, ids, _ in self.rows])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        _, pieces, labels = self.rows[index]
        size = len(pieces) + 2
        ids = torch.full((self.max_length,), self.special.pad)
        ids[0], ids[size - 1] = self.special.cls, self.special.sep
        ids[1 : size - 1] = torch.tensor(pieces)
        tags = torch.full((self.max_length,), -100)
        tags[1 : size - 1] = torch.tensor(labels)
        mask = (torch.arange(self.max_length) < size).long()
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * self.segment, "tags": tags,
                "index": torch.tensor(index)}  # fmt: skip

    def joined(self, rows: Iterable[tuple[int, np.ndarray]], names: list[str]) -> list[list[str]]:
        """Predicted tag numbers of items to tag names of whole sentences."""
        found: list[list[str]] = [[] for _ in self.sentences]
        for index, numbers in sorted(rows, key=lambda row: row[0]):
            found[self.rows[index][0]] += [names[number] for number in numbers]
        return found


class TaggingDataModule(TextDataModule):
    """Tagged words as `input_ids`, `attention_mask`, `token_type_ids`, `tags` (B, L) and `index` (B,).

    Args:
        root: a folder with `train.txt` and `dev.txt` (also .conll, .bio, .iob; valid, testa or test for dev).
        word_column, tag_column: columns of the files; negative ones count from the right.
        scheme: "bioes" rewrites entity tags of any kind (IOB1, IOB2, BIOES) as BIOES, which ELECTRA's code learns;
            "as_is" takes them as they stand (parts of speech).
        tags: the tags that there may be; None takes those of the files, as ELECTRA's code does.
        tokenizer: path or hub id; None takes the model's own.
        max_length: tokens of an item; longer sentences go on in the next one.
        segment: the segment id of all tokens.
        limit: use at most so many training sentences, the first of a fixed shuffle.
        folds, fold: hold out part `fold` of `folds` of the training side instead (`zoo kfold`);
            None for the usual split.
        bucket_by_length: batches of sentences of like length.
        on_bad_text: "error" names a line without tag and stops; "skip" passes over it and counts.
        batch_size, num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        word_column: int = 0,
        tag_column: int = -1,
        scheme: Literal["bioes", "as_is"] = "bioes",
        tags: list[str] | None = None,
        tokenizer: str | None = None,
        max_length: int = 256,
        segment: int = 0,
        limit: int | None = None,
        folds: int | None = None,
        fold: int = 0,
        bucket_by_length: bool = False,
        on_bad_text: OnBad = "error",
        batch_size: int = 32,
        num_workers: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(logger=False)
        if not Path(root).expanduser().is_dir():
            raise ZooError(f"There is no data folder {root!r}: give one with --data.root.")
        self.check_limit(limit)
        check_fold(folds, fold)
        if scheme not in ("bioes", "as_is"):
            raise ZooError(f"data.scheme is bioes or as_is, not {scheme!r}.")
        if max_length < 8 or segment not in (0, 1):
            raise ZooError("data.max_length is at least 8, data.segment 0 or 1.")
        self.max_length = max_length
        self.tokenizer: Any = self.named_tokenizer(tokenizer)
        self.skipped = 0
        self.tags: list[str] = list(tags or [])
        self.train_data: TaggedWords | None = None
        self.val_data: TaggedWords | None = None

    @property
    def num_skipped(self) -> int:
        return self.skipped

    def _bad(self, message: str) -> None:
        if self.hparams.on_bad_text == "error":
            raise ZooError(f"{message}. Repair it, or pass over such lines with --data.on_bad_text skip.")
        self.skipped += 1

    def _read(self, part: str) -> list[Sentence]:
        h = self.hparams
        root = Path(h.root).expanduser()
        paths = [root / f"{name}{suffix}" for name in _PARTS[part] for suffix in _SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ZooError(f"{root} has no {_PARTS[part][0]}{', '.join(_SUFFIXES)}.")
        found = read_conll(path, h.word_column, h.tag_column, self._bad)
        if not found:
            raise ZooError(f"There are no sentences in {path}.")
        if h.scheme == "bioes":
            try:
                found = [(words, to_bioes(tags)) for words, tags in found]
            except ValueError as error:
                raise ZooError(f"{path}: {error}: set data.scheme as_is for tags that mark no entities.") from error
        return found

    def setup(self, stage: str | None = None) -> None:
        if self.val_data is not None:
            return
        self.tokenizer = self.tokenizer or self.models_tokenizer()
        train = self._read("train")
        if self.hparams.folds is None:
            dev = self._read("dev")
        else:
            out = held_out_by_fold([0] * len(train), self.hparams.folds, self.hparams.fold)
            dev = [sentence for sentence, held in zip(train, out, strict=True) if held]
            train = [sentence for sentence, held in zip(train, out, strict=True) if not held]
        seen = {tag for _, tags in [*train, *dev] for tag in tags}
        if not self.tags:
            self.tags = sorted(seen)
        elif unknown := sorted(seen - set(self.tags)):
            raise ZooError(
                f"{self.hparams.root} has the tag {unknown[0]!r}, which is none of: {', '.join(self.tags[:12])}."
            )
        if self.hparams.limit is not None:
            order = np.random.default_rng(0).permutation(len(train))[: self.hparams.limit]
            train = [train[i] for i in order]
        shape = (self.tags, self.tokenizer, self.max_length, self.hparams.segment)
        self.train_data, self.val_data = TaggedWords(train, *shape), TaggedWords(dev, *shape)

    def audit(self, read: bool = True) -> Audit:
        self.setup()
        assert self.train_data is not None
        assert self.val_data is not None
        found, data = Audit(), {"training": self.train_data, "validation": self.val_data}
        found.sides({side: len(part.sentences) for side, part in data.items()}, "sentences")
        numbers = {name: number for number, name in enumerate(self.tags)}
        labels = {side: [numbers[t] for _, tags in part.sentences for t in tags] for side, part in data.items()}
        found.sides({side: len(part) for side, part in labels.items()}, "words")
        found.class_counts(labels, self.tags)
        for side, part in data.items():
            found.spread(f"tokens of an item, {side}", part.lengths.tolist())
        if self.skipped:
            found.warnings.append(f"{self.skipped} lines were passed over (data.on_bad_text: skip).")
        keys = {
            side: {f"sentence {n} {' '.join(words)[:40]!r}": bytes_key(" ".join(words))
                   for n, (words, _) in enumerate(part.sentences, 1) if len(words) > 3}
            for side, part in data.items()
        }  # fmt: skip
        found.leaks(keys, "sentences")
        return found

    def joined(self, rows: Iterable[tuple[int, np.ndarray]]) -> tuple[list[list[str]], list[list[str]]]:
        """Tags of held-out sentences: the true ones, and those predicted by item (number, numbers of the tags).

        Sentences that a dry run has not seen whole are left out.
        """
        assert self.val_data is not None
        found = self.val_data.joined(rows, self.tags)
        pairs = [(tags, given) for (_, tags), given in zip(self.val_data.sentences, found, strict=True)]
        whole = [(tags, given) for tags, given in pairs if len(tags) == len(given)]
        return [tags for tags, _ in whole], [given for _, given in whole]

    def train_dataloader(self) -> DataLoader:
        assert self.train_data is not None
        lengths = self.train_data.lengths if self.hparams.bucket_by_length else None
        return self.loader(self.train_data, train=True, lengths=lengths)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()
