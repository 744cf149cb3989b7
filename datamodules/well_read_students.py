"""Data for Well-Read Students: text for pre-training, and unlabelled transfer sets for distillation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.text import PYTHON_DOCS, python_documents
from datamodules.text_classification import TextClassificationDataModule
from datamodules.text_made_up import write_files
from datamodules.text_pretraining import TextPretrainDataModule, labelled_docstrings
from datamodules.text_records import read_texts
from zoo.errors import ZooError
from zoo.nn.text import encode_texts


class StudentPretrainDataModule(TextPretrainDataModule):
    """`TextPretrainDataModule` under the room's name; `examples: bert` gives pairs for next-sentence prediction."""


class UnlabelledTexts(Dataset):
    """Item i: `input_ids`, `attention_mask`, `token_type_ids` (max_length,) and `index`, its number. No labels."""

    def __init__(self, texts: list[Any], tokenizer: Any, max_length: int) -> None:
        self.batch = encode_texts(tokenizer, texts, max_length)

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each text."""
        return self.batch["attention_mask"].sum(1).numpy()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.batch.items()} | {"index": torch.tensor(index)}


class TransferDataModule(TextClassificationDataModule):
    """Unlabelled texts for training, labelled ones for validation.

    Args:
        transfer: the transfer set: a text file, one `text` or `text<TAB>text` a line; a `.csv`, `.tsv` or `.jsonl`,
            of which `text_column` and `pair_column` are read and nothing else; or "python-docs": the training
            docstrings and the other packages' ones, without labels.
        bucket_by_length: training batches of texts of like length: less padding.
        others: the labelled data for validation, as in `TextClassificationDataModule`.
    """

    def __init__(
        self,
        transfer: str,
        root: str,
        task: Any = "own",
        text_column: str = "text",
        pair_column: str | None = None,
        label_column: str = "label",
        tokenizer: str | None = None,
        max_length: int = 128,
        limit: int | None = None,
        bucket_by_length: bool = False,
        on_bad_text: Any = "error",
        batch_size: int = 32,
        num_workers: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(
            root, task, text_column, pair_column, label_column, tokenizer=tokenizer, max_length=max_length,
            bucket_by_length=bucket_by_length, on_bad_text=on_bad_text, batch_size=batch_size,
            num_workers=num_workers, pin_memory=pin_memory,
        )  # fmt: skip
        self.save_hyperparameters(logger=False)
        if transfer != PYTHON_DOCS and not Path(transfer).expanduser().is_file():
            raise ZooError(f"There is no transfer file {transfer!r}: give one with --data.transfer.")
        self.check_limit(limit)
        self.transfer, self.transfer_limit = transfer, limit
        self.transfer_data: UnlabelledTexts | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.transfer_data is not None:
            return
        self.hparams.limit = None  # it limits the transfer set, not the labels
        super().setup(stage)
        texts = self._texts()[: self.transfer_limit]
        if not texts:
            raise ZooError(f"There is no text in {self.transfer}.")
        self.transfer_data = UnlabelledTexts(texts, self.tokenizer, self.max_length)

    def _texts(self) -> list[Any]:
        if self.transfer == PYTHON_DOCS:
            held = {text for text, _, label in self._examples("dev") if label}
            return [text for package, text in python_documents() if package != "topics" and text not in held]
        found = read_texts(Path(self.transfer).expanduser(), self.hparams.text_column, self.hparams.pair_column)
        return [text for text in found if (text if isinstance(text, str) else text[0]).strip()]

    def transfer_batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """The transfer set in order, for the teacher."""
        self.setup()
        assert self.transfer_data is not None
        batch = self.transfer_data.batch
        for start in range(0, len(self.transfer_data), size):
            yield {name: value[start : start + size] for name, value in batch.items()}

    def train_dataloader(self) -> DataLoader:
        data: Any = self.transfer_data
        return self.loader(data, train=True, lengths=data.lengths if self.bucket_by_length else None)


def write_python_docs(folder: Path, num_classes: int = 10, least: int = 50) -> tuple[Path, Path, Path]:
    """Python's manual and docstrings as files: text for pre-training, a labelled folder, an unlabelled transfer set.

    The labelled task is which of the `num_classes` largest packages (with `least` docstrings or more) a docstring comes
    from. Its held-out docstrings are in neither the text nor the transfer set; the transfer set has no labels.

    Returns:
        Paths of `text.txt`, the folder itself (`train.jsonl`, `dev.jsonl`), and `transfer.txt`.
    """
    rows = labelled_docstrings(num_classes, least)
    held = {text for text, _, is_held in rows if is_held}
    kept = [(package, text) for package, text in python_documents() if text not in held]
    flat = [" ".join(text.split()) for package, text in kept if package != "topics"]
    contents = {"text.txt": "\n\n".join(text for _, text in kept), "transfer.txt": "\n".join(flat)}
    for part, is_held in (("train", 0), ("dev", 1)):
        records = [{"text": " ".join(text.split()), "label": str(label)} for text, label, at in rows if at == is_held]
        contents[f"{part}.jsonl"] = "\n".join(json.dumps(record) for record in records)
    write_files(folder, contents)
    return folder / "text.txt", folder, folder / "transfer.txt"
