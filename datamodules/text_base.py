"""What every text DataModule shares: the tokenizer, trimming of padding, mixtures of corpora."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from datamodules.base import ZooDataModule
from datamodules.text import Documents
from datamodules.text_tokenizer import Kind, train_tokenizer
from zoo.errors import ZooError
from zoo.nn.text import load_tokenizer
from zoo.paths import cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SEQUENCE_KEYS = ("input_ids", "attention_mask", "token_type_ids", "word_ids", "tags")


class TextDataModule(ZooDataModule):
    """Base class of text DataModules; batches are dicts of tensors (B, ...).

    A subclass sets `self.tokenizer` and `self.max_length` in `setup`.
    """

    tokenizer: Any = None
    max_length: int = 0

    @staticmethod
    def check_limit(limit: int | None) -> None:
        """Raises `ZooError` for a limit that leaves nothing."""
        if limit is not None and limit < 1:
            raise ZooError(f"data.limit is at least 1, not {limit}.")

    @staticmethod
    def named_tokenizer(name: str | None) -> Any:
        """The tokenizer of that path or hub id; None without one."""
        return load_tokenizer(name) if name else None

    def models_tokenizer(self) -> Any:
        """The tokenizer of the model that is trained on this data. Raises `ZooError` if it has none."""
        found = getattr(getattr(self.trainer, "lightning_module", None), "tokenizer", None)
        if found is None:
            raise ZooError("There is no tokenizer: give data.tokenizer the path or hub id of one.")
        return found

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Drops the columns that are padding in every row, to the next multiple of 8."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        return trim_padding(batch) if isinstance(batch, dict) else batch


def trim_padding(batch: dict[str, Any], multiple: int = 8) -> dict[str, Any]:
    """A batch without the columns, from the right, that `attention_mask` (B, L) marks as padding in every row."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        return batch
    longest = int(mask.any(dim=0).nonzero().max()) + 1 if bool(mask.any()) else 1
    keep = min(mask.shape[1], -(-longest // multiple) * multiple)
    return {key: value[:, :keep] if key in _SEQUENCE_KEYS else value for key, value in batch.items()}


class CountedDocuments:
    """Documents of several corpora, one after the other, each at most `limit` of them (for training a tokenizer)."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from part


def corpus_tokenizer(
    parts: Sequence[Documents],
    tokenizer: str | None,
    vocab_size: int,
    kind: Kind = "wordpiece",
    lowercase: bool = True,
    folder: Path | None = None,
) -> Tokenizer:
    """The tokenizer that `tokenizer` names, or one trained on the corpora (once: it is kept by their content)."""
    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    digest = hashlib.blake2b(f"{vocab_size}|{kind}|{lowercase}|1".encode(), digest_size=16)
    for part in parts:
        digest.update(part.content_key.encode())
    root = (cache_dir() / "text") if folder is None else folder
    path = root / f"tokenizer-{digest.hexdigest()}.json"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                made = train_tokenizer(CountedDocuments(parts), vocab_size, kind, lowercase)
                with tempfile.NamedTemporaryFile("w", dir=root, delete=False, encoding="utf-8") as new:
                    new.write(made.to_str())
                os.replace(new.name, path)
    except OSError as error:
        raise ZooError(f"Cannot write the tokenizer in {root}: {error.strerror or error}.") from error
    return load_tokenizer(path)


def mixture(parts: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    """Several datasets as one, each taken `weight` times an epoch; what is left of a fraction is spread evenly.

    A weight of 2.5 takes every sample twice, and every other one a third time: small corpora are up-sampled so.
    """
    if len(parts) != len(weights) or any(not 0 < weight < float("inf") for weight in weights):
        raise ZooError(f"A mixture needs a weight above 0 for each corpus, not {list(weights)}.")
    if all(weight == 1 for weight in weights):
        return parts[0] if len(parts) == 1 else ConcatDataset(parts)
    chosen, start = [], 0
    for part, weight in zip(parts, weights, strict=True):
        size: int = len(part)  # type: ignore[arg-type]
        count = max(1, round(size * weight))
        chosen.append(start + (np.arange(count) * size // count if weight < 1 else _repeat(size, count)))
        start += size
    return Subset(ConcatDataset(parts), np.concatenate(chosen).tolist())


def _repeat(size: int, count: int) -> np.ndarray:
    whole, rest = divmod(count, size)
    return np.concatenate([np.tile(np.arange(size), whole), np.arange(rest) * size // max(rest, 1)])
