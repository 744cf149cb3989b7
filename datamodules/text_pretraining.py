"""Unlabelled text for pre-training: packed blocks, or the sentence pairs of ELECTRA's and BERT's example builders."""

from __future__ import annotations

import random
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.text import MADE_UP, PYTHON_DOCS, Documents, OnBad, is_python_docs, python_documents
from datamodules.text_base import TextDataModule, corpus_tokenizer, mixture
from datamodules.text_corpus import TokenCorpus, tokenize_corpus
from datamodules.text_made_up import labelled_topics
from datamodules.text_packing import PackedBlocks, PaddedPairs, bert_pairs, electra_examples
from datamodules.text_probing import held_out_bigram_shift
from datamodules.text_tokenizer import Kind
from zoo.errors import ZooError
from zoo.nn.text import SpecialIds, encode_texts

Examples = Literal["packed", "electra", "bert"]
ProbeTask = Literal["package", "topic", "bigram_shift"]


class TextPretrainDataModule(TextDataModule):
    """Any text as batches of token ids; what is masked is drawn by the model, on the device, anew at every visit.

    Args:
        root: a source (`datamodules.text.Documents` has the details: text, JSONL, Parquet, a folder, a hub id,
            "python-docs", "python-docs:numpy,scipy", "made-up"), or a mapping from sources to weights: a mixture, each
            taken so many times an epoch.
        tokenizer: path or hub id; None trains one on the corpus.
        vocab_size, tokenizer_kind, lowercase: of a tokenizer that is trained.
        max_length: tokens of an example, special ones included.
        examples: "packed" (consecutive text, no padding), "electra" (the official builder's pairs), or "bert" (sentence
            pairs for next-sentence prediction, with `next_sentence_label`: 0 the next, 1 a random one).
        builder_passes: "bert": how often each document is cut (the official dupe_factor).
        short_prob: "bert": share of documents that are cut to a random shorter length.
        column, on_bad_text: see `Documents`.
        val_fraction: share of the documents that is held out.
        probe_classes, probe_min: labelled docstrings for probes, with "python-docs" only: this many packages, the
            largest ones, each with this many docstrings or more.
        seed: of the builders' draws.
        batch_size, num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str | dict[str, float] = PYTHON_DOCS,
        tokenizer: str | None = None,
        vocab_size: int = 30522,
        tokenizer_kind: Kind = "wordpiece",
        lowercase: bool = True,
        max_length: int = 128,
        examples: Examples = "packed",
        builder_passes: int = 1,
        short_prob: float = 0.1,
        column: str = "text",
        on_bad_text: OnBad = "error",
        val_fraction: float = 0.05,
        probe_classes: int = 10,
        probe_min: int = 50,
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 4,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(logger=False)
        if not 0 < val_fraction < 1:
            raise ZooError(f"val_fraction is a share between 0 and 1, not {val_fraction}.")
        if max_length < 8:
            raise ZooError(f"max_length is at least 8, not {max_length}.")
        if examples not in ("packed", "electra", "bert"):
            raise ZooError(f"examples is 'packed', 'electra' or 'bert', not {examples!r}.")
        self.max_length = max_length
        self.tokenizer_args = dict(tokenizer=tokenizer, vocab_size=vocab_size, kind=tokenizer_kind, lowercase=lowercase)
        sources = root if isinstance(root, dict) else {root: 1.0}
        if not sources:
            raise ZooError("There is no text: data.root is empty.")
        self.weights = list(sources.values())
        self.documents = [Documents(name, column, on_bad_text) for name in sources]
        self.train_data: Dataset | None = None
        self.val_data: Dataset | None = None
        self.token_counts: np.ndarray | None = None

    def prepare_data(self) -> None:
        self._corpora("train")  # one process tokenises, the others find it

    def _corpora(self, part: str) -> list[TokenCorpus]:
        if self.tokenizer is None:
            self.tokenizer = corpus_tokenizer(self.documents, **self.tokenizer_args)
        share = self.hparams.val_fraction
        return [tokenize_corpus(d, self.tokenizer, held_out_share=share, part=part) for d in self.documents]

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is not None:
            return
        train, val = self._corpora("train"), self._corpora("val")
        self.token_counts = sum(
            (corpus.counts * weight for corpus, weight in zip(train, self.weights, strict=True)),
            np.zeros(self.tokenizer.get_vocab_size()),
        )
        special = SpecialIds.of(self.tokenizer)
        for name in ("cls", "sep", "pad", "mask"):
            self.token_counts[getattr(special, name)] = 0
        self.train_data = mixture([self._examples(corpus, special) for corpus in train], self.weights)
        self.val_data = mixture([self._examples(corpus, special) for corpus in val], [1.0] * len(val))

    def _examples(self, corpus: TokenCorpus, special: SpecialIds) -> Dataset:
        h = self.hparams
        if h.examples == "packed":
            return PackedBlocks(corpus, h.max_length, special)
        draws = random.Random(h.seed)
        if h.examples == "electra":
            pairs = electra_examples((line.tolist() for line in corpus.line_stream()), h.max_length, draws)
            return PaddedPairs(((a, b) for a, b in pairs if a), h.max_length, special)
        documents = [[line.tolist() for line in corpus.document(i)] for i in range(len(corpus))]
        found = [
            pair
            for _ in range(h.builder_passes)
            for index in range(len(documents))
            for pair in bert_pairs(documents, index, h.max_length, h.short_prob, draws)
        ]
        labels = [int(is_random) for _, _, is_random in found]
        return PaddedPairs(((a, b) for a, b, _ in found), h.max_length, special, extra={"next_sentence_label": labels})

    @property
    def num_skipped(self) -> int:
        """Documents that were passed over, of all corpora, when they were tokenised."""
        return sum(corpus.num_skipped for corpus in self._corpora("train")) if self.tokenizer is not None else 0

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_data, train=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)  # type: ignore[arg-type]

    def raw_sample(self) -> str:
        """One sentence of the corpus, as `preprocess` takes it."""
        return next(iter(self.documents[0])).split("\n")[0]

    def labelled_dataloaders(self, task: ProbeTask | None = None) -> tuple[DataLoader, DataLoader]:
        """(batch, label) for probes, training part and held-out part.

        "package": docstrings, and which package each comes from. "topic": few sentences of the made-up language, and
        what each is about. "bigram_shift": sentences of the held-out documents of any text, and whether two
        neighbouring words are swapped (`datamodules.text_probing`). None: "topic" for the made-up language, else
        "package".
        """
        self.setup()
        made_up = [d.root for d in self.documents] == [MADE_UP]
        task = task or ("topic" if made_up else "package")
        sides: Any
        if task == "bigram_shift":
            sides = held_out_bigram_shift(self.documents, self.hparams.val_fraction)
        elif task == "topic" and made_up:
            sides = labelled_topics()
        elif task != "package":
            raise ZooError(
                f"Labelled texts are 'package', 'bigram_shift' or, of the made-up language, 'topic': not {task!r}."
            )
        elif not all(is_python_docs(d.root) for d in self.documents):
            raise ZooError(
                "Labels for probes come with data.root python-docs only: take ProbeReport out of the recipe."
            )
        else:
            rows = labelled_docstrings(self.hparams.probe_classes, self.hparams.probe_min)
            sides = ([(text, label) for text, label, held in rows if held == side] for side in (0, 1))
        parts = [LabelledText(side, self.tokenizer, self.max_length) for side in sides]
        return self.loader(parts[0], train=False), self.loader(parts[1], train=False)


class LabelledText(Dataset):
    """Texts and class indices: item i is (`input_ids` and `attention_mask`, each (max_length,), label)."""

    def __init__(self, rows: list[tuple[str, int]], tokenizer: Any, max_length: int) -> None:
        self.labels = [label for _, label in rows]
        batch = encode_texts(tokenizer, [text for text, _ in rows], max_length)
        self.ids, self.mask = batch["input_ids"], batch["attention_mask"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index]}, self.labels[index]


def labelled_docstrings(num_classes: int, least: int) -> list[tuple[str, int, int]]:
    """(docstring, class, held out) of the largest packages of the standard library; every fourth is held out."""
    by_package: dict[str, list[str]] = {}
    for package, text in python_documents():
        if package != "topics":
            by_package.setdefault(package, []).append(text)
    large = sorted((name for name in by_package if len(by_package[name]) >= least), key=lambda n: -len(by_package[n]))
    if len(large) < 2:
        raise ZooError(f"No two packages of this Python's library have {least} docstrings: lower data.probe_min.")
    rows = []
    for label, name in enumerate(sorted(large[:num_classes])):
        order = torch.randperm(len(by_package[name]), generator=torch.Generator().manual_seed(0)).tolist()
        rows += [(by_package[name][at], label, int(rank % 4 == 0)) for rank, at in enumerate(order)]
    return rows
