"""The report of a fine-tuning run, cross-validation, prediction on files, and files for elsewhere."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from datamodules.folds import held_out_by_fold
from datamodules.image_classification import ImageClassificationDataModule
from zoo.cli.app import main as zoo_main
from zoo.cli.run import main as run_main
from zoo.errors import ZooError
from zoo.starters import write_starter
from zoo.tasks.outcomes import ClassOutcome, NumberOutcome, SampleOutcome, intervals

SMALL = [
    "--data.root", "digits", "--data.num_workers", "0", "--data.batch_size", "64", "--trainer.accelerator", "cpu",
    "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "8", "--trainer.enable_progress_bar", "false",
    "--model.warmup_epochs", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starter")
    return write_starter("image-classification", "droppos-vit-digits", folder)[0]


@pytest.fixture(scope="module")
def run(recipe):
    folder = recipe.parent / "run"
    run_main(["run", str(recipe), *SMALL, "--run-dir", str(folder)])
    return folder


def test_the_report_is_one_file_with_everything(run):
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("data:image/png;base64,") >= 3, "confusion, calibration, curves"
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "nothing outside the file"
    for words in ("accuracy", "ECE", "95% interval", "config.yaml", "image_size: 16", "10 classes"):
        assert words in page, words


def test_the_numbers_are_those_of_the_best_epoch(run):
    found = json.loads((run / "report.json").read_text())
    assert found["checkpoint"] == "checkpoints/best.ckpt"
    assert found["headline"] == "accuracy"
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["low"] < accuracy["high"]
    logged = [float(row["val/acc1"]) for row in csv.DictReader((run / "metrics.csv").open()) if row.get("val/acc1")]
    assert accuracy["value"] == pytest.approx(max(logged), abs=1e-4)
    rows = list(csv.DictReader((run / "held_out.csv").open()))
    assert len(rows) == found["samples"]
    assert np.mean([row["true"] == row["found"] for row in rows]) == pytest.approx(accuracy["value"], abs=1e-6)


def test_the_run_loads_as_its_best_epoch(run):
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    loaded = zoo.load(run).state_dict()
    assert all(torch.equal(loaded[key], best[key]) for key in best)


def test_predictions_of_files_are_those_of_the_evaluation(run, tmp_path, capsys):
    """Same view, same classes: a held-out picture as a file gets the probabilities of the report."""
    data = ImageClassificationDataModule("digits", image_size=16, val_fraction=0.2, eval_crop_pct=1.0, num_workers=0)
    data.setup()
    for index in range(3):
        data.val_data.image(index).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stop:
        zoo_main(["predict", str(run), str(tmp_path), "-o", str(tmp_path / "out.csv")])
    assert stop.value.code == 2
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    zoo_main(["predict", str(run), str(tmp_path), "-o", str(tmp_path / "out.csv"), "--skip-bad"])
    found = list(csv.DictReader((tmp_path / "out.csv").open()))
    wanted = list(csv.DictReader((run / "held_out.csv").open()))[:3]
    assert len(found) == 3
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["label"] == theirs["found"]
        for name in "0123456789":
            assert float(mine[name]) == pytest.approx(float(theirs[name]), abs=2e-4)


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_a_file_for_elsewhere_gives_the_same_numbers(run, tmp_path, kind, suffix, capsys):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = tmp_path / f"model{suffix}"
    zoo_main(["export", str(run), "--format", kind, "-o", str(path)])
    facts = json.loads((tmp_path / f"model{suffix}.json").read_text())
    assert facts["inputs"] == {"images": ["batch", 3, 16, 16]}
    assert facts["classes"] == [str(n) for n in range(10)]
    assert facts["crop_pct"] == 1.0
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = zoo.load(run).predict_step(images, 0)
    if kind == "torch":
        found = torch.export.load(path).module()(images)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(SystemExit):
        zoo_main(["export", str(run), "--format", kind, "-o", str(path)])
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_texts_of_any_length_can_be_exported(tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    from zoo.exporting import export_model
    from zoo.tasks import TextClassification

    torch.manual_seed(0)
    model = TextClassification("electra-docs", num_classes=3, classes=["a", "b", "c"]).eval()
    path = tmp_path / f"model{'.onnx' if kind == 'onnx' else '.pt2'}"
    assert export_model(model, path, kind) < 1e-3
    facts = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert facts["inputs"]["input_ids"] == ["batch", "length"]
    ids = torch.randint(0, 2000, (1, 40), generator=torch.Generator().manual_seed(0))  # another length, no padding
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        wanted = model.classify(batch).softmax(-1)
    if kind == "torch":
        found = torch.export.load(path).module()(*batch.values())
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        known = {node.name for node in session.get_inputs()}
        feed = {name: value.numpy() for name, value in batch.items() if name in known}
        found = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_a_model_that_cannot_be_exported_is_one_line(tmp_path, capsys):
    from zoo.exporting import export_model

    with pytest.raises(ZooError, match="no plain function"):
        export_model(zoo.load("trajectory-mae-town"), tmp_path / "a.pt2", "torch")
    with pytest.raises(ZooError, match=r"writes a \.onnx file"):
        export_model(zoo.load("droppos-vit-digits"), tmp_path / "a.bin", "onnx")


def test_kfold_gives_mean_and_deviation(recipe, tmp_path, capfd):
    arguments = [
        "kfold",
        str(recipe),
        "--folds",
        "2",
        "--run-dir",
        str(tmp_path / "k"),
        *SMALL,
        "--trainer.max_epochs",
        "1",
    ]
    zoo_main(arguments)
    found = json.loads((tmp_path / "k/kfold.json").read_text())
    assert sum(found["samples"]) == 1797
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["folds"]))
    assert accuracy["sd"] == pytest.approx(np.std(accuracy["folds"], ddof=1))
    times = [path.stat().st_mtime_ns for path in (tmp_path / "k").glob("fold*/report.json")]
    zoo_main(arguments)  # both folds are done already
    assert times == [path.stat().st_mtime_ns for path in (tmp_path / "k").glob("fold*/report.json")]
    with pytest.raises(SystemExit):
        zoo_main([*arguments[:3], "3", *arguments[4:]])
    assert "of 2 folds, not of 3" in capfd.readouterr().err


# ---------------------------------------------------------------------- the parts


def test_folds_share_out_everything_and_keep_groups_whole():
    strata = ["a"] * 11 + ["b"] * 6
    masks = [held_out_by_fold(strata, 4, fold, seed=1) for fold in range(4)]
    assert np.sum(masks, axis=0).tolist() == [1] * 17
    assert {mask[11:].sum() for mask in masks} <= {1, 2}
    patients = np.repeat(np.arange(6), 3)
    for fold in range(3):
        mask = held_out_by_fold([0] * 18, 3, fold, groups=patients)
        assert all(len(set(mask[patients == patient])) == 1 for patient in range(6))
    with pytest.raises(ZooError, match="too few"):
        held_out_by_fold([0, 1], 3, 0)
    with pytest.raises(ZooError, match="fold is one of 0 to 2"):
        held_out_by_fold([0] * 9, 3, 3)


def test_scores_of_classes_against_the_libraries():
    from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    probabilities = generator.dirichlet(np.ones(3), 200)
    probabilities[np.arange(200), labels] += 0.5
    probabilities /= probabilities.sum(1, keepdims=True)
    outcome = ClassOutcome.of([(torch.tensor(labels), torch.tensor(probabilities))], ["a", "b", "c"])
    found, best = outcome.scores(np.arange(200)), probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx((best == labels).mean())
    assert found["balanced accuracy"] == pytest.approx(balanced_accuracy_score(labels, best))
    assert found["macro F1"] == pytest.approx(f1_score(labels, best, average="macro"))
    assert found["log loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 3, n_bins=15)
    assert found["ECE"] == pytest.approx(float(ece), abs=1e-6)


def test_intervals_are_as_wide_as_theory_has_it():
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.8
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    outcome = ClassOutcome.of([(torch.zeros(400, dtype=torch.long), torch.tensor(probabilities))], ["a", "b"])
    found = intervals(outcome, rounds=400)["accuracy"]
    width = 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert found.high - found.low == pytest.approx(width, rel=0.25)
    assert found.low < right.mean() < found.high
    assert intervals(outcome, rounds=0)["accuracy"].low == found.value


def test_numbers_and_samples():
    x = np.linspace(0, 1, 30)
    outcome = NumberOutcome.of([(torch.tensor(x), torch.tensor(2 * x + 0.1))])
    found = outcome.scores(np.arange(30))
    assert found["Spearman"] == pytest.approx(1)
    assert found["mean absolute error"] == pytest.approx((x + 0.1).mean())
    samples = SampleOutcome.of([{"Dice": torch.tensor([0.5, float("nan")])}, {"Dice": torch.tensor([1.0])}], "Dice")
    assert samples.scores(np.arange(3))["Dice"] == pytest.approx(0.75)
    assert np.isnan(samples.scores(np.array([1, 1]))["Dice"])
    assert intervals(samples, rounds=50)["Dice"].low >= 0.5


def test_masks_of_pictures(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    from zoo.cli.predict_files import predict_files
    from zoo.tasks import ImageSegmentation

    torch.manual_seed(0)
    model = ImageSegmentation(network="resnet18", image_size=32).eval()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "masks"
    assert predict_files(model, [tmp_path / "a.png"], out, batch_size=1, skip_bad=False, force=False, map_dir=None)
    mask = np.asarray(Image.open(out / "a_mask.png"))
    assert mask.shape == (40, 50)
    assert set(np.unique(mask)) <= {0, 255}
    with pytest.raises(ZooError, match="exists already"):
        predict_files(model, [tmp_path / "a.png"], out, batch_size=1, skip_bad=False, force=False, map_dir=None)
