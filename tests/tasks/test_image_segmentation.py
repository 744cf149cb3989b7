"""Segmentation of several classes: the networks, the loss, masks of every kind, learning, prediction."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from PIL import Image, ImageDraw

import zoo
from datamodules.image_segmentation import ImageSegmentationDataModule, find_mask_pairs
from datamodules.mask_labels import MaskReader
from zoo.cli.app import main
from zoo.errors import ZooError
from zoo.nn.resnets import build_resnet
from zoo.nn.segmentation import IGNORE, UNet, class_segmentation_loss, on_whole, over_windows
from zoo.starters import write_starter
from zoo.tasks import ImageSegmentation
from zoo.tasks.outcomes import intervals
from zoo.tasks.region_outcome import RegionOutcome, count_regions

pytest.importorskip("segmentation_models_pytorch")
COLOURS = ((30, 30, 40), (220, 60, 50), (60, 90, 230))


def draw(seed: int, size: tuple[int, int] = (60, 44)) -> tuple[Image.Image, Image.Image]:
    """A picture with a red disc and a blue square on noise, and its labels 1 and 2."""
    rng = np.random.default_rng(seed)
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    x, y = rng.integers(2, 20, 2)
    pen.ellipse((x, y, x + 18, y + 18), fill=1)
    x, y = rng.integers(28, 40), rng.integers(2, 24)
    pen.rectangle((x, y, x + 15, y + 15), fill=2)
    labels = np.asarray(mask)
    pixels = np.array(COLOURS)[labels] + rng.integers(-25, 25, (*labels.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures, a fifth of which is held out; the border of one does not count."""
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for n in range(10):
        picture, mask = draw(n, (44, 60) if n == 3 else (60, 44))
        if n == 5:
            ImageDraw.Draw(mask).rectangle((0, 0, 59, 3), fill=255)
        picture.save(root / "images" / f"{n}.jpg", quality=95)
        mask.save(root / "masks" / f"{n}.png")
    (root / "classes.txt").write_text("ground\ndisc\nsquare\n")
    return root


def data(root, **changes) -> ImageSegmentationDataModule:
    return ImageSegmentationDataModule(str(root), **{"image_size": 32, "batch_size": 4, "num_workers": 0, **changes})


# ---------------------------------------------------------------------- networks and loss


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_unet_is_the_librarys(name):
    import segmentation_models_pytorch as smp

    mine = UNet(build_resnet(name, 0), 3).eval()
    theirs = smp.Unet(name, encoder_weights=None, classes=3).eval()
    theirs.load_state_dict(mine.state_dict())
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(mine(images), theirs(images))


@pytest.mark.parametrize("backbone", ["droppos-vit-digits", "fractal-resnet10-half", "face-swav-drawn"])
def test_any_image_backbone_fits_and_no_parameter_is_idle(backbone):
    model = ImageSegmentation(backbone, num_classes=4, image_size=32, decoder_width=16).train()
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 4, 32, 32)
    logits.square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    assert model.eval().predict_step(torch.randn(1, 3, 40, 77), 0).shape == (1, 4, 40, 77)


def test_windows_of_a_picture_give_their_mean():
    images = torch.randn(1, 2, 9, 21)
    torch.testing.assert_close(over_windows(lambda part: part, images, 8), images)
    model = ImageSegmentation("droppos-vit-digits", num_classes=2, image_size=32, decoder_width=16).eval()
    square = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(on_whole(model.segmenter, square), model(square))


def test_loss_of_classes_against_torch_and_by_hand():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, 0] = IGNORE
    weight = torch.tensor([0.5, 1.0, 2.0])
    wanted = []
    for one, true in zip(logits, labels, strict=True):
        entropy = F.cross_entropy(one[None], true[None], weight, ignore_index=IGNORE)
        known = true != IGNORE
        p = one.softmax(0)[:, known]
        dice = [2 * p[k][true[known] == k].sum() / (p[k].sum() + (true == k).sum()) for k in true[known].unique()]
        wanted.append(entropy + 1 - torch.stack(dice).mean())
    torch.testing.assert_close(class_segmentation_loss(logits, labels, weight), torch.stack(wanted).mean())
    assert torch.isfinite(class_segmentation_loss(logits, torch.full_like(labels, IGNORE)))


def test_scores_of_regions_against_torchmetrics():
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

    generator = torch.Generator().manual_seed(0)
    found, true = (torch.randint(0, 3, (6, 8, 8), generator=generator) for _ in range(2))
    true[1] = IGNORE
    outcome = RegionOutcome.of([count_regions(found[:4], true[:4], 4), count_regions(found[4:], true[4:], 4)], "abcd")
    scores = outcome.scores(np.arange(6))
    iou = multiclass_jaccard_index(found, true, 4, average="none", ignore_index=IGNORE)
    assert [scores[f"IoU {k}"] for k in "abc"] == pytest.approx(iou[:3].tolist())
    assert np.isnan(scores["IoU d"])  # neither there nor found
    assert scores["mean IoU"] == pytest.approx(float(iou[:3].mean()))
    dice = multiclass_f1_score(found, true, 4, average="macro", ignore_index=IGNORE)
    assert scores["mean Dice"] == pytest.approx(float(dice))
    assert outcome.counts.sum() == 5 * 64
    found_intervals = intervals(outcome, rounds=50)
    assert found_intervals["mean IoU"].low < scores["mean IoU"] < found_intervals["mean IoU"].high
    assert len(outcome.table()["IoU a"]) == 6
    assert set(outcome.figures()) == {"confusion", "pictures"}


# ---------------------------------------------------------------------- data


def test_squares_and_whole_pictures(pictures):
    module = data(pictures)
    module.setup()
    assert module.classes == ["ground", "disc", "square"]
    assert (len(module.train_data), len(module.val_data)) == (8, 2)
    images, masks = next(iter(module.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    red = (images[:, 0].float() - images[:, 2].float()) > 60
    assert ((masks[:, 0] == 1) == red)[masks[:, 0] != IGNORE].float().mean() > 0.95  # cut and turned together
    whole, labels = next(iter(module.val_dataloader()))
    assert min(whole.shape[2:]) == 32
    assert whole.shape[2:] == labels.shape[2:]
    counts = module.class_counts()
    assert len(counts) == 3
    assert sum(counts) <= 8 * 60 * 44
    held = [{str(p[0]) for p in fold.val_data.pairs} for fold in _folds(pictures)]
    assert sum(map(len, held)) == 10
    assert len(set.union(*held)) == 10


def test_pictures_of_one_stay_together(pictures):
    for n in range(10):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            (pictures / folder / f"{n}.{suffix}").rename(pictures / folder / f"P{n // 3}_{n}.{suffix}")
    module = data(pictures, group_pattern="^(P[0-9]+)_")
    module.setup()
    sides = [{p.stem[:2] for p, _ in part.pairs} for part in (module.train_data, module.val_data)]
    assert sides[0] | sides[1] == {"P0", "P1", "P2", "P3"}
    assert not sides[0] & sides[1]
    for pattern, words in (("^(X)", "not found in P0_0"), ("^P[0-9]", "no expression"), ("^(P)", "one group, P")):
        with pytest.raises(ZooError, match=words):
            data(pictures, group_pattern=pattern).setup()


def _folds(root):
    for fold in range(3):
        module = data(root, folds=3, fold=fold)
        module.setup()
        yield module


def test_kinds_of_masks(tmp_path):
    labels = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    grey, coloured, marked = tmp_path / "grey.png", tmp_path / "colour.png", tmp_path / "marked.png"
    Image.fromarray(labels).save(grey)
    with_palette = Image.fromarray(labels)
    with_palette.putpalette(list(range(255, -1, -1)) * 3)
    with_palette.save(tmp_path / "palette.png")
    reader = MaskReader(["a", "b", "c"])
    assert reader(grey).tolist() == reader(tmp_path / "palette.png").tolist() == labels.tolist()
    assert MaskReader(None, ignore_index=2)
    with pytest.raises(ZooError, match="holds the label 2: labels are 0 to 1"):
        MaskReader(["a", "b"])(grey)
    with pytest.raises(ZooError, match="holds the label 255"):
        MaskReader(["a", "b", "c"], ignore_index=None)(grey)
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [9, 9, 9]])
    Image.fromarray(colours[[[0, 1], [2, 3]]].astype(np.uint8)).save(coloured)
    assert MaskReader(list("abcd"), colours, ignore_index=3)(coloured).tolist() == [[0, 1], [2, IGNORE]]
    with pytest.raises(ZooError, match=r"colour \(0, 128, 0\) in 1 pixels"):
        MaskReader(list("abd"), colours[[0, 1, 3]])(coloured)
    with pytest.raises(ZooError, match="colour picture"):
        reader(coloured)
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).save(marked)
    root = tmp_path / "data"
    for n in range(4):
        for folder, source in (("images", grey), ("masks", marked)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{n}.png").write_bytes(source.read_bytes())
    module = data(root, image_size=8, augment="none")
    module.setup()
    assert module.classes == ["0", "1"]
    assert module.train_data[0][1].unique().tolist() == [0, 1]


def test_what_is_wrong_is_named(pictures):
    (pictures / "masks/2.png").unlink()
    with pytest.raises(ZooError, match=r"1 of 10 pictures have no mask in .*the first 2.jpg"):
        find_mask_pairs(pictures)
    Image.new("L", (10, 10)).save(pictures / "masks/2.png")
    Image.fromarray(np.full((44, 60), 7, np.uint8)).save(pictures / "masks/4.png")
    (pictures / "images/6.jpg").write_bytes((pictures / "images/7.jpg").read_bytes())
    found = data(pictures).audit()
    assert found.facts["pictures"] == "8 training, 2 validation"
    assert found.facts["pixels that do not count"]
    text = " ".join(found.problems + found.warnings)
    assert "2.png has (10, 10) pixels, its picture (60, 44)" in text
    assert "4.png holds the label 7: labels are 0 to 2 (3 classes)" in text
    assert "6.jpg" in text
    _, header, rows = found.tables[0]
    assert header == ["class", "pixels, training", "pictures, training", "pixels, validation", "pictures, validation"]
    assert [row[0] for row in rows] == ["ground", "disc", "square"]
    with pytest.raises(ZooError, match="has no folder images"):
        find_mask_pairs(pictures / "masks")


# ---------------------------------------------------------------------- from the starter to masks


@pytest.mark.parametrize("backbone", ["droppos-vit-digits", "fractal-resnet10-half"])
def test_learns_reports_and_predicts(backbone, pictures, tmp_path, capsys):
    recipe, _ = write_starter("image-segmentation", backbone, tmp_path / "task", data=pictures)
    small = ["--data.image_size", "32", "--model.image_size", "32", "--data.num_workers", "0", "--data.batch_size", "4",
             "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]  # fmt: skip
    if backbone.startswith("droppos"):
        small += ["--model.decoder_width", "16"]
    from zoo.cli.run import main as lightning

    lightning(["run", str(recipe), "--run-dir", str(tmp_path / "run"), "--trainer.max_epochs", "25",
               "--model.lr", "3e-3", "--trainer.check_val_every_n_epoch", "25", *small])  # fmt: skip
    run = tmp_path / "run"
    rows = list(csv.DictReader((run / "held_out.csv").open()))
    assert len(rows) == 2
    assert np.mean([float(row["mean IoU"]) for row in rows]) > 0.55, "bright shapes on a dark ground are easily found"
    page = (run / "report.html").read_text()
    for words in ("IoU disc", "mean Dice", "95% interval", "<img"):
        assert words in page
    main(["predict", str(run), str(pictures / "images"), "-o", str(tmp_path / "out")])
    assert "ground" in capsys.readouterr().out
    mask = Image.open(tmp_path / "out/3_mask.png")
    assert (mask.size, mask.mode) == ((44, 60), "P")
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
    assert (np.asarray(mask) == np.asarray(Image.open(pictures / "masks/3.png"))).mean() > 0.8
    loaded = zoo.load(run)
    assert loaded.class_names() == ["ground", "disc", "square"]
    assert loaded.view()["short_side"] == 32


@pytest.mark.parametrize("mode", ["frozen", "partial", "lora"])
def test_modes_of_tuning(mode):
    if mode == "lora":
        pytest.importorskip("peft")
    model = ImageSegmentation(
        "droppos-vit-digits", num_classes=3, image_size=32, decoder_width=16, tuning={"mode": mode, "blocks": 1}
    )
    model.configure_model()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(name.startswith("segmenter.decoder") for name in trained)
    inside = [name for name in trained if ".encoder." in name]
    kind = {"frozen": "nothing", "partial": ".blocks.", "lora": ".lora_"}[mode]
    assert all(kind in name for name in inside)
    assert bool(inside) == (mode != "frozen")
    model.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()


def test_balanced_weights_and_mismatch(pictures):
    model = ImageSegmentation("fractal-resnet10-half", num_classes=None, image_size=32, mixup=0.5,
                              optimizer="adamw", lr=1e-3, class_weights="balanced")  # fmt: skip
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.fit(model, data(pictures))
    weights = model.class_weight
    assert weights.shape == (3,)
    assert weights[0] < weights[1]  # the ground is most of it
    other = ImageSegmentation("fractal-resnet10-half", num_classes=5, image_size=32)
    with pytest.raises(ZooError, match="The data has 3 classes, the model 5"):
        Trainer(max_epochs=1, accelerator="cpu", barebones=True).fit(other, data(pictures))
    with pytest.raises(ZooError, match="squares of 64 pixels, the network takes 32"):
        Trainer(max_epochs=1, accelerator="cpu", barebones=True).fit(other, data(pictures, image_size=64))
