"""Extractive question answering: windows, answers read from scores, official scoring, and a run from JSON to JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zoo
from datamodules.text_qa import SquadDataModule
from datamodules.text_squad import Question, Squad, SquadWindows, read_squad
from datamodules.text_tokenizer import train_tokenizer
from zoo.cli.app import main as zoo_main
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.papers.well_read_students import CompactBert
from zoo.tasks.spans import SpanScores, read_answers, span_scores
from zoo.tasks.squad_scores import normalize_answer, scores_v1, scores_v2, token_f1
from zoo.tasks.text_heads import EndsHead, SpanHead

WORDS = [
    "how",
    "many",
    "what",
    "colour",
    "is",
    "the",
    "red",
    "blue",
    "green",
    "cup",
    "ball",
    "hat",
    "has",
    "one",
    "two",
    "three",
    "four",
    "ann",
    "bob",
    "(",
    ")",
    ",",
    ".",
    "1895",
    "-",
    "1943",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 20, 300)


def squad_of(context, *answers, question="what is"):
    start = context.index(answers[0]) if answers else None
    return Squad([context], [Question("q", question, 0, list(answers), start, not answers)], True)


def test_windows_overlap_and_hold_the_answer(tokenizer):
    context = "ann has one red cup , bob has two blue hat ."
    windows = SquadWindows(squad_of(context, "blue hat"), tokenizer, max_length=11, doc_stride=3, train=True)
    tokens = [tokenizer.id_to_token(i) for i in windows[0]["input_ids"].tolist()]
    assert tokens == ["[CLS]", "what", "is", "[SEP]", "ann", "has", "one", "red", "cup", ",", "[SEP]"]
    assert windows[0]["token_type_ids"].tolist() == [0] * 4 + [1] * 7
    assert windows.rows.tolist() == [[0, 0, 6], [0, 3, 6], [0, 6, 6]]
    assert [(int(w["start"]), int(w["end"])) for w in (windows[i] for i in range(3))] == [(0, 0), (0, 0), (7, 8)]
    assert windows.text(2, 3, 4) == "blue hat"
    # Token 4 stands at 4 of 0..5 in the first window and at 1 of 3..8 in the second: as much context, the first wins.
    first, second = windows.place(0)[2], windows.place(1)[2]
    assert first.tolist() == [True] * 5 + [False]
    assert second.tolist() == [False, False, True, True, True, False]
    assert sum(int(windows.place(i)[2].sum()) for i in range(3)) == 12


def test_answers_are_found_within_words(tokenizer):
    windows = SquadWindows(squad_of("bob (1895-1943), ann", "1895"), tokenizer, 32, train=True)
    item = windows[0]
    assert windows.text(0, int(item["start"]) - 4, int(item["end"]) - 4) == "1895"
    bad: list[str] = []
    wrong = squad_of("ann has one cup", "one")
    wrong.questions[0].start = 0
    assert len(SquadWindows(wrong, tokenizer, 32, train=True, bad=bad.append)) == 0
    assert "is not at 0" in bad[0]
    wrong.questions[0].start = 14
    SquadWindows(wrong, tokenizer, 32, train=True, bad=bad.append)
    assert "outside" in bad[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no SQuAD file"), ('{"data": 3}', "no SQuAD file"), ('{"data": [{"paragraphs": [{}]}]}', "no context"),
     ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}', "no question"),
     ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1, "question": "b", "answers": [{}]}]}]}]}',
      "no answer_start")],
)  # fmt: skip
def test_broken_files_are_named(content, message, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ZooError, match=message):
        read_squad(path, lambda text: None)


class Places:
    """Two windows of one question: tokens 0..3 and 2..5 of a text, three tokens of question before each."""

    questions = (SimpleNamespace(id="q", answers=["c"]),)

    def __init__(self, count=2):
        self.count = count

    def __len__(self):
        return self.count

    def place(self, window):
        keep = [True, True, True, False] if window == 0 else [False, True, True, True]
        return 0, 3, np.array(keep)

    def text(self, window, first, last):
        return "abcdef"[2 * window + first : 2 * window + last + 1]


def scores_of(window, starts, ends, null):
    index, score = (np.array(column) for column in zip(*starts, strict=True))
    return SpanScores(window, index, score, np.array([[e for e, _ in row] for row in ends]),
                      np.array([[s for _, s in row] for row in ends], dtype=float), null)  # fmt: skip


def test_best_answers_by_hand():
    scores = [
        # No answers: starts at [CLS], in the question, where the context is not at its most; ends before starts.
        scores_of(0, [(0, 9.0), (4, 2.0), (6, 8.0)], [[(4, 9.0)] * 2, [(5, 1.0), (3, 7.0)], [(6, 5.0)] * 2], 3.0),
        scores_of(1, [(2, 9.0), (4, 2.5), (5, 0.5)], [[(4, 9.0)] * 2, [(4, 0.0), (6, 0.4)], [(5, 0.2)] * 2], -1.0),
    ]
    settings = dict(no_answer=True, relative_null=False, threshold=-2.75)
    answers = read_answers(Places(), scores, **settings)
    assert [(a.text, a.score) for a in answers.nbest["q"]] == [("bc", 3.0), ("def", 2.9), ("d", 2.5), ("e", 0.7)]
    assert answers.null_odds == {"q": -1.0}  # the least of the windows
    assert answers.best == {"q": ""}
    assert answers.given == {"q": "bc"}
    relative = read_answers(Places(), scores, no_answer=True, relative_null=True, threshold=0.0)
    assert relative.null_odds["q"] == pytest.approx(-1.0 - 3.0)
    assert relative.best == {"q": "bc"}
    assert read_answers(Places(), scores, **settings, max_answer_length=1).given == {"q": "d"}
    assert len(read_answers(Places(), scores, **settings, n_best=2).nbest["q"]) == 2
    none = dict(no_answer=False, relative_null=False, threshold=0.0)
    assert read_answers(Places(0), [], **none).best == {"q": "empty"}  # as officially
    assert read_answers(Places(), [], **none).best == {}  # a dry run has not come to it


def test_independent_ends_give_the_grid_of_best_ends():
    torch.manual_seed(0)
    head = EndsHead(8)
    mask = torch.ones(2, 6, dtype=torch.long)
    with torch.no_grad():
        out = head(torch.randn(2, 6, 8), mask, mask)
    first = span_scores(out, [7, 9], beam=3)[0]
    assert first.window == 7
    assert first.start_index.tolist() == out.start_logits[0].topk(3).indices.tolist()
    assert (first.end_index == out.end_logits[0].topk(3).indices.numpy()[None]).all()
    assert first.null_score == pytest.approx(float((out.start_logits + out.end_logits)[0, 0]))


def test_joint_beam_never_leaves_the_passage():
    torch.manual_seed(0)
    head = SpanHead(8, hidden=16)
    mask = torch.tensor([[1] * 7 + [0] * 2])
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        found = span_scores(head(torch.randn(1, 9, 8), mask, types, None, beam=4), [0])[0]
    assert set(found.start_index.tolist()) <= {0, 3, 4, 5, 6}
    assert np.isfinite(found.end_score).all()


# ---------------------------------------------------------------------- scoring


def asked(**answers):
    return [SimpleNamespace(id=key, answers=value) for key, value in answers.items()]


def test_official_scores_by_hand():
    assert normalize_answer("The  Cat's hat, an (old) one.") == "cats hat old one"
    assert token_f1("the red cup", "red cup of ann") == pytest.approx(2 * 0.5 * 1.0 / 1.5)
    assert token_f1("", "") == 1.0
    assert token_f1("the", "an", empty_agrees=False) == 0.0
    questions = asked(a=["the cup"], b=["red hat", "blue hat"], c=["x"])
    assert scores_v1(questions, {"a": "cup!", "b": "hat"}) == {
        "exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (1 + 2 / 3) / 3)}  # fmt: skip
    questions = asked(a=["cup"], b=[], c=["x y"], d=[])
    predictions, odds = {"a": "cup", "b": "z", "c": "x", "d": "w"}, {"a": -3.0, "b": 1.0, "c": -2.0, "d": -1.0}
    scores = scores_v2(questions, predictions, odds, threshold=-1.5)
    assert scores["exact"] == pytest.approx(75.0)
    assert scores["f1"] == pytest.approx(100 * (1 + 1 + 2 / 3 + 1) / 4)
    assert (scores["HasAns_exact"], scores["NoAns_exact"], scores["NoAns_total"]) == (50.0, 100.0, 2)
    # Answering none scores 2 of 4; answering "a" alone 3; "c" adds nothing exact, but two thirds of F1.
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (75.0, -3.0)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (pytest.approx(100 * (3 + 2 / 3) / 4), -2.0)


def test_scores_equal_torchmetrics():
    from torchmetrics.text import SQuAD

    draw = np.random.default_rng(0)
    texts = ["the red cup", "red", "a blue hat.", "hat", "two", "cup of ann", "Ann's hat"]
    questions = asked(**{f"q{i}": list(draw.choice(texts, 3)) for i in range(40)})
    predictions = {question.id: str(draw.choice(texts)) for question in questions}
    metric = SQuAD()
    metric.update(
        [{"prediction_text": text, "id": key} for key, text in predictions.items()],
        [{"answers": {"answer_start": [0] * 3, "text": q.answers}, "id": q.id} for q in questions],
    )
    theirs = {name: float(value) for name, value in metric.compute().items()}
    mine = scores_v1(questions, predictions)
    assert mine["exact_match"] == pytest.approx(theirs["exact_match"], abs=1e-4)
    assert mine["f1"] == pytest.approx(theirs["f1"], abs=1e-4)


# ---------------------------------------------------------------------- a run


def made_up(count, seed, no_answer):
    """How many, what colour: the answer is the one number or colour of the text; some texts lack a colour."""
    draw = np.random.default_rng(seed)
    paragraphs = []
    for i in range(count):
        number, colour = draw.choice(["one", "two", "three", "four"]), draw.choice(["red", "blue", "green"])
        without = no_answer and i % 3 == 0
        parts = [str(draw.choice(["ann", "bob"])), "has", number, *([] if without else [colour]),
                 str(draw.choice(["cup", "ball", "hat"]))]  # fmt: skip
        context = " ".join(["the", *parts, "."])
        qas = []
        for kind, text, word in (("n", "how many", number), ("c", "what colour", colour)):
            missing = without and kind == "c"
            answers = [] if missing else [{"text": word, "answer_start": context.index(f" {word} ") + 1}]
            qas.append({"id": f"{seed}-{i}{kind}", "question": text, "answers": answers})
            qas[-1] |= {"is_impossible": missing} if no_answer else {}
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "made up", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("squad")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    for version, no_answer in (("v1.1", False), ("v2.0", True)):
        for part, count, seed in (("train", 120, 0), ("dev", 30, 1)):
            path = folder / f"{part}-{version}.json"
            path.write_text(json.dumps(made_up(count, seed, no_answer)), encoding="utf-8")
    torch.manual_seed(0)
    model = CompactBert(num_layers=1, hidden_size=32, num_heads=2, vocab_size=300, max_positions=32, heads="mlm",
                        dropout=0.0, tokenizer=str(folder / "tokenizer.json"), init_std=0.3)  # fmt: skip
    manifest = {"name": "start", "class_path": "zoo.papers.well_read_students.CompactBert"}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "zoo": manifest,
                "pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}, folder / "start.ckpt")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("recipe", "version", "epochs", "lr"),
    [("electra/finetune_squad", "2.0", "20", "3e-3"), ("well_read_students/finetune_squad", "1.1", "40", "2e-3")],
)
def test_from_json_to_predictions(recipe, version, epochs, lr, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("logging.raiseExceptions", False)
    run = str(tmp_path / "run")
    main(["run", recipe, "--run-dir", run, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
          "--trainer.max_epochs", epochs, "--model.backbone", str(place / "start.ckpt"), "--model.layer_decay", "1",
          "--model.lr", lr, "--data.root", str(place), "--data.version", version, "--data.max_length", "16",
          "--data.batch_size", "16", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"])  # fmt: skip
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text(encoding="utf-8"))
    source = json.loads((place / f"dev-v{version}.json").read_text(encoding="utf-8"))["data"]
    wanted = {
        qa["id"]: (qa["answers"] or [{"text": ""}])[0]["text"] for p in source[0]["paragraphs"] for qa in p["qas"]
    }
    assert set(predictions) == set(wanted)
    right = np.mean([predictions[key] == answer for key, answer in wanted.items()])
    assert right > 0.9
    nbest = json.loads((tmp_path / "run" / "nbest_predictions.json").read_text(encoding="utf-8"))
    assert sum(answer["probability"] for answer in nbest["1-0n"]) == pytest.approx(1.0)
    assert (tmp_path / "run" / "null_odds.json").is_file() == (version == "2.0")
    out = tmp_path / "again" / "predictions.json"
    zoo_main(["predict", str(tmp_path / "run"), str(place / f"dev-v{version}.json"), "-o", str(out)])
    assert json.loads(out.read_text(encoding="utf-8")) == predictions
    assert f"em {100 * right:.2f}" in capsys.readouterr().out
    model = zoo.load(tmp_path / "run")
    assert model(model.preprocess(("how many", "ann has one cup ."))).shape == (1, 32)


def test_buckets_and_skipping(place, tokenizer, tmp_path):
    for part in ("train", "dev"):
        content = made_up(40, 0, False)
        content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 0
        content["data"][0]["paragraphs"][1]["context"] += " ann has . bob has ." * 2
        (tmp_path / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
    settings = dict(tokenizer=str(place / "tokenizer.json"), max_length=32, batch_size=8, num_workers=0)
    with pytest.raises(ZooError, match="is not at"):
        SquadDataModule(str(tmp_path), **settings).setup()
    data = SquadDataModule(str(tmp_path), **settings, on_bad_text="skip", bucket_by_length=True)
    data.setup()
    assert (data.num_skipped, len(data.train_data)) == (1, 79)
    batches = list(data.train_dataloader())
    assert len(batches) == 9
    widths = [int(batch["attention_mask"].sum(1).max() - batch["attention_mask"].sum(1).min()) for batch in batches]
    assert sorted(widths)[-2] <= 1  # one batch at most mixes the long ones with the others
    with pytest.raises(ZooError, match="version"):
        SquadDataModule(str(tmp_path), version="3")
    with pytest.raises(ZooError, match="has none of"):
        SquadDataModule(str(tmp_path / ".."), **settings).setup()


def test_folds_keep_the_questions_of_a_text_together(place, tokenizer):
    held = []
    for fold in range(3):
        data = SquadDataModule(str(place), tokenizer=str(place), max_length=48, doc_stride=16, folds=3, fold=fold)
        data.setup()
        sides = [{q.context for q in part.questions} for part in (data.train_data, data.val_data)]
        assert not sides[0] & sides[1]
        held += [q.id for q in data.val_data.questions]
    assert len(held) == len(set(held))
    assert {q.id for q in data.train_data.questions} < set(held)
    with pytest.raises(ZooError, match="fold is one of 0 to 2"):
        SquadDataModule(str(place), folds=3, fold=3)
