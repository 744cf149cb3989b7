"""Containers, multi-crop, the renderer, few-shot index files, the official layouts; and what is wrong with input."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.face_representation import FaceRepresentationDataModule
from datamodules.faces import anatomy, identities, layouts, meshes, multicrop, shots
from datamodules.faces.multicrop import MultiCrop, apply_draws, apply_draws_torch
from datamodules.faces.normalisation import error_scale
from datamodules.faces.renderer import FaceRenderer
from datamodules.faces.sources import open_faces
from datamodules.faces.tasks import FaceCrops, FaceTaskDataModule
from zoo.errors import ZooError


def jpeg(seed: int = 0, size: tuple[int, int] = (60, 50), mode: str = "RGB", **options) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize(size)
    out = io.BytesIO()
    small.convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def container(path: Path, blobs: list[bytes]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images", (len(blobs),), dtype=h5py.vlen_dtype(np.uint8))
        for index, blob in enumerate(blobs):
            data[index] = np.frombuffer(blob, np.uint8)
    return path


SMALL = dict(crop_sizes=[32, 16], num_crops=[2, 3], batch_size=4, num_workers=0)


# ---------------------------------------------------------------------- containers


def test_every_container_gives_the_same_crops_with_any_number_of_workers(tmp_path):
    blobs = [jpeg(seed) for seed in range(9)]
    (tmp_path / "folder").mkdir()
    (tmp_path / "h5").mkdir()
    container(tmp_path / "h5" / "flickr_train.h5", blobs)
    with tarfile.open(tmp_path / "faces-000.tar", "w") as tar:
        for index, blob in enumerate(blobs):
            (tmp_path / "folder" / f"{index:03d}.jpg").write_bytes(blob)
            for name, content in ((f"{index:03d}.jpg", blob), (f"{index:03d}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    found = []
    for root in (tmp_path / "folder", tmp_path / "h5", tmp_path / "h5" / "flickr_train.h5", tmp_path / "faces-000.tar"):
        data = FaceRepresentationDataModule(str(root), **SMALL)
        data.setup()
        found.append([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()])
    workers = FaceRepresentationDataModule(str(tmp_path / "h5"), **{**SMALL, "num_workers": 2})
    workers.setup()
    found.append([workers.on_after_batch_transfer(batch, 0) for batch in workers.train_dataloader()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert [tuple(crop.shape) for crop in one] == [(4, 2, 3, 32, 32), (4, 3, 3, 16, 16)]
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_bad_blobs_are_named_by_index_or_skipped_and_counted(tmp_path):
    good = jpeg()
    path = container(tmp_path / "vggface2_train.h5", [good, b"", good[:200], b"no image at all", jpeg(1)])
    data = open_faces(path, "train")
    for index, reason in ((1, "empty"), (3, "image 3")):
        with pytest.raises(ZooError, match=reason):
            data.image(index)
    data = FaceRepresentationDataModule(str(path), **SMALL)
    data.setup()
    with pytest.raises(ZooError, match=r"vggface2_train\.h5, image 2"):
        data.train_data[2]
    data = FaceRepresentationDataModule(str(path), on_bad_image="skip", **SMALL)
    data.setup()
    with pytest.warns(UserWarning, match="skipped"):
        crops, _ = data.train_data[1]
    assert crops[0].shape == (2, 3, 32, 32)
    assert data.num_skipped == 3


def test_cmyk_grey_and_rotated_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = container(tmp_path / "x.h5", [jpeg(mode="CMYK"), jpeg(mode="L"), jpeg(exif=exif)])
    upright, as_stored = open_faces(path, "train"), open_faces(path, "train", exif=False)
    assert [upright.image(i).mode for i in range(3)] == ["RGB"] * 3
    assert upright.image(0).size == (60, 50)
    assert upright.image(2).size == (50, 60)
    assert as_stored.image(2).size == (60, 50)


@pytest.mark.parametrize("what", ["missing", "empty", "text.h5", "other.h5"])
def test_what_is_no_collection_is_said_in_one_line(tmp_path, what):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["pictures"] = [1, 2]
    with pytest.raises(ZooError) as caught:
        open_faces(tmp_path / what, "train")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_held_out_images_are_spread_and_apart(tmp_path):
    path = container(tmp_path / "x.h5", [jpeg(seed) for seed in range(8)])
    train, val = open_faces(path, "train", val_images=3), open_faces(path, "val", val_images=3)
    names = [*train.names, *val.names]
    assert len(train) == 5
    assert len(set(names)) == 8
    assert open_faces(path, "val") is None
    with pytest.raises(ZooError, match=r"8 images, but 512 .* lower --data\.val_images"):
        open_faces(path, "train", val_images=512)


def test_containers_of_another_layout_say_what_they_hold(tmp_path):
    h5py = pytest.importorskip("h5py")
    runs = h5py.vlen_dtype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["faces"] = [1, 2]
    with pytest.raises(ZooError, match=r"no data set 'images' .*dataset 'faces'"):
        open_faces(tmp_path / "x.h5", "train")
    for content, said in (
        (dict(data=np.zeros((2, 8, 8, 3), np.uint8)), r"\(2, 8, 8, 3\) of uint8"),
        (dict(data=np.zeros(2, np.float32)), "float32"),
        (dict(shape=(2,), dtype=runs), "runs of float32"),
        (dict(data=np.array([b"one", b"two"])), r"\|S3"),
    ):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("images", **content)
        with pytest.raises(ZooError, match=said) as caught:
            open_faces(tmp_path / "x.h5", "train")
        assert "encode" in str(caught.value)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("images")
    with pytest.raises(ZooError, match="group 'images'"):
        open_faces(tmp_path / "x.h5", "train")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", (0,), dtype=h5py.vlen_dtype(np.uint8))
    with pytest.raises(ZooError, match="holds no images"):
        open_faces(tmp_path / "x.h5", "train")
    (tmp_path / "x.h5").write_bytes(container(tmp_path / "y.h5", [jpeg()]).read_bytes()[:1000])
    with pytest.raises(ZooError, match=r"no readable HDF5 file .*truncated"):
        open_faces(tmp_path / "x.h5", "train")
    (tmp_path / "a.png").write_bytes(jpeg())
    with pytest.raises(ZooError, match=r"neither \.h5, \.hdf5 nor \.tar"):
        open_faces(tmp_path / "a.png", "train")


# ---------------------------------------------------------------------- multi-crop


def test_draws_have_the_published_rates_and_ranges():
    torch.manual_seed(0)
    drawn = MultiCrop().draw(4000)
    for column, rate in ((multicrop.JITTER, 0.8), (multicrop.GREY, 0.2), (multicrop.BLUR, 0.5)):
        assert drawn[:, column].mean().item() == pytest.approx(rate, abs=0.03)
    for column, low, high in ((1, 0.2, 1.8), (2, 0.2, 1.8), (3, 0.2, 1.8), (4, -0.2, 0.2), (8, 0.1, 2.0)):
        values = drawn[:, column]
        assert low <= values.min() < low + 0.02 * (high - low) + 1e-3
        assert high - 0.02 * (high - low) - 1e-3 < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert set(drawn[:, multicrop.ORDER].int().tolist()) == set(range(24))


def test_half_of_the_crops_are_mirrored_and_sizes_follow_the_scales():
    left = np.zeros((100, 100, 3), np.uint8)
    left[:, :50] = 255
    cut = MultiCrop([32], [2000], [(0.9, 1.0)], jitter_p=0, grey_p=0, blur_p=0)
    torch.manual_seed(0)
    (crops,), _ = cut(Image.fromarray(left))
    mirrored = crops[:, 0, :, -4:].float().mean(dim=(1, 2)) > 127
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_compiled_loops_and_tensor_operations_agree():
    pytest.importorskip("numba")
    torch.manual_seed(0)
    crops = torch.nn.functional.interpolate(torch.rand(60, 3, 6, 6), 24, mode="bicubic").clamp(0, 1).mul(255).byte()
    draws = MultiCrop().draw(60)
    difference = (apply_draws(crops, draws).int() - apply_draws_torch(crops, draws).int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.01


def test_colours_are_torchvisions():
    from torchvision.transforms.v2 import functional as F

    torch.manual_seed(1)
    crop = torch.rand(1, 3, 16, 16)
    byte = (crop * 255).round().byte()
    exact = byte.float() / 255
    plain = torch.tensor([[0.0, 1, 1, 1, 0, 0, 0, 0, 1]])
    order = multicrop.ORDERS.index((1, 2, 3, 4))
    for column, change in (
        (1, F.adjust_brightness),
        (2, F.adjust_contrast),
        (3, F.adjust_saturation),
        (4, F.adjust_hue),
    ):
        amount = 0.13 if column == 4 else 0.6
        draws = plain.clone()
        draws[0, 0], draws[0, 5], draws[0, column] = 1, order, amount
        ours = apply_draws_torch(byte, draws).float() / 255
        torch.testing.assert_close(ours, change(exact, amount), rtol=0, atol=1.5 / 255)
    grey = plain.clone()
    grey[0, 6] = 1
    torch.testing.assert_close(
        apply_draws_torch(byte, grey).float() / 255, F.rgb_to_grayscale(exact, 3), rtol=0, atol=1.5 / 255
    )
    blur = plain.clone()
    blur[0, 7], blur[0, 8] = 1, 1.3
    expected = F.gaussian_blur(exact, [23, 23], [1.3, 1.3])
    torch.testing.assert_close(apply_draws_torch(byte, blur).float() / 255, expected, rtol=0, atol=1.5 / 255)


def test_device_and_workers_give_the_same_crops(tmp_path):
    container(tmp_path / "x.h5", [jpeg(seed) for seed in range(4)])
    both = []
    for place in ("workers", "device"):
        data = FaceRepresentationDataModule(str(tmp_path / "x.h5"), augment_on=place, **SMALL)
        data.setup()
        both.append(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    for one, two in zip(*both, strict=True):
        assert (one - two).abs().max() < 0.05  # a grey level or two


def test_red_is_normalised_by_the_official_slip():
    data = FaceRepresentationDataModule(rendered_images=8, rendered_size=32, **SMALL)
    white = data.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(white, torch.tensor([0.515 / 0.228, 0.544 / 0.224, 0.594 / 0.225]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(crop_sizes=[32]), "one entry a resolution"),
        (dict(crop_scales=[[0.5, 0.2], [0.1, 0.3]]), "crop_scales"),
        (dict(grey_p=1.5), "grey_p"),
        (dict(std_red=0.0), "std_red"),
        (dict(blur_sigma=[0.0, 1.0]), "blur_sigma"),
    ],
)
def test_wrong_settings_are_named(arguments, said):
    with pytest.raises(ZooError, match=said):
        FaceRepresentationDataModule(**{**SMALL, **arguments})


# ---------------------------------------------------------------------- the renderer


def test_rendered_faces_are_the_same_again_and_know_their_labels():
    draw = FaceRenderer(48, identities=5, seed=3)
    first, again, other = draw(7), FaceRenderer(48, 5, 3)(7), draw(12)
    assert np.array_equal(first.image, again.image)
    assert first.identity == other.identity == 2
    assert not np.array_equal(first.image, other.image)
    assert first.landmarks.shape == (68, 2)
    assert (first.landmarks[36:68] > 0).all()
    assert (first.landmarks[36:68] < 48).all()
    # Landmarks are the first vertices of the mesh, scaled and moved.
    flat, points = first.vertices[:68, :2] - first.vertices[30, :2], first.landmarks - first.landmarks[30]
    scale = np.linalg.norm(points) / np.linalg.norm(flat)
    np.testing.assert_allclose(points, flat * scale, atol=1e-6)
    assert ((first.units >= 0) & (first.units <= 5)).all()
    assert (np.abs(first.affect) <= 1).all()


def test_expression_moves_the_right_points():
    rest = anatomy.template()
    units = np.zeros(10)
    units[anatomy.ACTION_UNITS.index(26)] = 5
    opened = anatomy.apply_expression(rest, units)
    assert opened[57, 1] > rest[57, 1] + 0.2  # lower lip
    np.testing.assert_array_equal(opened[17:48], rest[17:48])
    units = np.zeros(10)
    units[anatomy.ACTION_UNITS.index(12)] = 5
    smiling = anatomy.apply_expression(rest, units)
    assert smiling[48, 1] < rest[48, 1]
    assert anatomy.affect_of(units)[0] > 0.5


# ---------------------------------------------------------------------- few-shot index files


def test_smaller_shots_lie_within_larger_ones_and_reach_many_subjects():
    subjects = np.repeat(np.arange(20), 50)
    found = shots.few_shot(1000, [0.01, 0.1, 300, 1.0], seed=4, subjects=subjects)
    assert [len(found[name]) for name in ("0.01", "0.1", "300", "1")] == [10, 100, 300, 1000]
    for small, large in (("0.01", "0.1"), ("0.1", "300"), ("300", "1")):
        assert set(found[small]) <= set(found[large])
    assert len(np.unique(subjects[found["0.01"]])) == 10
    assert np.bincount(subjects[found["0.1"]]).tolist() == [5] * 20
    again = shots.few_shot(1000, [0.1], seed=4, subjects=subjects)["0.1"]
    assert np.array_equal(found["0.1"], again)
    assert not np.array_equal(again, shots.few_shot(1000, [0.1], seed=5, subjects=subjects)["0.1"])
    whole = shots.few_shot(1000, [60, 200], seed=0, subjects=subjects, whole_subjects=True)
    assert np.unique(np.bincount(subjects[whole["60"]])).tolist() == [0, 50]
    assert set(whole["60"]) <= set(whole["200"])


def test_index_files_belong_to_their_data(tmp_path):
    path = tmp_path / "shots.json"
    shots.write_index_file(path, shots.few_shot(50, [5, 0.5]), dataset="x", seed=0, count=50)
    assert len(shots.read_index_file(path, 50)["0.5"]) == 25
    with pytest.raises(ZooError, match="50 samples, the data has 60"):
        shots.read_index_file(path, 60)
    path.write_text("{}")
    with pytest.raises(ZooError, match="no few-shot index file"):
        shots.read_index_file(path, 50)
    for shot in (0, -1, 1.5, 51):
        with pytest.raises(ZooError, match=r"[Ss]hot"):
            shots.few_shot(50, [shot])


def test_subjects_on_both_sides_are_counted():
    shots.check_disjoint([1, 2, 3], [4, 5])
    with pytest.raises(ZooError, match="2 subjects are in both"):
        shots.check_disjoint([1, 2, 3], [2, 3, 9])


# ---------------------------------------------------------------------- official layouts, tiny


def picture(path: Path, size: tuple[int, int] = (60, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(len(path.name), size))
    return path


def pts(path: Path, points: np.ndarray) -> None:
    body = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n{body}\n}}\n")


def test_300w_reads_its_parts_and_the_one_based_points(tmp_path):
    points = np.random.default_rng(0).uniform(5, 45, (68, 2))
    for part in ("afw", "helen/trainset", "lfpw/trainset", "helen/testset", "lfpw/testset", "ibug"):
        pts(picture(tmp_path / part / "a.jpg").with_suffix(".pts"), points)
    train, test = layouts.read_300w(tmp_path, "train"), layouts.read_300w(tmp_path, "test")
    assert (len(train), len(test)) == (3, 3)
    np.testing.assert_allclose(train.targets[0], points - 1, atol=1e-3)
    assert test.subsets["challenging"].tolist() == [False, False, True]
    pts(tmp_path / "ibug" / "a.pts", points[:67])
    with pytest.raises(ZooError, match="67 landmarks, not 68"):
        layouts.read_300w(tmp_path, "test")
    for body, said in (
        ("version: 1\n{\n1 2\n12.0\n}\n", "line 4: '12.0' is no point"),
        ("version: 1\n{\nnan 2\n}\n", "line 3: 'nan 2' is no point"),
        ("version: 1\n", "no points between"),
    ):
        (tmp_path / "ibug" / "a.pts").write_text(body)
        with pytest.raises(ZooError, match=said):
            layouts.read_300w(tmp_path, "test")
    (tmp_path / "afw" / "a.jpg").unlink()
    with pytest.raises(ZooError, match="no picture beside"):
        layouts.read_300w(tmp_path, "train")


def test_landmarks_follow_the_crop(tmp_path):
    dots = np.array([[20.0, 15.0], [40.0, 15.0], [30.0, 38.0]])
    pixels = np.zeros((50, 60, 3), np.uint8)
    for x, y in dots.astype(int):
        pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    points = np.concatenate([dots, np.tile(dots[:1], (65, 1))])
    for index in range(5):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        pts(tmp_path / f"{index}.pts", points + 1)
    for size in (32, 96):
        data = FaceTaskDataModule(task="landmarks", dataset="300w", root=str(tmp_path), image_size=size, batch_size=2,
                                  num_workers=0)  # fmt: skip
        data.setup()
        sample = data.data["train"][0]
        for x, y in sample["target"][:3] * size:
            assert sample["image"][:, int(y), int(x)].float().mean() > 100
        expected = np.linalg.norm(points[36] - points[45])
        assert sample["scale"] == pytest.approx(expected)


def test_wflw(tmp_path):
    points = np.random.default_rng(0).uniform(5, 45, (98, 2))
    picture(tmp_path / "WFLW_images" / "0--Parade" / "a.jpg")
    values = [*points.ravel(), 4, 5, 46, 47, 0, 1, 0, 0, 0, 1]
    line = " ".join(f"{value:g}" for value in values) + " 0--Parade/a.jpg"
    listing = tmp_path / "annotations" / "list_98pt_rect_attr_train.txt"
    listing.parent.mkdir()
    listing.write_text(line + "\n")
    found = layouts.read_wflw(tmp_path, "train")
    np.testing.assert_allclose(found.targets[0], points, rtol=1e-4)
    assert found.boxes.tolist() == [[4, 5, 46, 47]]
    assert [name for name in layouts.WFLW_SUBSETS if found.subsets[name][0]] == ["expression", "blur"]
    assert found.images[0].is_file()
    listing.with_name("list_98pt_rect_attr_test.txt").write_text(line + "\n")
    data = FaceTaskDataModule(task="landmarks", dataset="wflw", root=str(tmp_path), image_size=32, num_workers=0)
    assert data.subset_names == list(layouts.WFLW_SUBSETS)
    assert data.data["test"][0]["subsets"].tolist() == [False, True, False, False, False, True]
    listing.write_text(line + "\n" + " ".join(line.split()[2:]) + "\n")
    with pytest.raises(ZooError, match=r"line 2: 205 entries"):
        layouts.read_wflw(tmp_path, "train")


def test_cofw(tmp_path):
    h5py = pytest.importorskip("h5py")
    phis = np.random.default_rng(0).uniform(5, 40, (2, 87))
    phis[:, 58:] = 0
    phis[1, 60] = 1
    with h5py.File(tmp_path / "COFW_train_color.mat", "w") as file:
        pictures = [np.full((40, 50, 3), 9, np.uint8), np.full((30, 20), 7, np.uint8)]
        references = [file.create_dataset(f"#refs#/{i}", data=p.T).ref for i, p in enumerate(pictures)]
        file.create_dataset("IsTr", data=np.array([references], dtype=h5py.ref_dtype))
        file["phisTr"] = phis.T
        file["bboxesTr"] = np.array([[1, 1, 10, 20], [2, 3, 4, 5]], float).T
    found = layouts.read_cofw(tmp_path, "train")
    assert [image.shape for image in found.images] == [(40, 50, 3), (30, 20, 3)]
    np.testing.assert_allclose(found.targets[1], np.stack([phis[1, :29], phis[1, 29:58]], axis=1) - 1)
    assert found.boxes.tolist() == [[0, 0, 10, 20], [1, 2, 5, 7]]
    assert found.subsets["occluded"].tolist() == [False, True]


def test_aflw(tmp_path):
    from scipy.io import savemat

    data = np.random.default_rng(0).uniform(1, 9, (3, 38))
    mask = np.ones((3, 19))
    mask[1, 4] = 0
    names = np.array(["0/a.jpg", "0/b.jpg", "2/c.jpg"], dtype=object).reshape(3, 1)
    savemat(tmp_path / "AFLWinfo_release.mat", {
        "data": data, "bbox": np.array([[1, 11, 2, 12]] * 3), "nameList": names, "mask_new": mask, "ra": [[3, 2, 1]],
    })  # fmt: skip
    train, test = layouts.read_aflw(tmp_path, "train"), layouts.read_aflw(tmp_path, "test")
    assert [path.name for path in train.images] == ["c.jpg", "b.jpg"]
    assert [path.name for path in test.images] == ["a.jpg"]
    np.testing.assert_allclose(train.targets[0], np.stack([data[2, :19], data[2, 19:]], axis=1))
    assert np.isnan(train.targets[1][4]).all()
    assert train.boxes[0].tolist() == [1, 2, 11, 12]
    assert train.subsets["frontal"].tolist() == [True, False]


def test_disfa_folds_share_no_subject_and_bad_labels_are_named(tmp_path):
    for number in range(1, 5):
        person = f"SN{number:03d}"
        for frame in (1, 2, 3):
            picture(tmp_path / "images" / person / f"{frame:05d}.jpg")
        for au in layouts.AU_SETS["disfa"]:
            file = tmp_path / "ActionUnit_Labels" / person / f"{person}_au{au}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("1,0\n2,3\n")
    train, test = layouts.read_disfa(tmp_path, "train", 1), layouts.read_disfa(tmp_path, "test", 1)
    assert (len(train), len(test)) == (6, 2)
    assert train.targets.shape == (6, 12)
    shots.check_disjoint(train.subjects, test.subjects)
    file.write_text("1,0\n2,7\n")
    with pytest.raises(ZooError, match=r"line 2: intensity 7"):
        layouts.read_disfa(tmp_path, "train", 1)
    with pytest.raises(ZooError, match="fold"):
        layouts.read_disfa(tmp_path, "train", 3)


def test_bp4d_splits_odd_and_even_and_leaves_out_what_was_not_coded(tmp_path):
    for person in ("F001", "F002"):
        for au in layouts.AU_SETS["bp4d"]:
            file = tmp_path / "AUIntensityCodes" / f"AU{au:02d}" / f"{person}_T1_AU{au:02d}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("1,2\n2,9\n3,5\n")
        for frame in (1, 2, 3):
            picture(tmp_path / "images" / person / "T1" / f"{frame:04d}.jpg")
    train, test = layouts.read_bp4d(tmp_path, "train"), layouts.read_bp4d(tmp_path, "test")
    assert train.targets.tolist() == test.targets.tolist() == [[2] * 5, [5] * 5]
    assert "F001" in str(train.images[0])
    assert "F002" in str(test.images[0])


def test_affectnet_drops_what_is_not_annotated(tmp_path, caplog):
    caplog.set_level("INFO")
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    rows = ["1/a.jpg,5,6,20,30,1;2,1,0.5,-0.25", "1/b.jpg,5,6,20,30,1;2,8,-2,-2"]
    (tmp_path / "training.csv").write_text("\n".join([header, *rows]) + "\n")
    found = layouts.read_affectnet(tmp_path, "train")
    assert found.targets.tolist() == [[0.5, -0.25]]
    assert "1 rows without valence and arousal (-2) left out, 1 taken" in caplog.text
    assert found.boxes.tolist() == [[5, 6, 25, 36]]
    for values in ("1.5,0", "nan,0", "0.5,-1.01"):
        (tmp_path / "training.csv").write_text(f"{header}\n1/a.jpg,5,6,20,30,1;2,1,{values}\n")
        with pytest.raises(ZooError, match="line 2"):
            layouts.read_affectnet(tmp_path, "train")
    (tmp_path / "training.csv").write_text("\n".join([header, rows[1], rows[1]]) + "\n")
    with pytest.raises(ZooError, match="2 rows say -2"):
        layouts.read_affectnet(tmp_path, "train")
    with pytest.raises(ZooError, match=r"validation\.csv"):
        layouts.read_affectnet(tmp_path, "val")


def test_pairs_and_templates(tmp_path):
    for name in ("Ann", "Bo"):
        for number in (1, 2):
            picture(tmp_path / name / f"{name}_{number:04d}.jpg")
    (tmp_path / "pairs.txt").write_text("10\t1\nAnn\t1\t2\nAnn\t2\tBo\t1\n")
    found = identities.read_pairs(tmp_path)
    assert found.pairs.tolist() == [[0, 1, 1], [1, 2, 0]]
    (tmp_path / "pairs.txt").write_text("Ann\t1\t3\n")
    with pytest.raises(ZooError, match=r"line 1: there is no picture Ann/Ann_0003"):
        identities.read_pairs(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").mkdir()
    (tmp_path / "meta" / "ijbc_face_tid_mid.txt").write_text("1.jpg 1 7\n2.jpg 1 7\n3.jpg 4 8\n")
    (tmp_path / "meta" / "ijbc_template_pair_label.txt").write_text("1 4 0\n1 1 1\n")
    ijb = identities.read_ijb(tmp_path)
    assert ijb.templates.tolist() == [1, 1, 4]
    assert ijb.media.tolist() == [7, 7, 8]
    assert ijb.pairs.tolist() == [[1, 4, 0], [1, 1, 1]]
    (tmp_path / "meta" / "ijbc_template_pair_label.txt").write_text("1 5 0\n")
    with pytest.raises(ZooError, match="template 5"):
        identities.read_ijb(tmp_path)


def test_identities_on_both_sides_are_refused(tmp_path):
    for part, names in (("train", "ab"), ("test", "bc")):
        for name in names:
            picture(tmp_path / part / name / "1.jpg")
            picture(tmp_path / part / name / "2.jpg")
    data = FaceTaskDataModule(task="recognition", dataset="identities", root=str(tmp_path), num_workers=0)
    with pytest.raises(ZooError, match=r"1 of the identity folders are in both .*train and .*test"):
        data.setup()


def test_whole_pictures_are_turned_upright_and_cut_ones_stay_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    (tmp_path / "a.jpg").write_bytes(jpeg(0, (60, 50), exif=exif))
    box = np.array([[5.0, 5.0, 45.0, 45.0]])
    for task, boxes, size in (("recognition", None, (50, 60)), ("valence_arousal", None, (50, 60)),
                              ("valence_arousal", box, (60, 50)), ("landmarks", box, (60, 50))):  # fmt: skip
        annotations = layouts.Annotations([tmp_path / "a.jpg"], np.zeros((1, 2)), boxes)
        assert FaceCrops(annotations, task, 32).picture(0).size == size


def test_morphable_model_meshes(tmp_path):
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    basis = dict(
        mean=rng.normal(size=(70, 3)),
        shape=rng.normal(size=(70, 3, 4)),
        expression=rng.normal(size=(70, 3, 2)),
        triangles=np.array([[0, 1, 2], [2, 3, 4]]),
        landmarks=np.arange(68),
    )
    np.savez(tmp_path / "basis.npz", **basis)
    para = rng.normal(size=199), rng.normal(size=29)
    for part in ("train", "test"):
        path = picture(tmp_path / part / "a.jpg")
        savemat(path.with_suffix(".mat"), {"Shape_Para": para[0][:, None], "Exp_Para": para[1][:, None],
                                           "pt2d": rng.uniform(5, 40, (2, 68))})  # fmt: skip
    data = FaceTaskDataModule(task="reconstruction3d", dataset="3dmm", root=str(tmp_path),
                              basis=str(tmp_path / "basis.npz"), image_size=32, num_workers=0)  # fmt: skip
    data.setup()
    expected = basis["mean"] + basis["shape"] @ para[0][:4] + basis["expression"] @ para[1][:2]
    np.testing.assert_allclose(data.data["train"][0]["target"], expected, rtol=1e-5)
    assert data.outputs == 70
    train = data.data["train"]
    np.testing.assert_allclose(data.mean_target(), expected, rtol=1e-5)  # one picture alone
    eyes = np.linalg.norm(expected[36] - expected[45])
    assert train.scale[0] == pytest.approx(eyes, rel=1e-5)
    many = meshes.Meshes(meshes.read_basis(tmp_path / "basis.npz"), rng.normal(size=(5, 4)), rng.normal(size=(5, 2)))
    np.testing.assert_allclose(many.mean(np.array([1, 3])), (many[1] + many[3]) / 2)
    np.testing.assert_allclose(many.at(np.array([2, 60])), np.stack([many[i] for i in range(5)])[:, [2, 60]])
    with pytest.raises(ZooError, match="basis"):
        meshes.read_basis(tmp_path / "train" / "a.jpg")


def test_normalisations_of_landmark_errors():
    points = np.zeros((1, 68, 2))
    points[0, 36], points[0, 39], points[0, 42], points[0, 45] = (0, 0), (2, 0), (4, 0), (6, 0)
    points[0, 8] = (3, 8)
    assert error_scale(points, "inter_ocular", None)[0] == 6
    assert error_scale(points, "inter_pupil", None)[0] == 4
    assert error_scale(points, "box_diagonal", None)[0] == 10
    assert error_scale(points, "box_size", np.array([[0, 0, 4, 9]]))[0] == 6
    with pytest.raises(ZooError, match="choose box_diagonal"):
        error_scale(points[:, :5], "inter_ocular", None)
