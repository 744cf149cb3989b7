"""Training a tokenizer on a corpus: BERT's WordPiece or byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from zoo.errors import ZooError
from zoo.nn.text import bert_tokenizer, text_packages

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["wordpiece", "bpe"]
_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, kind: Kind = "wordpiece", lowercase: bool = True
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens (fewer where the text does not give so many).

    Args:
        documents: the text.
        kind: "wordpiece" as BERT (special tokens [PAD] [UNK] [CLS] [SEP] [MASK], ids 0 to 4), or "bpe", byte-level as
            RoBERTa (<s> <pad> </s> <unk> <mask>).
        lowercase: wordpiece only: lower-case and strip accents.
    """
    with text_packages():
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if vocab_size < 300:
        raise ZooError(f"A vocabulary needs at least 300 tokens to hold the letters, not {vocab_size}.")
    if kind == "wordpiece":
        raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=_BERT_SPECIAL,
            show_progress=False,
            limit_alphabet=min(1000, vocab_size // 4),
        )
        raw.train_from_iterator(documents, trainer)
        return bert_tokenizer(raw.get_vocab(), lowercase)
    if kind != "bpe":
        raise ZooError(f"A tokenizer is of kind 'wordpiece' or 'bpe', not {kind!r}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bpe = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_ROBERTA_SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, bpe)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer
