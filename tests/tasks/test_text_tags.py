"""Tagging words: CoNLL files, pieces of words, entity scores equal to seqeval's, and a run that learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zoo
from datamodules.text_tags import TaggedWords, TaggingDataModule, read_conll
from datamodules.text_tokenizer import train_tokenizer
from zoo.cli.app import main as zoo_main
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.nn.entities import entities, entity_scores, has_entities, to_bioes
from zoo.papers.well_read_students import CompactBert

PEOPLE, PLACES, VERBS = ["ann", "bob", "cleo", "dan"], ["rome", "paris", "oslo"], ["saw", "left", "likes"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join([*PEOPLE, *PLACES, *VERBS, "new", "the", "."])] * 20, 300)


def test_entities_as_conlleval_reads_them():
    assert entities(["B-PER", "I-PER", "O", "B-LOC"]) == [("PER", 0, 1), ("LOC", 3, 3)]
    assert entities(["I-PER", "I-PER", "B-PER", "I-LOC"]) == [("PER", 0, 1), ("PER", 2, 2), ("LOC", 3, 3)]  # IOB1
    assert entities(["B-A", "E-A", "S-A", "S-B", "I-B", "E-B"]) == [("A", 0, 1), ("A", 2, 2), ("B", 3, 3), ("B", 4, 5)]
    assert entities(["O", "O"]) == []
    assert to_bioes(["I-PER", "I-PER", "I-PER", "B-PER", "O", "B-X-Y"]) == [
        "B-PER", "I-PER", "E-PER", "S-PER", "O", "S-X-Y"]  # fmt: skip
    with pytest.raises(ValueError, match="NN"):
        to_bioes(["O", "NN"])
    assert has_entities(["O", "B-X"])
    assert not has_entities(["NN", "VB"])


def test_scores_recorded_with_seqeval():
    gold = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O", "I-PER"]
    found = ["B-PER", "I-PER", "O", "B-LOC", "O", "I-LOC", "O", "I-LOC"]
    scores = entity_scores([gold], [found])
    assert scores == {"precision": 0.25, "recall": pytest.approx(1 / 3), "f1": pytest.approx(2 / 7)}
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_scores_equal_seqeval():
    theirs = pytest.importorskip("seqeval.metrics")
    draw = np.random.default_rng(0)
    tags = ["O", *(f"{kind}-{type_}" for kind in "BIES" for type_ in ("PER", "LOC"))]
    gold = [list(draw.choice(tags, 8)) for _ in range(200)]
    found = [[tag if draw.random() < 0.7 else str(draw.choice(tags)) for tag in row] for row in gold]
    assert entity_scores(gold, found)["f1"] == pytest.approx(theirs.f1_score(gold, found))


def test_conll_files(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("-DOCSTART- -X- O O\n\nann NNP B-PER\nsaw VBD O\n\n\nrome NNP B-LOC\n", encoding="utf-8")
    assert read_conll(path) == [(["ann", "saw"], ["B-PER", "O"]), (["rome"], ["B-LOC"])]
    assert read_conll(path, tag_column=1)[0][1] == ["NNP", "VBD"]
    path.write_text("ann B-PER\nsaw\n", encoding="utf-8")
    with pytest.raises(ZooError, match="line 2: there are 1 columns"):
        read_conll(path)
    path.write_bytes(b"ann B-PER\n\xff O\n")
    with pytest.raises(ZooError, match="line 2: not UTF-8"):
        read_conll(path)


def test_first_pieces_carry_the_tag_and_long_sentences_go_on(tokenizer):
    words = ["ann", "annbob", "\u200b", "rome", "."]
    data = TaggedWords([(words, ["A", "B", "C", "D", "E"])], list("ABCDE"), tokenizer, 8, segment=1)
    assert len(data) > 1
    pieces = tokenizer.encode(["annbob"], is_pretokenized=True, add_special_tokens=False)
    assert len(pieces.ids) > 1
    first = data[0]
    assert first["tags"][1:3].tolist() == [0, 1]
    assert first["tags"][3] == -100
    assert torch.equal(first["token_type_ids"], first["attention_mask"])
    tags = [data[i]["tags"] for i in range(len(data))]
    rows = [(i, tags[i][tags[i] != -100].numpy()) for i in reversed(range(len(data)))]
    assert data.joined(rows, list("ABCDE")) == [["A", "B", "C", "D", "E"]]
    assert int(data.lengths[0]) == int(first["attention_mask"].sum())


def sentences(count, seed):
    draw = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        place = [("new", "B-LOC"), (str(draw.choice(PLACES)), "I-LOC")]
        rows = [(str(draw.choice(PEOPLE)), "B-PER"), (str(draw.choice(VERBS)), "O"), *place[int(draw.integers(2)) :]]
        lines.append("\n".join(f"{word} {tag}" for word, tag in rows))  # a lone I-LOC begins an entity too
    return "\n\n".join(lines) + "\n"


@pytest.mark.parametrize("recipe", ["electra/finetune_tagging", "well_read_students/finetune_tagging"])
def test_from_conll_to_tags(recipe, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("logging.raiseExceptions", False)
    (tmp_path / "train.txt").write_text(sentences(100, 0), encoding="utf-8")
    (tmp_path / "dev.txt").write_text(sentences(20, 1), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    torch.manual_seed(0)
    model = CompactBert(num_layers=1, hidden_size=32, num_heads=2, vocab_size=300, max_positions=32, heads="mlm",
                        dropout=0.0, tokenizer=str(tmp_path / "tokenizer.json"), init_std=0.3)  # fmt: skip
    origin = {"class_path": "zoo.papers.well_read_students.CompactBert"}
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "zoo": origin}
    checkpoint |= {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}
    torch.save(checkpoint, tmp_path / "start.ckpt")
    run = str(tmp_path / "run")
    main(["run", recipe, "--run-dir", run, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
          "--trainer.max_epochs", "10", "--model.backbone", str(tmp_path / "start.ckpt"), "--model.layer_decay", "1",
          "--model.lr", "3e-3", "--data.root", str(tmp_path), "--data.max_length", "16", "--data.batch_size", "8",
          "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"])  # fmt: skip
    out = tmp_path / "tagged.conll"
    zoo_main(["predict", run, str(tmp_path / "dev.txt"), "-o", str(out)])
    gold = [to_bioes(tags) for _, tags in read_conll(tmp_path / "dev.txt")]
    found = read_conll(out)
    assert [words for words, _ in found] == [words for words, _ in read_conll(tmp_path / "dev.txt")]
    assert entity_scores(gold, [tags for _, tags in found])["f1"] > 0.95
    tagger = zoo.load(run)
    assert tagger.tags == ["B-LOC", "E-LOC", "O", "S-LOC", "S-PER"]


def test_wrong_data_is_named(tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("ann NN\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text("ann VB\n", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = dict(tokenizer=str(tmp_path / "tokenizer.json"), num_workers=0)
    with pytest.raises(ZooError, match=r"set data\.scheme as_is"):
        TaggingDataModule(str(tmp_path), **settings).setup()
    with pytest.raises(ZooError, match="the tag 'VB', which is none of: NN"):
        TaggingDataModule(str(tmp_path), scheme="as_is", tags=["NN"], **settings).setup()
    data = TaggingDataModule(str(tmp_path), scheme="as_is", **settings)
    data.setup()
    assert data.tags == ["NN", "VB"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match=r"has no train\.txt"):
        TaggingDataModule(str(tmp_path / "empty"), **settings).setup()
