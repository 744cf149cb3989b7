"""What every text model's LightningModule shares: the tokenizer that it takes from the data and carries along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.nn.text import SpecialIds, check_vocabulary, encode_texts, load_tokenizer, pack_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FROM_DATA = "data"


class TextModule(ZooModule):
    """Base class of text models. A subclass has the hyper-parameters `tokenizer`, `vocab_size`, `max_positions`.

    `tokenizer` is a path or hub id, None for none, or "data": the data module's, which the weights then carry along in
    the buffer `tokenizer_data`, so that a checkpoint alone can read text.
    """

    _tokenizer: Tokenizer | None = None
    most_frequent_token: int | None = None

    def add_tokenizer_buffer(self) -> None:
        """Room for the packed tokenizer, by the size of the vocabulary; called by constructors."""
        if self.hparams.tokenizer == FROM_DATA:
            room = 4096 + 32 * self.hparams.vocab_size
            self.register_buffer("tokenizer_data", torch.zeros(room, dtype=torch.uint8))

    def carry(self, tokenizer: Tokenizer) -> None:
        """Makes `tokenizer` the model's own, and part of its weights where there is room for it."""
        check_vocabulary(tokenizer, self.hparams.vocab_size)
        self._tokenizer = tokenizer
        buffer = self._buffers.get("tokenizer_data")
        if buffer is not None:
            packed = torch.frombuffer(bytearray(pack_tokenizer(tokenizer).encode()), dtype=torch.uint8)
            if len(packed) > len(buffer):
                raise ZooError("This tokenizer is too large to travel with the weights: give model.tokenizer its path.")
            buffer.zero_()
            buffer[: len(packed)] = packed

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None where the model was built without one."""
        if self._tokenizer is None:
            source = self.hparams.get("tokenizer")
            if source == FROM_DATA:
                data = bytes(self._buffers["tokenizer_data"].tolist()).rstrip(b"\0")  # type: ignore[union-attr]
                source = data.decode("ascii", "replace") if data else None
            if source:
                tokenizer = load_tokenizer(source)
                check_vocabulary(tokenizer, self.hparams.vocab_size)
                self._tokenizer = tokenizer
        return self._tokenizer

    @property
    def special(self) -> SpecialIds:
        """Ids of [PAD], [UNK], [CLS], [SEP], [MASK]: the tokenizer's, else those of BERT's vocabulary."""
        return SpecialIds() if self.tokenizer is None else SpecialIds.of(self.tokenizer)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        theirs = getattr(data, "tokenizer", None)
        if theirs is None or isinstance(theirs, str):
            return
        check_vocabulary(theirs, self.hparams.vocab_size)
        own = self.tokenizer
        if own is not None and own.get_vocab() != theirs.get_vocab():
            raise ZooError("The data was cut with another tokenizer than the model's own: set data.tokenizer to it.")
        self.carry(theirs)
        length = getattr(data, "max_length", 0)
        if length > self.hparams.max_positions:
            raise ZooError(
                f"The data gives sequences of {length} tokens, the model has {self.hparams.max_positions} positions: "
                "lower data.max_length or raise model.max_positions."
            )
        counts = getattr(data, "token_counts", None)
        self.most_frequent_token = None if counts is None else int(counts.argmax())

    def preprocess(self, raw: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Strings, pairs, or Paths of text files (one or a list) to a batch; see `zoo.nn.text.encode_texts`."""
        if self.tokenizer is None:
            raise ZooError("This model has no tokenizer: give its `tokenizer` argument the path or hub id of one.")
        return encode_texts(self.tokenizer, raw, self.hparams.max_positions, warn=True)
