"""From pre-training to distillation through the command line, at toy size; fine-tuning rules; GLUE's files."""

from __future__ import annotations

import json

import pytest
import torch

import zoo
from datamodules.text_classification import TextClassificationDataModule
from datamodules.text_tokenizer import train_tokenizer
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.optim_text import layer_scale
from zoo.papers.well_read_students import CompactBert
from zoo.papers.well_read_students.distillation import soft_cross_entropy, teacher_predictions
from zoo.tasks import TextClassification

GOOD = ["fine", "great", "lovely", "superb"]
BAD = ["awful", "poor", "dull", "weak"]
THINGS = ["film", "book", "song", "meal", "trip", "play"]
ROWS = [
    (f"a {word} {thing}", label)
    for label, words in (("good", GOOD), ("bad", BAD))
    for word in words
    for thing in THINGS
]
SMALL = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.num_workers", "0"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "texts.txt").write_text("\n\n".join(f"{text}\nit was {text}" for text, _ in ROWS), encoding="utf-8")
    (folder / "transfer.txt").write_text("\n".join(text for text, _ in ROWS), encoding="utf-8")
    for part, rows in (("train", ROWS[::2]), ("dev", ROWS[1::2])):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer([text for text, _ in ROWS], 300)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return folder


def student(place, **changes):
    size = dict(num_layers=2, hidden_size=32, num_heads=2, vocab_size=300, max_positions=32, heads="mlm")
    return CompactBert(**{**size, "tokenizer": str(place / "tokenizer.json"), **changes})


@pytest.fixture(scope="module")
def runs(place, tmp_path_factory):
    """The three stages, each a recipe started from the checkpoint of the one before."""
    out = tmp_path_factory.mktemp("runs")
    tokenizer = str(place / "tokenizer.json")
    main(["run", "well_read_students/quickstart", "--run-dir", str(out / "pre"), *SMALL, "--trainer.max_epochs", "2",
          "--trainer.callbacks", "null", "--data.root", str(place / "texts.txt"), "--data.tokenizer", tokenizer,
          "--data.batch_size", "8", "--data.val_fraction", "0.3", "--model.hidden_size", "32",
          "--model.vocab_size", "300", "--data.max_length", "16"])  # fmt: skip
    main(["run", "well_read_students/finetune", "--run-dir", str(out / "teacher"), *SMALL, "--trainer.max_epochs", "12",
          "--model.backbone", str(out / "pre"), "--data.root", str(place), "--data.batch_size", "8",
          "--model.lr", "3e-3", "--model.dropout", "0"])  # fmt: skip
    main(["run", "well_read_students/distill", "--run-dir", str(out / "distilled"), *SMALL,
          "--trainer.max_epochs", "12", "--model.backbone", str(out / "pre"), "--model.teacher", str(out / "teacher"),
          "--data.root", str(place), "--data.transfer", str(place / "transfer.txt"),
          "--data.batch_size", "8", "--model.lr", "3e-3"])  # fmt: skip
    return out


def test_three_stages_chain_and_the_student_follows_its_teacher(runs, place):
    teacher, distilled = zoo.load(runs / "teacher"), zoo.load(runs / "distilled")
    texts = [text for text, _ in ROWS]
    with torch.no_grad():
        wanted = teacher.classify(teacher.preprocess(texts)).argmax(-1)
        found = distilled.classify(distilled.preprocess(texts)).argmax(-1)
    truth = torch.tensor([int(label == "good") for _, label in ROWS])  # classes in alphabetical order
    assert (wanted == truth).float().mean() > 0.85
    assert (found == wanted).float().mean() > 0.85
    assert not any(name.startswith("teacher") for name in distilled.state_dict())
    again = TextClassification(str(runs / "distilled"))  # step 3 goes on with the classifier
    again._build(2) if not hasattr(again, "head") else None
    assert torch.equal(again.head.dense.weight, distilled.head.dense.weight)


def test_distillation_starts_from_the_pretrained_weights(runs, place):
    pre = zoo.load(runs / "pre")
    fresh = TextClassification(str(runs / "pre"), num_classes=2)
    state = fresh.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in pre.backbone.state_dict().items())
    scratch = TextClassification(str(runs / "pre"), pretrained=False, num_classes=2).backbone.state_dict()
    key = "embeddings.word_embeddings.weight"
    assert not torch.equal(scratch[key], state[key])
    cut = TextClassification(str(runs / "pre"), truncate_layers=1, num_classes=2)
    assert len(cut.backbone.encoder.layer) == 1
    with pytest.raises(ZooError, match="truncate_layers"):
        TextClassification(str(runs / "pre"), truncate_layers=5, num_classes=2)


def test_soft_cross_entropy_by_hand():
    teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 1.0, 0.0], [3.0, 0.0, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(logits, teacher)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(loss, -(p * q.log()).sum(-1))
    loss.mean().backward()
    torch.testing.assert_close(logits.grad, (q - p).detach() / 2)
    entropy = -(p * p.log()).sum(-1)
    torch.testing.assert_close(soft_cross_entropy(teacher, teacher), entropy)


def test_teacher_is_asked_once(place, tmp_path):
    teacher = TextClassification({"class_path": "zoo.papers.well_read_students.CompactBert",
                                  "init_args": dict(student(place).hparams)}, num_classes=2).train()  # fmt: skip
    batches = [teacher.preprocess([text for text, _ in ROWS[i : i + 16]]) for i in range(0, 32, 16)]
    first = teacher_predictions(teacher, batches, folder=tmp_path)
    asked = []
    teacher.classify = lambda batch: asked.append(1)  # type: ignore[method-assign]
    assert torch.equal(teacher_predictions(teacher, batches, folder=tmp_path), first)
    assert not asked
    del teacher.classify
    teacher.head.dense.bias.data += 1
    other = teacher_predictions(teacher, batches, folder=tmp_path)
    assert not torch.equal(other, first)
    teacher_predictions(teacher, batches[:1], folder=tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_labels_of_the_transfer_set_are_never_read(place, tmp_path):
    from datamodules.well_read_students import TransferDataModule

    path = tmp_path / "with_labels.csv"
    path.write_text("text,label\na fine film,oops\na dull book,\n", encoding="utf-8")
    data = TransferDataModule(
        str(path), str(place), tokenizer=str(place / "tokenizer.json"), max_length=16, batch_size=2, num_workers=0
    )
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "index"}


def test_layer_rates():
    name = "encoder.backbone.encoder.layer.{}.output.dense.weight"
    assert layer_scale(name.format(11), 12, 0.8) == pytest.approx(0.8)
    assert layer_scale(name.format(11), 12, 0.8, official=True) == pytest.approx(0.8**2)
    assert layer_scale(name.format(0), 12, 0.8, official=True) == pytest.approx(0.8**13)
    assert layer_scale("encoder.backbone.embeddings.LayerNorm.bias", 12, 0.8, official=True) == pytest.approx(0.8**14)
    assert layer_scale("head.dense.weight", 12, 0.8, official=True) == 1.0


GLUE_LINES = {
    "cola": ("gj04\t1\t\tThe cat sat.", None, 1, False),
    "sst": ("a fine film\t1", None, 1, True),
    "mrpc": ("1\t10\t11\tThe cat sat.\tA cat sat.", "A cat sat.", 1, True),
    "qqp": ("1\t2\t3\tWho?\tWhat?\t0", "What?", 0, True),
    "sts": ("\t".join(["0"] * 7 + ["A cat.", "A dog.", "2.5"]), "A dog.", 0.5, True),
    "mnli": ("\t".join(["0"] * 8 + ["A cat.", "A dog.", "x", "neutral"]), "A dog.", 2, True),
    "qnli": ("0\tWho?\tThe cat.\tnot_entailment", "The cat.", 1, True),
    "rte": ("0\tA.\tB.\tentailment", "B.", 0, True),
    "wnli": ("0\tA.\tB.\t1", "B.", 1, True),
}


@pytest.mark.parametrize("task", GLUE_LINES)
def test_glue_files(task, place, tmp_path):
    line, pair, label, header = GLUE_LINES[task]
    folder = tmp_path / task
    folder.mkdir()
    text = ("a header\n" if header else "") + f"{line}\n{line.replace('cat', chr(34) + 'cat')}\n"
    for stem in ("train", "dev_matched" if task == "mnli" else "dev"):
        (folder / f"{stem}.tsv").write_text(text, encoding="utf-8")
    tokenizer = str(place / "tokenizer.json")
    data = TextClassificationDataModule(
        str(tmp_path), task, tokenizer=tokenizer, max_length=32, batch_size=1, num_workers=0
    )
    data.setup()
    item = data.val_data[0]
    assert float(item["label"]) == pytest.approx(label)
    assert bool(item["token_type_ids"].any()) == (pair is not None)
    assert len(data.train_data) == (4 if task in ("mrpc", "sts") else 2)
    assert data.num_classes == {"sts": 1, "mnli": 3}.get(task, 2)
    (folder / "train.tsv").write_text(text + "broken\n", encoding="utf-8")
    wrong = TextClassificationDataModule(str(tmp_path), task, tokenizer=tokenizer, batch_size=1)
    with pytest.raises(ZooError, match=r"train.tsv, line \d"):
        wrong.setup()
    passed = TextClassificationDataModule(str(tmp_path), task, tokenizer=tokenizer, batch_size=1, on_bad_text="skip")
    passed.setup()
    assert passed.num_skipped == 1


def test_a_label_outside_the_set(place, tmp_path):
    for part in ("train", "dev"):
        (tmp_path / f"{part}.csv").write_text(f"text,label\na fine film,{'good' if part == 'train' else 'odd'}\n")
    data = TextClassificationDataModule(str(tmp_path), tokenizer=str(place / "tokenizer.json"))
    with pytest.raises(ZooError, match="dev data has the label 'odd', which is none of: good"):
        data.setup()


def test_the_24_models_have_the_published_sizes():
    names = zoo.list_models("bert_uncased_*")
    assert len(names) == 24
    for name in names:
        manifest = zoo.info(name)
        with torch.device("meta"):
            model = CompactBert(**manifest.init_args)
        assert sum(p.numel() for p in model.parameters()) == manifest.parameters, name
    heads = {(2, 128): 4_433_468, (4, 256): 11_267_900, (4, 512): 29_058_876, (8, 512): 41_668_412}
    for (layers, width), count in heads.items():
        with torch.device("meta"):
            model = CompactBert(num_layers=layers, hidden_size=width)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_dynamic_masks(unit, place):
    torch.manual_seed(0)
    model = student(place, mask_unit=unit)
    batch = model.preprocess([text + " and " + text for text, _ in ROWS])
    batch["input_ids"] = batch["input_ids"].repeat(8, 1)
    batch["attention_mask"] = batch["attention_mask"].repeat(8, 1)
    del batch["token_type_ids"]
    out = model.pretraining_task(batch)
    used = out.masked.weights.bool()
    k = (batch["attention_mask"].sum(1).float() * 0.15).round().clamp(min=1)
    assert (used.sum(1) <= k).all()
    assert used.sum() > 0.7 * k.sum()
    original = batch["input_ids"].gather(1, out.masked.positions)
    assert torch.equal(original[used], out.masked.ids[used])
    now = out.masked.input_ids.gather(1, out.masked.positions)[used]
    assert (now == model.special.mask).float().mean() == pytest.approx(0.8, abs=0.06)
    changed = out.masked.input_ids != batch["input_ids"]
    chosen = torch.zeros_like(changed).scatter(1, out.masked.positions, used)
    assert not (changed & ~chosen).any()
    if unit == "word":
        continues = model._continues(batch["input_ids"].device)[batch["input_ids"]]
        broken = continues[:, 1:] & (chosen[:, 1:] != chosen[:, :-1]) & batch["attention_mask"][:, 1:].bool()
        assert not broken.any()
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
