"""A corpus as token ids on disk: tokenised once, found again by content, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from datamodules.text import Documents, held_out
from datamodules.text_encoding import LineEncoder
from zoo.errors import ZooError
from zoo.nn.text import SpecialIds
from zoo.paths import cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_VERSION = 2
_CHUNK = 512  # documents that are tokenised at once


class TokenCorpus:
    """The token ids of a corpus, memory-mapped.

    Attributes:
        ids: (tokens,) uint16 or uint32: every line's word pieces in order, and a [SEP] after each document.
        lines: (lines, 2) int64: begin and end of each line in `ids`.
        documents: (documents + 1,) int64: number of the first line of each document.
        counts: (vocabulary,) int64: how often each token comes.
        num_skipped: documents that were passed over when it was made.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.num_skipped: int = facts["num_skipped"]
        self.ids = np.memmap(folder / "ids.bin", dtype=facts["dtype"], mode="r")
        self.lines = np.load(folder / "lines.npy", mmap_mode="r")
        self.documents = np.load(folder / "documents.npy")
        self.counts = np.load(folder / "counts.npy")

    def __len__(self) -> int:
        return len(self.documents) - 1

    def document(self, index: int) -> list[np.ndarray]:
        """The lines of a document, each an array of ids."""
        first, last = self.documents[index], self.documents[index + 1]
        return [self.ids[begin:end] for begin, end in self.lines[first:last]]

    def line_stream(self) -> Iterator[np.ndarray]:
        """Every line, and an empty one after each document: what the official example builders read."""
        for index in range(len(self)):
            yield from self.document(index)
            yield self.ids[:0]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # workers map the files themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]


def tokenize_corpus(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    held_out_share: float = 0.0,
    part: str = "train",
    folder: Path | None = None,
) -> TokenCorpus:
    """Tokenises a corpus, or finds what was tokenised before from the same text with the same tokenizer.

    Args:
        documents: what to read.
        tokenizer: its special tokens are not added, but for a [SEP] after each document.
        held_out_share, part: the share of documents that is "val" and not "train".
        folder: the cache; None is `text/` in the zoo's own cache.

    Raises:
        ZooError: as reading does, or where the part has no document.
    """
    key = hashlib.blake2b(digest_size=16)
    for fact in (documents.content_key, tokenizer.to_str(), str(held_out_share), part, str(_VERSION)):
        key.update(fact.encode())
    root = (cache_dir() / "text") if folder is None else folder
    target = root / key.hexdigest()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{target.name}.lock"):
            if not target.is_dir():
                new = Path(tempfile.mkdtemp(dir=root, prefix=".new-"))
                try:
                    _write(new, documents, tokenizer, held_out_share, part)
                    os.replace(new, target)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise ZooError(f"Cannot write the token cache in {root}: {error.strerror or error}.") from error
    return TokenCorpus(target)


def _write(folder: Path, documents: Documents, tokenizer: Tokenizer, share: float, part: str) -> None:
    size = tokenizer.get_vocab_size()
    dtype = np.uint16 if size <= 1 << 16 else np.uint32
    separator = np.array([SpecialIds.of(tokenizer).sep], dtype=dtype)
    lines: list[np.ndarray] = []
    starts = [0]
    counts = np.zeros(size, dtype=np.int64)
    at = num_lines = 0
    encode = LineEncoder(tokenizer)
    with (folder / "ids.bin").open("wb") as out:
        wanted = (text for i, text in enumerate(documents) if not share or held_out(i, share) == (part == "val"))
        while chunk := list(islice(wanted, _CHUNK)):
            split = [[line for line in text.split("\n") if line.strip()] for text in chunk]
            encoded = iter(encode([line for group in split for line in group]))
            for group in split:
                rows = [next(encoded) for _ in group]
                lengths = np.array([len(row) for row in rows], dtype=np.int64)
                ends = at + lengths.cumsum()
                lines.append(np.stack([ends - lengths, ends], axis=1))
                flat = np.concatenate([*(np.asarray(row, dtype=dtype) for row in rows), separator])
                counts += np.bincount(flat, minlength=size)
                out.write(flat.tobytes())
                at += len(flat)
                num_lines += len(rows)
                starts.append(num_lines)
    if not num_lines:
        raise ZooError(
            f"There is no document for {part!r} in {documents.root}: raise data.val_fraction or give more text."
        )
    np.save(folder / "lines.npy", np.concatenate(lines))
    np.save(folder / "documents.npy", np.array(starts, dtype=np.int64))
    np.save(folder / "counts.npy", counts)
    facts = {"dtype": np.dtype(dtype).name, "num_skipped": documents.num_skipped, "root": documents.root}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
