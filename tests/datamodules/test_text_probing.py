"""Bigram shift from held-out text, and the made-up language as a corpus."""

from collections import Counter

import pytest

from datamodules.text import Documents, held_out
from datamodules.text_made_up import labelled_topics, write_made_up
from datamodules.text_pretraining import TextPretrainDataModule
from datamodules.text_probing import bigram_shift, held_out_bigram_shift, held_out_sentences, plain_sentences
from zoo.errors import ZooError

SENTENCE = "The number {} of this text is a plain one."
NAMES = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def test_sentences_that_are_words_only():
    text = (
        "Return the first element\nof a list. x = f(1) is code here.\nToo short. lower case starts no sentence.\n"
        "A second one, with a comma, stays.\nThis one has the number 4 in it. Nor does one without its end count"
    )
    assert list(plain_sentences(text)) == ["Return the first element of a list.", "A second one, with a comma, stays."]


def _key(sentence):
    """The same for every order of its words."""
    return tuple(sorted(sentence[:-1].split()))


def test_two_words_are_swapped_in_half_of_them():
    sentences = [SENTENCE.format(name) for name in NAMES]
    rows = bigram_shift(sentences)
    assert Counter(label for _, label in rows) == {0: len(NAMES) // 2, 1: len(NAMES) // 2}
    known, places = {_key(sentence): sentence for sentence in sentences}, Counter()
    for shifted, label in rows:
        assert shifted.endswith(".")
        words, original = (text[:-1].split() for text in (shifted, known[_key(shifted)]))
        differ = [at for at, pair in enumerate(zip(words, original, strict=True)) if pair[0] != pair[1]]
        assert len(differ) == 2 * label
        if label:
            first, second = differ
            assert second == first + 1
            assert (words[first], words[second]) == (original[second], original[first])
            places[first] += 1
    assert min(places) == 1  # the capital stays
    assert len(places) == 8  # every other pair of neighbours is swapped now and then
    assert rows == bigram_shift(sentences)
    assert rows != bigram_shift(sentences, seed=1)


def test_nothing_to_swap_nothing_given():
    assert bigram_shift(["Say, one, two, three, four, five."]) == []
    assert bigram_shift(["The the the the the the."]) == []


def test_held_out_sentences_are_in_no_training_document(tmp_path):
    file = tmp_path / "text.txt"
    documents = [SENTENCE.format(name) for name in NAMES] + ["Every document here ends with these same words."] * 5
    documents = [f"{text}\nThe same line is in all of them too." for text in documents]
    file.write_text("\n\n".join(documents), encoding="utf-8")
    parts = [Documents(file)]
    found = held_out_sentences(parts, 0.5)
    wanted = {SENTENCE.format(name) for index, name in enumerate(NAMES) if held_out(index, 0.5)}
    assert set(found) == wanted
    train, test = held_out_bigram_shift(parts, 0.5)
    assert len(train) + len(test) == len(wanted)
    assert len(test) == pytest.approx(len(wanted) / 3, abs=1)
    with pytest.raises(ZooError, match="too few for bigram shift"):
        held_out_bigram_shift(parts, 0.01)
    data = TextPretrainDataModule(
        str(file), vocab_size=300, max_length=16, val_fraction=0.5, batch_size=8, num_workers=0
    )
    loaders = data.labelled_dataloaders("bigram_shift")
    assert [len(loader.dataset) for loader in loaders] == [len(train), len(test)]
    batch, labels = next(iter(loaders[0]))
    assert len(batch["input_ids"]) == 8
    assert labels.tolist() == [label for _, label in train[:8]]
    for task in (None, "package", "topic", "nonsense"):
        with pytest.raises(ZooError, match="Label"):
            data.labelled_dataloaders(task)


def test_the_made_up_language_is_a_corpus(tmp_path):
    text, _, _ = write_made_up(tmp_path, train=1, dev=1, transfer=1)
    assert list(Documents("made-up")) == list(Documents(text))
    train, held = labelled_topics(30, 90)
    assert (len(train), len(held)) == (30, 90)
    assert {topic for _, topic in held} == set(range(6))
    assert not {sentence for sentence, _ in held} & set(text.read_text(encoding="utf-8").split("\n"))
