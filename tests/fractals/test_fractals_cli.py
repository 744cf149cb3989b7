"""`zoo fractals`."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from datamodules.fractals.files import read_systems
from datamodules.images import open_images
from zoo.cli.app import main

FEW = ["--classes", "5", "--per-class", "2", "--size", "32", "--points", "400"]


def test_systems_to_a_file_and_a_sheet_of_them(tmp_path, capsys):
    file, sheet = tmp_path / "systems.npz", tmp_path / "sheet.png"
    main(["fractals", "sample", str(file), "--count", "7", "--seed", "2", "--max-maps", "3"])
    assert "7 systems of 2 to 3 maps" in capsys.readouterr().out
    assert {len(read_systems(file)(index)) for index in range(7)} <= {2, 3}
    main(["fractals", "render", str(sheet), "--classes", "7", "--size", "24", "--systems", str(file)])
    image = np.asarray(Image.open(sheet))
    assert image.shape == (3 * 25 + 1, 3 * 25 + 1, 3)
    assert (image[1:25, 1:25] != 12).any()


def test_a_folder_that_readers_take(tmp_path, capsys):
    main(["fractals", "render", str(tmp_path / "set"), *FEW])
    assert "10 pictures of 5 classes" in capsys.readouterr().out
    dataset = open_images(tmp_path / "set", "train", val_fraction=0.5)
    assert len(dataset.classes) == 5
    assert dataset.image(0).size == (32, 32)
    main(["fractals", "render", str(tmp_path / "again"), *FEW])
    files = sorted(path.relative_to(tmp_path / "set") for path in (tmp_path / "set").rglob("*.png"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "set" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_several_fractals_a_picture(tmp_path):
    main(["fractals", "render", str(tmp_path / "multi"), *FEW, "--kind", "multi"])
    lines = (tmp_path / "multi" / "labels.csv").read_text().splitlines()
    assert lines[0] == "file,labels"
    assert len(lines) == 11
    file, labels = lines[1].split(",")
    assert (tmp_path / "multi" / file).is_file()
    assert {int(label) for label in labels.split()} <= set(range(5))


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_webdataset_shards(tmp_path, kind):
    out = tmp_path / kind
    main(["fractals", "render", str(out), *FEW, "--kind", kind, "--layout", "webdataset", "--shard", "4"])
    shards = sorted(out.iterdir())
    assert [shard.name for shard in shards] == [f"fractals-{number:06d}.tar" for number in range(3)]
    with tarfile.open(shards[0]) as tar:
        names = tar.getnames()
        assert len(names) == 8
        suffix = "json" if kind == "multi" else "cls"
        assert names[:2] == ["0000000.png", f"0000000.{suffix}"]
        content = json.loads(tar.extractfile(names[1]).read())
        assert isinstance(content["labels"] if kind == "multi" else content, list if kind == "multi" else int)
        assert Image.open(tar.extractfile(names[0])).size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "OUT", "--size", "0"], "at least 1 pixel"),
        (["render", "OUT/full"], "not empty"),
        (["render", "OUT/full/file.txt"], "is a file"),
        (["render", "OUT/new", "--systems", "OUT/none.npz"], "no file of fractal systems"),
        (["sample", "OUT/x.pkl"], "to a .npz file"),
        (["sample", "OUT/x.npz", "--min-maps", "5"], "is more than"),
        (["sample", "OUT/full/y.npz"], "exists already"),
    ],
)
def test_errors_in_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "full").mkdir()
    for name in ("file.txt", "y.npz"):
        (tmp_path / "full" / name).write_text("x")
    with pytest.raises(SystemExit) as stop:
        main(["fractals", *[argument.replace("OUT", str(tmp_path)) for argument in arguments]])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
