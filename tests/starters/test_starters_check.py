"""`zoo check`: what is strange in the data is found and said, file by file."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.audit import Audit
from datamodules.image_classification import ImageClassificationDataModule
from zoo.cli.app import main
from zoo.starters import write_starter


@pytest.fixture
def pictures(tmp_path):
    """12 pictures of two classes, 9 to train on."""
    generator = np.random.default_rng(0)
    for side, count in (("train", 9), ("val", 3)):
        for n in range(count):
            for name, size in (("cat", (20, 16)), ("dog", (32, 32))):
                path = tmp_path / "data" / side / name / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return tmp_path / "data"


def look(root) -> Audit:
    return ImageClassificationDataModule(str(root), image_size=16, num_workers=0).audit()


def test_clean_pictures(pictures):
    found = look(pictures)
    assert found.facts["pictures"] == "18 training, 6 validation"
    assert found.facts["sizes"] == "20 x 16 (12), 32 x 32 (12)"
    assert found.tables[0] == ("2 classes", ["class", "training", "validation"], [["cat", 9, 3], ["dog", 9, 3]])
    assert found.problems == []
    assert len(found.warnings) == 1, "fewer than ten of a class"


def test_what_is_wrong_with_pictures_is_named(pictures):
    (pictures / "train/cat/0.png").write_bytes(b"no picture")
    (pictures / "train/dog/8.png").write_bytes((pictures / "train/dog/8.png").read_bytes()[:500])
    shutil.copy(pictures / "train/cat/5.png", pictures / "val/dog/copy.png")
    shutil.copy(pictures / "train/cat/6.png", pictures / "train/cat/again.png")
    found = look(pictures)
    unreadable, leak = found.problems
    assert unreadable.startswith("Pictures that cannot be read: 2.")
    assert "cat/0.png" in unreadable
    assert "dog/8.png" in unreadable
    assert leak.startswith("Pictures on both sides of the split, so that results would be too good: 1.")
    assert "cat/5.png (training) = " in leak
    assert "copy.png (validation)" in leak
    assert any("twice on one side" in text and "again.png" in text for text in found.warnings)


def test_uneven_classes_are_warned_of():
    found = Audit()
    labels = {"training": [0] * 200 + [1] * 15 + [3], "validation": [0, 1, 2]}
    found.class_counts(labels, ["a", "b", "c", "d"])
    assert found.problems == ["No training sample of the class c, but held-out ones."]
    text = " ".join(found.warnings)
    assert "No held-out sample of the class d" in text
    assert "Fewer than 10 training samples of the class d" in text
    assert "200 times" in text


def test_the_command_ends_with_2_and_with_0(pictures, tmp_path, capsys):
    recipe, _ = write_starter("image-classification", "droppos-vit-digits", tmp_path / "task", data=pictures)
    small = ["--data.num_workers", "0", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    main(["check", str(recipe), *small])
    out = capsys.readouterr().out
    for words in ("18 training", "step", "process memory", "Nothing stands in the way"):
        assert words in out
    assert not (tmp_path / "runs").exists()
    shutil.copy(pictures / "train/cat/5.png", pictures / "val/cat/copy.png")
    with pytest.raises(SystemExit) as stop:
        main(["check", str(recipe), "--no-step", *small])
    assert stop.value.code == 2
    found = capsys.readouterr()
    assert "both sides" in found.out
    assert found.err.startswith("error: 1 thing to mend")
    with pytest.raises(SystemExit):
        main(["check", str(recipe), "--data.root", str(tmp_path / "nowhere")])
    assert "There is no data folder" in capsys.readouterr().out


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def check(task: str, root, tmp_path, capsys, *more: str) -> str:
    recipe, _ = write_starter(task, "electra-docs", tmp_path / "task", data=root)
    with pytest.raises(SystemExit, match="2"):  # each of these has the same text on both sides
        main(["check", str(recipe), "--no-step", "--data.num_workers", "0", *more])
    return capsys.readouterr().out


def test_texts(tmp_path, capsys):
    root = tmp_path / "texts"
    write_csv(root / "train.csv", [(f"a good text number {n}", "good") for n in range(12)]
              + [("word " * 100, "bad"), ("the same in both", "bad")])  # fmt: skip
    write_csv(root / "dev.csv", [("something else", "good"), ("The same  in both", "bad")])
    out = check("text-classification", root, tmp_path, capsys)
    for words in ("14 training, 2 validation", "good", "are cut there", "both sides", "Fewer than 10"):
        assert words in out, words


def test_tags_and_questions(tmp_path, capsys):
    root = tmp_path / "tags"
    root.mkdir()
    sentence = "Anna B-PER\nlives O\nin O\nParis B-LOC\n\n"
    (root / "train.txt").write_text(sentence + "Ben B-PER\nsleeps O\n\n")
    (root / "dev.txt").write_text(sentence)
    out = check("text-tagging", root, tmp_path, capsys)
    assert "2 training, 1 validation" in out
    assert "both sides" in out
    root = tmp_path / "questions"
    root.mkdir()
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}]}
    page = {"data": [{"paragraphs": [{"context": "Anna lives in Paris.", "qas": [question]}]}]}
    for part in ("train", "dev"):
        (root / f"{part}.json").write_text(json.dumps(page))
    (tmp_path / "task/recipe.yaml").unlink()
    (tmp_path / "task/README.md").unlink()
    out = check("text-qa", root, tmp_path, capsys, "--data.max_length", "32", "--data.max_query", "8",
                "--data.doc_stride", "8")  # fmt: skip
    assert "1 training, 1 validation" in out
    assert "both sides" in out


def test_brain_mri(tmp_path):
    nib = pytest.importorskip("nibabel")
    pytest.importorskip("monai")
    from datamodules.brain_cohort import write_cohort
    from datamodules.brain_table import TumourTableDataModule
    from datamodules.brain_tumour import TumourDataModule

    root = write_cohort(tmp_path / "mri", subjects=6, shape=(24, 24, 24), compress=False)
    settings = dict(image_size=16, batch_size=1, num_workers=0)
    found = TumourDataModule(str(root), segmentation=True, **settings).audit()
    assert found.problems == []
    assert found.facts["voxels, mm"] == "1 x 1 x 1 (6)"
    assert found.tables[0][2][0] == ["t1", 6, "yes"]
    table = TumourTableDataModule(str(root), str(root / "subjects.csv"), label="project_id", folds=2, **settings)
    assert any(title == "2 classes" for title, _, _ in table.audit().tables)

    subjects = sorted(path for path in root.iterdir() if path.is_dir())
    (subjects[0] / f"{subjects[0].name}_t2.nii").unlink()
    (subjects[1] / f"{subjects[1].name}_flair.nii").write_bytes(b"nothing")
    seg = subjects[2] / f"{subjects[2].name}_seg.nii"
    image = nib.load(seg)
    labels = np.asarray(image.dataobj).copy()
    labels[labels == 2] = 7
    nib.save(nib.Nifti1Image(labels, image.affine), seg)
    problems = " ".join(TumourDataModule(str(root), segmentation=True, **settings).audit().problems)
    for words in ("lack a sequence", subjects[0].name, "Subjects that cannot be read: 2", "labels 7"):
        assert words in problems, words


def test_shapes(tmp_path):
    pytest.importorskip("trimesh")
    from datamodules.clip2point import PointCloudDataModule

    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        for side in ("train", "test"):
            folder = tmp_path / side / name
            folder.mkdir(parents=True)
            np.save(folder / "1.npy", generator.normal(size=(30, 3)))
    shutil.copy(tmp_path / "train/a/1.npy", tmp_path / "test/a/2.npy")
    (tmp_path / "train/b/2.npy").write_bytes(b"nothing")
    found = PointCloudDataModule(str(tmp_path), num_points=16, num_workers=0).audit()
    assert found.facts["kinds"] == "0 meshes, 4 clouds" or found.facts["kinds"].endswith("clouds")
    assert any("that cannot be read: 1" in text and "b/2.npy" in text for text in found.problems)
    assert any("both sides" in text for text in found.problems)
