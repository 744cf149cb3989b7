"""Lines of text to token ids, many at once: each chunk between blanks is tokenised once and then looked up."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Python splits at these, BERT's tokenizer drops them: lines with one go through the tokenizer whole.
_DROPPED = re.compile(r"[\x0b\x0c\x1c-\x1f\x85]")
_LARGEST = 1_000_000  # chunks that are remembered
_MARK, _JOINED = "|", 128  # what stands between chunks that are tokenised in one go, and how many these are


class LineEncoder:
    """Gives exactly the ids that `tokenizer` gives, without special tokens, several times as fast on ordinary text.

    BERT's WordPiece never looks across blanks, and text repeats its words: what lies between two blanks is tokenised
    once and remembered. Tokenizers of another kind (byte-level BPE, whose words begin with the blank) do every line.

    Args:
        tokenizer: as `zoo.nn.text.load_tokenizer` gives it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.by_chunk = _splits_at_blanks(tokenizer)
        self.known: dict[str, list[int]] = {}
        found = self._encode([_MARK])[0] if self.by_chunk else []
        self.mark = found[0] if len(found) == 1 and found[0] == tokenizer.token_to_id(_MARK) else None

    def __call__(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line."""
        if not self.by_chunk:
            return self._encode(lines)
        chunks = [None if _DROPPED.search(line) else line.split() for line in lines]
        known = self.known
        if len(known) > _LARGEST:
            known.clear()
        new = list({chunk for row in chunks if row is not None for chunk in row if chunk not in known})
        known.update(zip(new, self._encode_chunks(new), strict=True))
        rest = iter(self._encode([line for line, row in zip(lines, chunks, strict=True) if row is None]))
        return [next(rest) if row is None else [token for chunk in row for token in known[chunk]] for row in chunks]

    def _encode_chunks(self, chunks: list[str]) -> list[list[int]]:
        """As `_encode`, many chunks to a call: most of its time goes into what each call gives back."""
        if self.mark is None:
            return self._encode(chunks)
        groups = [chunks[at : at + _JOINED] for at in range(0, len(chunks), _JOINED)]
        found: list[list[int]] = []
        for group, ids in zip(groups, self._encode([f" {_MARK} ".join(group) for group in groups]), strict=True):
            ends = [at for at, token in enumerate(ids) if token == self.mark]
            if len(ends) != len(group) - 1:  # a chunk has the mark in it
                found += self._encode(group)
                continue
            starts = [0, *(at + 1 for at in ends)]
            found += [ids[start:end] for start, end in zip(starts, [*ends, len(ids)], strict=True)]
        return found

    def _encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)]


def _splits_at_blanks(tokenizer: Tokenizer) -> bool:
    """Whether it is BERT's: its own normaliser and splitter, and no added token that a text could spell."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        return False
    facts = json.loads(tokenizer.to_str())
    kinds = [(facts[part] or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")]
    plain = all(token["special"] for token in facts["added_tokens"]) and tokenizer.encode_special_tokens
    return kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"] and plain
