"""Points of one's own: any number of them, from a table or .pts files; normalisation, folds, class weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from datamodules.faces.normalisation import error_scale
from datamodules.faces.tasks import FaceTaskDataModule
from zoo.errors import ZooError
from zoo.papers.face_representation import FaceTask


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures of 40 x 30 with three points each, one of them not known once."""
    rows = ["file,x0,y0,x1,y1,x2,y2"]
    for n in range(10):
        Image.fromarray(np.full((30, 40, 3), 20 * n, np.uint8)).save(tmp_path / f"{n}.png")
        last = "," if n == 4 else f"{20 + n},25"
        rows.append(f"{n}.png,{5 + n},5,{15 + n},5,{last}")
    (tmp_path / "points.csv").write_text("\n".join(rows))
    return tmp_path


def data(root, **changes) -> FaceTaskDataModule:
    return FaceTaskDataModule(
        "landmarks", "points", str(root), **{"image_size": 32, "batch_size": 2, "num_workers": 0, **changes}
    )


def test_a_table_of_three_points(pictures):
    module = data(pictures)
    assert module.outputs == 3
    assert (len(module.data["train"]), len(module.data["test"])) == (8, 2)
    sample = module.data["test"][0]  # the fifth picture
    assert sample["target"].shape == (3, 2)
    assert torch.isnan(sample["target"][2]).all()
    assert sample["scale"] > 0
    pair = data(pictures, normalisation="pair:0-1")
    pair.setup()
    np.testing.assert_allclose(pair.data["test"].scale, 10)
    whole = data(pictures, normalisation="image_diagonal")
    whole.setup()
    np.testing.assert_allclose(whole.data["train"].scale, 50)
    held = []
    for fold in range(3):
        part = data(pictures, folds=3, fold=fold)
        part.setup()
        held += [path.name for path in part.data["test"].annotations.images]
    assert sorted(held) == [f"{n}.png" for n in range(10)]


def test_the_same_from_pts_files(pictures):
    (pictures / "points.csv").unlink()
    for n in range(10):
        (pictures / f"{n}.pts").write_text(f"version: 1\nn_points: 2\n{{\n{6 + n} 6\n{16 + n} 26\n}}")
    module = data(pictures)
    assert module.outputs == 2
    np.testing.assert_allclose(module.data["train"].annotations.targets[0], [[5, 5], [15, 25]])
    (pictures / "3.pts").write_text("{\n1 1\n}")
    with pytest.raises(ZooError, match=r"3.pts has 1 points, .*0.pts has 2"):
        data(pictures).setup()


@pytest.mark.parametrize(
    ("how", "message"),
    [("pair:0-9", "two points from 0 to 2"), ("pair:0-2", "are not known"), ("eyes", "pair:A-B"),
     ("inter_ocular", "No eye corners are known for 3 landmarks")],
)  # fmt: skip
def test_a_normalisation_that_cannot_be_is_named(pictures, how, message):
    with pytest.raises(ZooError, match=message):
        data(pictures, normalisation=how).setup()
    with pytest.raises(ZooError, match="sizes are not known"):
        error_scale(np.zeros((1, 3, 2)), "image_diagonal", None)


def test_a_table_that_is_wrong_is_named(pictures):
    table = pictures / "points.csv"
    table.write_text(table.read_text().replace("5,5,15,5", "5,five,15,5", 1))
    with pytest.raises(ZooError, match="line 2: could not convert"):
        data(pictures).setup()
    table.write_text("file,x0\n1.png,3\n")
    with pytest.raises(ZooError, match="lacks y0"):
        data(pictures).setup()
    with pytest.raises(ZooError, match="has no folds"):
        FaceTaskDataModule("landmarks", "300w", str(pictures), folds=2)


def test_points_are_learned_in_a_step(pictures):
    model = FaceTask("landmarks", network="resnet10t", head_options={"width": 8}, lr=1e-3)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, data(pictures))
    assert trainer.callback_metrics["val/nme"].isfinite()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3, 2)


def test_classes_of_faces_can_be_weighted(tmp_path):
    for side, counts in (("train", {"a": 6, "b": 2}), ("test", {"a": 2, "b": 2})):
        for name, count in counts.items():
            (tmp_path / side / name).mkdir(parents=True)
            for n in range(count):
                noise = np.random.default_rng(n).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / side / name / f"{n}.png")
    faces = FaceTaskDataModule("attributes", "folders", str(tmp_path), image_size=32, batch_size=4, num_workers=0)
    model = FaceTask("attributes", network="resnet10t", class_weights="balanced")
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, faces)
    torch.testing.assert_close(model.class_weight, torch.tensor([8 / 12, 2.0]))
    folded = FaceTaskDataModule("attributes", "folders", str(tmp_path), image_size=32, folds=2, fold=0)
    folded.setup()
    assert folded.data["test"].annotations.targets.tolist().count(1) == 1
    with pytest.raises(ZooError, match="landmarks has no classes"):
        FaceTask("landmarks", network="resnet10t", class_weights="balanced")
