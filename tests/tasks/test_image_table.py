"""Labels and numbers of pictures: the table, the scores, learning from the starter, prediction."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from datamodules.image_table import ImageTableDataModule
from zoo.cli.app import main
from zoo.cli.run import main as lightning
from zoo.errors import ZooError
from zoo.starters import write_starter
from zoo.tasks import ImageClassification
from zoo.tasks.column_outcomes import LabelOutcome, NumbersOutcome, Ranking
from zoo.tasks.image_targets import LabelTargets, NumberTargets
from zoo.tasks.outcomes import intervals


def picture(rng: np.random.Generator, red: int, lines: int, bright: int) -> Image.Image:
    """Dark noise; a red corner, vertical lines, and a bright square of a side that varies."""
    pixels = rng.integers(0, 50, (24, 24, 3))
    if red:
        pixels[:8, :8, 0] = 240
    if lines:
        pixels[12:, ::3, 1] = 230
    pixels[10 : 10 + bright, 12 : 12 + bright, 2] = 250
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """80 pictures; labels.csv says red and lines, numbers.csv the square's side and its area."""
    root = tmp_path_factory.mktemp("table")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    labels, numbers = [], []
    for n in range(80):
        red, lines, side = rng.integers(0, 2), int(rng.random() < 0.3), rng.integers(1, 12)
        picture(rng, red, lines, side).save(root / f"images/{n}.png")
        labels.append([f"{n}.png", red, "" if n % 10 == 0 else lines, n // 2])
        numbers.append([f"images/{n}.png", 0.5 * side, "" if n == 3 else side**2])
    for name, header, rows in (
        ("labels.csv", ["file", "red", "lines", "patient"], labels),
        ("numbers.csv", ["file", "side", "area"], numbers),
    ):
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return root


def data(root, **changes) -> ImageTableDataModule:
    return ImageTableDataModule(str(root), **{"image_size": 16, "batch_size": 8, "num_workers": 0, **changes})


# ---------------------------------------------------------------------- scores


def test_scores_of_labels_are_those_of_the_libraries():
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
    from torchmetrics.functional.classification import multilabel_average_precision

    rng = np.random.default_rng(0)
    target = (rng.random((60, 3)) < [0.5, 0.2, 0.1]).astype(float)
    score = (rng.random((60, 3)) + 0.6 * target).round(1) / 2  # many are equal
    target[:7, 1] = np.nan
    average, area = Ranking(target, score).scores(np.ones(60))
    for k in range(3):
        known = np.isfinite(target[:, k])
        assert average[k] == pytest.approx(average_precision_score(target[known, k], score[known, k]))
        assert area[k] == pytest.approx(roc_auc_score(target[known, k], score[known, k]))
    outcome = LabelOutcome(60, "mAP", [], True, target, score, ["a", "b", "c"])
    found = outcome.scores(np.arange(60))
    theirs = multilabel_average_precision(
        torch.tensor(score), torch.tensor(target).nan_to_num(-1).long(), 3, average="macro", ignore_index=-1
    )
    assert found["mAP"] == pytest.approx(float(theirs))
    assert found["F1 a"] == pytest.approx(f1_score(target[:, 0], score[:, 0] >= 0.5))
    index = rng.integers(0, 60, 60)
    again = outcome.scores(index)  # repetitions count as often
    known = np.isfinite(target[index, 1])
    assert again["AP b"] == pytest.approx(average_precision_score(target[index][known, 1], score[index][known, 1]))
    spread = intervals(outcome, rounds=60)["mAP"]
    assert spread.low < found["mAP"] < spread.high
    limit = outcome.thresholds()["a"]
    best = max(f1_score(target[:, 0], score[:, 0] >= t) for t in np.unique(score[:, 0]))
    assert f1_score(target[:, 0], score[:, 0] >= limit) == pytest.approx(best)
    assert set(outcome.figures()) == {"labels"}
    alone = LabelOutcome(3, "mAP", [], True, np.zeros((3, 1)), np.full((3, 1), 0.2), ["none"])
    assert np.isnan(alone.scores(np.arange(3))["mAP"])
    assert alone.thresholds() == {"none": 0.5}


def test_numbers_of_several_columns():
    x = np.linspace(0, 1, 20)
    target = np.stack([x, x], 1)
    target[0, 1] = np.nan
    found = NumbersOutcome.of(target, np.stack([x, -x], 1), ["up", "down"]).scores(np.arange(20))
    assert found["Spearman up"] == pytest.approx(1)
    assert found["Spearman down"] == pytest.approx(-1)
    assert found["mean Spearman"] == pytest.approx(0)
    assert NumbersOutcome.of(x[:, None], x[:, None], ["x"]).headline == "Spearman"


def test_losses_pass_over_what_is_not_known():
    logits, target = torch.randn(4, 2), torch.tensor([[1.0, 0], [0, float("nan")], [1, 1], [0, 0]])
    aim = LabelTargets(2)
    known = target.isfinite()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], target[known])
    torch.testing.assert_close(aim.loss(logits, target), wanted)
    aim.learn(None, [3.0, 1.0])
    assert aim.loss(logits, target) > wanted
    with pytest.raises(ZooError, match="has 1 numbers; there are 2 labels"):
        aim.learn(None, [1.0])
    numbers = NumberTargets(2)
    numbers.shift.copy_(torch.tensor([10.0, 0]))
    assert torch.isfinite(numbers.loss(logits, target))
    torch.testing.assert_close(numbers.read(logits)[:, 0], logits[:, 0] + 10)


# ---------------------------------------------------------------------- the table


def test_groups_folds_and_statistics(pictures):
    module = data(pictures, group_column="patient")
    module.setup()
    assert module.classes == ["red", "lines"]
    sides = [{n // 2 for n in _numbers(part)} for part in (module.train_data, module.val_data)]
    assert not sides[0] & sides[1]
    assert len(module.train_data) + len(module.val_data) == 80
    images, targets = next(iter(module.train_dataloader()))
    assert (images.dtype, targets.dtype, targets.shape) == (torch.uint8, torch.float32, (8, 2))
    assert sum(module.label_counts()[0]) == len(module.train_data)
    held = []
    for fold in range(4):
        part = data(pictures, folds=4, fold=fold, columns=["red", "lines"])
        part.setup()
        held += _numbers(part.val_data)
    assert sorted(held) == list(range(80))
    mean, spread = data(pictures, table="numbers.csv", targets="numbers").target_statistics()
    assert mean.shape == spread.shape == (2,)
    assert np.isfinite(mean).all()


def _numbers(part) -> list[int]:
    return [int(name.rsplit("/", 1)[1].removesuffix(".png")) for name in part.names]


def table(folder, text: str, name: str = "labels.csv"):
    for n in range(6):
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / f"{n}.png")
    (folder / name).write_text(text)
    return folder


def test_named_labels_and_a_split(tmp_path):
    rows = "".join(f"{n}.png,{'a; b' if n % 2 else ''},{'val' if n > 3 else 'train'}\n" for n in range(6))
    module = data(table(tmp_path, "file,labels,split\n" + rows))
    module.setup()
    assert module.classes == ["a", "b"]
    assert (len(module.train_data), len(module.val_data)) == (4, 2)
    assert module.values().tolist() == [[0, 0], [1, 1]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,a\n0.png,2\n", "line 2, a: a label is 0 or 1"),
        ("picture,a\n0.png,1\n", "no column 'file'; it has picture, a"),
        ("file,a\n9.png,1\n0.png,0\n", r"1 of 2 files .* do not exist, the first .*9.png \(line 2\)"),
        ("file,a,split\n0.png,1,tain\n", "line 2: split is train or val, not 'tain'"),
        ("file,a\n", "0 rows"),
        ("file,labels\n0.png,\n1.png,\n", "names no label"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, text, message):
    with pytest.raises(ZooError, match=message):
        data(table(tmp_path, text)).setup()


def test_the_check_counts_labels(pictures, tmp_path):
    found = data(pictures, group_column="patient").audit()
    title, _, rows = found.tables[0]
    assert title == "2 labels: pictures that have them"
    assert [row[0] for row in rows] == ["red", "lines"]
    assert rows[1][-1] == 8  # not known
    assert "pictures without any label" in found.facts
    assert not found.problems
    folder = table(tmp_path, "file,a,b\n" + "".join(f"{n}.png,0,{n % 2}\n" for n in range(5)))
    found = data(folder).audit()
    assert any("no training pictures with a" in text for text in found.problems)
    assert any("1 pictures in" in text and "5.png" in text for text in found.warnings)
    numbers = data(pictures, table="numbers.csv", targets="numbers").audit()
    assert numbers.tables[0][2][0][0] == "side"
    with pytest.raises(ZooError, match="no number"):
        data(table(tmp_path, "file,x\n0.png,many\n"), targets="numbers").setup()


# ---------------------------------------------------------------------- from the starter to predictions

SMALL = ["--data.image_size", "16", "--data.num_workers", "0", "--data.batch_size", "8", "--data.train_augment", "none",
         "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
         "--trainer.check_val_every_n_epoch", "12", "--trainer.max_epochs", "12"]  # fmt: skip


def test_labels_are_learned_reported_and_predicted(pictures, tmp_path, capsys):
    recipe, _ = write_starter("image-multilabel", "droppos-vit-digits", tmp_path / "task", data=pictures)
    run = tmp_path / "run"
    lightning(["run", str(recipe), "--run-dir", str(run), *SMALL, "--model.lr", "2e-3", "--model.warmup_epochs", "1",
               "--data.columns", "[red,lines]", "--model.class_weights", "balanced"])  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    assert report["headline"] == "mAP"
    assert report["metrics"]["mAP"]["value"] > 0.75
    assert set(report["thresholds"]) == {"red", "lines"}
    assert "AUROC red" in (run / "report.html").read_text()
    loaded = zoo.load(run)
    assert (loaded.targets, loaded.class_names()) == ("labels", ["red", "lines"])
    out = tmp_path / "out.csv"
    main(["predict", str(run), str(pictures / "images"), "-o", str(out), "--threshold", "best"])
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0]) == ["file", "labels", "red", "lines"]
    wanted = {row["sample"]: row for row in csv.DictReader((run / "held_out.csv").open())}
    for row in rows:
        if row["file"] in wanted:
            assert float(row["red"]) == pytest.approx(float(wanted[row["file"]]["red"]), abs=2e-4)
        there = {name for name in ("red", "lines") if float(row[name]) >= report["thresholds"][name]}
        assert {name for name in row["labels"].split(";") if name} == there
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(pictures / "images"), "-o", str(tmp_path / "b.csv"), "--threshold", "high"])
    assert "--threshold is a number" in capsys.readouterr().err


def test_numbers_are_learned_by_a_resnet_of_faces(pictures, tmp_path):
    recipe, _ = write_starter("image-regression", "face-swav-drawn", tmp_path / "task", data=pictures)
    run = tmp_path / "run"
    lightning(["run", str(recipe), "--run-dir", str(run), *SMALL, "--model.lr", "1e-2", "--data.columns", "[side]"])
    report = json.loads((run / "report.json").read_text())
    assert report["metrics"]["Spearman"]["value"] > 0.5
    main(["predict", str(run), str(pictures / "images"), "-o", str(tmp_path / "out.csv")])
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert list(rows[0]) == ["file", "side"]
    sides = {
        row["file"].rsplit("/", 1)[1]: float(row["side"]) for row in csv.DictReader((pictures / "numbers.csv").open())
    }
    pairs = np.array([[float(row["side"]), sides[row["file"].rsplit("/", 1)[1]]] for row in rows])
    assert np.abs(pairs[:, 0] - pairs[:, 1]).mean() < np.abs(pairs[:, 1] - pairs[:, 1].mean()).mean()


def test_labels_can_be_mixed_and_must_agree(pictures):
    from lightning import Trainer

    def trainer():
        return Trainer(max_epochs=1, accelerator="cpu", barebones=True, limit_train_batches=2)

    model = ImageClassification("droppos-vit-digits", mixup=0.8, lr=1e-3, warmup_epochs=0, image_size=16)
    trainer().fit(model, data(pictures, columns=["red", "lines"]))
    assert model.targets == "labels"
    with pytest.raises(ZooError, match="The data gives labels, the model wants numbers"):
        trainer().fit(
            ImageClassification("droppos-vit-digits", targets="numbers", image_size=16),
            data(pictures, group_column="patient"),
        )
