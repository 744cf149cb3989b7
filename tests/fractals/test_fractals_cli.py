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
from zoo.cli.fractals import Kind, Layout, _writer

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


def test_rendering_anew_leaves_nothing_of_what_was_rendered(tmp_path):
    """Two classes written over five would be read as five."""
    out = tmp_path / "set"
    main(["fractals", "render", str(out), *FEW])
    for mine in ("00004/mine.png", "notes.txt"):
        (out / mine).write_text("x")
    for more in (["--layout", "webdataset"], ["--kind", "multi"], ["--classes", "2"]):
        main(["fractals", "render", str(out), *FEW, *more, "--force"])
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"00004/mine.png", "notes.txt"} < left
    assert {path.split("/")[0] for path in left} == {"00000", "00001", "00004", "notes.txt"}
    assert len(left) == 4 + 2


def test_class_folders_sort_by_number(tmp_path):
    with _writer(tmp_path, Kind.single, Layout.folder, 1000, 100_001) as write:
        for index, label in enumerate((100_000, 99_999, 7)):
            write(index, b"", [label])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000007", "099999", "100000"]


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
        (["render", "OUT/new", "--size", "1", "--kind", "multi"], "smaller than a pixel"),
        (["render", "OUT/s.png", "--classes", "3000000"], "pixels wide"),
        (["render", "OUT/s.jpg"], "written as .png"),
        (["render", "OUT/s.png", "--kind", "multi"], "--kind is for data sets"),
        (["render", "OUT/s.png", "--per-class", "3"], "--per-class is for data sets"),
        (["render", "OUT/new", "--shard", "3"], "--shard is for --layout webdataset"),
        (["sample", "OUT/x.npz", "--sigma", "4", "3"], "the smaller number first"),
        (["sample", "OUT/x.npz", "--sigma", "9", "9"], "lies between"),
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
