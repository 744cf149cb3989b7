"""Reading, tokenising, packing and mixing text, and what is wrong with it."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datamodules.text import Documents, held_out, python_documents
from datamodules.text_base import corpus_tokenizer, mixture, trim_padding
from datamodules.text_corpus import tokenize_corpus
from datamodules.text_packing import PackedBlocks, PaddedPairs, electra_examples
from datamodules.text_pretraining import TextPretrainDataModule
from datamodules.text_tokenizer import train_tokenizer
from zoo.errors import ZooError
from zoo.nn.text import SpecialIds, encode_texts, load_tokenizer, pack_tokenizer

DOCS = [f"The {a} {b} sat.\nIt was {a} and {c}." for a in ("red", "big", "old", "shy") for b in ("cat", "dog", "hen")
        for c in ("sad", "glad", "loud")]  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(DOCS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCS, 300)


def test_every_format_gives_the_same_documents(tmp_path, corpus_file):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in DOCS), encoding="utf-8")
    pq.write_table(pa.table({"text": DOCS}), tmp_path / "rows.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(DOCS[:5]), encoding="utf-8")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in DOCS[5:]), encoding="utf-8")
    for source in (corpus_file, tmp_path / "rows.jsonl", tmp_path / "rows.parquet", folder):
        assert list(Documents(source)) == DOCS, source


def test_broken_documents_are_named_or_counted(tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine line\n\nbroken \xff line\n\nfine again\n")
    with pytest.raises(ZooError, match=r"bad.txt, line 3: not UTF-8 \(byte 0xff\)"):
        list(Documents(bad))
    passed = Documents(bad, on_bad_text="skip")
    assert list(passed) == ["fine line", "fine again"]
    assert passed.num_skipped == 1
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "  "}\n{oops\n', encoding="utf-8")
    with pytest.raises(ZooError, match="line 2: an empty document"):
        list(Documents(rows))
    passed = Documents(rows, on_bad_text="skip")
    assert list(passed) == ["a"]
    assert passed.num_skipped == 2
    rows.write_text('{"body": "a"}\n', encoding="utf-8")
    with pytest.raises(ZooError, match="has no field 'text' \\(it has body\\)"):
        list(Documents(rows))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ZooError, match="no text"):
        list(Documents(tmp_path / "empty.txt"))
    (tmp_path / "none").mkdir()
    for wrong, message in ((tmp_path / "none", "holds no text"), (tmp_path / "x.txt", "no text at")):
        with pytest.raises(ZooError, match=message):
            Documents(wrong)


def test_unknown_hub_id_without_network(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ZooError, match="no file or folder here, and the hub does not give it"):
        list(Documents("nobody/nothing"))


def test_python_brings_its_own_corpus():
    found = python_documents()
    assert len(found) > 3000
    assert {"topics", "asyncio", "email"} <= {package for package, _ in found}
    assert len({text for _, text in found}) == len(found)
    assert python_documents() == found


def test_tokenizer_round_trip_and_bert_vocabulary(tmp_path, tokenizer):
    again = load_tokenizer(pack_tokenizer(tokenizer))
    assert again.encode("The red cat").ids == tokenizer.encode("The red cat").ids
    special = SpecialIds.of(tokenizer)
    assert (special.pad, special.unk, special.cls, special.sep, special.mask) == (0, 1, 2, 3, 4)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    read = load_tokenizer(tmp_path / "vocab.txt")
    assert read.encode("The réd CAT sat.").ids == tokenizer.encode("The réd CAT sat.").ids
    assert special.mask not in read.encode("the [MASK] cat").ids  # what users write is text
    assert read.encode("a", "b").type_ids == [0, 0, 0, 1, 1]
    bpe = train_tokenizer(DOCS, 400, "bpe")
    assert bpe.decode(bpe.encode("The red cat").ids) == "The red cat"
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "no.json", tmp_path / "empty", "zlib:abc"):
        with pytest.raises(ZooError):
            load_tokenizer(wrong)
    with pytest.raises(ZooError, match="at least 300"):
        train_tokenizer(DOCS, 10)


def test_corpus_is_found_again_and_follows_its_content(corpus_file, tokenizer):
    corpus = tokenize_corpus(Documents(corpus_file), tokenizer)
    assert len(corpus) == len(DOCS)
    assert corpus.ids.dtype == np.uint16
    for index in (0, 7, len(DOCS) - 1):
        lines = [tokenizer.encode(line, add_special_tokens=False).ids for line in DOCS[index].split("\n")]
        assert [line.tolist() for line in corpus.document(index)] == lines
    assert corpus.counts.sum() == len(corpus.ids)
    stamp = (corpus.folder / "ids.bin").stat().st_mtime_ns
    again = tokenize_corpus(Documents(corpus_file), tokenizer)
    assert again.folder == corpus.folder
    assert (again.folder / "ids.bin").stat().st_mtime_ns == stamp
    corpus_file.write_text("\n\n".join(DOCS[1:]), encoding="utf-8")
    assert tokenize_corpus(Documents(corpus_file), tokenizer).folder != corpus.folder
    assert tokenize_corpus(Documents(corpus_file), train_tokenizer(DOCS, 310)).folder != corpus.folder


def test_lines_are_encoded_as_the_tokenizer_does_it():
    from datamodules.text_encoding import LineEncoder

    draws = random.Random(0)
    special = [0x300, 0x301, 0x2028, 0x3000, 0x4E2D, 0xFFFD, 0x200B, 0xFEFF, 0x1F600, 0xE000, 0x85, 0xA0]
    pool = [chr(i) for i in [*range(0x250), *special]] + ["word ", "[MASK]", "##ing ", "é", "don't"]
    lines = [
        "".join(draws.choice(pool if draws.random() < 0.5 else ["a", "b ", " "]) for _ in range(draws.randint(0, 60)))
        for _ in range(500)
    ]
    for kind in ("wordpiece", "bpe"):
        # As from a file: text that spells a special token is text.
        tokenizer = load_tokenizer(pack_tokenizer(train_tokenizer([*DOCS, *lines], 600, kind)))
        encode = LineEncoder(tokenizer)
        assert encode.by_chunk == (kind == "wordpiece")
        for part in (lines[:300], lines):  # the second time many chunks are known
            wanted = [e.ids for e in tokenizer.encode_batch_fast(part, add_special_tokens=False)]
            assert encode(part) == wanted
        assert (encode.mark is not None) == encode.by_chunk
        plain = [line.replace("|", " ") for line in lines]  # nothing in the way of tokenising many chunks in one go
        wanted = [e.ids for e in tokenizer.encode_batch_fast(plain, add_special_tokens=False)]
        assert LineEncoder(tokenizer)(plain) == wanted


def test_python_docs_with_packages():
    found = python_documents(packages=("numpy",))
    assert {package for package, _ in found} > {"topics", "numpy"}
    assert Documents("python-docs:numpy").content_key != Documents("python-docs").content_key
    with pytest.raises(ZooError, match="no installed package 'nosuchpackage'"):
        Documents("python-docs:nosuchpackage")


def test_held_out_documents_are_another_part(corpus_file, tokenizer):
    train = tokenize_corpus(Documents(corpus_file), tokenizer, held_out_share=0.3, part="train")
    val = tokenize_corpus(Documents(corpus_file), tokenizer, held_out_share=0.3, part="val")
    assert len(train) + len(val) == len(DOCS)
    assert len(val) == sum(held_out(i, 0.3) for i in range(len(DOCS))) > 0


def test_packing_wastes_nothing(corpus_file, tokenizer):
    corpus, special = tokenize_corpus(Documents(corpus_file), tokenizer), SpecialIds.of(tokenizer)
    blocks = PackedBlocks(corpus, 16, special)
    inner = np.concatenate([blocks[i]["input_ids"][1:-1] for i in range(len(blocks))])
    assert np.array_equal(inner, corpus.ids[: len(inner)])
    assert len(corpus.ids) - len(inner) < 14
    assert all(block[0] == special.cls and block[-1] == special.sep for block in (blocks[0]["input_ids"],))
    with pytest.raises(ZooError, match="too few for one block"):
        PackedBlocks(corpus, 10**6, special)


def test_builder_keeps_within_its_length():
    generator = random.Random(3)
    lines = [[generator.randrange(5, 90) for _ in range(generator.randrange(0, 40))] for _ in range(400)]
    for length in (16, 64):
        data = PaddedPairs(electra_examples([*lines, []], length, random.Random(0)), length, SpecialIds())
        for index in range(len(data)):
            item = data[index]
            used = int(item["attention_mask"].sum())
            assert 2 <= used <= length
            assert (item["input_ids"][used:] == 0).all()


def test_mixture_takes_each_corpus_by_its_weight():
    a, b = list(range(10)), list(range(100, 104))
    data = mixture([a, b], [1.0, 2.5])
    values = [data[i] for i in range(len(data))]
    assert values[:10] == a
    counts = [values.count(value) for value in b]
    assert sum(counts) == 10
    assert set(counts) == {2, 3}
    assert len(mixture([a], [0.5])) == 5
    with pytest.raises(ZooError, match="weight above 0"):
        mixture([a], [0.0])


def test_trimming_drops_padding_only():
    mask = torch.tensor([[1] * 9 + [0] * 23, [1] * 3 + [0] * 29])
    batch = {"input_ids": torch.ones(2, 32), "attention_mask": mask, "label": torch.zeros(2)}
    cut = trim_padding(batch)
    assert cut["input_ids"].shape == (2, 16)
    assert cut["label"].shape == (2,)
    assert cut["attention_mask"].sum() == mask.sum()


def test_encode_texts_and_its_errors(tmp_path, tokenizer):
    batch = encode_texts(tokenizer, ["The red cat sat.", ("a", "b")], 8)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"][0, int(batch["attention_mask"][0].sum()) - 1] == 3  # the closing [SEP] survives the cut
    (tmp_path / "t.txt").write_text("The old hen")
    assert torch.equal(
        encode_texts(tokenizer, tmp_path / "t.txt", 16)["input_ids"],
        encode_texts(tokenizer, "The old hen", 16)["input_ids"],
    )
    (tmp_path / "noise.bin").write_bytes(b"\x80\xff\x00")
    for wrong in (None, object(), [], "  ", 3, tmp_path / "no.txt", tmp_path / "noise.bin"):
        with pytest.raises(ZooError):
            encode_texts(tokenizer, wrong, 16)


@pytest.mark.parametrize("examples", ["packed", "electra", "bert"])
def test_data_module_gives_the_same_batches_again(corpus_file, examples):
    def batches():
        torch.manual_seed(0)
        data = TextPretrainDataModule(
            str(corpus_file), vocab_size=300, max_length=24, examples=examples, batch_size=4, num_workers=0,
            val_fraction=0.3,
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        return list(data.train_dataloader())

    first, again = batches(), batches()
    assert len(first) == len(again) > 1
    for a, b in zip(first, again, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    if examples == "bert":
        assert set(torch.cat([b["next_sentence_label"] for b in first]).tolist()) == {0, 1}


def test_one_tokenizer_for_the_whole_mixture(tmp_path, corpus_file):
    other = tmp_path / "other.txt"
    other.write_text("zebra quagga\n" * 30, encoding="utf-8")
    parts = [Documents(corpus_file), Documents(other)]
    made = corpus_tokenizer(parts, None, 320)
    assert made.token_to_id("[UNK]") not in made.encode("zebra red").ids
    assert corpus_tokenizer(parts, None, 320).to_str() == made.to_str()
