"""Token streams to training examples: packed blocks, and the example builders of ELECTRA and BERT.

The builders draw from an object with `random()` and `randint(a, b)` (BERT's also `shuffle`), as
`random.Random` has them, in the order in which the official scripts draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.text_corpus import TokenCorpus
from zoo.errors import ZooError
from zoo.nn.text import SpecialIds


class Draws(Protocol):
    """What the builders draw from."""

    def random(self) -> float: ...
    def randint(self, a: int, b: int) -> int: ...


class PackedBlocks(Dataset):
    """[CLS] and [SEP] around consecutive pieces of the corpus, all of them `length` tokens long: no padding at all.

    Documents follow each other with a [SEP] between them; what is left over at the end of the corpus is dropped.
    Item i is `{"input_ids": (length,) int64}`.
    """

    def __init__(self, corpus: TokenCorpus, length: int, special: SpecialIds) -> None:
        if length < 8:
            raise ZooError(f"max_length is at least 8, not {length}.")
        self.corpus, self.length, self.special = corpus, length, special
        self.count = len(corpus.ids) // (length - 2)
        if not self.count:
            raise ZooError(f"The corpus has {len(corpus.ids)} tokens, too few for one block of {length}.")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inner = self.length - 2
        block = np.empty(self.length, dtype=np.int64)
        block[0], block[-1] = self.special.cls, self.special.sep
        block[1:-1] = self.corpus.ids[index * inner : (index + 1) * inner]
        return {"input_ids": torch.from_numpy(block)}


class PaddedPairs(Dataset):
    """Examples of one or two segments, stored once and padded on the way out.

    Item i: `input_ids`, `attention_mask`, `token_type_ids`, each (length,) int64, and `extra[name][i]` for each extra.
    """

    def __init__(
        self,
        examples: Iterable[tuple[Sequence[int], Sequence[int]]],
        length: int,
        special: SpecialIds,
        extra: dict[str, Sequence[int]] | None = None,
    ) -> None:
        rows = [pair_ids(a, b, special) for a, b in examples]
        if not rows:
            raise ZooError("The text gives no training example.")
        self.length, self.special = length, special
        self.flat = np.concatenate([np.asarray(ids, dtype=np.uint32) for ids, _ in rows])
        self.ends = np.cumsum([len(ids) for ids, _ in rows])
        self.first = np.array([first for _, first in rows])
        self.extra = {name: np.asarray(values) for name, values in (extra or {}).items()}

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        end = int(self.ends[index])
        begin = int(self.ends[index - 1]) if index else 0
        count = end - begin
        ids = np.full(self.length, self.special.pad, dtype=np.int64)
        ids[:count] = self.flat[begin:end]
        mask = np.zeros(self.length, dtype=np.int64)
        mask[:count] = 1
        types = np.zeros(self.length, dtype=np.int64)
        types[self.first[index] : count] = 1
        item = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        out = {name: torch.from_numpy(value) for name, value in item.items()}
        return out | {name: torch.as_tensor(values[index]) for name, values in self.extra.items()}


def pair_ids(a: Sequence[int], b: Sequence[int], special: SpecialIds) -> tuple[list[int], int]:
    """[CLS] a [SEP] (b [SEP]), and where the second segment begins (the length if there is none)."""
    ids = [special.cls, *map(int, a), special.sep]
    first = len(ids)
    if len(b):
        ids += [*map(int, b), special.sep]
    return ids, first


def electra_examples(
    lines: Iterable[Sequence[int]], max_length: int, draws: Draws
) -> Iterator[tuple[list[int], list[int]]]:
    """The official ELECTRA example builder: lines of token ids to pairs of segments.

    Lines gather until they reach the target length or a document ends (an empty line). Once in ten an example is one
    segment; otherwise the first takes lines while they fit in half, an overflowing one by the toss of a coin, and the
    second the rest. What exceeds the length is dropped. The next target is the full length, or once in twenty a random
    one from 5 up.
    """
    current: list[Sequence[int]] = []
    gathered, target = 0, max_length
    for line in lines:
        if len(line) or not gathered:  # blank lines before any text count as an empty sentence
            current.append(line)
            gathered += len(line)
            if gathered < target:
                continue
        single = draws.random() < 0.1
        limit = 100000 if single else (target - 3) // 2
        first: list[int] = []
        second: list[int] = []
        for sentence in current:
            fits = not first or len(first) + len(sentence) < limit
            if fits or (not second and len(first) < limit and draws.random() < 0.5):
                first.extend(sentence)
            else:
                second.extend(sentence)
        first = first[: max_length - 2]
        second = second[: max(0, max_length - len(first) - 3)]
        current, gathered = [], 0
        target = draws.randint(5, max_length) if draws.random() < 0.05 else max_length
        yield first, second


class BertDraws(Draws, Protocol):
    """What BERT's builder draws from: also `shuffle`, in place."""

    def shuffle(self, x: list[Any]) -> None: ...


def bert_pairs(
    documents: Sequence[Sequence[Sequence[Any]]],
    index: int,
    max_length: int,
    short_prob: float,
    draws: BertDraws,
) -> Iterator[tuple[list[Any], list[Any], bool]]:
    """Sentence pairs of one document for next-sentence prediction, as BERT's official script cuts them.

    Sentences gather to a target (with `short_prob` a random shorter one for the whole document) or the end of the
    document and are split at a random sentence; half the time the second part is replaced by text of another document,
    and the unused sentences go back. Yields (a, b, whether b is random), cut to `max_length` - 3 tokens together.
    """
    document = documents[index]
    room = max_length - 3
    target = draws.randint(2, room) if draws.random() < short_prob else room
    chunk: list[Sequence[Any]] = []
    gathered = at = 0
    while at < len(document):
        chunk.append(document[at])
        gathered += len(document[at])
        if at == len(document) - 1 or gathered >= target:
            if chunk:
                split = draws.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = [token for sentence in chunk[:split] for token in sentence]
                b: list[Any] = []
                is_random = len(chunk) == 1 or draws.random() < 0.5
                if is_random:
                    wanted = target - len(a)
                    other = index
                    for _ in range(10):  # as the script: give up on finding another document after ten draws
                        other = draws.randint(0, len(documents) - 1)
                        if other != index:
                            break
                    start = draws.randint(0, len(documents[other]) - 1)
                    for sentence in documents[other][start:]:
                        b.extend(sentence)
                        if len(b) >= wanted:
                            break
                    at -= len(chunk) - split
                else:
                    b = [token for sentence in chunk[split:] for token in sentence]
                while len(a) + len(b) > room:
                    longer = a if len(a) > len(b) else b
                    if draws.random() < 0.5:
                        del longer[0]
                    else:
                        longer.pop()
                if a and b:
                    yield a, b, is_random
            chunk, gathered = [], 0
        at += 1


@dataclass
class BertInstance:
    """One example with static masks, as BERT's official script writes it; tokens are strings."""

    tokens: list[str]
    segment_ids: list[int]
    is_random_next: bool
    masked_lm_positions: list[int]
    masked_lm_labels: list[str]


def bert_instances(
    documents: Sequence[Sequence[Sequence[str]]],
    index: int,
    *,
    max_length: int,
    short_prob: float,
    mask_prob: float,
    max_predictions: int,
    vocabulary: Sequence[str],
    whole_words: bool,
    draws: BertDraws,
) -> Iterator[BertInstance]:
    """The official builder's instances of one document: `bert_pairs`, then masks that stay as they are drawn.

    Words are shuffled and taken while they fit: 80 % become [MASK], 10 % stay, 10 % become any word of `vocabulary`.
    """
    for a, b, is_random in bert_pairs(documents, index, max_length, short_prob, draws):
        tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
        words: list[list[int]] = []
        for at, token in enumerate(tokens):
            if token in ("[CLS]", "[SEP]"):
                continue
            if whole_words and words and token.startswith("##"):
                words[-1].append(at)
            else:
                words.append([at])
        draws.shuffle(words)
        wanted = min(max_predictions, max(1, round(len(tokens) * mask_prob)))
        masked: dict[int, str] = {}
        shown = list(tokens)
        for word in words:
            if len(masked) >= wanted:
                break
            if len(masked) + len(word) > wanted:
                continue
            for at in word:
                masked[at] = tokens[at]
                if draws.random() < 0.8:
                    shown[at] = "[MASK]"
                elif draws.random() >= 0.5:
                    shown[at] = vocabulary[draws.randint(0, len(vocabulary) - 1)]
        positions = sorted(masked)
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        yield BertInstance(shown, types, is_random, positions, [masked[at] for at in positions])
