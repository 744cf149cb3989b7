"""Readers, sampling, generated meshes and data modules of CLIP2Point."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.clip2point import PairDataModule, PointCloudDataModule
from datamodules.clip2point.clouds import CloudDataset, few_shots, find_shapes, read_h5
from datamodules.clip2point.names import CLASS_LISTS, MODELNET40, SHAPENET55
from datamodules.clip2point.primitives import CLASSES, build_shape, write_off
from datamodules.clip2point.shader import shade
from zoo.errors import ZooError
from zoo.nn.cameras import VIEWS
from zoo.nn.points import (
    Shape,
    farthest_points,
    normalize_cloud,
    preprocess_shapes,
    read_shape,
    sample_surface,
    to_cloud,
)

SQUARE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path


# ---------------------------------------------------------------------- readers


@pytest.mark.parametrize(
    ("text", "vertices", "faces"),
    [
        ("OFF\n4 1 0\n" + SQUARE + "4 0 1 2 3\n", 4, 2),
        ("OFF4 2 0\n" + SQUARE + "3 0 1 2\n3 0 2 3\n", 4, 2),  # ModelNet's glued header
        ("OFF\n\n# a comment\n4 2 0\n\n" + SQUARE + "\n3 0 1 2\n\n3 0 2 3\n", 4, 2),
        ("OFF\n4  1   0\n  0 0 0\n1\t0 0\n 1 1 0 \n0 1 0\n4  0 1 2  3 1.0 0.5 0.2\n", 4, 2),  # blanks and a colour
        ("OFF\n5 1 0\n" + SQUARE + "0.5 1.5 0\n5 0 1 2 4 3\n", 5, 3),  # a pentagon
    ],
)
def test_off_files(tmp_path: Path, text: str, vertices: int, faces: int) -> None:
    path = tmp_path / "a.off"
    path.write_text(text)
    shape = read_shape(path)
    assert len(shape.vertices) == vertices
    assert shape.faces is not None
    assert len(shape.faces) == faces


def test_every_format_gives_the_same_shape(tmp_path: Path) -> None:
    import trimesh

    mesh = trimesh.creation.box((1.0, 2.0, 3.0))
    for suffix in ("ply", "obj", "stl", "off"):
        mesh.export(tmp_path / f"box.{suffix}")
        shape = read_shape(tmp_path / f"box.{suffix}")
        assert shape.faces is not None
        assert len(shape.faces) == 12
        np.testing.assert_allclose(np.ptp(shape.vertices, axis=0), [1, 2, 3], atol=1e-6)
    points = rng().random((50, 3))
    np.save(tmp_path / "cloud.npy", points)
    np.savetxt(tmp_path / "cloud.xyz", points)
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    for suffix in ("npy", "xyz", "ply"):
        shape = read_shape(tmp_path / f"cloud.{suffix}")
        assert shape.faces is None
        np.testing.assert_allclose(shape.vertices, points, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.off", "OFF\n0 0 0\n", "empty"),
        ("b.off", "OFF\n4 1 0\n0 0 0\n1 0 0\n", "damaged"),
        ("c.off", "", "damaged|empty"),
        ("d.off", "OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "NaN"),
        ("e.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "vertex 7|damaged"),
        ("f.xyz", "1 2 3\n4 5 hello\n", "damaged"),
        ("g.xyz", "1 2 nan\n4 5 6\n", "NaN"),
        ("h.xyz", "1 2\n4 5\n", "should hold points"),
        ("i.step", "1 2", "none of the known kinds"),
        ("j.ply", "ply\nformat", "damaged"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ZooError, match=message) as caught:
        read_shape(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bad_shapes(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no file"):
        read_shape(tmp_path / "missing.off")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ZooError, match="damaged"):
        read_shape(tmp_path / "objects.npy")
    flat = Shape(np.zeros((3, 3)), np.array([[0, 1, 2]]), "flat.off")
    with pytest.raises(ZooError, match=r"flat\.off has no surface"):
        to_cloud(flat, 10, rng())
    few = Shape(rng().random((5, 3)), None, "few.xyz")
    with pytest.raises(ZooError, match=r"few\.xyz has 5 points, fewer than the 10"):
        to_cloud(few, 10, rng())
    same = Shape(np.ones((20, 3)), None, "same.xyz")
    with pytest.raises(ZooError, match=r"same\.xyz has no extent"):
        to_cloud(same, 10, rng())
    for raw in (None, object(), [], "a.txt", np.zeros((4, 2))):
        with pytest.raises(ZooError):
            preprocess_shapes(raw, 10)


# ---------------------------------------------------------------------- sampling


def test_sampling_is_uniform_over_the_area() -> None:
    # Triangles of areas 1 to 8, one degenerate: counts follow the areas (chi-square, 7 degrees of freedom).
    vertices, faces = [], []
    for area in (1, 2, 3, 4, 5, 6, 7, 8):
        start = len(vertices)
        vertices += [[0, 0, area], [2 * area, 0, area], [0, 1, area]]
        faces.append([start, start + 1, start + 2])
    faces.append([0, 0, 1])
    shape = Shape(np.array(vertices, dtype=float), np.array(faces), "areas")
    count = 20_000
    points, chosen = sample_surface(shape, count, rng(3))
    expected = count * np.arange(1, 9) / 36
    found = np.bincount(chosen, minlength=9)
    assert found[8] == 0
    assert ((found[:8] - expected) ** 2 / expected).sum() < 24.3  # p = 0.001
    assert (points[:, 2] == chosen + 1).all()
    # Uniform within a triangle too: its centroid is the mean.
    largest = points[chosen == 7]
    np.testing.assert_allclose(largest.mean(0), [16 / 3, 1 / 3, 8], atol=0.25)


def test_clouds_fit_the_unit_sphere_and_follow_the_seed() -> None:
    shape = Shape(rng().random((400, 3)) * 7 + 3, None, "cloud")
    cloud = to_cloud(shape, 100, rng(1))
    assert cloud.dtype == np.float32
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1)
    assert np.abs(cloud.mean(0)).max() < 1e-6
    assert np.array_equal(cloud, to_cloud(shape, 100, rng(1)))
    assert not np.array_equal(cloud, to_cloud(shape, 100, rng(2)))


def test_farthest_points_spread() -> None:
    points = np.concatenate([rng().normal(0, 0.01, (50, 3)), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    assert set(farthest_points(points, 4)[1:]) == {50, 51, 52}
    every = farthest_points(points, len(points))
    assert len(set(every.tolist())) == len(points)


def test_items_are_seeded() -> None:
    shapes = [Shape(rng(n).random((60, 3)), None, str(n)) for n in range(2)]
    fixed = CloudDataset(shapes, [0, 1], ["a", "b"], 30, seed=0)
    assert torch.equal(fixed[0][0], CloudDataset(shapes, [0, 1], ["a", "b"], 30, seed=0)[0][0])
    fresh = CloudDataset(shapes, [0, 1], ["a", "b"], 30)
    torch.manual_seed(5)
    first, second = fresh[0][0], fresh[0][0]
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(fresh[0][0], first)


# ---------------------------------------------------------------------- layouts


def write_tree(root: Path, places: list[str]) -> None:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("OFF\n4 2 0\n" + SQUARE + "3 0 1 2\n3 0 2 3\n")


def test_layouts(tmp_path: Path) -> None:
    modelnet, sorted_, plain = tmp_path / "m", tmp_path / "s", tmp_path / "p"
    write_tree(
        modelnet, [f"{c}/{s}/{c}_{n}.off" for c in ("bed", "night_stand") for s in ("train", "test") for n in (1, 2)]
    )
    write_tree(sorted_, [f"{s}/{c}/{n}.off" for c in ("bed", "sofa") for s in ("train", "val") for n in (1, 2, 3)])
    write_tree(plain, [f"{c}/{n}.off" for c in ("a", "b") for n in range(10)])
    for root, train, test in ((modelnet, 4, 4), (sorted_, 6, 6), (plain, 18, 2)):
        for split, count in (("train", train), ("test", test)):
            shapes, labels, _ = find_shapes(root, split)
            assert len(shapes) == len(labels) == count
    shapes, labels, classes = find_shapes(modelnet, "test", class_list="modelnet10")
    assert labels == [1, 1, 6, 6]
    assert classes[6] == "night_stand"
    train, test = (set(find_shapes(plain, split)[0].paths) for split in ("train", "test"))
    assert not train & test


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="nowhere"):
        find_shapes(tmp_path / "nowhere", "train")
    with pytest.raises(ZooError, match="no class subfolders"):
        find_shapes(tmp_path, "train")
    (tmp_path / "chair").mkdir()
    with pytest.raises(ZooError, match="No shapes"):
        find_shapes(tmp_path, "train")
    write_tree(tmp_path, ["chairs/1.off"])
    with pytest.raises(ZooError, match=r"'chairs'.*Did you mean 'chair'"):
        find_shapes(tmp_path, "train", class_list="modelnet40")
    with pytest.raises(ZooError, match="modelnet50"):
        find_shapes(tmp_path, "train", class_list="modelnet50")


def test_sampled_test_clouds(tmp_path: Path) -> None:
    import trimesh

    for label in (0, 8):
        trimesh.PointCloud(rng().random((40, 3))).export(tmp_path / f"{label}_x_{label}.ply")
    shapes, labels, classes = find_shapes(tmp_path, "test", class_list="modelnet40")
    assert labels == [0, 8]
    assert classes == list(MODELNET40)
    assert len(shapes[1].vertices) == 40
    with pytest.raises(ZooError, match="test clouds only"):
        find_shapes(tmp_path, "train")


def test_h5(tmp_path: Path) -> None:
    import h5py

    points, labels = rng().random((6, 50, 3)), np.arange(6) % 3
    for name in ("training_objectdataset", "test_objectdataset"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = points.astype(np.float32), labels
    data = PointCloudDataModule(str(tmp_path), "scanobjectnn", 20, thinning="farthest", batch_size=4, num_workers=0)
    data.setup()
    clouds, found = next(iter(data.val_dataloader()))
    assert clouds.shape == (4, 20, 3)
    assert found.tolist() == [0, 1, 2, 0]
    assert data.prompt_names[:3] == ["bag", "bin", "box"]
    with pytest.raises(ZooError, match="test_other"):
        find_shapes(tmp_path, "test", h5_variant="other")
    broken = tmp_path / "broken.h5"
    broken.write_bytes((tmp_path / "test_objectdataset.h5").read_bytes()[:700])
    with pytest.raises(ZooError, match=r"broken\.h5"):
        read_h5(broken)
    with h5py.File(tmp_path / "strange.h5", "w") as file:
        file["points"] = points
    with pytest.raises(ZooError, match="no data set 'data'; it has points"):
        read_h5(tmp_path / "strange.h5")


def test_few_shots_are_nested() -> None:
    labels = [0] * 20 + [1] * 20 + [2] * 3
    with pytest.warns(UserWarning, match="fewer than 16 examples of c"):
        sixteen = few_shots(labels, 16, seed=0, classes=["a", "b", "c"])
    assert np.bincount(np.asarray(labels)[sixteen]).tolist() == [16, 16, 3]
    assert set(few_shots(labels, 2, seed=0)) <= set(sixteen)
    assert few_shots(labels, 2, seed=0) != few_shots(labels, 2, seed=1)
    with pytest.raises(ZooError, match="at least 1"):
        few_shots(labels, 0, seed=0)


def test_names_are_the_official_ones() -> None:
    assert [len(CLASS_LISTS[name][0]) for name in ("modelnet10", "modelnet40", "scanobjectnn")] == [10, 40, 15]
    assert "night_stand" in CLASS_LISTS["modelnet10"][1]  # ModelNet10's prompt keeps it
    assert "night stand" in CLASS_LISTS["modelnet40"][1]
    assert list(SHAPENET55) == sorted(SHAPENET55)
    assert (len(SHAPENET55), SHAPENET55["02691156"], SHAPENET55["04554684"]) == (55, "airplane", "washer")


# ---------------------------------------------------------------------- pairs


def test_shapenet55_layout(tmp_path: Path) -> None:
    lists, clouds = tmp_path / "ShapeNet55" / "ShapeNet-55", tmp_path / "ShapeNet55" / "shapenet_pc"
    lists.mkdir(parents=True)
    clouds.mkdir()
    names = ["04554684-abc.npy", "02691156-def.npy", "03001627-ub5d972a1-x.npy"]  # the last one is left out
    for split in ("train", "test"):
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in names[:2]:
        np.save(clouds / name, rng().random((100, 3)).astype(np.float32))
        folder = tmp_path / "rendering" / name.removesuffix(".npy").replace("-", "_")
        folder.mkdir(parents=True)
        for view in range(10):
            Image.new("RGB", (32, 32), (view, 0, 0)).save(folder / f"{view}.png")
    data = PairDataModule(str(tmp_path), image_size=32, num_points=50, batch_size=2, num_workers=0)
    data.prepare_data()
    data.setup()
    images, points, elev, azim, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == [54, 0]
    assert (images.shape, points.shape) == ((2, 3, 32, 32), (2, 50, 3))
    # The red value is the number of the view: the angles belong to the picture that was drawn.
    for image, e, a in zip(images, elev, azim, strict=True):
        view = int(image[0, 0, 0])
        assert (e.item(), a.item()) == (VIEWS[10].elev[view], VIEWS[10].azim[view])
    assert data.prompt_sets[0][0] == "airplane"
    (tmp_path / "rendering" / "04554684_abc" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ZooError, match=r"0\.png"):
        data.val_data.picture(0, 0)
    data.val_data.image_size = 64
    with pytest.raises(ZooError, match="32 x 32"):
        data.val_data.picture(1, 0)


def test_generated_pairs(cache: Path) -> None:
    data = PairDataModule(
        "primitives", image_size=32, num_points=64, batch_size=12, primitives_per_class=(2, 1), num_workers=0
    )
    data.prepare_data()
    data.setup()
    assert len(data.train_data) == 24
    assert data.classes == sorted(CLASSES)
    batch = next(iter(data.train_dataloader()))
    assert [tuple(part.shape) for part in batch] == [(12, 3, 32, 32), (12, 64, 3), (12, 1), (12, 1), (12,)]
    glued = [Path(path).read_text()[:4] for path in data.train_data.shapes.paths + data.val_data.shapes.paths]
    assert any(head[3] != "\n" for head in glued)
    assert any(head[3] == "\n" for head in glued)
    again = PairDataModule("primitives", image_size=32, num_points=64, batch_size=12, primitives_per_class=(2, 1))
    again.setup()
    for first, second in zip(data.val_data[3], again.val_data[3], strict=True):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
    assert len(list((cache / "cache").rglob("*.png"))) == 36 * 10


def test_pictures_show_the_object() -> None:
    picture = shade(Shape(*_box_arrays(), "box"), VIEWS[10], 48, np.array([1.0, 0.2, 0.2]), rng())
    assert picture.shape == (10, 48, 48, 3)
    shown = (picture != 255).any(-1)
    assert 0.05 < shown.mean() < 0.6
    assert shown[:, 24, 24].all()
    assert (picture[shown][:, 0] > picture[shown][:, 1]).all()


def _box_arrays() -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.creation.box((1, 1, 1))
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_generated_meshes_are_whole(name: str, tmp_path: Path) -> None:
    mesh = build_shape(CLASSES[name], rng())
    write_off(tmp_path / "a.off", mesh, glued=True)
    shape = read_shape(tmp_path / "a.off")
    assert len(shape.faces) == len(mesh.faces)
    assert normalize_cloud(shape.vertices).shape == shape.vertices.shape


def test_real_meshes() -> None:
    """Reads the meshes in `$ZOO_TEST_MESHES`, where a folder of real ones is at hand."""
    folder = os.environ.get("ZOO_TEST_MESHES")
    if not folder:
        pytest.skip("ZOO_TEST_MESHES is not set")
    files = sorted(Path(folder).rglob("*.off"))
    assert files
    for file in files:
        cloud = to_cloud(read_shape(file), 1024, rng())
        assert cloud.shape == (1024, 3)
