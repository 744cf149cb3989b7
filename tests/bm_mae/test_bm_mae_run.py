"""BM-MAE as a user meets it: recipes through `lightning run`, checkpoints as backbones, NIfTI in and out, survival."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import chain, combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import zoo
from datamodules.brain_cohort import write_cohort
from datamodules.brain_table import TumourTableDataModule
from datamodules.brain_tumour import TumourDataModule
from zoo.callbacks.quiet import quiet_trainer
from zoo.cli.app import main as zoo_main
from zoo.cli.run import main as run_main
from zoo.errors import ZooError
from zoo.nn.survival import concordance, discretise, kaplan_meier, logistic_hazard_nll, quantile_cuts, risk_score
from zoo.papers.bm_mae import BMMAE
from zoo.tasks import VolumeClassification, VolumeSegmentation, VolumeSurvival
from zoo.tasks.volume_segmentation import regions_to_labels

TINY = dict(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, mlp_dim=32, decoder_embed_dim=12,
            decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=16)  # fmt: skip
FAST = ["--data.num_workers", "0", "--data.image_size", "16"]


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch):
    # Lightning's log handler holds on to the stderr that the first test captured.
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("mri") / "cohort", 8, (20, 22, 18), seed=3, enhancing_share=0.5)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    torch.manual_seed(0)
    model = BMMAE(**TINY)
    path = tmp_path_factory.mktemp("pretrained") / "last.ckpt"
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def run(recipe: str, folder: Path, *args: str) -> Path:
    recipe = recipe if recipe.endswith(".yaml") else f"bm_mae/{recipe}"
    run_main(["run", recipe, "--run-dir", str(folder), *FAST, *args])
    return folder


# ---------------------------------------------------------------------- recipes


def test_quickstart_in_miniature(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    recipe = yaml.safe_load(zoo.catalog.recipe_info("bm_mae/quickstart").path.read_text())
    recipe["model"]["init_args"] |= TINY
    recipe["data"]["init_args"] |= dict(synthetic_subjects=6, synthetic_shape=[20, 20, 18], batch_size=2)
    recipe["trainer"]["max_epochs"] = 1
    recipe["trainer"]["callbacks"][-1]["init_args"] = dict(label_subjects=2, label_epochs=1)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    out = run(str(tmp_path / "small.yaml"), tmp_path / "run")
    rows = json.loads((out / "results.json").read_text())
    assert {row["baseline_name"] for row in rows} == {
        "mean of the training subjects", "no cross-modal tokens", "from scratch"
    }  # fmt: skip
    assert all(np.isfinite(row["value"]) for row in rows if "MSE" in row["name"])
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"masked", "withheld"}
    model = zoo.load(out)
    assert isinstance(model, BMMAE)
    shown = capsys.readouterr().out
    assert "withheld t1: MSE" in shown
    assert "6 of 6 patients" in shown


def test_segmentation_of_a_subset_and_its_masks(tmp_path, cohort, pretrained, capsys):
    out = run("finetune_segmentation", tmp_path / "run", "--data.root", str(cohort), "--model.backbone", pretrained,
              "--model.modalities", "[t2,t1ce]", "--trainer.max_epochs", "1",
              "--trainer.check_val_every_n_epoch", "1")  # fmt: skip
    header, *values = (out / "metrics.csv").read_text().splitlines()
    for column in ("val/dice_tc", "val/dice_wt", "val/dice_et", "val/hd95_wt"):
        index = header.split(",").index(column)
        assert any(line.split(",")[index] for line in values), column
    assert (out / "figures" / "segmentation.png").is_file()
    model = zoo.load(out)
    assert isinstance(model, VolumeSegmentation)
    assert model.modalities == ["t1ce", "t2"]
    zoo_main(["segment", str(out), str(cohort / "BraTS2021_00001"), "-o", str(tmp_path / "masks")])
    written = nib.load(tmp_path / "masks" / "BraTS2021_00001_seg.nii.gz")
    source = nib.load(cohort / "BraTS2021_00001" / "BraTS2021_00001_t1ce.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine)
    assert written.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(written.dataobj))) <= {0, 1, 2, 4}
    with pytest.raises(SystemExit) as stop:
        zoo_main(["segment", str(out), str(cohort / "BraTS2021_00001"), "-o", str(tmp_path / "masks")])
    assert stop.value.code == 2
    assert "exists already" in capsys.readouterr().err


SUBSETS = list(chain.from_iterable(combinations(("t1", "t1ce", "t2", "flair"), count) for count in range(1, 5)))


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_every_subset_is_fine_tuned_from_one_checkpoint(subset, cohort, pretrained):
    """All three tasks; the data follows the model, whatever the order in which the sequences are named."""
    named, few = list(reversed(subset)), dict(image_size=16, num_workers=0, batch_size=2, augment=False)
    table = dict(table=str(cohort / "subjects.csv"), folds=2) | few
    jobs = [
        (VolumeSegmentation(pretrained, named, inference="crop", hd95="never"),
         TumourDataModule(str(cohort), segmentation=True, val_fraction=0.3, **few), (3, 16, 16, 16)),
        (VolumeClassification(pretrained, named), TumourTableDataModule(str(cohort), label="IDH", **table), ()),
        (VolumeSurvival(pretrained, named, bins=3),
         TumourTableDataModule(str(cohort), time="time", event="event", bins=3, **table), (3,)),
    ]  # fmt: skip
    for task, data, shape in jobs:
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, accelerator="cpu")
        trainer.fit(task, data)
        assert task.modalities == list(data.rules.modalities) == list(subset)
        moved = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
        assert {f"encoder.tokenizers.{name}.patch_embedding.patch_embeddings.weight" for name in subset} < moved
        assert not any("position_embeddings" in name for name in moved)
        batch = next(iter(data.val_dataloader()))
        assert set(task.volumes(batch)) == set(subset) == set(batch) & set(SUBSETS[-1])
        with torch.no_grad():
            task.eval()
            found = task(task.volumes(batch)) if len(shape) > 1 else task.predict_step(batch, 0)
        assert found.shape[1:] == shape
        assert found.isfinite().all()


def test_segmentations_are_compared_subject_by_subject(tmp_path, cohort, pretrained, capsys):
    runs = []
    for name, scratch in (("ours", "false"), ("scratch", "true")):
        out = run("finetune_segmentation_official", tmp_path / name, "--data.root", str(cohort), "--model.backbone",
                  pretrained, "--model.from_scratch", scratch, "--trainer.max_epochs", "1",
                  "--model.modalities", "[t1]", "--data.val_fraction", "0.4")  # fmt: skip
        runs.append(out)
    rows = list(csv.DictReader((runs[0] / "predictions.csv").open()))
    assert len({row["subject"] for row in rows}) == len(rows) == 3
    assert {"dice_tc", "dice_wt", "dice_et", "hd95_wt"} < set(rows[0])
    for out, values in zip(runs, ((0.5, 0.6, 0.7, 0.8, 0.9), (0.4, 0.4, 0.6, 0.5, "nan")), strict=True):
        lines = [f"s{index},{value},nan" for index, value in enumerate(values)]
        (out / "predictions.csv").write_text("\n".join(["subject,dice_wt,dice_et", *lines]) + "\n")
    capsys.readouterr()
    zoo_main(["compare", str(runs[0]), str(runs[1])])
    shown = capsys.readouterr().out
    expected = stats.wilcoxon([0.1, 0.2, 0.1, 0.3]).pvalue
    assert f"{expected:.3g}" in shown
    assert "0.650 +- 0.112" in shown  # over the four subjects that both scored
    assert "dice_et" not in shown
    (runs[1] / "predictions.csv").write_text("subject,dice_wt\nother,0.5\n")
    for second, message in ((runs[1], "held out different subjects"), (tmp_path, "Cannot read")):
        with pytest.raises(SystemExit) as stop:
            zoo_main(["compare", str(runs[0]), str(second)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_pretraining_on_a_subset(tmp_path, cohort):
    """What the paper compares with: a pre-training for one subset of the sequences. The others are nobody's."""
    out = run("pretrain_brats2021", tmp_path / "run", "--data.root", str(cohort), "--data.modalities", "[t1,flair]",
              "--data.cache", "none", "--data.cache_dir", "null", "--data.batch_size", "2", "--trainer.max_epochs", "1",
              "--trainer.check_val_every_n_epoch", "1",
              *(f"--model.{name}={value}" for name, value in TINY.items()))  # fmt: skip
    header, *values = (out / "metrics.csv").read_text().splitlines()
    last = dict(zip(header.split(","), values[-1].split(","), strict=True))
    assert float(last["val/t1_loss"]) > 0
    assert float(last["val/t2_loss"]) == 0
    assert (out / "figures" / "masked.png").is_file()
    assert (out / "figures" / "withheld.png").is_file()


def test_classification_folds(tmp_path, cohort, pretrained, capsys):
    runs = []
    for fold in range(2):
        out = run("finetune_classification", tmp_path / f"fold{fold}", "--data.root", str(cohort),
                  "--data.table", str(cohort / "subjects.csv"), "--model.backbone", pretrained, "--data.folds", "2",
                  "--data.fold", str(fold), "--trainer.max_epochs", "1", "--model.modalities", "[flair]")  # fmt: skip
        runs.append(str(out))
    assert isinstance(zoo.load(runs[0]), VolumeClassification)
    assert zoo.load(runs[0]).preprocess(cohort / "BraTS2021_00001").keys() == {"flair"}
    capsys.readouterr()
    zoo_main(["folds", *runs])
    shown = capsys.readouterr().out
    assert shown.startswith("AUROC\t")
    assert "average precision\t" in shown
    with pytest.raises(SystemExit):
        zoo_main(["folds", runs[0], runs[0]])
    assert "give one run a fold" in capsys.readouterr().err


def test_survival_run_and_its_curves(tmp_path, cohort, pretrained, capsys):
    out = run("finetune_survival", tmp_path / "run", "--data.root", str(cohort), "--data.folds", "2",
              "--data.bins", "3", "--data.table", str(cohort / "subjects.csv"), "--model.backbone", pretrained,
              "--model.bins", "3", "--trainer.max_epochs", "1")  # fmt: skip
    assert (out / "figures" / "survival.png").is_file()
    printed = capsys.readouterr().out
    assert "Last validation:" in printed
    assert "c_index" in printed
    model = zoo.load(out)
    assert isinstance(model, VolumeSurvival)
    assert len(model.times()) == 3
    assert model.times()[0] == 0
    zoo_main(["predict", str(out), str(cohort / "BraTS2021_00001"), "-o", str(tmp_path / "curve.csv")])
    header, row = (tmp_path / "curve.csv").read_text().splitlines()
    assert header == "subject,risk," + ",".join(f"survives_{time:.4g}" for time in model.times())
    curve = [float(value) for value in row.split(",")[2:]]
    assert curve == sorted(curve, reverse=True)
    capsys.readouterr()
    zoo_main(["folds", str(out), "-o", str(tmp_path / "curves.png")])
    assert "C-index" in capsys.readouterr().out
    assert (tmp_path / "curves.png").is_file()


def test_data_and_model_of_another_size_are_caught(tmp_path, cohort, pretrained, capsys):
    with pytest.raises(SystemExit) as stop:
        run("finetune_classification", tmp_path / "run", "--data.root", str(cohort), "--model.backbone", pretrained,
            "--data.table", str(cohort / "subjects.csv"), "--data.image_size", "8")  # fmt: skip
    assert stop.value.code == 2
    assert "takes volumes of 16^3 voxels, the data gives 8^3" in capsys.readouterr().err


def test_official_twins_differ_from_the_starters_only_as_they_say():
    for name, keys in (
        ("finetune_segmentation", {"trainer.check_val_every_n_epoch", "model.inference", "model.overlap",
                                   "model.cosine_epochs", "data.whole_val", "data.root"}),
        ("finetune_survival", {"data.cuts_from"}),
    ):  # fmt: skip
        ours, official = (
            yaml.safe_load(zoo.catalog.recipe_info(f"bm_mae/{name}{suffix}").path.read_text())
            for suffix in ("", "_official")
        )
        changed = set()
        for part in ("trainer", "model", "data"):
            a, b = (config[part].get("init_args", config[part]) for config in (ours, official))
            changed |= {f"{part}.{key}" for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert changed == keys, name


# ---------------------------------------------------------------------- reconstruction of files


def test_reconstruct_overlays_its_source(tmp_path, cohort, pretrained, capsys):
    subject = cohort / "BraTS2021_00002"
    arguments = ["reconstruct", pretrained, str(subject), "-o", str(tmp_path), "--from", "t2,flair"]
    zoo_main(arguments)
    source = nib.load(subject / "BraTS2021_00002_t2.nii.gz")
    for name in ("t1", "t1ce"):
        written = nib.load(tmp_path / "BraTS2021_00002" / f"BraTS2021_00002_{name}_reconstructed.nii.gz")
        assert written.shape == source.shape
        np.testing.assert_allclose(written.affine, source.affine)
        values, brain = written.get_fdata(), np.asarray(source.dataobj) != 0
        assert not values[~brain].any()
        assert values[brain].std() > 0
        # Voxel by voxel: the model's own cube, at the place that the crop was taken from.
        model = zoo.load(pretrained)
        given = {key: subject / f"BraTS2021_00002_{key}.nii.gz" for key in ("t2", "flair")}
        cube = model.reconstruct(given)[name][0, 0].numpy()
        start = [(side - 16) // 2 for side in source.shape]
        place = tuple(slice(s, s + 16) for s in start)
        np.testing.assert_allclose(values[place], cube * brain[place], atol=1e-5)
    capsys.readouterr()
    for extra, message in (
        ([], "exists already"),
        (["--force", "--sequences", "t2"], "say which to predict"),
        (["--force", "--sequences", "pet"], "not pet"),
    ):
        with pytest.raises(SystemExit) as stop:
            zoo_main([*arguments, *extra])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        zoo_main(["reconstruct", pretrained, str(subject), "-o", str(tmp_path / "x")])
    assert "all four sequences are there" in capsys.readouterr().err
    # Of several subjects, those that lack nothing are passed over.
    several = shutil.copytree(cohort, tmp_path / "several")
    with pytest.raises(SystemExit):
        zoo_main(["reconstruct", pretrained, str(several), "-o", str(tmp_path / "y")])
    assert "No subject lacks a sequence" in capsys.readouterr().err
    (several / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz").unlink()
    zoo_main(["reconstruct", pretrained, str(several), "-o", str(tmp_path / "y")])
    shown = capsys.readouterr()
    assert shown.out.startswith("flair\t")
    assert shown.err.count("nothing is missing") == 7


def test_preprocess_takes_folders_files_and_paths(cohort, pretrained):
    model = zoo.load(pretrained)
    folder = cohort / "BraTS2021_00000"
    everything = model.preprocess(folder)
    assert list(everything) == ["t1", "t1ce", "t2", "flair"]
    one = model.preprocess(folder / "BraTS2021_00000_t2.nii.gz")
    torch.testing.assert_close(one["t2"], everything["t2"])
    assert model(everything).shape == model(one).shape == (1, 24)
    with pytest.raises(ZooError, match="8 subjects"):
        model.preprocess(cohort)


def test_embed_gives_a_row_a_volume(tmp_path, cohort, pretrained):
    zoo_main(["embed", pretrained, str(cohort / "BraTS2021_00000"), "--pattern", "*_t[12].nii.gz", "-o",
              str(tmp_path / "features.npz")])  # fmt: skip
    found = np.load(tmp_path / "features.npz")
    assert found["features"].shape == (2, 24)
    model = zoo.load(pretrained)
    with torch.no_grad():
        expected = model(model.preprocess(str(found["files"][0])))[0]
    np.testing.assert_allclose(found["features"][0], expected.numpy(), atol=1e-5)


# ---------------------------------------------------------------------- tasks


def test_tasks_start_from_the_backbones_weights(pretrained):
    start = zoo.load(pretrained)
    tuned = VolumeClassification(pretrained, ["flair", "t1"])
    scratch = VolumeClassification(pretrained, ["flair", "t1"], from_scratch=True)
    assert tuned.modalities == ["t1", "flair"]
    for key, value in tuned.backbone.state_dict().items():
        torch.testing.assert_close(value, start.backbone.state_dict()[key])
    assert not torch.equal(scratch.backbone.cls_token, start.backbone.cls_token)
    frozen = VolumeClassification(pretrained, ["t1"], freeze=True)
    assert all(name.startswith("output_layer") for name, p in frozen.network.named_parameters() if p.requires_grad)
    with pytest.raises(ZooError, match="a list such as"):
        VolumeClassification(pretrained, "t1")
    with pytest.raises(ZooError, match="no backbone for MRI"):
        VolumeClassification("droppos-vit-digits", ["t1"])


def test_a_case_without_enhancing_tumour_does_not_count_for_it(pretrained):
    """MONAI's nan-mean: Dice of ET over the one case that has it, of the others over both."""
    task = VolumeSegmentation(pretrained, ["t1"], inference="crop", hd95="never")
    truth = torch.zeros(2, 3, 4, 4, 4)
    truth[:, :2, :2] = 1
    truth[0, 2, :1] = 1
    found = truth.clone()
    found[0, 2] = 0
    found[1, 2, 0] = 1  # a false alarm where there is nothing to find
    task.dice(y_pred=found, y=truth)
    logged = {}
    task.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    task._report("val")
    assert logged["val/dice_tc"] == logged["val/dice_wt"] == 1
    assert logged["val/dice_et"] == 0


def test_labels_of_regions():
    regions = torch.zeros(3, 1, 1, 4, dtype=torch.bool)
    regions[1, ..., 1:] = True
    regions[0, ..., 2:] = True
    regions[2, ..., 3:] = True
    assert regions_to_labels(regions).flatten().tolist() == [0, 2, 1, 4]
    assert regions_to_labels(regions, 3).flatten().tolist() == [0, 2, 1, 3]


def test_sliding_windows_cover_the_whole_volume(pretrained):
    task = VolumeSegmentation(pretrained, ["t1"]).eval()
    with torch.no_grad():
        assert task({"t1": torch.randn(1, 1, 20, 24, 16)}).shape == (1, 3, 20, 24, 16)
        with pytest.raises(ZooError, match="fewer than the window"):
            task({"t1": torch.randn(1, 1, 20, 24, 12)})


# ---------------------------------------------------------------------- survival


@pytest.mark.golden
def test_survival_as_recorded(golden_dir):
    found = [torch.load(path, weights_only=True) for path in golden_dir("bm_mae").glob("*.pt")]
    found = [case for case in found if "cuts" in case]
    if not found:
        pytest.skip("no survival case")
    for case in found:
        for suffix, score in (("", "c_index_sum_logits"), ("2", "c_index2")):
            time, event = case["time" + suffix].numpy(), case["event" + suffix].numpy()
            cuts = quantile_cuts(time, event, len(case["cuts" + suffix]))
            np.testing.assert_allclose(cuts, case["cuts" + suffix].numpy(), atol=1e-9)
            index, seen = discretise(time, event, cuts)
            np.testing.assert_array_equal(index, case["time_idx" + suffix].numpy())
            phi = case["phi" + suffix]
            loss = logistic_hazard_nll(phi, torch.from_numpy(index), torch.from_numpy(seen))
            assert loss.item() == pytest.approx(case["nll" + suffix], rel=1e-5)
            assert concordance(time, event, risk_score(phi).numpy()) == pytest.approx(case[score], abs=1e-9)
            if not suffix:
                np.testing.assert_array_equal(seen, case["event_out"].numpy())


def test_kaplan_meier_is_scikit_survivals():
    from sksurv.nonparametric import kaplan_meier_estimator

    generator = np.random.default_rng(0)
    time, event = generator.exponential(2, 50).round(1) + 0.1, generator.random(50) < 0.6
    ours, expected = kaplan_meier(time, event), kaplan_meier_estimator(event, time)
    np.testing.assert_allclose(ours[0][1:], expected[0])
    np.testing.assert_allclose(ours[1][1:], expected[1])


def test_survival_edge_cases():
    cuts = np.array([0.0, 1.0, 2.0])
    index, event = discretise(np.array([0.5, 0.5, 1.0, 3.0]), np.array([1, 0, 1, 1]), cuts)
    assert index.tolist() == [1, 0, 1, 2]
    assert event.tolist() == [1, 0, 1, 0]  # whoever outlives the last cut is censored there
    assert np.isnan(concordance(np.array([1.0, 2.0]), np.array([0, 0]), np.array([0.1, 0.2])))
    with pytest.raises(ZooError, match="No subject has an event"):
        quantile_cuts(np.array([1.0, 2.0]), np.array([0, 0]), 3)
    with pytest.raises(ZooError, match="diverged"):
        concordance(np.array([1.0, 2.0]), np.array([1, 1]), np.array([np.nan, 0.2]))
