"""The made-up language."""

import json
from collections import Counter

import pytest

from datamodules.text_made_up import MadeUpLanguage, write_made_up
from zoo.errors import ZooError


def test_topics_have_words_of_their_own():
    language = MadeUpLanguage(topics=4, words=20, function_words=10, own=0.8)
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


def test_pairs_are_about_the_same_topic_or_another():
    language = MadeUpLanguage(topics=3, words=10, function_words=5, own=1.0)
    topic = {word: at for at, row in enumerate(language.content) for word in row}
    rows = language.pairs(300)
    found = [[{topic[word] for word in text.split() if word in topic} for text in (a, b)] for a, b, _ in rows]
    assert all(len(a) <= 1 and len(b) <= 1 for a, b in found)
    assert all((a == b) == same for (a, b), (_, _, same) in zip(found, rows, strict=True) if a and b)
    assert sum(same for _, _, same in rows) / 300 == pytest.approx(0.5, abs=0.1)


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
        assert set(rows[0]) == {"text", "pair", "label"}
        assert {row["label"] for row in rows} == {"same", "another"}
    assert all(line.count("\t") == 1 for line in transfer.read_text(encoding="utf-8").splitlines())
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="Cannot write"):
        write_made_up(tmp_path / "file", **sizes)
