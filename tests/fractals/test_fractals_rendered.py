"""What `zoo fractals render` writes is what `data.root` reads back."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch

from datamodules.fractals import FractalsDataModule
from datamodules.fractals.rendered import RenderedFractals, open_rendered
from zoo.cli.app import main
from zoo.errors import ZooError

CLASSES, PER_CLASS, SIZE = 5, 4, 32
TASKS = {"single": "multi_class", "multi": "multi_instance"}


def render(folder, kind, layout):
    shards = ["--shard", "7"] if layout == "webdataset" else []
    main([
        "fractals", "render", str(folder), "--classes", str(CLASSES), "--per-class", str(PER_CLASS),
        "--size", str(SIZE), "--points", "400", "--seed", "3", "--kind", kind, "--layout", layout, *shards,
    ])  # fmt: skip


def module(folder=None, kind="multi", **changes) -> FractalsDataModule:
    given = dict(
        image_size=SIZE, batch_size=4, num_classes=CLASSES, per_class=PER_CLASS, points=400, streams=1, val_images=4,
        seed=3, system_seed=3, num_workers=0, period=2 if kind == "multi" else 1,
    )  # fmt: skip
    return FractalsDataModule(TASKS[kind], **{**given, **changes}, root=None if folder is None else str(folder))


def first_batch(data: FractalsDataModule):
    data.setup()
    return next(iter(data.train_dataloader()))


def present(label) -> set[int]:
    return set(torch.as_tensor(label).reshape(-1).tolist())


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_written_and_read_back(tmp_path, kind, layout):
    render(tmp_path / "set", kind, layout)
    generated = module(kind=kind)
    generated.setup()
    source = open_rendered(tmp_path / "set")
    count = CLASSES * PER_CLASS
    read = RenderedFractals(source, range(count), TASKS[kind], CLASSES, SIZE)
    names = sorted(range(count), key=lambda index: source[1][index].rsplit("/", 1)[-1].rsplit(" ", 1)[-1])
    assert len(read) == count
    for index, at in enumerate(names):  # class folders come class by class, their files are numbered throughout
        picture, label = generated.train_data[(0, index)]
        assert torch.equal(read[at][0], picture)
        assert present(read[at][1]) == present(label)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_batches_from_a_folder(tmp_path, kind):
    render(tmp_path / "set", kind, "webdataset")
    data = module(tmp_path / "set", kind)
    data.setup()
    train, val = list(data.train_dataloader()), list(data.val_dataloader())
    assert sum(len(images) for images, _ in val) == 4
    assert [len(images) for images, _ in train] == [4] * 4
    assert train[0][0].dtype == torch.uint8
    assert train[0][0].shape == (4, 3, SIZE, SIZE)
    shown = [image.numpy().tobytes() for images, _ in train + val for image in images]
    assert len(set(shown)) == CLASSES * PER_CLASS  # nothing twice, nothing held out and trained on
    again = module(tmp_path / "set", kind)
    again.setup()
    assert torch.equal(next(iter(again.val_dataloader()))[0], val[0][0])


def test_no_label_is_minus_one(tmp_path):
    render(tmp_path / "set", "multi", "folder")
    table = tmp_path / "set" / "labels.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].split(",")[0] + ","
    table.write_text("\n".join(lines) + "\n")
    read = RenderedFractals(open_rendered(tmp_path / "set"), range(20), "multi_instance", CLASSES, SIZE)
    assert present(read[0][1]) == {-1}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("multi", {"num_classes": 2}, "there are 2 classes"),
        ("multi", {"image_size": 64}, "32x32 pixels"),
        ("multi", {"val_images": 20}, "lower data.val_images"),
        ("multi", {"task": "multi_class"}, "set data.task to multi_instance"),
        ("multi", {"task": "views"}, "no use for the task views"),
    ],
)
def test_a_folder_that_does_not_fit(tmp_path, kind, changes, message):
    render(tmp_path / "set", kind, "folder")
    task = changes.pop("task", TASKS[kind])
    given = {"num_classes": CLASSES, "image_size": SIZE, "val_images": 4, "num_workers": 0, "batch_size": 4} | changes
    with pytest.raises(ZooError, match=message):
        first_batch(FractalsDataModule(task, root=str(tmp_path / "set"), **given))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x"}, "holds a without its labels"),
        ({"a.cls": b"1"}, "holds a without its picture"),
        ({"a.png": b"x", "a.cls": b"cat"}, "a class is a number from 0, not 'cat'"),
        ({"a.png": b"x", "a.json": json.dumps({"label": 1}).encode()}, "should read"),
        ({"a.txt": b"x"}, "no .png in them"),
    ],
)
def test_bad_shards(tmp_path, members, message):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    with pytest.raises(ZooError, match=message):
        open_rendered(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(ZooError, match="There is no folder"):
        open_rendered(tmp_path / "none")
    with pytest.raises(ZooError, match="holds no rendered fractals"):
        open_rendered(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ZooError, match="folder cat: a class is a number"):
        open_rendered(tmp_path)
    (tmp_path / "labels.csv").write_text("name,label\n")
    with pytest.raises(ZooError, match="columns file and labels"):
        open_rendered(tmp_path)
    (tmp_path / "labels.csv").write_text("file,labels\nimages/1.png,2\n")
    with pytest.raises(ZooError, match="does not exist"):
        open_rendered(tmp_path)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "broken.tar").write_text("no tar")
    with pytest.raises(ZooError, match="is no tar file"):
        open_rendered(tmp_path)
