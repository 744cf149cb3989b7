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
from zoo.nn.text import encode_texts
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
zoo_encode = lambda model, texts, length: encode_texts(model.tokenizer, texts, length)  # noqa: E731
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
          "--model.init_std", "0.3", "--model.vocab_size", "300", "--data.max_length", "16",
          "--model.init_positions", "normal", "--model.lr", "6e-4", "--data.builder_passes", "1"])  # fmt: skip
    main(["run", "well_read_students/finetune", "--run-dir", str(out / "teacher"), *SMALL, "--trainer.max_epochs", "12",
          "--model.backbone", str(out / "pre"), "--data.root", str(place), "--data.batch_size", "8",
          "--model.lr", "2e-3", "--model.dropout", "0"])  # fmt: skip
    main(["run", "well_read_students/distill", "--run-dir", str(out / "distilled"), *SMALL,
          "--trainer.max_epochs", "12", "--model.backbone", str(out / "pre"), "--model.teacher", str(out / "teacher"),
          "--data.root", str(place), "--data.transfer", str(place / "transfer.txt"),
          "--data.batch_size", "8", "--model.lr", "2e-3"])  # fmt: skip
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


def test_mismatched_and_official_folder_names(place, tmp_path):
    folder = tmp_path / "MNLI"
    folder.mkdir()
    rows = {"train": "neutral", "dev_matched": "entailment", "dev_mismatched": "contradiction"}
    for stem, label in rows.items():
        line = "\t".join(["0"] * 8 + ['A "cat.', "A dog.", "x", label])
        (folder / f"{stem}.tsv").write_text(f"\ufeffheader\n{line}\r\n", encoding="utf-8")
    settings = dict(tokenizer=str(place / "tokenizer.json"), batch_size=1, num_workers=0)
    for mismatched, label in ((False, 1), (True, 0)):
        data = TextClassificationDataModule(str(tmp_path), "mnli", mismatched=mismatched, **settings)
        data.setup()
        assert int(data.val_data[0]["label"]) == label
    with pytest.raises(ZooError, match="is MNLI's"):
        TextClassificationDataModule(str(tmp_path), "rte", mismatched=True, **settings)


def test_long_pairs_lose_tokens_of_the_longer_part(place):
    model = student(place)
    a, b = "good film " * 20, "bad trip"
    one = zoo_encode(model, [(a, b)], 12)
    assert one["attention_mask"].sum() == 12
    other = int(one["token_type_ids"].sum()) - 1
    assert other == len(model.tokenizer.encode(b, add_special_tokens=False).ids)
    even = zoo_encode(model, [(a, a)], 12)  # ties go to the second part
    assert (int((even["token_type_ids"] == 0).sum()) - 2, int(even["token_type_ids"].sum()) - 1) == (5, 4)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 32 tokens"):
        model.preprocess([a * 2, b])


SUBMITTED = {
    "cola": ("CoLA", "0\tA cat.", 1),
    "sst": ("SST-2", "0\tA cat.", 1),
    "mrpc": ("MRPC", "0\t1\t2\tA cat.\tA dog.", 1),
    "qqp": ("QQP", "0\tA cat?\tA dog?", 1),
    "sts": ("STS-B", "0\tx\tA cat.\tA dog.", 1),
    "mnli": ("MNLI", "\t".join(["0"] * 8 + ["A cat.", "A dog."]), 3),
    "qnli": ("QNLI", "0\tWho?\tA dog.", 1),
    "rte": ("RTE", "0\tA cat.\tA dog.", 1),
    "wnli": ("WNLI", "0\tA cat.\tA dog.", 1),
}


@pytest.mark.parametrize("task", SUBMITTED)
def test_submission_files(task, place, tmp_path):
    from datamodules.text_glue import GLUE, glue_test_sets
    from zoo.cli.predict_text import glue

    name, line, count = SUBMITTED[task]
    folder = tmp_path / name
    folder.mkdir()
    for stem, *_ in GLUE[task].test:
        (folder / f"{stem}.tsv").write_text(f"header\n{line}\n{line}\n", encoding="utf-8")
    if task == "mnli":
        (folder / "diagnostic.tsv").write_text("header\n0\tA cat.\tA dog.\n", encoding="utf-8")
    start = {"class_path": "zoo.papers.well_read_students.CompactBert", "init_args": dict(student(place).hparams)}
    labels = GLUE[task].labels
    model = TextClassification(start, num_classes=len(labels) or 1, regression=not labels).eval()
    glue(model, tmp_path, tmp_path / "out", task, 32, 4, False)
    written = sorted(path.stem for path in (tmp_path / "out").iterdir())
    assert written == sorted(found for *_, found in GLUE[task].test)
    assert len(written) == count
    lines = (tmp_path / "out" / f"{written[-1]}.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction"
    assert [row.split("\t")[0] for row in lines[1:]] == ["0", "1"][: len(lines) - 1]
    value = lines[1].split("\t")[1]
    assert value in labels if labels else 0 <= float(value) <= 5
    with pytest.raises(ZooError, match="exists already"):
        glue(model, tmp_path, tmp_path / "out", task, 32, 4, False)
    texts = glue_test_sets(tmp_path, task)[GLUE[task].test[0][3]]
    assert all(isinstance(text, tuple) == (task not in ("cola", "sst")) for text in texts)


def test_a_label_outside_the_set(place, tmp_path):
    for part in ("train", "dev"):
        last = "good" if part == "train" else "odd"
        (tmp_path / f"{part}.csv").write_text(f"text,label\na fine film,good\na dull film,bad\nan odd film,{last}\n")
    kind = {"tokenizer": str(place / "tokenizer.json")}
    with pytest.raises(ZooError, match=r"dev.csv, row 3: the label 'odd' is none of bad, good. Repair"):
        TextClassificationDataModule(str(tmp_path), **kind).setup()
    data = TextClassificationDataModule(str(tmp_path), **kind, on_bad_text="skip")
    data.setup()
    assert (len(data.val_data), data.num_skipped) == (2, 1)
    assert data.guessing_accuracy() == pytest.approx(1 / 2)


def test_positions_may_start_as_sines(place):
    table = student(place, init_positions="sinusoidal", init_std=0.1).backbone.embeddings.position_embeddings.weight
    near, far = (torch.cosine_similarity(table[:-step], table[step:]) for step in (1, 8))
    assert near.std() < 1e-3 < far.mean() < near.mean()
    assert student(place).backbone.embeddings.position_embeddings.weight.std() < 0.03


def test_a_teacher_that_learned_nothing_is_named():
    from zoo.papers.well_read_students.distillation import one_class_only

    logits = torch.zeros(100, 3)
    logits[:, 1] = 1
    assert "puts 100 of 100 transfer texts into one class, dog" in one_class_only(logits, ["cat", "dog", "fish"])
    logits[:2, 0] = 2
    assert one_class_only(logits) is not None
    logits[:3, 0] = 2
    assert one_class_only(logits) is None


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


def test_official_file_loads_by_name(tmp_path, place, monkeypatch):
    """A stand-in for the hub's file: transformers' keys, with old gamma and beta names and heads that are left out."""
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(vocab_size=30522, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=512)  # fmt: skip
    theirs = BertForPreTraining(config).eval()
    state = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
             for key, value in theirs.state_dict().items()}  # fmt: skip
    torch.save(state | {"bert.embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "pytorch_model.bin")
    tokenizer = str(place / "tokenizer.json")
    model = zoo.load("bert_uncased_L-2_H-128_A-2", weights=tmp_path / "pytorch_model.bin", tokenizer=tokenizer)
    batch = model.preprocess(["a fine film", "a dull book and more"])
    with torch.no_grad():
        wanted = theirs.bert(**batch)
        torch.testing.assert_close(model.pooled(batch), wanted.pooler_output, rtol=0, atol=2e-5)
        real = batch["attention_mask"].bool()
        found = model.forward_tokens(batch)[real]
    torch.testing.assert_close(found, wanted.last_hidden_state[real], rtol=0, atol=2e-5)


def test_one_command_compares_the_students(tmp_path, monkeypatch, capsys):
    from zoo.cli.app import main as zoo_main

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    words = ["alpha", "beta", "gamma", "delta"]
    texts = [f"{word} {other} ." for word in words for other in words] * 3
    (tmp_path / "text.txt").write_text("\n\n".join(f"{text}\n{text}" for text in texts), encoding="utf-8")
    (tmp_path / "transfer.txt").write_text("\n".join(texts), encoding="utf-8")
    for part in ("train", "dev"):
        rows = [json.dumps({"text": text, "label": text.split()[0]}) for text in texts]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    sources = ["--text", str(tmp_path / "text.txt"), "--labelled", str(tmp_path), "--transfer",
               str(tmp_path / "transfer.txt")]  # fmt: skip
    command = ["students", "compare", str(tmp_path / "out"), *sources, "--seeds", "1", "--student", "1x32", "--teacher",
               "2x32", "--vocab-size", "300", "--max-length", "8", "--teacher-steps", "2", "--student-steps", "2",
               "--finetune-epochs", "1", "--distill-epochs", "1", "--labels", "32", "--teacher-tries", "2"]  # fmt: skip
    zoo_main(command)
    rows = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == ["teacher", "PD", "PF", "TD", "TF", "D", "F"]
    assert (tmp_path / "out" / "figures" / "comparison.png").stat().st_size > 5000
    tries = [json.loads((tmp_path / "out" / f"teacher{n}" / "stage.json").read_text(encoding="utf-8")) for n in (0, 1)]
    values = [record["value"] for record in tries]
    assert rows[0]["seeds"] == [max(values)]
    record = json.loads((tmp_path / "out" / "seed0" / "PD" / "stage.json").read_text(encoding="utf-8"))
    assert record["settings"]["model.teacher"].endswith(f"teacher{values.index(max(values))}")
    capsys.readouterr()
    zoo_main(command)  # nothing is run again
    assert "---" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        zoo_main([*command, "--lr", "1e-5"])
    assert "made with other settings" in capsys.readouterr().err
    # From a student that was pre-trained before: the teacher reads the same word pieces, nothing else is pre-trained.
    student = tmp_path / "out" / "student_pretrained"
    command[2:3] = [str(tmp_path / "again"), "--student-run", str(student)]
    zoo_main(command)
    assert not (tmp_path / "again" / "student_pretrained").exists()
    again = json.loads((tmp_path / "again" / "results.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in again] == [row["method"] for row in rows]
    assert zoo.load(tmp_path / "again" / "teacher0").tokenizer.get_vocab() == zoo.load(student).tokenizer.get_vocab()
    command[4] = str(tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        zoo_main(command)
    assert "There is no run folder" in capsys.readouterr().err


def test_quickstart_compares_from_its_own_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    asked = {}
    monkeypatch.setattr("zoo.cli.students.compare", lambda folder, **settings: asked.update(settings, folder=folder))
    tiny = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_steps", "2",
            "--trainer.val_check_interval", "2", "--model.hidden_size", "32", "--trainer.accelerator", "cpu",
            "--data.num_workers", "0", "--data.batch_size", "8"]  # fmt: skip
    run = ["run", "well_read_students/quickstart", "--run-dir", str(tmp_path / "run"), *tiny]
    main(run)
    assert (asked["folder"], asked["student_run"]) == (tmp_path / "run" / "students", tmp_path / "run")
    assert (asked["student"], asked["teacher"], asked["seeds"]) == ("2x32", "4x128", 3)
    assert (asked["vocab_size"], asked["max_length"], asked["pairs"]) == (512, 40, True)
    names = [row["name"] for row in json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))]
    assert {"masked-token accuracy", "next-sentence accuracy", "linear probe accuracy"} <= set(names)
    asked.clear()
    main([*run[:3], str(tmp_path / "none"), *tiny, "--trainer.callbacks.init_args.seeds", "0"])
    assert not asked
    (tmp_path / "mine.txt").write_text("one two three.\nfour five.\n\nsix seven.\neight.\n" * 20, encoding="utf-8")
    with pytest.raises(SystemExit):
        main([*run[:3], str(tmp_path / "own"), *tiny, "--data.root", str(tmp_path / "mine.txt")])
    assert "has labels for data.root made-up only" in capsys.readouterr().err


def test_grid_runs_the_readmes_settings_and_keeps_the_best(tmp_path, monkeypatch, capsys):
    from zoo.cli.app import main as zoo_main

    seen = []

    def stage(folder, recipe, changes, seed, metric):
        seen.append((recipe, changes["data.batch_size"], changes["model.lr"], changes["data.root"], seed))
        folder.mkdir(parents=True)
        return 1 / (1 + abs(changes["data.batch_size"] - 32)) - abs(changes["model.lr"] - 5e-5)

    monkeypatch.setattr("zoo.cli.students.run_stage", stage)
    command = ["students", "grid", str(tmp_path / "grid"), "--data.root", "texts", "--seed", "7"]
    zoo_main(command)
    assert {row[0] for row in seen} == {"well_read_students/finetune"}
    wanted = {(batch, rate) for batch in (8, 16, 32, 64, 128) for rate in (3e-4, 1e-4, 5e-5, 3e-5)}
    assert {row[1:3] for row in seen} == wanted
    assert len(seen) == 20
    assert {row[3:] for row in seen} == {("texts", 7)}
    rows = json.loads((tmp_path / "grid" / "results.json").read_text(encoding="utf-8"))
    assert (rows[0]["batch_size"], rows[0]["lr"]) == (32, 5e-5)
    assert "batch 32  lr 5e-05" in capsys.readouterr().out.splitlines()[0]
    zoo_main([*command[:2], str(tmp_path / "losses"), *command[3:], "--metric", "val/loss"])  # the lowest is best
    rows = json.loads((tmp_path / "losses" / "results.json").read_text(encoding="utf-8"))
    assert rows == sorted(rows, key=lambda row: row["val/loss"])
    for wrong, message in ((["--model.lr", "1e-3"], "is what the grid goes through"), (["oops"], "Unexpected 'oops'")):
        with pytest.raises(SystemExit) as stopped:
            zoo_main([*command, *wrong])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


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
