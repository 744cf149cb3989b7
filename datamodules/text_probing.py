"""Bigram shift: were two neighbouring words of a sentence swapped? A probing task that any text gives labels for.

Conneau et al., *What you can cram into a single vector*, ACL 2018 (SentEval's BShift). A bag of words knows nothing of
it: both classes have the same words. What helps is what a language model learns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from datamodules.text import Documents, held_out
from zoo.errors import ZooError

_ENDS = re.compile(r"(?<=[.!?])\s+|\n(?=[-*>])")
_WORD = re.compile(r"[A-Za-z][a-z'-]*[,;:]?")
_PLAIN = re.compile(r"[A-Za-z][a-z'-]*")
LabelledSentence = tuple[str, int]


def plain_sentences(text: str, shortest: int = 6, longest: int = 25) -> Iterator[str]:
    """The sentences of a text that are words only (no code, no numbers), `shortest` to `longest` of them."""
    for part in _ENDS.split(text):
        sentence = " ".join(part.split())
        if not sentence or not sentence[0].isupper() or sentence[-1] not in ".!?":
            continue
        words = sentence[:-1].split(" ")
        if shortest <= len(words) <= longest and all(map(_WORD.fullmatch, words)):
            yield sentence


def bigram_shift(sentences: Iterable[str], seed: int = 0) -> list[LabelledSentence]:
    """(sentence, 1 if two neighbouring words are swapped, else 0), in random order, half of each.

    The first word, words with a comma and equal words stay where they are, so that neither a capital nor a comma tells.
    A sentence without such a pair is left out.
    """
    draws = np.random.default_rng(seed)
    found: list[LabelledSentence] = []
    usable = [(sentence, pairs) for sentence in sentences if (pairs := _pairs(sentence[:-1].split(" ")))]
    for rank, at in enumerate(draws.permutation(len(usable))):
        sentence, pairs = usable[at]
        if rank % 2:
            words, first = sentence[:-1].split(" "), int(draws.choice(pairs))
            words[first], words[first + 1] = words[first + 1], words[first]
            sentence = " ".join(words) + sentence[-1]
        found.append((sentence, rank % 2))
    return found


def _pairs(words: list[str]) -> list[int]:
    return [
        at
        for at in range(1, len(words) - 1)
        if _PLAIN.fullmatch(words[at])
        and _PLAIN.fullmatch(words[at + 1])
        and words[at].lower() != words[at + 1].lower()
    ]


def held_out_sentences(parts: Iterable[Documents], share: float) -> list[str]:
    """The plain sentences of the held-out documents, each once, without those that the training documents hold too."""
    held: dict[str, None] = {}
    seen: set[str] = set()
    for documents in parts:
        for index, text in enumerate(documents):
            if held_out(index, share):
                held.update(dict.fromkeys(plain_sentences(text)))
            else:
                seen.update(plain_sentences(text))
    return [sentence for sentence in held if sentence not in seen]


def held_out_bigram_shift(
    parts: Iterable[Documents], share: float, test_share: float = 1 / 3
) -> tuple[list[LabelledSentence], list[LabelledSentence]]:
    """Bigram shift on text that pre-training has not seen: training and test sentences.

    Raises:
        ZooError: fewer than 20 sentences.
    """
    found = bigram_shift(held_out_sentences(parts, share))
    if len(found) < 20:
        raise ZooError(
            f"The held-out text has {len(found)} plain English sentences, too few for bigram shift: raise "
            "data.val_fraction, or take another task."
        )
    cut = round(len(found) * test_share)
    return found[cut:], found[:cut]
