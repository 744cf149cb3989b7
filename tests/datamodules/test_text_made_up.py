"""The made-up language."""

import json
from collections import Counter

import pytest

from datamodules.text_made_up import MadeUpLanguage, write_made_up
from zoo.errors import ZooError


def test_topics_have_words_of_their_own():
    language = MadeUpLanguage(topics=4, words=20, function_words=10)
    words = [set(row) for row in language.content]
    assert len(set.union(*words)) == 4 * 20
    assert not set.union(*words) & set(language.function)
    rows = language.labelled(400)
    lengths = [len(text.split()) for text, _ in rows]
    assert (min(lengths), max(lengths)) == (8, 16)
    counts = Counter(topic for _, topic in rows)
    assert set(counts) == {0, 1, 2, 3}
    content = [(word in words[topic]) for text, topic in rows for word in text.split() if word not in language.function]
    assert sum(content) / len(content) == pytest.approx(0.8 + 0.2 / 4, abs=0.03)
    share = len(content) / sum(lengths)
    assert share == pytest.approx(0.5, abs=0.03)


def test_files(tmp_path):
    sizes = dict(documents=20, train=30, dev=10, transfer=25)
    text, folder, transfer = write_made_up(tmp_path / "a", **sizes)
    again = write_made_up(tmp_path / "b", **sizes)
    assert [p.read_bytes() for p in (text, transfer)] == [p.read_bytes() for p in (again[0], again[2])]
    assert text.read_bytes() != write_made_up(tmp_path / "c", **sizes, seed=1)[0].read_bytes()
    assert len(text.read_text(encoding="utf-8").split("\n\n")) == 20
    assert len(transfer.read_text(encoding="utf-8").splitlines()) == 25
    for part, count in (("train", 30), ("dev", 10)):
        rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert set(rows[0]) == {"text", "label"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="Cannot write"):
        write_made_up(tmp_path / "file", **sizes)
