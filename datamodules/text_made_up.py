"""A made-up language: sentences about one of several topics, for comparisons that must be small and beyond doubt.

Nothing tells what a word means but the words beside it. So what pre-training is for can be measured in minutes:
few labelled sentences show a fraction of a topic's words, plain text shows all of them together.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from zoo.errors import ZooError

MADE_UP_DOCUMENTS = 4000  # texts for pre-training
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class MadeUpLanguage:
    """Draws sentences of 8 to 16 words, half of them function words, half content words.

    A content word is of the sentence's topic with probability `own`, else of any topic. Within a topic (and among the
    function words) the n-th word is 1 / sqrt(n) (1 / n) as frequent as the first.

    Args:
        topics, words: how many topics there are, and content words of each.
        function_words: words of one syllable that belong to no topic.
        own: as above.
        seed: of the words and of every draw.
    """

    def __init__(
        self, topics: int = 6, words: int = 12, function_words: int = 12, own: float = 0.9, seed: int = 0
    ) -> None:
        self.draws = np.random.default_rng(seed)
        short = self.draws.permutation(_SYLLABLES)
        self.function = list(short[:function_words])
        self.shares = _falling(function_words, 1.0)
        long: dict[str, None] = {}  # a set that keeps its order
        while len(long) < topics * words:
            long["".join(self.draws.choice(_SYLLABLES, int(self.draws.integers(2, 4))))] = None
        self.content = np.array(list(long)).reshape(topics, words)
        self.content_shares = _falling(words, 0.5)
        self.own = own

    def sentence(self, topic: int) -> str:
        """One sentence about `topic`, without a full stop."""
        words = []
        for _ in range(int(self.draws.integers(8, 17))):
            if self.draws.random() < 0.5:
                words.append(self.draws.choice(self.function, p=self.shares))
                continue
            about = topic if self.draws.random() < self.own else int(self.draws.integers(len(self.content)))
            words.append(self.draws.choice(self.content[about], p=self.content_shares))
        return " ".join(words)

    def labelled(self, count: int) -> list[tuple[str, int]]:
        """`count` sentences, each with its topic."""
        return [(self.sentence(int(topic)), int(topic)) for topic in self.draws.integers(len(self.content), size=count)]

    def pairs(self, count: int) -> list[tuple[str, str, bool]]:
        """`count` pairs of sentences, and whether both are about the same topic: half of them are."""
        first = self.draws.integers(len(self.content), size=count)
        same = self.draws.random(count) < 0.5
        other = (first + self.draws.integers(1, len(self.content), size=count)) % len(self.content)
        second = np.where(same, first, other)
        return [
            (self.sentence(int(a)), self.sentence(int(b)), bool(s)) for a, b, s in zip(first, second, same, strict=True)
        ]

    def documents(self, count: int, sentences: int = 4) -> list[str]:
        """`count` texts of `sentences` lines, all about the same topic."""
        about = self.draws.integers(len(self.content), size=count)
        return ["\n".join(f"{self.sentence(int(topic))} ." for _ in range(sentences)) for topic in about]


def labelled_topics(train: int = 60, held_out: int = 600) -> list[list[tuple[str, int]]]:
    """Sentences of the language (seed 0) and their topics, drawn apart from `write_made_up`: two parts."""
    language = MadeUpLanguage()
    language.draws = np.random.default_rng(1)
    return [language.labelled(train), language.labelled(held_out)]


def _falling(count: int, power: float) -> np.ndarray:
    shares = np.arange(1, count + 1) ** -power
    return shares / shares.sum()


def write_made_up(
    folder: Path,
    documents: int = MADE_UP_DOCUMENTS,
    train: int = 2000,
    dev: int = 1000,
    transfer: int = 4000,
    seed: int = 0,
) -> tuple[Path, Path, Path]:
    """A made-up language as files: text for pre-training, a labelled folder, a transfer set.

    The task is that of pairs (`text` and `pair`): are both sentences about the same topic?

    The parts share no sentence but by chance; the transfer set has no labels.

    Returns:
        Paths of `text.txt`, the folder itself (`train.jsonl`, `dev.jsonl`), and `transfer.txt`.
    """
    language = MadeUpLanguage(seed=seed)
    contents = {"text.txt": "\n\n".join(language.documents(documents))}
    for part, count in (("train", train), ("dev", dev)):
        rows = [{"text": a, "pair": b, "label": "same" if same else "another"} for a, b, same in language.pairs(count)]
        contents[f"{part}.jsonl"] = "\n".join(json.dumps(row) for row in rows)
    contents["transfer.txt"] = "\n".join(f"{a}\t{b}" for a, b, _ in language.pairs(transfer))
    write_files(folder, contents)
    return folder / "text.txt", folder, folder / "transfer.txt"


def write_files(folder: Path, contents: dict[str, str]) -> None:
    """Writes `contents[name]` and a line's end to `folder/name`. Raises `ZooError` where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise ZooError(f"Cannot write {folder}: {error.strerror or error}.") from error
