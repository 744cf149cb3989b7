"""What every text model shares: its tokenizer and special ids, raw strings to batches, attention masks."""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extras import imports_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_PACKED = "zlib:"
_NAMES = {  # the same five roles under BERT's and RoBERTa's names
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def text_packages() -> AbstractContextManager[None]:
    """Turns the failed import of a package of the `text` extra into a `ZooError` that names the extra."""
    return imports_of("text", why="text is handled with transformers, tokenizers and datasets")


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; the defaults are those of BERT's own vocabulary."""

    pad: int = 0
    unk: int = 100
    cls: int = 101
    sep: int = 102
    mask: int = 103

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialIds:
        """Looks the five tokens up. Raises `ZooError` that names the one that the tokenizer lacks."""
        found = {}
        for role, names in _NAMES.items():
            ids = [tokenizer.token_to_id(name) for name in names]
            ids = [i for i in ids if i is not None]
            if not ids:
                raise ZooError(f"The tokenizer has no {names[0]} token, which masking and packing need.")
            found[role] = ids[0]
        return cls(**found)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The fast tokenizer behind `source`.

    Args:
        source: a `tokenizer.json`, a BERT `vocab.txt` (uncased), a folder that holds one of them, a hub id
            (`google/electra-small-discriminator`), or what `pack_tokenizer` gave.

    Text that spells a special token, such as "[MASK]", is taken for text, as in BERT's own code.

    Raises:
        ZooError: no such file or hub id, no network, or a file that is no tokenizer.
    """
    tokenizer = _find_tokenizer(source)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _find_tokenizer(source: str | Path) -> Tokenizer:
    with text_packages():
        import tokenizers
    text = str(source)
    if text.startswith(_PACKED):
        try:
            return tokenizers.Tokenizer.from_str(zlib.decompress(base64.b64decode(text[len(_PACKED) :])).decode())
        except Exception as error:
            raise ZooError("The tokenizer inside this checkpoint is damaged.") from error
    path = Path(text).expanduser()
    if path.is_dir():
        path = next((path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()), path)
        if path.is_dir():
            raise ZooError(f"{path} holds neither tokenizer.json nor vocab.txt.")
    if path.is_file():
        return _read_tokenizer(path)
    if path.suffix or path.is_absolute() or text.count("/") != 1:
        raise ZooError(f"There is no tokenizer file {text!r}.")
    try:
        return tokenizers.Tokenizer.from_pretrained(text)
    except Exception as error:  # the Rust side raises bare exceptions
        reason = str(error).splitlines()[0][:120].rstrip(". ")
        raise ZooError(
            f"Cannot get the tokenizer {text!r} from the hub ({reason}). Give the path of a "
            "tokenizer.json or vocab.txt instead."
        ) from error


def bert_tokenizer(vocab: Mapping[str, int], lowercase: bool = True) -> Tokenizer:
    """BERT's WordPiece over `vocab` (token to id): lower-cased, no accents, split on CJK, [CLS] a [SEP] b [SEP]."""
    with text_packages():
        import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = tokenizers.Tokenizer(models.WordPiece(dict(vocab), unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([names[0] for names in _NAMES.values()])
    special = SpecialIds.of(tokenizer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", special.sep), ("[CLS]", special.cls))
    return tokenizer


def _read_tokenizer(path: Path) -> Tokenizer:
    with text_packages():
        import tokenizers
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
            return tokenizers.Tokenizer.from_str(text)
    except OSError as error:
        raise ZooError(f"Cannot read the tokenizer {path}: {error.strerror or error}.") from error
    except Exception as error:  # no UTF-8, no JSON, or JSON of something else
        raise ZooError(f"{path} is no tokenizer: {' '.join(str(error).split())[:120]}.") from error
    vocab = {token: index for index, token in enumerate(text.split("\n")) if token}
    if "[UNK]" not in vocab:
        raise ZooError(f"{path} is no BERT vocabulary: it has no line [UNK].")
    return bert_tokenizer(vocab)


def pack_tokenizer(tokenizer: Tokenizer) -> str:
    """The whole tokenizer as one short string, so that a checkpoint can carry it; `load_tokenizer` reads it."""
    return _PACKED + base64.b64encode(zlib.compress(tokenizer.to_str().encode(), 9)).decode()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises `ZooError` if the tokenizer gives ids that the model's embedding table does not have."""
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise ZooError(
            f"The tokenizer has {size} tokens, the model's embedding only {vocab_size}: they do not belong together "
            f"(set model.vocab_size to {size}, or use the model's own tokenizer)."
        )


def encode_texts(tokenizer: Tokenizer, raw: Any, max_length: int, warn: bool = False) -> dict[str, Tensor]:
    """Strings to a batch `input_ids`, `attention_mask`, `token_type_ids`, each (B, L) int64, L the longest of them.

    Args:
        raw: a string, a `Path` of a text file, a pair of strings (a tuple), or a list of any of these.
        max_length: longer texts are cut to so many tokens, special ones included; of a pair the longer part gives
            way, token by token, as in BERT's code.
        warn: say so, with a warning.

    Raises:
        ZooError: nothing given, empty text, another type, or a file that is missing or no UTF-8.
    """
    items = list(raw) if isinstance(raw, list) else [raw]
    if not items:
        raise ZooError("There is no text to preprocess: the list is empty.")
    texts = [_as_text(item) for item in items]
    special = SpecialIds.of(tokenizer)
    encodings = tokenizer.encode_batch(texts)
    long = sum(len(encoding.ids) > max_length for encoding in encodings)
    if long and warn:
        warnings.warn(f"{long} of {len(texts)} texts are longer than {max_length} tokens and were cut.", stacklevel=3)
    rows = [_cut(encoding, max_length) for encoding in encodings]
    length = max(len(ids) for ids, _ in rows)
    batch = {key: torch.zeros(len(rows), length, dtype=torch.long) for key in ("attention_mask", "token_type_ids")}
    batch["input_ids"] = torch.full((len(rows), length), special.pad)
    for row, (ids, types) in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["token_type_ids"][row, : len(ids)] = torch.tensor(types)
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


def _cut(encoding: Encoding, max_length: int) -> tuple[list[int], list[int]]:
    """Ids and segment ids of at most `max_length` tokens; special tokens stay."""
    ids, types = encoding.ids, encoding.type_ids
    if len(ids) <= max_length:
        return ids, types
    owners = encoding.sequence_ids  # None for special tokens
    left = [owners.count(0), owners.count(1)]
    room = max_length - (len(ids) - sum(left))
    while sum(left) > room:
        left[0 if left[0] > left[1] else 1] -= 1
    keep, seen = [], [0, 0]
    for at, owner in enumerate(owners):
        if owner is not None:
            seen[owner] += 1
        if owner is None or seen[owner] <= left[owner]:
            keep.append(at)
    return [ids[at] for at in keep], [types[at] for at in keep]


def _as_text(item: Any) -> str | tuple[str, str]:
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return item
    if isinstance(item, Path):
        item = read_utf8(item)
    if not isinstance(item, str):
        raise ZooError(f"Give text as strings, pairs of strings or Paths of text files, not as {type(item).__name__}.")
    if not item.strip():
        raise ZooError("There is no text in it: the string or file is empty.")
    return item


def read_utf8(path: Path) -> str:
    """The text of a file. Raises `ZooError` that says which file, and where it stops being UTF-8 text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ZooError(f"Cannot read {path}: {error.strerror or error}.") from error
    if (null := data.find(b"\0")) >= 0:  # UTF-8 as well, but a binary file
        line = data[:null].count(b"\n") + 1
        raise ZooError(f"{path}, line {line}: a zero byte: this is no text file.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ZooError(f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}).") from error


def additive_mask(attention_mask: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """(B, L) of 1 and 0 to what SDPA adds, (B, 1, 1, L): -10000 on padded keys, as BERT has it; None stays None.

    Not -inf: a row of nothing but padding stays finite.
    """
    if attention_mask is None:
        return None
    # No padding: the faster kernel. A program that is exported or compiled cannot look at the values.
    if attention_mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(attention_mask.all()):
        return None
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0


def mean_over_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, L, D) to (B, D): mean over the tokens that are no padding."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    weight = attention_mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def tokens_of(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The word pieces of `ids`, unknown ids as '?'."""
    return [tokenizer.id_to_token(int(i)) or "?" for i in ids]
